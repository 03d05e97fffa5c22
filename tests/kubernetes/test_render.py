"""Rendering: equal to kubectl's kustomize, and bad input is refused with object, path, rule and value."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import kube
from cluster.kube import ManifestError
from conf.settings import ROOT
from tests.kubernetes.conftest import IMAGE

Manifest = dict[str, Any]

OVERLAYS = sorted(path.parent.name for path in (ROOT / "kuberay" / "overlays").glob("*/kustomization.yaml"))
SETTINGS = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {A: '1'}\n"
CLUSTER = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: desk}
spec:
  rayClusterConfig:
    headGroupSpec:
      template:
        spec:
          containers:
            - name: head
              image: desk:set-by-render
              env: &environment
                - {name: A, value: "1"}
              envFrom: [{configMapRef: {name: settings}}]
    workerGroupSpecs:
      - groupName: risk
        template: {spec: {containers: [{name: worker, image: desk:set-by-render, env: *environment}]}}
"""
PATCH = """\
patches:
  - target: {kind: RayService, name: desk}
    patch: |-
      - op: replace
        path: /spec/rayClusterConfig/workerGroupSpecs/0/template/spec/containers/0/env/0/value
        value: "2"
"""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in OVERLAYS)])
def test_the_folder_builds_with_kubectl_to_the_same_objects(folder: str) -> None:
    path = ROOT / "kuberay" / folder
    built = subprocess.run(["kubectl", "kustomize", str(path)], capture_output=True, text=True, check=True, timeout=60)
    assert _by_identity(list(yaml.safe_load_all(built.stdout))) == _by_identity(kube.build(path))


def test_each_overlay_names_its_own_profile_and_renders() -> None:
    assert "paper" in OVERLAYS
    for overlay in OVERLAYS:
        manifests = kube.render(overlay, IMAGE)
        assert next(m for m in manifests if m["kind"] == "ConfigMap")["data"]["DESK_PROFILE"] == overlay


def test_a_namespace_replaces_the_overlays_everywhere() -> None:
    manifests = kube.render("paper", IMAGE, "desk-tryout")
    placed = {m["metadata"]["name" if m["kind"] == "Namespace" else "namespace"] for m in manifests}
    assert placed == {"desk-tryout"}
    assert "desk-paper" not in kube.to_yaml(manifests)


@pytest.mark.parametrize(
    "image",
    [
        "desk:1",
        "registry.example:5000/team/desk:2026.11.22-abc",
        "desk@sha256:" + "0" * 64,
        "desk:latest@sha256:" + "a" * 64,
    ],
)
def test_an_image_that_cannot_move_is_accepted(image: str) -> None:
    service = next(m for m in kube.render("paper", image) if m["kind"] == "RayService")
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == image


@pytest.mark.parametrize("image", ["desk", "desk:latest", "registry.example/desk", "registry.example:5000/desk"])
def test_an_image_that_may_move_is_refused(image: str) -> None:
    with pytest.raises(ManifestError, match="render image: expected name:tag"):
        kube.render("paper", image)


@pytest.mark.parametrize(
    "image",
    [
        "",
        " ",
        "desk:",
        "Desk:1",
        "desk:1 ",
        "desk:1\n",
        "a b:1",
        "desk:" + "x" * 129,
        "desk@sha256:12",
        "desk:-1",
        "/desk:1",
        "desk//desk:1",
        "desk:1:2",
        "désk:1",
    ],
)
def test_a_malformed_image_is_refused(image: str) -> None:
    with pytest.raises(ManifestError, match="render image: expected name:tag") as caught:
        kube.render("paper", image)
    assert caught.value.value == image


@pytest.mark.parametrize("namespace", ["", "Desk", "desk_paper", "-desk", "desk-", "1desk", "d" * 64, "desk\n", "a.b"])
def test_a_namespace_that_is_no_dns_label_is_refused(namespace: str) -> None:
    with pytest.raises(ManifestError, match="render namespace: expected a DNS label"):
        kube.render("paper", IMAGE, namespace)


@pytest.mark.parametrize("overlay", ["", ".", "..", "../base", "nowhere", "paper/", "/"])
def test_an_unknown_overlay_is_refused_and_the_known_are_named(overlay: str) -> None:
    with pytest.raises(ManifestError, match=r"render overlay: expected one of .*paper"):
        kube.render(overlay, IMAGE)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "one document with at least one application"),
        ("applications: []", "one document with at least one application"),
        ("http_options: {port: 8000}", "one document with at least one application"),
        ("applications: [a]\n---\napplications: [b]", "one document with at least one application"),
        ("applications: [a]\napplications: [b]", "YAML with each key once"),
        ("applications: [", "YAML with each key once"),
        ("- applications", "a mapping in every document"),
        ("applications: [2026-11-22]", "values that JSON has"),
        ("applications: [.nan]", "values that JSON has"),
        ("applications: &a [*a]", "values that JSON has"),
    ],
)
def test_a_broken_serve_configuration_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=rule):
        kube.render("paper", IMAGE, serve_config=path)


def test_a_serve_configuration_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="a readable file"):
        kube.render("paper", IMAGE, serve_config=tmp_path / "serve.yaml")
    (tmp_path / "serve.yaml").write_bytes(b"applications: \xff")
    with pytest.raises(ManifestError, match="a readable file"):
        kube.render("paper", IMAGE, serve_config=tmp_path / "serve.yaml")


def test_a_patch_of_one_container_does_not_reach_another_through_a_yaml_anchor(tmp_path: Path) -> None:
    service = _render(tmp_path, CLUSTER, PATCH)["RayService/desk"]["spec"]["rayClusterConfig"]
    head = service["headGroupSpec"]["template"]["spec"]["containers"][0]
    worker = service["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert (head["env"][0]["value"], worker["env"][0]["value"]) == ("1", "2")


def test_a_changed_setting_changes_the_pods_that_read_it_and_no_other(tmp_path: Path) -> None:
    before = _render(tmp_path / "a", CLUSTER)["RayService/desk"]["spec"]["rayClusterConfig"]
    same = _render(tmp_path / "b", CLUSTER)["RayService/desk"]["spec"]["rayClusterConfig"]
    after = _render(tmp_path / "c", CLUSTER, settings=SETTINGS.replace("'1'", "'2'"))
    changed = after["RayService/desk"]["spec"]["rayClusterConfig"]
    assert before == same
    assert before["headGroupSpec"] != changed["headGroupSpec"]
    assert before["workerGroupSpecs"] == changed["workerGroupSpecs"]


@pytest.mark.parametrize(
    ("cluster", "kustomization", "message"),
    [
        (CLUSTER, "commonLabels: {a: b}", "kustomization.yaml .: expected only .* was \\['commonLabels'\\]"),
        (CLUSTER, "resources: [nothing.yaml]", "nothing.yaml .: expected a readable file"),
        (CLUSTER, "resources: [{path: a}]", "resources: expected a path"),
        (CLUSTER + "---\n" + CLUSTER, "", "resources: expected each object once, was 'RayService/desk'"),
        (CLUSTER.replace("name: desk", "title: desk", 1), "", "cluster.yaml .: expected apiVersion, kind and metadata"),
        (CLUSTER.replace("desk:set-by-render", "other:1"), "", "RayService/desk image: expected desk:set-by-render"),
        (CLUSTER.replace("{name: settings}", "{name: others}"), "", "RayService/desk envFrom: expected .*'settings'"),
        (CLUSTER + "  serveConfigV2: x\n", "", "RayService/desk spec.serveConfigV2: expected nothing"),
        (
            CLUSTER,
            PATCH.replace("name: desk", "name: dask"),
            "patches\\[0\\] target: expected one of .*RayService/desk",
        ),
        (CLUSTER, PATCH.replace(", name: desk", ""), "patches\\[0\\] target: expected kind and name"),
        (CLUSTER, PATCH.replace("patch: |-", "file: |-"), "patches\\[0\\] .: expected target and patch"),
        (
            CLUSTER,
            PATCH.partition("      - op")[0] + "      op: add\n",
            "patch: expected a list of JSON patch operations",
        ),
        (CLUSTER, PATCH.replace("env/0", "env/1"), "on RayService/desk .*/env/1/value: expected a position below 1"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, cluster: str, kustomization: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        _render(tmp_path, cluster, kustomization)


DOCUMENT = {"a": {"b/c": [1, 2], "d~e": "x"}, "n": None}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/new", "value": [1]}, {"a": {"b/c": [1, 2], "d~e": "x", "new": [1]}, "n": None}),
        ({"op": "add", "path": "/a/b~1c/0", "value": 0}, {"a": {"b/c": [0, 1, 2], "d~e": "x"}, "n": None}),
        ({"op": "add", "path": "/a/b~1c/2", "value": 3}, {"a": {"b/c": [1, 2, 3], "d~e": "x"}, "n": None}),
        ({"op": "add", "path": "/a/b~1c/-", "value": 3}, {"a": {"b/c": [1, 2, 3], "d~e": "x"}, "n": None}),
        ({"op": "replace", "path": "/a/d~0e", "value": "y"}, {"a": {"b/c": [1, 2], "d~e": "y"}, "n": None}),
        ({"op": "replace", "path": "/a/b~1c/1", "value": 9}, {"a": {"b/c": [1, 9], "d~e": "x"}, "n": None}),
        ({"op": "remove", "path": "/a/b~1c/0"}, {"a": {"b/c": [2], "d~e": "x"}, "n": None}),
        ({"op": "remove", "path": "/n"}, {"a": {"b/c": [1, 2], "d~e": "x"}}),
        ({"op": "test", "path": "/a/b~1c", "value": [1, 2]}, DOCUMENT),
    ],
)
def test_a_json_patch_changes_one_place(operation: Manifest, expected: Manifest) -> None:
    document = copy.deepcopy(DOCUMENT)
    kube.apply_json_patch("here", document, [operation])
    assert document == expected


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/a/absent", "value": 1},
        {"op": "remove", "path": "/absent"},
        {"op": "remove", "path": "/a/b~1c/-"},
        {"op": "replace", "path": "/a/b~1c/2", "value": 1},
        {"op": "replace", "path": "/a/b~1c/-1", "value": 1},
        {"op": "replace", "path": "/a/b~1c/00", "value": 1},
        {"op": "add", "path": "/a/b~1c/4", "value": 1},
        {"op": "add", "path": "/absent/x", "value": 1},
        {"op": "add", "path": "/a/d~0e/x", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "", "value": 1},
        {"op": "add", "path": 1, "value": 1},
        {"op": "add", "path": "/x"},
        {"op": "test", "path": "/a/d~0e", "value": "y"},
        {"op": "copy", "path": "/x", "from": "/a"},
        {"op": "merge", "path": "/a", "value": 1},
        {"op": "remove", "path": "/a", "value": 1},
        "add",
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused_and_changes_nothing(operation: Manifest | str) -> None:
    document = copy.deepcopy(DOCUMENT)
    with pytest.raises(ManifestError, match=r"^here "):
        kube.apply_json_patch("here", document, [operation])
    assert document == DOCUMENT


@pytest.mark.parametrize("operations", [[], None, {}, "add"])
def test_a_json_patch_without_operations_is_refused(operations: object) -> None:
    with pytest.raises(ManifestError, match="a list of JSON patch operations"):
        kube.apply_json_patch("here", {}, operations)


def test_the_job_of_a_run_carries_its_id_and_leaves_the_template_alone(manifests: list[Manifest]) -> None:
    before = copy.deepcopy(manifests)
    job = kube.sweep_job(manifests, "12e5")
    assert manifests == before
    assert (job["metadata"]["name"], job["spec"]["jobId"]) == ("sweep-12e5", "12e5")
    # To a Go YAML parser 12e5 without quotes is a number.
    assert 'jobId: "12e5"' in kube.to_yaml([job])


@pytest.mark.parametrize("run_id", ["", "A1", "a_1", "a1-", "a/1", "../a", "a b", "a;b", "a\n", "x" * 42])
def test_a_run_id_that_cannot_name_a_job_is_refused(manifests: list[Manifest], run_id: str) -> None:
    with pytest.raises(ManifestError, match="sweep_job run_id: expected"):
        kube.sweep_job(manifests, run_id)


def test_a_sweep_needs_its_template(manifests: list[Manifest]) -> None:
    with pytest.raises(ManifestError, match="a RayJob named sweep"):
        kube.sweep_job([m for m in manifests if m["kind"] != "RayJob"], "a1")


def test_the_command_prints_what_render_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert kube.main(["render", "--image", IMAGE]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == kube.render("paper", IMAGE)
    assert kube.main(["render", "--image", IMAGE, "--overlay", "paper", "--namespace", "n", "--sweep", "a1"]) == 0
    expected = kube.sweep_job(kube.render("paper", IMAGE, "n"), "a1")
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [expected]


def test_the_command_refuses_bad_input_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert kube.main(["render", "--image", "desk"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: render image: expected name:tag (not latest) or name@sha256:digest, was 'desk'\n"


def _render(folder: Path, cluster: str, kustomization: str = "", settings: str = SETTINGS) -> dict[str, Manifest]:
    """Render a folder made of one cluster and its settings, as the overlay `only`."""
    only = folder / "overlays" / "only"
    only.mkdir(parents=True)
    (only / "settings.yaml").write_text(settings)
    (only / "cluster.yaml").write_text(cluster)
    listed = "" if kustomization.startswith("resources:") else "resources: [settings.yaml, cluster.yaml]\n"
    (only / "kustomization.yaml").write_text(listed + kustomization)
    return _by_identity(kube.render("only", IMAGE, kuberay_dir=folder))


def _by_identity(manifests: list[Manifest]) -> dict[str, Manifest]:
    found = {f"{m['kind']}/{m['metadata']['name']}": m for m in manifests}
    assert len(found) == len(manifests)
    return found
