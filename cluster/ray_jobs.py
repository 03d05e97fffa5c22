"""Ray jobs: submit, watch, stop and read the logs of a job over the cluster's Jobs REST API.

Plain HTTP rather than Ray's ``JobSubmissionClient``, for three reasons: the client lets ``RAY_ADDRESS`` (set in every
KubeRay pod and every Ray job) override the address it is given; none of its requests has a time-out; and importing it
imports all of Ray, about a second in each command. The REST API is Ray's documented interface under that client.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import requests
from pydantic import SecretStr

CONNECT_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 10.0
# The first submission after start-up waits for the head's job agent.
SUBMIT_TIMEOUT_S: Final = 45.0
UPLOAD_TIMEOUT_S: Final = 300.0
POLL_INTERVAL_S: Final = 0.25

ATTEMPTS_MAX: Final = 100
ID_CHARS_MAX: Final = 64

_SUBMISSION_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_SECRET_NAME: Final = re.compile(r"secret|passw(or)?d|token|private|credential|api[-_]?key|pepper", re.IGNORECASE)
_SECRET_VALUE: Final = re.compile(r"-----BEGIN|\beyJ[\w-]{10,}\.|\*{8,}|://[^/\s:@]+:[^/\s@]+@")


class RayJobsError(RuntimeError):
    """Base of what can go wrong between us and the Jobs API."""


class RayJobsUnavailable(RayJobsError):
    """Nothing answered in time at ``address``, or what answered is not a Ray dashboard."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"Ray's Jobs API at {address} is not available: {reason}")
        self.address = address


class RayJobsRefused(RayJobsError):
    """The Jobs API answered with an error; ``status`` is its HTTP status."""

    def __init__(self, address: str, status: int, text: str) -> None:
        # Ray answers with a whole traceback; its last line is the message.
        reason = (text.strip().splitlines() or ["no reason given"])[-1]
        super().__init__(f"Ray's Jobs API at {address} refused ({status}): {reason[:500]}")
        self.status = status


class UnknownJob(RayJobsError):
    """The cluster has no job with this submission id."""

    def __init__(self, submission_id: str) -> None:
        super().__init__(f"submission_id: no job {submission_id!r} on the cluster")
        self.submission_id = submission_id


class JobTimeout(RayJobsError):
    """A job did not end within the time given."""


class JobFieldError(ValueError):
    """A field of a submission breaks a rule, for example by looking like a secret; the value is not repeated."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class JobStatus(StrEnum):
    """Where a job stands, by Ray's names."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in {JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED}


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it; times in nanoseconds UTC, None while not there yet."""

    submission_id: str
    status: JobStatus
    entrypoint: str
    message: str
    metadata: dict[str, str]
    start_ns: int | None
    end_ns: int | None
    exit_code: int | None


class RayJobs:
    """The Jobs API of one cluster.

    ``address`` is the dashboard's, ``host:port`` or ``http(s)://host:port``; ``token`` the cluster's auth token where
    it runs with ``RAY_AUTH_MODE=token``. Every call is bounded in time and raises ``RayJobsUnavailable`` (naming the
    address) or ``RayJobsRefused``.
    """

    def __init__(self, address: str, token: SecretStr | None = None) -> None:
        url = address if "://" in address else f"http://{address}"
        if not re.fullmatch(r"https?://[^/\s?#@]+/?", url):
            raise JobFieldError("address", f"expected host:port or http(s)://host:port, was {address!r}")
        self.address: Final = url.rstrip("/")
        self._token = token

    def version(self) -> str:
        """Ray's version on the cluster: the cheapest proof that the API answers."""
        return str(_mapping(self._call("GET", "/api/version"), self.address).get("ray_version", ""))

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        metadata: Mapping[str, str] | None = None,
        entrypoint_num_cpus: float = 0.0,
        package: str = "",
    ) -> str:
        """Start ``entrypoint`` (a shell command line) as a job and return its id.

        ``package`` is what ``upload`` returned: the job begins in its unpacked files. A repeat with the same id starts
        nothing and returns the id, also when two callers race, since the cluster takes an id once. After a time-out the
        outcome is unknown: repeat the call. No environment variable is passed, so nothing of this process's settings
        reaches Ray's job table, where everyone who sees the dashboard can read. Raises ``JobFieldError`` for a bad id
        or what looks like a secret.
        """
        _check_submission(submission_id, entrypoint, metadata or {}, entrypoint_num_cpus)
        body: dict[str, Any] = {
            "submission_id": submission_id,
            "entrypoint": entrypoint,
            "metadata": dict(metadata or {}),
            "runtime_env": {"working_dir": package} if package else {},
        }
        if entrypoint_num_cpus:
            body["entrypoint_num_cpus"] = entrypoint_num_cpus
        try:
            self._call("POST", "/api/jobs/", body=body, read_timeout_s=SUBMIT_TIMEOUT_S)
        except RayJobsRefused:
            # Ray has no status of its own for a known id, so the refusal is explained by looking.
            if self.find(submission_id) is None:
                raise
        return submission_id

    def upload(self, content: bytes) -> str:
        """Put a zip file on the cluster and return its address there; the same content again is no transfer."""
        name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip"
        try:
            self._call("GET", f"/api/packages/gcs/{name}", empty=True)
        except RayJobsRefused as error:
            if error.status != 404:
                raise
            self._call("PUT", f"/api/packages/gcs/{name}", content=content, read_timeout_s=UPLOAD_TIMEOUT_S, empty=True)
        return f"gcs://{name}"

    def resubmit(
        self,
        submission_id: str,
        entrypoint: str,
        metadata: Mapping[str, str] | None = None,
        entrypoint_num_cpus: float = 0.0,
        *,
        succeeded_too: bool = False,
        package: str = "",
    ) -> str:
        """Start a job again where its last attempt has failed or was stopped; the id of the attempt that counts.

        Where that attempt runs or has succeeded (unless ``succeeded_too``), or there is none, this is ``submit``. The
        new attempt has an id of its own (``<id>-r2``, ``-r3``, …): Ray's watch over an ended job can mark a new one
        under the same id as failed.
        """
        last = self.latest(submission_id)
        if last is None:
            return self.submit(submission_id, entrypoint, metadata, entrypoint_num_cpus, package)
        if not last.status.ended or (last.status is JobStatus.SUCCEEDED and not succeeded_too):
            return last.submission_id
        attempt = _attempt(submission_id, last.submission_id)
        attempt_id = _attempt_id(submission_id, attempt + 1)
        return self.submit(attempt_id, entrypoint, metadata, entrypoint_num_cpus, package)

    def latest(self, submission_id: str) -> Job | None:
        """The last attempt at a job: the one with this id, or what ``resubmit`` made of it; None without any."""
        _check_id(submission_id)
        found = self.find(submission_id)
        for attempt in range(2, ATTEMPTS_MAX + 1):
            later = self.find(_attempt_id(submission_id, attempt)) if found else None
            if later is None:
                return found
            found = later
        return found

    def job(self, submission_id: str) -> Job:
        """The job; raises ``UnknownJob``."""
        found = self.find(submission_id)
        if found is None:
            raise UnknownJob(submission_id)
        return found

    def find(self, submission_id: str) -> Job | None:
        """The job, or None where the cluster does not know it."""
        _check_id(submission_id)
        try:
            return _job(_mapping(self._call("GET", f"/api/jobs/{submission_id}"), self.address), self.address)
        except UnknownJob:
            return None

    def status(self, submission_id: str) -> JobStatus:
        """Where the job stands; raises ``UnknownJob``."""
        return self.job(submission_id).status

    def list(self) -> list[Job]:
        """Every submitted job, newest first."""
        answer = self._call("GET", "/api/jobs/")
        if not isinstance(answer, list):
            raise RayJobsUnavailable(self.address, f"expected a list of jobs, was {type(answer).__name__}")
        rows = [_mapping(row, self.address) for row in answer]
        jobs = [_job(row, self.address) for row in rows if row.get("type") == "SUBMISSION"]
        return sorted(jobs, key=lambda job: (job.start_ns or 0, job.submission_id), reverse=True)

    def stop(self, submission_id: str) -> bool:
        """Ask the job to end (SIGTERM, after three seconds SIGKILL); False where it was not running."""
        _check_id(submission_id)
        answer = _mapping(self._call("POST", f"/api/jobs/{submission_id}/stop"), self.address)
        return bool(answer.get("stopped"))

    def delete(self, submission_id: str) -> None:
        """Forget an ended job; raises ``RayJobsRefused`` while it runs. Its run folder is not touched."""
        _check_id(submission_id)
        self._call("DELETE", f"/api/jobs/{submission_id}")

    def logs(self, submission_id: str) -> str:
        """Everything the job has printed so far."""
        _check_id(submission_id)
        return str(_mapping(self._call("GET", f"/api/jobs/{submission_id}/logs"), self.address).get("logs") or "")

    def tail(self, submission_id: str, timeout_s: float | None = None) -> Iterator[str]:
        """Yield the job's output as it comes, until the job has ended; raises ``JobTimeout`` after ``timeout_s``."""
        seen = 0
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # The status is read before the text: what is printed between the two is then still caught.
            job = self.job(submission_id)
            text = self.logs(submission_id)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if job.status.ended:
                return
            _pause(job, deadline_s, timeout_s)

    def wait(self, submission_id: str, timeout_s: float) -> Job:
        """The job once it has ended; raises ``JobTimeout`` naming the job and its last status."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            job = self.job(submission_id)
            if job.status.ended:
                return job
            _pause(job, deadline_s, timeout_s)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        *,
        content: bytes | None = None,
        empty: bool = False,
    ) -> object:
        """The answer's JSON; ``content`` is sent as it is, and of an ``empty`` answer only the status counts."""
        with requests.Session() as session:
            # Neither a proxy nor a .netrc of the surrounding shell has a say about a call inside the cluster.
            session.trust_env = False
            try:
                response = session.request(
                    method,
                    self.address + path,
                    json=body,
                    data=content,
                    headers=self._headers(),
                    timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                raise RayJobsUnavailable(self.address, _reason(error)) from error
        if response.status_code == 404 and path.startswith("/api/jobs/") and "does not exist" in response.text:
            raise UnknownJob(path.split("/")[3])
        if not response.ok:
            raise RayJobsRefused(self.address, response.status_code, response.text)
        if empty:
            return None
        try:
            return response.json()
        except requests.JSONDecodeError as error:
            raise RayJobsUnavailable(self.address, "the answer is not JSON; is this a Ray dashboard?") from error

    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token.get_secret_value()}"}


def _attempt_id(submission_id: str, attempt: int) -> str:
    suffix = f"-r{attempt}"
    return submission_id[: ID_CHARS_MAX - len(suffix)] + suffix


def _attempt(submission_id: str, attempt_id: str) -> int:
    """Which attempt at ``submission_id`` has the id ``attempt_id``."""
    return 1 if attempt_id == submission_id else int(attempt_id.rpartition("-r")[2])


def _pause(job: Job, deadline_s: float | None, timeout_s: float | None) -> None:
    if deadline_s is not None and time.monotonic() >= deadline_s:
        raise JobTimeout(f"job {job.submission_id} has not ended within {timeout_s} s; last status {job.status}")
    time.sleep(POLL_INTERVAL_S)


def _check_submission(submission_id: str, entrypoint: str, metadata: Mapping[str, str], num_cpus: float) -> None:
    _check_id(submission_id)
    if not entrypoint.strip():
        raise JobFieldError("entrypoint", "is empty")
    if not 0 <= num_cpus <= 1024:
        raise JobFieldError("entrypoint_num_cpus", f"expected 0 to 1024, was {num_cpus}")
    _refuse_secret("entrypoint", "", entrypoint)
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise JobFieldError(f"metadata.{key}", f"expected text, was {type(value).__name__}")
        _refuse_secret(f"metadata.{key}", key, value)


def _check_id(submission_id: str) -> None:
    if not _SUBMISSION_ID.fullmatch(submission_id):
        raise JobFieldError("submission_id", f"expected 1 to 64 of a-z, 0-9 and -, was {submission_id!r}")


def _refuse_secret(field: str, name: str, value: str) -> None:
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        raise JobFieldError(field, "looks like a secret; everyone who sees the Ray dashboard could read it")


def _job(row: Mapping[str, Any], address: str) -> Job:
    try:
        return Job(
            submission_id=str(row["submission_id"] or ""),
            status=JobStatus(row["status"]),
            entrypoint=str(row["entrypoint"]),
            message=str(row.get("message") or ""),
            metadata={str(key): str(value) for key, value in (row.get("metadata") or {}).items()},
            start_ns=_ns(row.get("start_time")),
            end_ns=_ns(row.get("end_time")),
            exit_code=row.get("driver_exit_code"),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RayJobsUnavailable(address, f"an unexpected description of a job: {error!r}") from error


def _ns(milliseconds: int | None) -> int | None:
    # Ray writes 0 for a job that has not started or not ended.
    return int(milliseconds) * 1_000_000 if milliseconds else None


def _mapping(answer: object, address: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RayJobsUnavailable(address, f"expected a JSON object, was {type(answer).__name__}")
    return answer


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error) or type(error).__name__
