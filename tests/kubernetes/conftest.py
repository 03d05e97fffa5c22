"""Fixtures of the manifest tests: the rendered paper overlay and what a test takes from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cluster import kube

IMAGE = "registry.example/desk:1.2.3"


@pytest.fixture(scope="session")
def _rendered() -> list[dict[str, Any]]:
    return kube.render("paper", IMAGE)


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
