"""KubeRay: renders one overlay's manifests; ``python -m cluster.kube render --image X`` prints them.

The folder stays an ordinary kustomization (`kubectl kustomize kuberay/overlays/paper` works). Rendering here needs no
kustomize and adds what kustomize cannot: the Serve configuration from its one source, the image, and a stamp of the
settings, so that a changed setting becomes a new cluster instead of waiting unseen for the next restart.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from conf.settings import CONF_DIR, ROOT

KUBERAY_DIR: Final = ROOT / "kuberay"
SERVE_CONFIG: Final = CONF_DIR / "serve.yaml"
IMAGE_PLACEHOLDER: Final = "desk:set-by-render"
SETTINGS_STAMP: Final = "desk/settings-sha256"
NAME_LENGTH_MAX: Final = 47  # KubeRay's limit for a RayService and a RayJob

_KUSTOMIZATION_FIELDS: Final = frozenset({"apiVersion", "kind", "namespace", "resources", "patches"})
_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE: Final = re.compile(
    r"[a-z0-9]+([.-][a-z0-9]+)*(:[0-9]{1,5}(?=/))?"  # registry host and port, or the only component
    r"(/[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)

Manifest = dict[str, Any]


class ManifestError(ValueError):
    """A manifest, patch or argument breaks a rule; the text names the object, the path, the rule and the value."""

    def __init__(self, where: str, path: str, rule: str, value: object) -> None:
        self.where, self.path, self.rule, self.value = where, path, rule, value
        super().__init__(f"{where} {path}: expected {rule}, was {value!r}")


def render(
    overlay: str,
    image: str,
    namespace: str | None = None,
    *,
    kuberay_dir: Path = KUBERAY_DIR,
    serve_config: Path = SERVE_CONFIG,
) -> list[Manifest]:
    """All objects of an overlay, ready to apply, in the order of the kustomization.

    ``image`` replaces the placeholder in every container; it needs a tag other than ``latest``, or a digest.
    ``namespace`` replaces the overlay's. Raises ``ManifestError``.
    """
    _check_image(image)
    if namespace is not None and not _DNS_LABEL.fullmatch(namespace):
        raise ManifestError(
            "render", "namespace", "a DNS label: at most 63 of a-z, 0-9 and '-', a letter first", namespace
        )
    served = _serve_config_text(serve_config)
    manifests = build(_overlay_dir(kuberay_dir, overlay))
    if namespace is not None:
        _set_namespace(manifests, namespace)
    for manifest in manifests:
        if manifest["kind"] == "RayService":
            _set_serve_config(manifest, served)
        _set_image(manifest, image)
    _stamp_settings(manifests)
    return manifests


def sweep_job(manifests: Sequence[Manifest], run_id: str, entrypoint: str = "") -> Manifest:
    """The RayJob of one run, made from the suspended one among the rendered ``manifests``.

    ``entrypoint`` is the job's command line; without it the one that drives a run folder that is there. The run id is
    the job's submission id too, so a repeat is harmless. Raises ``ManifestError`` where the name
    ``sweep-<run_id>`` is not one Kubernetes and KubeRay accept.
    """
    name = f"sweep-{run_id}"
    if len(name) > NAME_LENGTH_MAX or not _DNS_LABEL.fullmatch(name):
        rule = f"a-z, 0-9 and '-', not '-' last, at most {NAME_LENGTH_MAX - len('sweep-')} characters"
        raise ManifestError("sweep_job", "run_id", rule, run_id)
    job = copy.deepcopy(next((m for m in manifests if m["kind"] == "RayJob" and _name(m) == "sweep"), None))
    if job is None:
        raise ManifestError("sweep_job", "manifests", "a RayJob named sweep", [_identity(m) for m in manifests])
    spec = job["spec"]
    if not entrypoint:
        entrypoint = re.sub(r"(?<=--run-dir )(\S*/)sweep(?=\s|$)", rf"\g<1>{run_id}", spec["entrypoint"])
    if entrypoint == spec["entrypoint"]:
        raise ManifestError("RayJob/sweep", "spec.entrypoint", "'--run-dir <folder>/sweep' in it", entrypoint)
    job["metadata"]["name"] = name
    spec |= {"entrypoint": entrypoint, "jobId": run_id, "suspend": False}
    return job


def build(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` would print for ``folder``, for the fields of a kustomization used in this house.

    An unknown field, a patch that matches nothing and an object given twice are errors.
    """
    path = folder / "kustomization.yaml"
    where = _shown(path)
    documents = read_documents(path)
    if len(documents) != 1:
        raise ManifestError(where, ".", "one document", len(documents))
    kustomization = documents[0]
    if unknown := sorted(set(kustomization) - _KUSTOMIZATION_FIELDS):
        raise ManifestError(where, ".", f"only {', '.join(sorted(_KUSTOMIZATION_FIELDS))}", unknown)
    manifests = [manifest for entry in kustomization.get("resources") or [] for manifest in _resource(folder, entry)]
    _refuse_twice(where, manifests)
    for index, patch in enumerate(kustomization.get("patches") or []):
        _patch_matching(f"{where} patches[{index}]", patch, manifests)
    if "namespace" in kustomization:
        _set_namespace(manifests, kustomization["namespace"])
    return manifests


def read_documents(path: Path) -> list[Manifest]:
    """The YAML documents of a file, each a mapping of plain JSON values that share nothing with each other.

    Raises ``ManifestError`` for a file that is absent or not YAML, a key given twice and a value JSON does not have.
    """
    where = _shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(where, ".", "a readable file", str(error)) from error
    documents = _plain_documents(where, text)
    for document in documents:
        if not isinstance(document, dict):
            raise ManifestError(where, ".", "a mapping in every document", document)
    return documents


def apply_json_patch(where: str, document: Manifest, operations: object) -> None:
    """Change ``document`` in place by RFC 6902 ``add``, ``replace``, ``remove`` and ``test``. Raises ManifestError."""
    if not isinstance(operations, list) or not operations:
        raise ManifestError(where, "patch", "a list of JSON patch operations", operations)
    for operation in operations:
        required = {"op", "path"} if isinstance(operation, dict) and operation.get("op") == "remove" else None
        required = required or {"op", "path", "value"}
        if not isinstance(operation, dict) or set(operation) != required:
            raise ManifestError(where, "patch", f"an operation of {', '.join(sorted(required))}", operation)
        _apply_operation(where, document, operation["op"], operation["path"], operation.get("value"))


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """The objects as one YAML stream; texts of several lines stay readable blocks."""
    return yaml.dump_all(manifests, Dumper=_PlainDumper, sort_keys=False, width=120, explicit_start=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cluster.kube render``: print an overlay's manifests; 2 and one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m cluster.kube", description="KubeRay manifests of the desk")
    command = parser.add_subparsers(dest="command", required=True).add_parser("render", help="print the manifests")
    command.add_argument("--image", required=True, help="the desk's image, with a tag or a digest")
    command.add_argument("--overlay", default="paper", help="a folder of kuberay/overlays (default: paper)")
    command.add_argument("--namespace", help="instead of the overlay's namespace")
    command.add_argument("--sweep", metavar="RUN_ID", help="only the RayJob that executes this run")
    chosen = parser.parse_args(arguments)
    try:
        manifests = render(chosen.overlay, chosen.image, chosen.namespace)
        if chosen.sweep is not None:
            manifests = [sweep_job(manifests, chosen.sweep)]
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(to_yaml(manifests))
    return 0


def _plain_documents(where: str, text: str) -> list[Any]:
    try:
        documents = list(yaml.load_all(text, Loader=_StrictLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ManifestError(where, ".", "YAML with each key once", str(error)) from error
    try:
        # The round trip also unties YAML anchors: a patch of one container must not reach another.
        return [json.loads(json.dumps(document, allow_nan=False)) for document in documents]
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(where, ".", "values that JSON has", str(error)) from error


def _check_image(image: str) -> None:
    match = _IMAGE.fullmatch(image)
    # A rollout compares texts: under a tag that moves it would see no change and restart nothing.
    if match is None or not (match["digest"] or match["tag"]) or (match["tag"] == ":latest" and not match["digest"]):
        raise ManifestError("render", "image", "name:tag (not latest) or name@sha256:digest", image)


def _overlay_dir(kuberay_dir: Path, overlay: str) -> Path:
    known = {path.parent.name: path.parent for path in (kuberay_dir / "overlays").glob("*/kustomization.yaml")}
    if overlay not in known:
        raise ManifestError("render", "overlay", f"one of {', '.join(sorted(known)) or 'none: no overlays'}", overlay)
    return known[overlay]


def _serve_config_text(path: Path) -> str:
    documents = read_documents(path)
    if len(documents) != 1 or not documents[0].get("applications"):
        raise ManifestError(_shown(path), "applications", "one document with at least one application", documents)
    # Written anew, so that a changed comment is not a changed configuration to the operator.
    return yaml.dump(documents[0], Dumper=_PlainDumper, sort_keys=False, width=120)


def _set_serve_config(manifest: Manifest, text: str) -> None:
    if "serveConfigV2" in manifest["spec"]:
        raise ManifestError(_identity(manifest), "spec.serveConfigV2", "nothing: conf/serve.yaml is its source", "text")
    manifest["spec"]["serveConfigV2"] = text


def _set_image(manifest: Manifest, image: str) -> None:
    places = [mapping for mapping in _mappings(manifest) if mapping.get("image") == IMAGE_PLACEHOLDER]
    if not places and manifest["apiVersion"].startswith("ray.io/"):
        raise ManifestError(_identity(manifest), "image", f"{IMAGE_PLACEHOLDER} in its containers", "none")
    for mapping in places:
        mapping["image"] = image


def _stamp_settings(manifests: Sequence[Manifest]) -> None:
    """Annotate each pod template with a hash of the ConfigMaps its containers take their environment from."""
    data = {_name(m): m.get("data", {}) for m in manifests if m["kind"] == "ConfigMap"}
    for manifest in manifests:
        for template in _mappings(manifest):
            containers = template["spec"].get("containers", []) if isinstance(template.get("spec"), dict) else []
            sources = {
                s["configMapRef"]["name"] for c in containers for s in c.get("envFrom", []) if "configMapRef" in s
            }
            if not sources:
                continue
            if missing := sorted(sources - set(data)):
                raise ManifestError(_identity(manifest), "envFrom", f"one of {sorted(data)}", missing)
            text = json.dumps({name: data[name] for name in sorted(sources)}, sort_keys=True)
            annotations = template.setdefault("metadata", {}).setdefault("annotations", {})
            annotations[SETTINGS_STAMP] = hashlib.sha256(text.encode()).hexdigest()


def _set_namespace(manifests: Sequence[Manifest], namespace: str) -> None:
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            manifest["metadata"]["name"] = namespace
        else:  # no other kind of this house lives outside a namespace
            manifest["metadata"]["namespace"] = namespace


def _resource(folder: Path, entry: object) -> list[Manifest]:
    if not isinstance(entry, str):
        raise ManifestError(_shown(folder / "kustomization.yaml"), "resources", "a path", entry)
    path = folder / entry
    if path.is_dir():
        return build(path)
    manifests = read_documents(path)
    for manifest in manifests:
        metadata = manifest.get("metadata")
        named = isinstance(metadata, dict) and isinstance(metadata.get("name"), str)
        if not named or not all(isinstance(manifest.get(key), str) for key in ("apiVersion", "kind")):
            raise ManifestError(_shown(path), ".", "apiVersion, kind and metadata.name", sorted(manifest))
    return manifests


def _refuse_twice(where: str, manifests: Sequence[Manifest]) -> None:
    seen: set[str] = set()
    for identity in map(_identity, manifests):
        if identity in seen:
            raise ManifestError(where, "resources", "each object once", identity)
        seen.add(identity)


def _patch_matching(where: str, patch: object, manifests: Sequence[Manifest]) -> None:
    if not isinstance(patch, dict) or set(patch) != {"target", "patch"} or not isinstance(patch["patch"], str):
        raise ManifestError(where, ".", "target and patch (a JSON patch as text)", patch)
    target = patch["target"]
    if not isinstance(target, dict) or not {"kind", "name"} <= set(target) <= {"group", "version", "kind", "name"}:
        raise ManifestError(where, "target", "kind and name, perhaps group and version", target)
    documents = _plain_documents(where, patch["patch"])
    operations = documents[0] if len(documents) == 1 else documents
    matching = [m for m in manifests if all(_coordinates(m)[key] == value for key, value in target.items())]
    if not matching:
        raise ManifestError(where, "target", f"one of {[_identity(m) for m in manifests]}", target)
    for manifest in matching:
        apply_json_patch(f"{where} on {_identity(manifest)}", manifest, operations)


def _apply_operation(where: str, document: Manifest, verb: str, pointer: str, value: object) -> None:
    parent, key = _locate(where, document, pointer)
    if verb == "add" and isinstance(parent, list):
        end = len(parent)
        parent.insert(end if key == "-" else _index(where, pointer, key, end + 1), copy.deepcopy(value))
        return
    if verb == "add":
        parent[key] = copy.deepcopy(value)
        return
    slot = _index(where, pointer, key, len(parent)) if isinstance(parent, list) else key
    if isinstance(parent, dict) and key not in parent:
        raise ManifestError(where, pointer, f"one of {sorted(parent)}", key)
    if verb == "replace":
        parent[slot] = copy.deepcopy(value)
    elif verb == "remove":
        del parent[slot]
    elif verb != "test":
        raise ManifestError(where, pointer, "op add, replace, remove or test", verb)
    elif parent[slot] != value:
        raise ManifestError(where, pointer, f"{value!r} (test)", parent[slot])


def _locate(where: str, document: Manifest, pointer: str) -> tuple[Any, str]:
    """The list or mapping that holds the place a JSON pointer names, and the last part of the pointer."""
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise ManifestError(where, "path", "a JSON pointer that starts with '/'", pointer)
    *parts, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
    node: Any = document
    for part in parts:
        if isinstance(node, list):
            node = node[_index(where, pointer, part, len(node))]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise ManifestError(where, pointer, "a path that exists", part)
    if not isinstance(node, list | dict):
        raise ManifestError(where, pointer, "a place in a list or mapping", node)
    return node, last


def _index(where: str, pointer: str, part: str, length: int) -> int:
    """Position ``part`` in a list with ``length`` allowed positions."""
    if re.fullmatch(r"0|[1-9][0-9]{0,8}", part) and int(part) < length:
        return int(part)
    raise ManifestError(where, pointer, f"a position below {length}", part)


def _mappings(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _mappings(child)


def _coordinates(manifest: Mapping[str, Any]) -> dict[str, str]:
    group, _, version = manifest["apiVersion"].rpartition("/")
    return {"group": group, "version": version, "kind": manifest["kind"], "name": _name(manifest)}


def _name(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["name"])


def _identity(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['kind']}/{_name(manifest)}"


def _shown(path: Path) -> str:
    """``path`` from the repository's root, so that a message reads the same on every machine."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(path)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, as the API server does, instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper without anchors; texts of several lines become blocks, texts other parsers may misread are quoted."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # A run id such as 12e5 is text to PyYAML and a number to the Go parser that reads what is applied.
        style = "|" if "\n" in text else '"' if re.match(r"[-+.0-9]|[yYnN]$", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


if __name__ == "__main__":
    sys.exit(main())
