"""The Jobs client against servers that are no Ray dashboard, or a bad one: bounded in time, typed errors."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr

from cluster import ray_jobs
from cluster.ray_jobs import RayJobs, RayJobsRefused, RayJobsUnavailable, UnknownJob


@contextmanager
def server(reply: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that answers each request with ``reply``, None: never. Yields its address and the requests it got."""
    requests: list[bytes] = []
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                requests.append(whole_request(connection))
                if reply is None:
                    held.append(connection)
                    continue
                connection.sendall(reply)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", requests
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in held:
        connection.close()


def whole_request(connection: socket.socket) -> bytes:
    """Everything up to the end of the body, which may come in a packet of its own."""
    received = b""
    while True:
        head, blank, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if blank and len(body) >= (int(length[1]) if length else 0):
            return received
        piece = connection.recv(65536)
        if not piece:
            return received
        received += piece


def http(status: str, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    return head.encode() + body


def test_a_server_that_never_answers_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "SUBMIT_TIMEOUT_S", 0.3)
    with server(None) as (address, requests):
        started_s = time.monotonic()
        with pytest.raises(RayJobsUnavailable, match="no answer in time") as caught:
            RayJobs(address).submit("a1", "true")
        assert 0.3 <= time.monotonic() - started_s < 5
        assert address in str(caught.value)
        assert requests[0].startswith(b"POST /api/jobs/ ")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"\x00\xff garbage", RayJobsUnavailable),
        (http("200 OK", b"<html>hello</html>"), RayJobsUnavailable),
        (http("200 OK", b"[1, 2]"), RayJobsUnavailable),
        (http("200 OK", b'{"status": "RUNNING"}'), RayJobsUnavailable),
        (http("200 OK", b'{"submission_id": "a1", "status": "FLYING", "entrypoint": "x"}'), RayJobsUnavailable),
        (
            http("200 OK", b'{"submission_id": "a1", "status": "RUNNING", "entrypoint": "x", "metadata": 7}'),
            RayJobsUnavailable,
        ),
        (http("302 Found", b"", "Location: http://127.0.0.1:1/\r\n"), RayJobsUnavailable),
        (http("401 Unauthorized", b"token please"), RayJobsRefused),
        (http("500 Internal Server Error", b"Traceback\nValueError: nothing works\n"), RayJobsRefused),
        (http("404 Not Found", b"Job a1 does not exist"), UnknownJob),
        (http("404 Not Found", b"no such page"), RayJobsRefused),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_typed_error(reply: bytes, error: type[Exception]) -> None:
    with server(reply) as (address, _), pytest.raises(error):
        RayJobs(address).job("a1")


def test_a_refusal_gives_the_last_line_and_not_the_whole_trace() -> None:
    reply = http("500 Internal Server Error", b"Traceback\n  File x\nValueError: nothing works\n")
    with server(reply) as (address, _), pytest.raises(RayJobsRefused, match="nothing works") as caught:
        RayJobs(address).list()
    assert caught.value.status == 500
    assert "File x" not in str(caught.value)


def test_the_token_goes_into_the_header_and_nowhere_else() -> None:
    with server(http("200 OK", b'{"ray_version": "2.60.0"}')) as (address, requests):
        assert RayJobs(address, SecretStr("canary")).version() == "2.60.0"
    (request,) = requests
    assert b"Authorization: Bearer canary\r\n" in request
    assert request.count(b"canary") == 1


def test_what_is_submitted_carries_no_environment_and_no_folder() -> None:
    with server(http("200 OK", b'{"submission_id": "a1"}')) as (address, requests):
        RayJobs(address).submit("a1", "true", {"kind": "sweep"}, entrypoint_num_cpus=0.5)
    body = requests[0].partition(b"\r\n\r\n")[2]
    assert b'"runtime_env": {}' in body
    assert b'"entrypoint_num_cpus": 0.5' in body
