"""The rules KubeRay's operator (v1.7) checks after the API server has accepted an object, and traps nobody checks.

The API server takes `minReplicas: 3, maxReplicas: 2` and `submissionMode: HTTPmode`; the operator then warns in an
event and the object stays without status. Each function yields (path, rule, value).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

import yaml

Violation = tuple[str, str, object]
Object = Mapping[str, Any]

NAME_LENGTH_MAX: Final = {"RayCluster": 53, "RayService": 47, "RayJob": 47, "RayCronJob": 36}
CLUSTER_SPEC: Final = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
SUBMISSION_MODES: Final = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
UPGRADE_TYPES: Final = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
SERVE_PORT: Final = 8000
_DNS1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_ENV_BY_OPERATOR: Final = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_GATED_FIELDS: Final = ("networkPolicy", "tlsOptions", "historyServerOptions")
_DEPRECATED_FIELDS: Final = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
_DELETION_ORDER: Final = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def operator_violations(manifest: Object) -> list[str]:
    """Each broken rule as ``Kind/name path: expected rule, was value``; empty for a manifest the operator accepts."""
    identity = f"{manifest['kind']}/{manifest['metadata']['name']}"
    found = list(_name_rules(manifest))
    spec = manifest["spec"]
    if manifest["kind"] == "RayService":
        found += _service_rules(manifest)
    if manifest["kind"] == "RayJob":
        found += _job_rules(spec)
    field = CLUSTER_SPEC.get(manifest["kind"])
    cluster = spec if field is None else spec.get(field)
    if cluster is not None:
        prefix = "spec" if field is None else f"spec.{field}"
        annotations = manifest["metadata"].get("annotations", {})
        found += [(f"{prefix}.{path}", rule, was) for path, rule, was in _cluster_rules(cluster, annotations)]
    return [f"{identity} {path}: expected {rule}, was {value!r}" for path, rule, value in found]


def _name_rules(manifest: Object) -> Iterator[Violation]:
    name, length_max = manifest["metadata"]["name"], NAME_LENGTH_MAX[manifest["kind"]]
    if len(name) > length_max:
        yield "metadata.name", f"at most {length_max} characters", name
    if not _DNS1035.fullmatch(name):
        yield "metadata.name", "a DNS1035 label", name


def _service_rules(manifest: Object) -> Iterator[Violation]:
    spec, annotations = manifest["spec"], manifest["metadata"].get("annotations", {})
    for field in _DEPRECATED_FIELDS:
        if field in spec:
            yield f"spec.{field}", "nothing: deprecated, without effect", spec[field]
    timeout = annotations.get("ray.io/initializing-timeout", "1s")
    if not re.fullmatch(r"0*[1-9]\d*|(?=.*[1-9])(\d+(\.\d+)?(ms|s|m|h))+", timeout):
        yield "metadata.annotations[ray.io/initializing-timeout]", "a positive duration or seconds", timeout
    if "name" in spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "spec.rayClusterConfig.headGroupSpec.headService.metadata.name", "nothing", "a name"
    yield from _upgrade_rules(spec)
    yield from _serve_config_rules(spec)


def _upgrade_rules(spec: Object) -> Iterator[Violation]:
    strategy = spec.get("upgradeStrategy", {})
    kind = strategy.get("type", "NewCluster")
    if kind not in UPGRADE_TYPES:
        yield "spec.upgradeStrategy.type", f"one of {UPGRADE_TYPES}", kind
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "spec.rayClusterConfig.enableInTreeAutoscaling", "true for an incremental upgrade", False
    options = strategy.get("clusterUpgradeOptions", {})
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= step <= surge <= 100:
        rule = "0 <= stepSizePercent <= maxSurgePercent <= 100"
        yield "spec.upgradeStrategy.clusterUpgradeOptions", rule, (step, surge)
    if options.get("intervalSeconds", 0) <= 0:
        yield "spec.upgradeStrategy.clusterUpgradeOptions.intervalSeconds", "above 0", options.get("intervalSeconds")
    if not options.get("gatewayClassName"):
        yield "spec.upgradeStrategy.clusterUpgradeOptions.gatewayClassName", "a name", options.get("gatewayClassName")


def _serve_config_rules(spec: Object) -> Iterator[Violation]:
    # Importing the schema starts no Ray.
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    path = "spec.serveConfigV2"
    try:
        config = yaml.safe_load(spec.get("serveConfigV2", ""))
        kept = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
    except (yaml.YAMLError, ValidationError, ValueError) as error:
        yield path, "a configuration Serve accepts", str(error)
        return
    port = config.get("http_options", {}).get("port", SERVE_PORT)
    declared = {
        declared["containerPort"]
        for _, group in _located_groups(spec["rayClusterConfig"])
        for container in _containers(group)
        for declared in container.get("ports", [])
        if declared.get("name") == "serve"
    }
    if declared != {port}:
        yield f"{path} http_options.port", f"the containers' port serve ({sorted(declared)})", port
    for dropped in _dropped(config, kept):
        yield f"{path} {dropped}", "a field Serve knows: it ignores the others", "given"
    # A client's request ends at a worker's proxy; with one on the head only, the head's death is an outage.
    if config.get("proxy_location", "EveryNode") != "EveryNode":
        yield f"{path} proxy_location", "EveryNode", config["proxy_location"]


def _job_rules(spec: Object) -> Iterator[Violation]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield "spec.submissionMode", f"one of {SUBMISSION_MODES}", mode
    if mode != "InteractiveMode" and not spec.get("entrypoint", "").strip():
        yield "spec.entrypoint", "a command", spec.get("entrypoint")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit", "0 in InteractiveMode", spec["backoffLimit"]
    if mode == "SidecarMode":
        for field in {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
            yield f"spec.{field}", "nothing in SidecarMode", spec[field]
    for field, least in (("ttlSecondsAfterFinished", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 1)):
        if spec.get(field, least) < least:
            yield f"spec.{field}", f"at least {least}", spec[field]
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.suspend", "shutdownAfterJobFinishes with it", True
    yield from _driver_rules(spec)
    yield from _selector_rules(spec)
    yield from _deletion_rules(spec)


def _driver_rules(spec: Object) -> Iterator[Violation]:
    for field in ("runtimeEnvYAML", "entrypointResources"):
        try:
            parsed = yaml.safe_load(spec[field]) if field == "runtimeEnvYAML" else json.loads(spec[field])
        except KeyError:
            continue
        except (yaml.YAMLError, ValueError) as error:
            yield f"spec.{field}", "YAML or JSON text", str(error)
            continue
        if not isinstance(parsed, dict):
            yield f"spec.{field}", "a mapping", parsed
    head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("rayStartParams", {})
    placed = any(spec.get(field) for field in ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"))
    # Not refused by the operator: the driver would wait on a head that has nothing to give.
    if head.get("num-cpus") == "0" and not placed:
        yield "spec.entrypointNumCpus", "above 0, because the head offers no CPU", spec.get("entrypointNumCpus")


def _selector_rules(spec: Object) -> Iterator[Violation]:
    selector = spec.get("clusterSelector")
    if selector is None and "rayClusterSpec" not in spec:
        yield "spec", "rayClusterSpec or clusterSelector", sorted(spec)
    if selector is None:
        return
    if not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector", "a ray.io/cluster", selector
    if spec.get("suspend"):
        yield "spec.suspend", "false with clusterSelector", True
    if spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit", "0 with clusterSelector", spec["backoffLimit"]


def _deletion_rules(spec: Object) -> Iterator[Violation]:
    shutdown, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    if ttl > 0 and not shutdown:
        yield "spec.ttlSecondsAfterFinished", "0 without shutdownAfterJobFinishes", ttl
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    path = "spec.deletionStrategy"
    for field in {"onSuccess", "onFailure"} & set(strategy):
        yield f"{path}.{field}", "deletionRules (onSuccess and onFailure are deprecated)", strategy[field]
    rules = strategy.get("deletionRules", [])
    if not rules:
        yield f"{path}.deletionRules", "at least one rule", rules
    if rules and shutdown:
        yield f"{path}.deletionRules", "no shutdownAfterJobFinishes beside them", shutdown
    yield from _each_deletion_rule(f"{path}.deletionRules", spec, rules)


def _each_deletion_rule(path: str, spec: Object, rules: list[Any]) -> Iterator[Violation]:
    ttl_by_outcome: dict[str, dict[str, int]] = {}
    for index, rule in enumerate(rules):
        policy, condition = rule["policy"], rule.get("condition", {})
        outcomes = [condition[key] for key in ("jobStatus", "jobDeploymentStatus") if key in condition]
        if len(outcomes) != 1:
            yield f"{path}[{index}].condition", "jobStatus or jobDeploymentStatus, not both", condition
            continue
        if policy in ("DeleteCluster", "DeleteWorkers") and "clusterSelector" in spec:
            yield f"{path}[{index}].policy", "DeleteSelf or DeleteNone with clusterSelector", policy
        if policy == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield f"{path}[{index}].policy", "not DeleteWorkers with autoscaling", policy
        known = ttl_by_outcome.setdefault(outcomes[0], {})
        if policy in known:
            yield f"{path}[{index}]", "each policy once for an outcome", policy
        known[policy] = condition.get("ttlSeconds", 0)
    for outcome, ttls in ttl_by_outcome.items():
        ordered = [(policy, ttls[policy]) for policy in _DELETION_ORDER if policy in ttls]
        if any(later[1] < earlier[1] for earlier, later in pairwise(ordered)):
            yield path, f"ttlSeconds of {' <= '.join(_DELETION_ORDER)} for {outcome}", ordered


def _cluster_rules(cluster: Object, annotations: Mapping[str, str]) -> Iterator[Violation]:
    for field in _GATED_FIELDS:
        if field in cluster:
            yield field, "nothing: behind a feature gate that is off by default", cluster[field]
    groups = cluster.get("workerGroupSpecs", [])
    names = [group.get("groupName", "") for group in groups]
    for index, group in enumerate(groups):
        path = f"workerGroupSpecs[{index}]"
        if not names[index] or names[index] in names[:index]:
            yield f"{path}.groupName", "a name of its own", names[index]
        yield from _replica_rules(path, group)
    for path, group in _located_groups(cluster):
        yield from _group_rules(path, group)
    yield from _fault_tolerance_rules(cluster, annotations)
    yield from _autoscaler_rules(cluster)
    yield from _auth_rules(cluster)


def _replica_rules(path: str, group: Object) -> Iterator[Violation]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    wanted = group.get("replicas", least)
    if not 0 <= least <= wanted <= most:
        yield path, "0 <= minReplicas <= replicas <= maxReplicas", (least, wanted, most)


def _group_rules(path: str, group: Object) -> Iterator[Violation]:
    parameters = group.get("rayStartParams", {})
    if not _containers(group):
        yield f"{path}.template.spec.containers", "at least one container", []
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        yield f"{path}.resources", "not beside the same in rayStartParams", group["resources"]
    for forbidden in {"labels", "redis-password", "redis-username"} & set(parameters):
        yield f"{path}.rayStartParams.{forbidden}", "the field of the manifest instead", "a value"
    for container in _containers(group):
        for variable in container.get("env", []):
            if variable["name"] in _ENV_BY_OPERATOR:
                yield f"{path} env {variable['name']}", "nothing: the operator sets it", "set by hand"


def _fault_tolerance_rules(cluster: Object, annotations: Mapping[str, str]) -> Iterator[Violation]:
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        return
    path = "gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "rocksdb":
        yield f"{path}.backend", "redis: rocksdb is behind a feature gate", "rocksdb"
    if not options.get("redisAddress"):
        yield f"{path}.redisAddress", "an address", options.get("redisAddress")
    if "storage" in options:
        yield f"{path}.storage", "nothing with the backend redis", options["storage"]
    for name in {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(annotations):
        yield path, f"no annotation {name} beside it", annotations[name]


def _autoscaler_rules(cluster: Object) -> Iterator[Violation]:
    version = cluster.get("autoscalerOptions", {}).get("version")
    enabled = cluster.get("enableInTreeAutoscaling", False)
    for path, group in _located_groups(cluster):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if enabled and version != "v1" and policy != "Never":
            yield f"{path}.template.spec.restartPolicy", "Never or nothing under autoscaler v2", policy
        if enabled and group.get("suspend"):
            yield f"{path}.suspend", "false with autoscaling", True
        if "idleTimeoutSeconds" in group and version != "v2":
            yield f"{path}.idleTimeoutSeconds", "autoscalerOptions.version v2 written out", version


def _auth_rules(cluster: Object) -> Iterator[Violation]:
    options, version = cluster.get("authOptions", {}), str(cluster.get("rayVersion", ""))
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version)
    # Without it the operator falls back to probes by wget, which a slim image does not have.
    if numbers is None:
        yield "rayVersion", "major.minor.patch", version
    elif options.get("mode") == "token" and tuple(map(int, numbers.groups())) < (2, 52, 0):
        yield "rayVersion", "at least 2.52.0 for tokens", version
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth", "false for a RayService or RayJob", True


def _located_groups(cluster: Object) -> Iterator[tuple[str, Any]]:
    yield "headGroupSpec", cluster["headGroupSpec"]
    yield from ((f"workerGroupSpecs[{i}]", group) for i, group in enumerate(cluster.get("workerGroupSpecs", [])))


def _dropped(given: object, kept: object) -> Iterator[str]:
    """Paths of the fields in ``given`` that the schema let fall without a word."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            inner = _dropped(value, kept[key]) if key in kept else [""]
            yield from (f"{key}.{rest}".rstrip(".") for rest in inner)
    elif isinstance(given, list) and isinstance(kept, list):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from (f"[{index}].{rest}" for rest in _dropped(one, other))


def _containers(group: Object) -> list[Any]:
    containers: list[Any] = group["template"]["spec"].get("containers", [])
    return containers
