"""The image, read as text because no engine is at hand: what Kubernetes and KubeRay need of it."""

from __future__ import annotations

import re
import tomllib

from conf.settings import ROOT

DOCKERFILE = ROOT / "kuberay" / "Dockerfile"
TEXT = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line.strip()]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def test_it_starts_from_the_slim_python_that_brings_bash() -> None:
    assert [rest for verb, rest in STEPS if verb == "FROM"] == ["python:3.11-slim"]
    assert "command -v bash" in TEXT


def test_every_instruction_is_one_docker_knows() -> None:
    assert {verb for verb, _ in STEPS} <= {"FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}


def test_every_download_is_checked_against_a_hash() -> None:
    installs = re.findall(r"pip install [^&\n]*", TEXT)
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "requirements.lock" in installs[0]
    # The package itself needs no download: no dependencies, and the build tool of the base image.
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[1].split())
    assert not re.search(r"apt-get|curl|wget|https?://|--index-url|--trusted-host", TEXT)


def test_every_package_of_the_project_is_copied_and_its_bytecode_compiled() -> None:
    copied = {rest.split()[0] for verb, rest in STEPS if verb == "COPY"}
    assert set(PACKAGES) <= copied
    [compiled] = re.findall(r"compileall -q -f ([a-z_ ]+)", TEXT)
    assert set(compiled.split()) == set(PACKAGES)


def test_the_kernels_are_compiled_for_every_node_by_the_user_that_runs_them() -> None:
    verbs = [verb for verb, _ in STEPS]
    warm = next(i for i, (_, rest) in enumerate(STEPS) if "warm()" in rest)
    assert STEPS[verbs.index("USER")][1] == "1000:1000"
    assert verbs.count("USER") == 1
    assert verbs.index("USER") < warm
    assert "NUMBA_CPU_NAME=generic" in TEXT
    assert "NUMBA_CACHE_DIR=/opt/desk/numba-cache" in TEXT


def test_the_user_is_the_one_the_manifests_run_as() -> None:
    assert "useradd --uid 1000" in TEXT
    assert "runAsUser: 1000" in (ROOT / "kuberay" / "base" / "rayservice.yaml").read_text()


def test_only_what_is_copied_reaches_the_build_and_secrets_never_do() -> None:
    lines = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = {source for verb, rest in STEPS if verb == "COPY" for source in rest.split()[:-1]}
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    # The last matching rule wins, so the exclusion stands after what it cuts from.
    assert rules.index("conf/secrets.env") > rules.index("!conf")
