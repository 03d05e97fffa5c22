"""The Jobs client without a cluster: what it refuses to send, and what it says when nothing answers."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.processes import choose_ports
from cluster.ray_jobs import JobFieldError, JobStatus, RayJobs, RayJobsUnavailable


@pytest.fixture
def nobody() -> RayJobs:
    """A client of a port nobody listens on."""
    return RayJobs(f"127.0.0.1:{choose_ports(1)[0]}")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("submission_id", {"submission_id": ""}),
        ("submission_id", {"submission_id": "../x"}),
        ("submission_id", {"submission_id": "A1"}),
        ("submission_id", {"submission_id": "a" * 65}),
        ("submission_id", {"submission_id": "a1\n"}),
        ("entrypoint", {"entrypoint": "  "}),
        ("entrypoint", {"entrypoint": "run -----BEGIN EC PRIVATE KEY-----"}),
        ("entrypoint", {"entrypoint": "run redis://desk:hunter2@127.0.0.1:6379"}),
        ("metadata.api_key", {"metadata": {"api_key": "x"}}),
        ("metadata.Coinbase_Private", {"metadata": {"Coinbase_Private": "x"}}),
        ("metadata.note", {"metadata": {"note": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"}}),
        ("metadata.note", {"metadata": {"note": str(SecretStr("hidden"))}}),
        ("metadata.count", {"metadata": {"count": 3}}),
        ("entrypoint_num_cpus", {"entrypoint_num_cpus": -1}),
        ("entrypoint_num_cpus", {"entrypoint_num_cpus": float("nan")}),
    ],
)
def test_a_bad_submission_is_refused_before_anything_is_sent(
    nobody: RayJobs, field: str, arguments: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"submission_id": "a1", "entrypoint": "true", "metadata": {"kind": "sweep"}}
    with pytest.raises(JobFieldError) as caught:
        nobody.submit(**(good | arguments))
    assert caught.value.field == field
    assert "hunter2" not in str(caught.value)
    assert "eyJ" not in str(caught.value)


def test_a_good_submission_names_the_address_nobody_answers_at(nobody: RayJobs) -> None:
    started_s = time.monotonic()
    with pytest.raises(RayJobsUnavailable, match="no connection") as caught:
        nobody.submit("a1", "true", {"kind": "sweep"})
    assert caught.value.address == nobody.address
    assert nobody.address in str(caught.value)
    assert time.monotonic() - started_s < 5


def test_the_given_address_counts_whatever_the_environment_says(
    nobody: RayJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:1")
    with pytest.raises(RayJobsUnavailable) as caught:
        RayJobs(nobody.address).version()
    assert caught.value.address == nobody.address


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example", "https://ray.example"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_is_host_and_port_or_a_url(address: str, normal: str) -> None:
    assert RayJobs(address).address == normal


@pytest.mark.parametrize(
    "address", ["", "auto/x", "ray://head:10001", "http://u:p@head:1", "http://head/x", "http://h?q"]
)
def test_another_kind_of_address_is_refused(address: str) -> None:
    with pytest.raises(JobFieldError, match="address"):
        RayJobs(address)


def test_the_token_is_not_shown() -> None:
    jobs = RayJobs("127.0.0.1:1", SecretStr("canary-token"))
    with pytest.raises(RayJobsUnavailable) as caught:
        jobs.version()
    assert "canary-token" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {vars(jobs)}"


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_has_ended_or_not(status: JobStatus) -> None:
    assert status.ended == (status.value in {"STOPPED", "SUCCEEDED", "FAILED"})
