"""Fixtures of the manifest tests: a Serve configuration and the rendered paper overlay."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cluster import kube

IMAGE = "registry.example/desk:1.2.3"
# Stands in where a test is about rendering, not about what conf/serve.yaml says today.
SERVE_YAML = """\
proxy_location: EveryNode  # a comment, which the cluster does not need
http_options:
  host: 0.0.0.0
  port: 8000
logging_config:
  encoding: JSON
applications:
  - name: orders
    route_prefix: /v1/orders
    import_path: serve_apps.orders:app
    deployments:
      - name: Orders
        num_replicas: 3
  - name: execution
    route_prefix: null
    import_path: serve_apps.execution:app
    deployments:
      - name: Execution
        num_replicas: 1
  - name: api
    route_prefix: /
    import_path: serve_apps.api:app
    deployments:
      - name: Api
        num_replicas: 1
"""


@pytest.fixture(scope="session")
def serve_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "serve.yaml"
    path.write_text(SERVE_YAML)
    return path


@pytest.fixture(scope="session")
def _rendered(serve_config: Path) -> list[dict[str, Any]]:
    return kube.render("paper", IMAGE, serve_config=serve_config)


@pytest.fixture
def manifests(_rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper overlay; a copy, so that a test may break it."""
    return copy.deepcopy(_rendered)


@pytest.fixture
def service(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return next(m for m in manifests if m["kind"] == "RayService")


@pytest.fixture
def job(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return kube.sweep_job(manifests, "a1")
