"""Every rendered object is strictly valid, and the validators catch what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster import kube
from tests.kubernetes.crd_schema import ABSENT, crd_violations, crds_present, strict

Manifest = dict[str, Any]
needs_crds = pytest.mark.skipif(not crds_present(), reason=ABSENT)


@needs_crds
def test_every_rendered_ray_manifest_is_strictly_valid(manifests: list[Manifest], job: Manifest) -> None:
    ray = [m for m in [*manifests, job] if m["apiVersion"].startswith("ray.io/")]
    assert sorted(m["kind"] for m in ray) == ["RayJob", "RayJob", "RayService"]
    assert [violation for manifest in ray for violation in crd_violations(manifest)] == []


def test_every_other_manifest_is_strictly_valid(manifests: list[Manifest]) -> None:
    core = [m for m in manifests if not m["apiVersion"].startswith("ray.io/")]
    assert {m["kind"] for m in core} >= {"Namespace", "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget"}
    assert [violation for manifest in core for violation in _core_violations(manifest)] == []


def test_a_wrong_field_of_a_core_object_is_caught(manifests: list[Manifest]) -> None:
    budget = next(m for m in manifests if m["kind"] == "PodDisruptionBudget")
    budget["spec"]["minAvailabel"] = budget["spec"].pop("minAvailable")
    assert "minAvailabel" in "".join(_core_violations(budget))


def _rename(path: str, wrong: str) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        parent, key = _parent(manifest, path)
        parent[wrong] = parent.pop(key)

    return change


def _put(path: str, value: object) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        parent, key = _parent(manifest, path)
        parent[int(key) if isinstance(parent, list) else key] = value

    return change


WORKER = "spec/rayClusterConfig/workerGroupSpecs/0"
CONTAINER = f"{WORKER}/template/spec/containers/0"
SHOWN = "RayService/desk spec.rayClusterConfig.workerGroupSpecs[0]"


@needs_crds
@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (_rename(f"{WORKER}/minReplicas", "minReplicass"), SHOWN, "minReplicass"),
        (_rename(f"{CONTAINER}/envFrom", "envfrom"), f"{SHOWN}.template.spec.containers[0]", "envfrom"),
        (_rename("metadata/labels", "label"), "RayService/desk metadata", "label"),
        (_put(f"{WORKER}/replicas", "3"), f"{SHOWN}.replicas", "'3' is not of type 'integer'"),
        (_put(f"{WORKER}/replicas", 3.5), f"{SHOWN}.replicas", "3.5 is not of type 'integer'"),
        (_put(f"{WORKER}/replicas", True), f"{SHOWN}.replicas", "True is not of type 'integer'"),
        (_put(f"{WORKER}/replicas", 2**31), f"{SHOWN}.replicas", "2147483648 is greater than the maximum"),
        (_put("spec/rayClusterConfig/rayVersion", 2.6), "spec.rayClusterConfig.rayVersion", "2.6 is not of type"),
        (_put("spec/rayClusterConfig/headGroupSpec/rayStartParams/num-cpus", 0), "rayStartParams.num-cpus", "0 is not"),
        (_put("spec/rayClusterConfig/authOptions/mode", "tokens"), "authOptions.mode", "'tokens' is not one of"),
        (_put("spec/serveConfigV2", {"applications": []}), "spec.serveConfigV2", "is not of type 'string'"),
        (_put(f"{CONTAINER}/resources/requests/cpu", "two"), ".resources.requests.cpu", "'two' does not match"),
        (_put(f"{CONTAINER}/resources/requests/cpu", None), ".resources.requests.cpu", "None is not of type"),
        (_put(f"{CONTAINER}/env/1/name", "RAY_SERVE_ENABLE_HA_PROXY"), ".containers[0].env[1]", "is given twice"),
        (lambda m: m["spec"]["rayClusterConfig"].pop("headGroupSpec"), "rayClusterConfig", "'headGroupSpec' is a req"),
        (lambda m: m.pop("spec"), "RayService/desk .", "'spec' is a required property"),
    ],
)
def test_a_wrong_field_is_caught_with_its_object_and_path(
    service: Manifest, change: Callable[[Manifest], None], where: str, what: str
) -> None:
    change(service)
    violations = crd_violations(service)
    assert any(where in violation and what in violation for violation in violations), violations
    assert all(violation.startswith("RayService/desk ") for violation in violations)


@needs_crds
def test_an_unserved_version_and_an_unknown_kind_are_errors(service: Manifest) -> None:
    with pytest.raises(LookupError, match=r"no served version ray\.io/v9"):
        crd_violations(service | {"apiVersion": "ray.io/v9"})
    with pytest.raises(LookupError, match="RayServce: no CRD of this kind"):
        crd_violations(service | {"kind": "RayServce"})


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({"type": "object", "properties": {"a": {}}}, {"a": 1}, {"b": 1}),
        ({"type": "object", "properties": {"properties": {"type": "string"}}}, {"properties": "x"}, {"type": "x"}),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"any": "x"}, {"any": 1}),
        ({"x-kubernetes-int-or-string": True, "pattern": "^[0-9]+m$"}, "100m", "much"),
        ({"x-kubernetes-int-or-string": True}, 1, 1.5),
        ({"type": "integer", "format": "int32", "minimum": 0}, 0, -1),
        ({"type": "integer", "format": "int32"}, -(2**31), -(2**31) - 1),
        ({"type": "integer", "format": "int64"}, 2**63 - 1, 2**63),
        ({"type": "string", "nullable": True}, None, 1),
    ],
)
def test_openapi_becomes_a_strict_schema(schema: Manifest, accepted: object, refused: object) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(strict(schema))
    assert validator.is_valid(accepted)
    assert not validator.is_valid(refused)


def test_unknown_fields_stay_allowed_where_the_schema_says_so() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True}
    assert "additionalProperties" not in strict(schema)


def _core_violations(manifest: Manifest) -> list[str]:
    """What the typed models of the Kubernetes client refuse, or would write differently (a snake_case field)."""
    from kubernetes import client
    from pydantic import ValidationError

    identity = f"{manifest['kind']}/{manifest['metadata']['name']}"
    try:
        typed = getattr(client, f"V1{manifest['kind']}").model_validate(manifest)
    except ValidationError as error:
        return [f"{identity} {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    written = client.ApiClient().sanitize_for_serialization(typed)  # type: ignore[no-untyped-call] # untyped client
    same = written == manifest
    return [] if same else [f"{identity}: fields the client does not write back"]


def _parent(manifest: Manifest, path: str) -> tuple[Any, str]:
    *parts, last = path.split("/")
    node: Any = manifest
    for part in parts:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node, last


def test_the_printed_manifests_read_back_as_they_were(manifests: list[Manifest]) -> None:
    import yaml

    assert list(yaml.safe_load_all(kube.to_yaml(manifests))) == manifests
