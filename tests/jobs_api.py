"""A double of Ray's Jobs API at the socket: it keeps jobs and starts nothing; a test moves them on.

Only what cluster/ray_jobs.py asks for, with the answers Ray 2.60 gives.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cluster.ray_jobs import RayJobs


@dataclass
class JobsApi:
    """The cluster's jobs by submission id, and how it behaves."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    silent: threading.Event = field(default_factory=threading.Event)
    """While set, requests are taken and never answered."""
    broken: bool = False
    """Whether every request is refused with 500."""
    port: int = 0

    def client(self) -> RayJobs:
        """The client the API uses."""
        return RayJobs(f"127.0.0.1:{self.port}")

    def put(self, submission_id: str, status: str) -> None:
        """Make or move on a job."""
        row = self.jobs.setdefault(submission_id, _row({"submission_id": submission_id, "entrypoint": "true"}))
        row["status"] = status

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON; text is an error as Ray words it."""
        if self.broken:
            return 500, "Traceback …\nRuntimeError: the head's agent is not there"
        parts = path.strip("/").split("/")[2:]
        match (method, parts):
            case ("GET", []) if path == "/api/version":
                return 200, {"ray_version": "2.60.0"}
            case ("GET", []):
                return 200, list(self.jobs.values())
            case ("POST", []):
                return self._submit(body)
            case (_, [job_id, *_]) if job_id not in self.jobs:
                return 404, f"Job {job_id} does not exist"
            case ("GET", [job_id]):
                return 200, self.jobs[job_id]
            case ("POST", [job_id, "stop"]):
                stopped = self.jobs[job_id]["status"] in {"PENDING", "RUNNING"}
                self.put(job_id, "STOPPED" if stopped else self.jobs[job_id]["status"])
                return 200, {"stopped": stopped}
            case ("DELETE", [job_id]):
                del self.jobs[job_id]
                return 200, {"deleted": True}
        return 404, "no such route"

    def _submit(self, body: Any) -> tuple[int, Any]:
        if body["submission_id"] in self.jobs:
            return 500, f"ValueError: Job with submission_id {body['submission_id']} already exists."
        self.submissions.append(body)
        self.jobs[body["submission_id"]] = _row(body)
        return 200, {"submission_id": body["submission_id"], "job_id": body["submission_id"]}


@contextmanager
def jobs_api() -> Iterator[JobsApi]:
    """A running double on a free port."""
    api = JobsApi()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            while api.silent.is_set():
                time.sleep(0.01)
            status, answer = api.answer(self.command, self.path, body)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 -- http.server's names

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hung up is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        api.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield api
        api.silent.clear()
        server.shutdown()


def _row(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": body["submission_id"],
        "status": "PENDING",
        "entrypoint": body["entrypoint"],
        "message": "",
        "metadata": body.get("metadata") or {},
        "start_time": int(time.time() * 1000),
        "end_time": None,
        "driver_exit_code": None,
    }
