"""Strict validation of Ray manifests against KubeRay's CRDs: what `kubectl apply --validate=strict` would refuse.

A CRD's schema prunes unknown fields silently; here every object with listed properties is closed, so that a typing
error is found. The rules only the operator knows are in operator_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from conf.settings import ROOT

CRDS: Final = ROOT.parent / "shared" / "kuberay-crds"
ABSENT: Final = f"KubeRay's CRDs are not beside the checkout (../shared/{CRDS.name})"
_INTEGER_BITS: Final = {"int32": 32, "int64": 64}
_TEXT_MAP: Final = {"type": "object", "additionalProperties": {"type": "string"}}
# CRDs leave metadata to the API server; these are the fields a manifest may set.
_METADATA: Final = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXT_MAP,
        "annotations": _TEXT_MAP,
    },
}


def crd_violations(manifest: Mapping[str, Any]) -> list[str]:
    """Each broken schema rule as ``Kind/name path: rule``; empty for a valid manifest."""
    name = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
    errors = sorted(
        _validator(str(manifest.get("kind")), str(manifest.get("apiVersion"))).iter_errors(manifest), key=str
    )
    return [f"{name} {_dotted(error)}: {error.message}" for error in errors]


def strict(schema: Any) -> Any:
    """An OpenAPI v3 structural schema as a JSON schema in which unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # `properties` maps field names to schemas; a field may itself be called "type" or "properties".
    closed = {
        key: {field: strict(inner) for field, inner in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    if bits := _INTEGER_BITS.get(str(schema.get("format"))):
        closed["minimum"] = max(schema.get("minimum", -(2**63)), -(2 ** (bits - 1)))
        closed["maximum"] = min(schema.get("maximum", 2**63), 2 ** (bits - 1) - 1)
    if schema.get("nullable") and "type" in closed:
        closed["type"] = [closed["type"], "null"]
    return closed


@cache
def _validator(kind: str, api_version: str) -> Any:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in CRDS.glob("*.yaml"))
        raise LookupError(f"{kind}: no CRD of this kind; known: {', '.join(known)}")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    for version in crd["spec"]["versions"]:
        if f"{crd['spec']['group']}/{version['name']}" == api_version and version["served"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = strict(_METADATA)
            schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
            return _STRICT(schema)
    raise LookupError(f"{kind}: no served version {api_version}")


def _unique_by_keys(_: Any, keys: list[str], items: object, __: Mapping[str, Any]) -> Iterator[ValidationError]:
    """The API server refuses two elements of a map-like list with the same keys, such as an env name given twice."""
    seen: set[tuple[object, ...]] = set()
    for index, item in enumerate(items if isinstance(items, list) else []):
        identity = tuple(str(item.get(key)) for key in keys) if isinstance(item, dict) else (index,)
        if identity in seen:
            yield ValidationError(f"{', '.join(identity)!r} is given twice", path=[index])  # type: ignore[arg-type]
        seen.add(identity)


_STRICT: Final = validators.extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _unique_by_keys})  # type: ignore[no-untyped-call] # jsonschema has no type for it


def _dotted(error: ValidationError) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    return text.lstrip(".") or "."


def crds_present(folder: Path = CRDS) -> bool:
    """Whether the CRDs are there to validate against."""
    return any(folder.glob("ray.io_*.yaml"))
