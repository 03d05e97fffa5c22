"""What KubeRay's operator would refuse in silence: our manifests break none of it, and each rule catches its breach."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.kubernetes.operator_rules import operator_violations

Manifest = dict[str, Any]

SERVICE_CLUSTER = "spec/rayClusterConfig"
GROUP = f"{SERVICE_CLUSTER}/workerGroupSpecs/0"
HEAD_ENV = f"{SERVICE_CLUSTER}/headGroupSpec/template/spec/containers/0/env/0"
GCS = f"{SERVICE_CLUSTER}/gcsFaultToleranceOptions"
ABSENT = object()

INCREMENTAL = {
    "type": "NewClusterWithIncrementalUpgrade",
    "clusterUpgradeOptions": {"stepSizePercent": 10, "intervalSeconds": 30, "gatewayClassName": "istio"},
}


def test_the_rendered_service_and_jobs_follow_the_operators_rules(manifests: list[Manifest], job: Manifest) -> None:
    ray = [m for m in [*manifests, job] if m["apiVersion"].startswith("ray.io/")]
    assert len(ray) == 3
    assert [violation for manifest in ray for violation in operator_violations(manifest)] == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metadata/name": "d" * 48}, "metadata.name: expected at most 47 characters"),
        ({"metadata/name": "1desk"}, "metadata.name: expected a DNS1035 label, was '1desk'"),
        ({"metadata/name": "desk-"}, "metadata.name: expected a DNS1035 label, was 'desk-'"),
        ({"metadata/name": "Desk"}, "metadata.name: expected a DNS1035 label, was 'Desk'"),
        ({f"{GROUP}/minReplicas": 7}, "workerGroupSpecs[0]: expected 0 <= minReplicas <= replicas <= maxReplicas"),
        ({f"{GROUP}/replicas": 9}, "workerGroupSpecs[0]: expected 0 <= minReplicas <= replicas <= maxReplicas"),
        ({f"{GROUP}/replicas": -5, f"{GROUP}/minReplicas": -5}, "expected 0 <= minReplicas"),
        ({f"{GROUP}/groupName": ""}, "workerGroupSpecs[0].groupName: expected a name of its own"),
        ({f"{GROUP}/template/spec/containers": []}, "workerGroupSpecs[0].template.spec.containers: expected at least"),
        ({f"{GROUP}/idleTimeoutSeconds": 60}, "idleTimeoutSeconds: expected autoscalerOptions.version v2"),
        ({f"{GROUP}/rayStartParams/labels": "a=b"}, "rayStartParams.labels: expected the field"),
        ({f"{HEAD_ENV}/name": "RAY_REDIS_ADDRESS"}, "headGroupSpec env RAY_REDIS_ADDRESS: expected nothing"),
        ({f"{HEAD_ENV}/name": "REDIS_PASSWORD"}, "headGroupSpec env REDIS_PASSWORD: expected nothing"),
        ({f"{HEAD_ENV}/name": "RAY_AUTH_MODE"}, "headGroupSpec env RAY_AUTH_MODE: expected nothing"),
        (
            {f"{SERVICE_CLUSTER}/headGroupSpec/rayStartParams/redis-password": "x"},
            "rayStartParams.redis-password: expected the field",
        ),
        (
            {f"{SERVICE_CLUSTER}/headGroupSpec/resources": {"CPU": "1"}},
            "headGroupSpec.resources: expected not beside the same in rayStartParams",
        ),
        ({f"{GCS}/backend": "rocksdb"}, "gcsFaultToleranceOptions.backend: expected redis"),
        ({f"{GCS}/redisAddress": ABSENT}, "gcsFaultToleranceOptions.redisAddress: expected an address"),
        ({f"{GCS}/storage": {"size": "1Gi"}}, "gcsFaultToleranceOptions.storage: expected nothing"),
        ({"metadata/annotations": {"ray.io/ft-enabled": "true"}}, "expected no annotation ray.io/ft-enabled"),
        ({f"{SERVICE_CLUSTER}/rayVersion": ABSENT}, "rayVersion: expected major.minor.patch"),
        ({f"{SERVICE_CLUSTER}/rayVersion": "2.51.9"}, "rayVersion: expected at least 2.52.0 for tokens"),
        ({f"{SERVICE_CLUSTER}/authOptions/enableK8sTokenAuth": True}, "authOptions.enableK8sTokenAuth: expected false"),
        (
            {f"{SERVICE_CLUSTER}/networkPolicy": {"mode": "DenyAll"}},
            "networkPolicy: expected nothing: behind a feature",
        ),
        ({"spec/serviceUnhealthySecondThreshold": 300}, "spec.serviceUnhealthySecondThreshold: expected nothing"),
        ({"spec/upgradeStrategy/type": "Recreate"}, "spec.upgradeStrategy.type: expected one of"),
        ({"spec/upgradeStrategy": INCREMENTAL}, "enableInTreeAutoscaling: expected true for an incremental upgrade"),
        ({"metadata/annotations/ray.io~1initializing-timeout": "0s"}, "expected a positive duration or seconds"),
        ({"metadata/annotations/ray.io~1initializing-timeout": "soon"}, "expected a positive duration or seconds"),
        (
            {f"{SERVICE_CLUSTER}/headGroupSpec/headService": {"metadata": {"name": "head"}}},
            "headService.metadata.name: expected nothing",
        ),
        ({"spec/serveConfigV2": "applications: [{name: orders}]"}, "spec.serveConfigV2: expected a configuration"),
        ({"spec/serveConfigV2": "applications: [" + "}"}, "spec.serveConfigV2: expected a configuration"),
        ({"spec/serveConfigV2": ""}, "spec.serveConfigV2: expected a configuration"),
        (
            {"spec/serveConfigV2": "{http_options: {port: 8001}, applications: [{import_path: 'a:b'}]}"},
            "spec.serveConfigV2 http_options.port: expected the containers' port serve ([8000]), was 8001",
        ),
        (
            {"spec/serveConfigV2": "applications: [{import_path: 'a:b', deployments: [{name: A, num_replica: 3}]}]"},
            "spec.serveConfigV2 applications.[0].deployments.[0].num_replica: expected a field Serve knows",
        ),
        (
            {"spec/serveConfigV2": "{proxy_location: HeadOnly, applications: [{import_path: 'a:b'}]}"},
            "spec.serveConfigV2 proxy_location: expected EveryNode, was 'HeadOnly'",
        ),
    ],
)
def test_a_service_that_breaks_a_rule_is_named(service: Manifest, changes: Manifest, expected: str) -> None:
    _assert_only_names(service, "RayService", changes, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stepSizePercent": 101}, "0 <= stepSizePercent <= maxSurgePercent <= 100"),
        ({"stepSizePercent": 20, "maxSurgePercent": 10}, "0 <= stepSizePercent <= maxSurgePercent <= 100"),
        ({"intervalSeconds": 0}, "intervalSeconds: expected above 0"),
        ({"gatewayClassName": ""}, "gatewayClassName: expected a name"),
    ],
)
def test_an_incremental_upgrade_that_breaks_a_rule_is_named(
    service: Manifest, options: Manifest, expected: str
) -> None:
    service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] = True
    service["spec"]["upgradeStrategy"] = copy.deepcopy(INCREMENTAL)
    assert operator_violations(service) == []
    service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"] |= options
    assert [expected in violation for violation in operator_violations(service)] == [True]


def test_two_worker_groups_of_one_name_are_named(service: Manifest) -> None:
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups.append(copy.deepcopy(groups[0]))
    assert [violation.split(":")[0] for violation in operator_violations(service)] == [
        "RayService/desk spec.rayClusterConfig.workerGroupSpecs[1].groupName"
    ]


def test_a_restart_policy_other_than_never_is_named_under_the_second_autoscaler(service: Manifest) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    cluster["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    assert operator_violations(service) == []
    cluster["enableInTreeAutoscaling"] = True
    assert ["workerGroupSpecs[0].template.spec.restartPolicy" in v for v in operator_violations(service)] == [True]


def _rules(*rules: tuple[str, str, int]) -> Manifest:
    listed = [{"policy": p, "condition": {"jobStatus": s, "ttlSeconds": t}} for p, s, t in rules]
    return {
        "spec/deletionStrategy": {"deletionRules": listed},
        "spec/shutdownAfterJobFinishes": False,
        "spec/ttlSecondsAfterFinished": 0,
        "spec/suspend": False,
    }


SELECTED = {
    "spec/clusterSelector": {"ray.io/cluster": "c"},
    "spec/rayClusterSpec": ABSENT,
    "spec/backoffLimit": 0,
}


@pytest.mark.parametrize(
    "changes",
    [
        _rules(("DeleteWorkers", "FAILED", 10), ("DeleteCluster", "FAILED", 10), ("DeleteSelf", "FAILED", 60)),
        SELECTED,
        {"spec/submissionMode": "HTTPMode"},
    ],
)
def test_a_job_within_the_rules_is_accepted(job: Manifest, changes: Manifest) -> None:
    _change(job, changes)
    assert operator_violations(job) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metadata/name": "s" * 48}, "metadata.name: expected at most 47 characters"),
        ({"spec/submissionMode": "HTTPmode"}, "spec.submissionMode: expected one of"),
        ({"spec/entrypoint": " "}, "spec.entrypoint: expected a command"),
        ({"spec/entrypointNumCpus": ABSENT}, "spec.entrypointNumCpus: expected above 0"),
        ({"spec/entrypointNumCpus": 0}, "spec.entrypointNumCpus: expected above 0"),
        ({"spec/entrypointResources": "{"}, "spec.entrypointResources: expected YAML or JSON text"),
        ({"spec/runtimeEnvYAML": "- a list"}, "spec.runtimeEnvYAML: expected a mapping"),
        ({"spec/activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds: expected at least 1"),
        ({"spec/backoffLimit": -1}, "spec.backoffLimit: expected at least 0"),
        ({"spec/ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished: expected at least 0"),
        ({"spec/shutdownAfterJobFinishes": False}, "expected 0 without shutdownAfterJobFinishes"),
        (
            {"spec/shutdownAfterJobFinishes": ABSENT, "spec/ttlSecondsAfterFinished": 0, "spec/suspend": True},
            "spec.suspend: expected shutdownAfterJobFinishes with it",
        ),
        (
            {"spec/submissionMode": "SidecarMode", "spec/submitterConfig": ABSENT},
            "spec.submitterPodTemplate: expected nothing in SidecarMode",
        ),
        ({"spec/submissionMode": "InteractiveMode"}, "spec.backoffLimit: expected 0 in InteractiveMode"),
        ({"spec/rayClusterSpec": ABSENT}, "spec: expected rayClusterSpec or clusterSelector"),
        (SELECTED | {"spec/suspend": True}, "spec.suspend: expected false with clusterSelector"),
        (SELECTED | {"spec/backoffLimit": 1}, "spec.backoffLimit: expected 0 with clusterSelector"),
        (SELECTED | {"spec/clusterSelector": {}}, "spec.clusterSelector: expected a ray.io/cluster"),
        (
            SELECTED | _rules(("DeleteCluster", "FAILED", 0)),
            "deletionRules[0].policy: expected DeleteSelf or DeleteNone with clusterSelector",
        ),
        (
            _rules(("DeleteSelf", "FAILED", 0)) | {"spec/shutdownAfterJobFinishes": True},
            "deletionRules: expected no shutdownAfterJobFinishes beside them",
        ),
        (_rules(), "deletionRules: expected at least one rule"),
        (
            _rules(("DeleteSelf", "FAILED", 0), ("DeleteSelf", "FAILED", 9)),
            "deletionRules[1]: expected each policy once",
        ),
        (
            _rules(("DeleteSelf", "FAILED", 5), ("DeleteCluster", "FAILED", 9)),
            "expected ttlSeconds of DeleteWorkers <= DeleteCluster <= DeleteSelf for FAILED",
        ),
        (
            _rules(("DeleteWorkers", "FAILED", 5)) | {"spec/rayClusterSpec/enableInTreeAutoscaling": True},
            "deletionRules[0].policy: expected not DeleteWorkers with autoscaling",
        ),
        (
            _rules(("DeleteSelf", "FAILED", 0)) | {"spec/deletionStrategy/onSuccess": {"policy": "DeleteSelf"}},
            "deletionStrategy.onSuccess: expected deletionRules",
        ),
    ],
)
def test_a_job_that_breaks_a_rule_is_named(job: Manifest, changes: Manifest, expected: str) -> None:
    _assert_only_names(job, "RayJob", changes, expected)


def _assert_only_names(manifest: Manifest, kind: str, changes: Manifest, expected: str) -> None:
    assert operator_violations(manifest) == []
    _change(manifest, changes)
    violations = operator_violations(manifest)
    assert [expected in violation for violation in violations] == [True], violations
    assert violations[0].startswith(f"{kind}/{manifest['metadata']['name']} ")


def _change(manifest: Manifest, changes: Manifest) -> None:
    for path, value in changes.items():
        *parts, last = [part.replace("~1", "/") for part in path.split("/")]
        node: Any = manifest
        for part in parts:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if value is ABSENT:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
