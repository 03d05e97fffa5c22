"""What the rendered manifests promise: one Serve configuration, no secret, the settings the code reads, safe pods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import kube
from conf.settings import ROOT, Secrets, load_settings
from tests.kubernetes.conftest import IMAGE

Manifest = dict[str, Any]

KUBERAY_FILES = sorted(path for path in (ROOT / "kuberay").rglob("*") if path.is_file())
SECRETS_TEMPLATE = ROOT / "kuberay" / "base" / "secrets.template.yaml"
RAY_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_worker_niceness": "0",
}


def test_the_service_serves_exactly_what_the_serve_configuration_says(service: Manifest) -> None:
    served = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert served == yaml.safe_load((ROOT / "conf" / "serve.yaml").read_text())
    assert {application["name"] for application in served["applications"]} >= {"orders", "execution", "api"}


def test_the_serve_configuration_stands_in_no_manifest_file() -> None:
    assert [p.name for p in KUBERAY_FILES if re.search(r"^\s*serveConfigV2:", p.read_text(), re.MULTILINE)] == []


def test_every_ray_container_runs_the_given_image_with_the_ray_environment(
    manifests: list[Manifest], job: Manifest
) -> None:
    containers = [
        (manifest["kind"], container)
        for manifest in [*manifests, job]
        if manifest["apiVersion"].startswith("ray.io/")
        for _, template in _pod_templates(manifest)
        for container in template["spec"]["containers"]
    ]
    assert len(containers) == 8  # head and workers of the service; head, workers and submitter of both jobs
    assert {container["image"] for _, container in containers} == {IMAGE}
    for kind, container in containers:
        if container["name"] == "ray-job-submitter":
            continue
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment == RAY_ENVIRONMENT, (kind, container["name"])
        assert container["envFrom"] == [{"configMapRef": {"name": "desk-settings"}}]


def test_the_head_takes_no_work_and_three_risk_workers_do(service: Manifest) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [risk] = cluster["workerGroupSpecs"]
    assert (risk["groupName"], risk["replicas"], risk["minReplicas"]) == ("risk", 3, 3)
    served = yaml.safe_load(service["spec"]["serveConfigV2"])
    orders = next(a for a in served["applications"] if a["name"] == "orders")
    assert [deployment["num_replicas"] for deployment in orders["deployments"]] == [risk["replicas"]]


def test_the_disruption_budget_leaves_two_risk_workers(manifests: list[Manifest], service: Manifest) -> None:
    budget = next(m for m in manifests if m["kind"] == "PodDisruptionBudget")["spec"]
    selected = [
        path
        for manifest in manifests
        for path, template in _pod_templates(manifest)
        if budget["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ]
    assert selected == ["RayService/desk spec.rayClusterConfig.workerGroupSpecs.0.template"]
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert type(budget["minAvailable"]) is int
    assert budget["minAvailable"] == workers["replicas"] - 1


def test_the_ray_version_is_the_one_the_image_installs(manifests: list[Manifest]) -> None:
    locked = re.search(r"^ray(?:\[[^]]*])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    versions = {m["rayVersion"] for manifest in manifests for m in _mappings(manifest) if "rayVersion" in m}
    assert versions == {locked[1]}


def test_ray_and_the_ledger_keep_their_state_in_different_servers(manifests: list[Manifest], service: Manifest) -> None:
    gcs = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
    ledger = _settings_map(manifests)["DESK_REDIS__HOST"]
    services = {m["metadata"]["name"] for m in manifests if m["kind"] == "Service"}
    assert gcs.partition(":")[0] != ledger
    assert {gcs.partition(":")[0], ledger} <= services


def test_the_settings_map_is_what_the_settings_read(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _settings_map(manifests).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.profile == "paper"
    assert (settings.redis.host, settings.redis.port) == ("ledger-redis", 6379)
    assert settings.ray.address == "http://desk-head-svc:8265"
    assert (settings.bars_path, settings.runs_path) == (Path("/data/bars"), Path("/data/runs"))
    assert settings.secrets_dir == Path("/run/secrets/desk")


def test_a_sweep_reads_and_writes_where_the_desk_does(manifests: list[Manifest], job: Manifest) -> None:
    state = _settings_map(manifests)["DESK_STATE_DIR"]
    expected = f"python -m jobs.sweep --run-dir {state}/runs/a1 --bars-dir {state}/bars"
    assert job["spec"]["entrypoint"] == expected
    known = (ROOT / "jobs" / "sweep.py").read_text()
    assert [option for option in re.findall(r"--[a-z-]+", expected) if f'"{option}"' not in known] == []
    for manifest in [*manifests, job]:
        for path, template in _pod_templates(manifest):
            if "desk-settings" in str(template["spec"]):
                mounts = {m["name"]: m["mountPath"] for m in template["spec"]["containers"][0]["volumeMounts"]}
                volumes = {v["name"]: v for v in template["spec"]["volumes"]}
                assert mounts["data"] == state, path
                assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "desk-data"}


def test_applying_the_folder_starts_no_sweep(manifests: list[Manifest], job: Manifest) -> None:
    [template] = [m for m in manifests if m["kind"] == "RayJob"]
    assert template["spec"]["suspend"] is True
    assert job["spec"]["suspend"] is False


def test_every_pod_is_unprivileged_and_sees_no_service_links(manifests: list[Manifest]) -> None:
    templates = [found for manifest in manifests for found in _pod_templates(manifest)]
    assert len(templates) == 7  # two of the service, three of the job, two servers
    for path, template in templates:
        spec = template["spec"]
        # A Service named desk-… would put DESK_… variables into the environment, and the settings refuse those.
        assert spec["enableServiceLinks"] is False, path
        assert spec["automountServiceAccountToken"] is False, path
        assert spec["securityContext"]["runAsNonRoot"] is True, path
        assert spec["securityContext"]["runAsUser"] > 0, path
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, path
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, path
            assert "memory" in container["resources"]["limits"], path


def test_what_a_pod_mounts_is_what_it_declares(manifests: list[Manifest]) -> None:
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    for manifest in manifests:
        own = {c["metadata"]["name"] for c in manifest.get("spec", {}).get("volumeClaimTemplates", [])}
        for path, template in _pod_templates(manifest):
            volumes = {volume["name"] for volume in template["spec"].get("volumes", [])} | own
            mounted = {m["name"] for c in template["spec"]["containers"] for m in c.get("volumeMounts", [])}
            assert mounted == volumes, path
        claimed = {m["claimName"] for m in _mappings(manifest) if "claimName" in m}
        assert claimed <= claims


# Secrets


def test_no_secret_object_is_rendered_and_the_template_holds_no_value(manifests: list[Manifest]) -> None:
    assert [m for m in manifests if m["kind"] == "Secret"] == []
    values = [value for secret in _secret_templates() for value in secret["stringData"].values()]
    assert values
    assert set(values) == {""}


def test_every_secret_referred_to_is_in_the_template_with_its_keys(manifests: list[Manifest]) -> None:
    known = {secret["metadata"]["name"]: set(secret["stringData"]) for secret in _secret_templates()}
    used: dict[str, set[str]] = {}
    for mapping in (m for manifest in manifests for m in _mappings(manifest)):
        if "secretName" in mapping:
            keys = {item["key"] for item in mapping.get("items", [])}
            used.setdefault(mapping["secretName"], set()).update(keys or known.get(mapping["secretName"], set()))
            if "mode" in mapping:  # authOptions: KubeRay reads this key
                assert mapping == {"mode": "token", "secretName": "desk-ray-auth"}
                assert known["desk-ray-auth"] == {"auth_token"}
        if "secretKeyRef" in mapping:
            used.setdefault(mapping["secretKeyRef"]["name"], set()).add(mapping["secretKeyRef"]["key"])
    assert used == known


def test_the_mounted_secrets_are_those_the_settings_know() -> None:
    [desk] = [s for s in _secret_templates() if s["metadata"]["name"] == "desk-secrets"]
    assert set(desk["stringData"]) == set(Secrets.model_fields)


def test_secrets_reach_containers_as_files_only(manifests: list[Manifest], service: Manifest) -> None:
    for manifest in manifests:
        for path, template in _pod_templates(manifest):
            for container in template["spec"]["containers"]:
                for variable in container.get("env", []):
                    assert set(variable) == {"name", "value"}, (path, variable)
                    assert not _names_a_secret(variable["name"]), (path, variable)
                assert all(set(source) == {"configMapRef"} for source in container.get("envFrom", [])), path
        assert "runtimeEnvYAML" not in manifest.get("spec", {})
    assert [name for name in _settings_map(manifests) if _names_a_secret(name)] == []
    assert "runtime_env" not in service["spec"]["serveConfigV2"]
    assert "secretKeyRef" not in str(service["spec"]["rayClusterConfig"]["headGroupSpec"])


@pytest.mark.parametrize("path", KUBERAY_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_holds_something_that_looks_like_a_secret(path: Path) -> None:
    assert _suspicious(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN EC PRIVATE KEY-----",
        "password: hunter2",
        'auth_token: "abc"',
        "requirepass 5241590000000000",
        "value: bmV2ZXIgcHV0IGEgc2VjcmV0IGludG8gYSBtYW5pZmVzdA==",
    ],
)
def test_the_search_for_secrets_finds_a_planted_one(text: str) -> None:
    assert _suspicious(text)


def _suspicious(text: str) -> list[str]:
    patterns = (
        r"-----BEGIN",
        r"(?:password|auth_token|pepper|private_key|api_key)[\"']?\s*[:=]\s*[\"']?[^\s\"'$]+[\"']?$",
        r"requirepass [\\\"]*[A-Za-z0-9]",
        r"\b(?=[A-Za-z0-9+]*[0-9])(?=[A-Za-z0-9+]*[A-Z])(?=[A-Za-z0-9+]*[a-z])[A-Za-z0-9+]{32,}",
    )
    return [found[0] for pattern in patterns for found in re.finditer(pattern, text, re.MULTILINE)]


def _names_a_secret(name: str) -> bool:
    return re.search(r"PASSWORD|SECRET(?!S_DIR)|TOKEN|PEPPER|KEY", name, re.IGNORECASE) is not None


def _secret_templates() -> list[Manifest]:
    return kube.read_documents(SECRETS_TEMPLATE)


def _settings_map(manifests: list[Manifest]) -> dict[str, str]:
    data: dict[str, str] = next(m for m in manifests if m["kind"] == "ConfigMap")["data"]
    return data


def _pod_templates(manifest: Manifest) -> list[tuple[str, Manifest]]:
    """Every pod template in an object, with the path it stands at."""

    def search(node: object, path: str) -> Iterator[tuple[str, Manifest]]:
        if isinstance(node, dict) and isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield path, node
        elif isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from search(child, f"{path}.{key}")

    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [(path.replace(".", " ", 1), template) for path, template in search(manifest, name)]


def _mappings(node: object) -> Iterator[Manifest]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _mappings(child)
