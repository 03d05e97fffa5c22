"""Live sessions: what one is asked for, the folder it lives in, how far it is, and how it is found, stopped, settled.

The folder is the session, as a run's folder is the run: ``<session_id>/`` holds spec.json (what was asked),
session.json (what it began from), journal.jsonl (every bar, target and order), checkpoint.json (how much of the journal
counts, and the strategy's state after it), status.json (for whoever watches), api_key (the key it trades with, 0600),
stop.json (somebody wants it to end) and parity.html. Everything but the journal appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.risk import NAME_PATTERN
from cluster.run_folder import RunBusy, RunConflict, RunError, RunFailure, RunState, UnknownRun, replace_file, to_json
from cluster.runs import code_identity
from conf.settings import Settings
from strategies.base import RULES, SpecError, Strategy, own_parameters
from strategies.model import Granularity
from strategies.registry import CROSS_SECTIONS, STRATEGIES, get
from strategies.spec import BacktestSpec, Costs, Number, ProductId, parse_backtest, spec_error
from strategies.user_file import SUFFIX, users_own

if TYPE_CHECKING:
    from cluster.ray_jobs import Job

SESSION_ID: Final = r"^[a-z0-9-]{1,40}$"
# Before a session's id in the names of Ray jobs, so that a session and a run never meet.
JOB_PREFIX: Final = "session-"
WARM_UP_BARS_MAX: Final = 50_000
# Where the user does not say: enough that recursive averages (Wilder's) have forgotten where they began.
WARM_UP_BARS_MIN: Final = 350
WARM_UP_WINDOWS: Final = 5
SUBMITTING_S: Final = 90.0
LISTED_MAX: Final = 500

_M = TypeVar("_M", bound=BaseModel)
_Name = Annotated[str, Field(strict=True, pattern=NAME_PATTERN)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SessionSpec(_Record):
    """What a session does: one strategy with one set of parameters on one product's live bars, for one account."""

    account: _Name = "main"
    product_id: ProductId
    granularity: Granularity
    strategy: Annotated[str, Field(strict=True, description="a registered strategy")]
    trades_as: _Name | None = Field(
        None, description="the strategy its orders count for, one of the account's limits; absent: the strategy's name"
    )
    params: dict[str, Number] = Field(default_factory=dict, description="those not named take their default")
    costs: Costs = Field(
        default_factory=Costs,
        description="the model fills are compared with; its fee sizes the orders, its initial_cash is the capital",
    )
    warmup_bars: Annotated[int, Field(strict=True, ge=0, le=WARM_UP_BARS_MAX)] | None = Field(
        None, description="bars of history before the first live one; absent: by the strategy's windows"
    )
    bars_max: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] | None = Field(
        None, description="end after so many live bars; absent: when it is stopped"
    )
    long_only: Annotated[bool, Field(strict=True)] = Field(
        True, description="a target below 0 means no position; false: risk decides on short orders (spot denies them)"
    )

    @model_validator(mode="after")
    def _is_a_backtest(self) -> Self:
        if users_own([self.strategy]) or self.strategy.endswith(SUFFIX):
            rule = f"one of {', '.join(STRATEGIES)}: a file of your own is for backtests and sweeps"
            raise SpecError("strategy", self.strategy, rule)
        if self.strategy in CROSS_SECTIONS:
            rule = f"one for one product: {', '.join(STRATEGIES)}; a live session trades one product"
            raise SpecError("strategy", self.strategy, rule)
        self.backtest()
        # Stops are carried out within a bar, and a session decides at its end: it would trade other than the backtest.
        for info in RULES:
            if self.params.get(info.name, info.default) != info.default:
                raise SpecError(f"params.{info.name}", self.params[info.name], f"{info.default:g} in a live session")
        if not self.costs.plain:
            raise SpecError(
                "costs", self.costs.model_dump(), "no more than fee, slippage, fill and cash in a live session"
            )
        return self

    def backtest(self) -> BacktestSpec:
        """The backtest whose targets a session's must be equal to."""
        return parse_backtest(
            {
                "product_id": self.product_id,
                "granularity": self.granularity,
                "strategy": self.strategy,
                "params": self.params,
                "costs": self.costs,
            }
        )

    @property
    def order_strategy(self) -> str:
        """The strategy its orders name."""
        return self.trades_as or self.strategy

    @property
    def warm_up(self) -> int:
        """Bars of history before the first live one."""
        return default_warm_up(get(self.strategy), self.backtest()) if self.warmup_bars is None else self.warmup_bars


class SessionRecord(_Record):
    """What a session began from (session.json)."""

    session_id: str
    created_ns: int
    spec_hash: str
    data_source: str
    key_id: str = ""
    person: str = ""
    git_revision: str
    git_dirty: bool
    code_hash: str
    versions: dict[str, str]


class SessionOrder(_Record):
    """The order a session waits for. ``phase`` INTENT: decided and perhaps sent; ACCEPTED: risk has answered yes."""

    client_order_id: str
    bar_ts_ns: int
    side: Literal["BUY", "SELL"]
    quantity: str
    valid_until_ns: int
    strategy_version: str = ""
    phase: Literal["INTENT", "ACCEPTED"] = "INTENT"
    status: str = ""
    filled_quantity: str = "0"
    filled_value: str = "0"
    fees: str = "0"


class Checkpoint(_Record):
    """A session after a bar. Quantities and money are decimal text; ``strategy_state`` as ``encode_state`` makes it.

    ``standing`` is the target last acted upon, ``wanted`` the position it asked for; ``cash`` and ``position`` are
    those of the session's own ended orders. ``target`` None is not a number: warming up.
    """

    version: Literal[1] = 1
    bars: int = Field(ge=0)
    warm_up_bars: int = Field(ge=0)
    first_ts_ns: int
    last_ts_ns: int
    strategy_state: list[list[Any]]
    target: float | None
    standing: float
    wanted: str
    cash: str
    position: str
    equity: str
    orders: int = Field(0, ge=0, description="decided")
    accepted: int = Field(0, ge=0)
    denied: int = Field(0, ge=0)
    filled: int = Field(0, ge=0, description="ended with a fill")
    skipped: int = Field(0, ge=0, description="changes of target that made no order")
    corrections: int = Field(0, ge=0)
    fees: str = "0"
    order: SessionOrder | None = None
    last_order: SessionOrder | None = Field(None, description="the newest that has ended at the venue")
    journal_bytes: int = Field(ge=0)

    @property
    def live_bars(self) -> int:
        """Bars that were met live."""
        return self.bars - self.warm_up_bars


class SessionStatus(_Record):
    """How a session is (status.json); the figures are of its last checkpoint."""

    state: RunState
    phase: str = ""
    started_ns: int | None = None
    updated_ns: int
    problem: str = ""
    error: RunFailure | None = None
    bars: int = 0
    live_bars: int = 0
    last_ts_ns: int | None = None
    target: float | None = None
    position: str = "0"
    cash: str = "0"
    equity: str = "0"
    fees: str = "0"
    orders: int = 0
    accepted: int = 0
    denied: int = 0
    filled: int = 0
    skipped: int = 0
    corrections: int = 0
    open_order: str | None = None


class StopRequest(_Record):
    """Somebody wants the session to end; ``flatten``: its position is closed first."""

    by: str
    at_ns: int
    flatten: bool = False


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """The files of one session, by name. Reading raises ``RunError`` where a file is absent or damaged."""

    path: Path

    @property
    def session_id(self) -> str:
        return self.path.name

    @property
    def job_id(self) -> str:
        """The submission id of its first Ray job."""
        return JOB_PREFIX + self.session_id

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    @property
    def record_file(self) -> Path:
        return self.path / "session.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def key_file(self) -> Path:
        return self.path / "api_key"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop.json"

    @property
    def parity_file(self) -> Path:
        return self.path / "parity.html"

    def spec(self) -> SessionSpec:
        """What was asked; raises ``SpecError`` naming the field where it breaks a rule."""
        try:
            content = json.loads(_read(self.spec_file))
        except (ValueError, RecursionError) as error:
            raise RunError(self.spec_file.name, str(self.spec_file), f"JSON ({error})") from error
        return parse_session(content)

    def record(self) -> SessionRecord:
        return _parse(SessionRecord, self.record_file)

    def checkpoint(self) -> Checkpoint | None:
        """The last one; None before the first."""
        return _parse(Checkpoint, self.checkpoint_file) if self.checkpoint_file.exists() else None

    def status(self) -> SessionStatus:
        """How it is. A killed session leaves it RUNNING: see ``settle_with_job``."""
        return _parse(SessionStatus, self.status_file)

    def stop_request(self) -> StopRequest | None:
        """Whether somebody wants it to end."""
        return _parse(StopRequest, self.stop_file) if self.stop_file.exists() else None

    def write_record(self, record: SessionRecord) -> None:
        replace_file(self.record_file, to_json(record))

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        replace_file(self.checkpoint_file, checkpoint.model_dump_json().encode() + b"\n")

    def write_status(self, status: SessionStatus) -> None:
        replace_file(self.status_file, to_json(status))

    def touch_status(self) -> None:
        """A sign of life: the file's time, without anything new in it."""
        os.utime(self.status_file)

    def beaten_ns(self) -> int:
        """When the session last gave a sign of life, in nanoseconds UTC by this machine's clock."""
        return self.status_file.stat().st_mtime_ns

    def write_stop(self, request: StopRequest) -> None:
        replace_file(self.stop_file, to_json(request))

    def write_key(self, key: str) -> None:
        """Keep the key it trades with, for its owner only."""
        descriptor, name = tempfile.mkstemp(prefix=".api_key-", dir=self.path)  # made with mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.key_file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def entrypoint(self, python: str = sys.executable) -> str:
        """The command line of its Ray job. No secret is in it: the key lies in the folder."""
        return shlex.join([python, "-m", "jobs.session", "--session-dir", str(self.path), "--supervise"])

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the folder as its only driver; raises ``RunBusy``. A killed driver's hold ends with it."""
        with (self.path / "driver.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunBusy("session_id", self.session_id, "no other process at work on this session") from error
            yield


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A line of a list; what cannot be read is None and said in ``problem``."""

    session_id: str
    spec: SessionSpec | None
    record: SessionRecord | None
    status: SessionStatus | None
    problem: str = ""


def parse_session(data: object) -> SessionSpec:
    """The specification in ``data``, as from JSON; raises ``SpecError`` with the dotted path."""
    try:
        return SessionSpec.model_validate(data)
    except ValidationError as error:
        raise spec_error(error) from None


def default_warm_up(strategy: Strategy, spec: BacktestSpec) -> int:
    """So many bars that every window of the strategy was full several times over."""
    vector = spec.parameters().vector().tolist()
    table = own_parameters(strategy)
    longest = sum(value for info, value in zip(table, vector, strict=True) if info.kind == "int" and value > 1)
    return min(WARM_UP_BARS_MAX, max(WARM_UP_BARS_MIN, WARM_UP_WINDOWS * int(longest)))


def sessions_path(settings: Settings) -> Path:
    """Parent of all session folders."""
    return settings.state_dir / "sessions"


def prepare_session(
    sessions_dir: Path,
    spec: SessionSpec,
    session_id: str | None,
    data_source: str,
    *,
    now_ns: int | None = None,
    person: str = "",
) -> tuple[SessionFolder, bool]:
    """Lay out the folder of a session: (the folder, whether it was there before with the same specification).

    Raises ``RunError`` (the id), ``RunConflict`` where the id is another specification's, or where another session of
    the same account, strategy and product has not ended: the two would take each other's position for granted.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    folder = SessionFolder(sessions_dir / checked_id(session_id or default_session_id(spec, now_ns)))
    sessions_dir.mkdir(parents=True, exist_ok=True)
    with (sessions_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held for the moment it takes to lay out a folder
        if folder.path.exists():
            return _same(folder, spec), True
        require_alone(sessions_dir, folder.session_id, spec)
        record = SessionRecord(
            session_id=folder.session_id,
            created_ns=now_ns,
            spec_hash=spec_hash(spec),
            data_source=data_source,
            person=person,
            **code_identity(),
        )
        with tempfile.TemporaryDirectory(prefix=".new-", dir=sessions_dir) as staging:
            whole = SessionFolder(Path(staging) / folder.session_id)
            whole.path.mkdir(mode=0o700)
            replace_file(whole.spec_file, to_json(spec))
            whole.write_record(record)
            capital = f"{spec.costs.initial_cash!r}"
            whole.write_status(SessionStatus(state=RunState.PENDING, updated_ns=now_ns, cash=capital, equity=capital))
            whole.path.rename(folder.path)
    return folder, False


def require_alone(sessions_dir: Path, session_id: str, spec: SessionSpec) -> None:
    """Raise ``RunConflict`` where another session trades the same product for the same strategy and account."""
    mine = (spec.account, spec.order_strategy, spec.product_id)
    for other in list_sessions(sessions_dir):
        if other.session_id == session_id or other.spec is None or other.status is None or other.status.state.ended:
            continue
        if (other.spec.account, other.spec.order_strategy, other.spec.product_id) == mine:
            rule = f"no second session of {spec.order_strategy} on {spec.product_id} while {other.session_id} runs"
            raise RunConflict("trades_as", spec.order_strategy, rule)


def open_session(sessions_dir: Path, session_id: str) -> SessionFolder:
    """The folder of a session; raises ``UnknownRun``."""
    folder = SessionFolder(sessions_dir / checked_id(session_id))
    if not folder.record_file.is_file():
        raise UnknownRun("session_id", session_id, f"a session in {sessions_dir}")
    return folder


def list_sessions(sessions_dir: Path) -> list[SessionInfo]:
    """Every session, newest first; a damaged folder is listed with what is wrong, after the others."""
    if not sessions_dir.is_dir():
        return []
    names = [path.name for path in sessions_dir.iterdir() if path.is_dir() and re.fullmatch(SESSION_ID, path.name)]
    found = [_info(SessionFolder(sessions_dir / name)) for name in names]
    return sorted(found, key=lambda one: (one.record.created_ns if one.record else 0, one.session_id), reverse=True)


def settle_with_job(folder: SessionFolder, job: Job | None) -> SessionStatus:
    """The status, corrected where the session's job has ended without a word, or the cluster does not know it (None).

    A folder laid out a moment ago may still be on its way to the cluster.
    """
    status = folder.status()
    submitting = status.state is RunState.PENDING and time.time_ns() - status.updated_ns < SUBMITTING_S * 1e9
    if status.state.ended or (submitting if job is None else not job.status.ended):
        return status
    return settle(folder, "UNKNOWN" if job is None else str(job.status))


def settle(folder: SessionFolder, job_ended_as: str) -> SessionStatus:
    """Mark a session whose job is over STOPPED or FAILED; one that a process is at work on is left alone."""
    try:
        with folder.driving():
            status = folder.status()
            if not status.state.ended:
                status = status.model_copy(update=_ending(job_ended_as))
                folder.write_status(status)
    except RunBusy:
        return folder.status()
    return status


def spec_hash(spec: SessionSpec) -> str:
    """SHA-256 of the specification in canonical JSON."""
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def default_session_id(spec: SessionSpec, now_ns: int) -> str:
    """``YYYYMMDD-HHMMSS-<hash>``: sorts by time, and a double click within a second is the same session."""
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{spec_hash(spec)[:8]}"


def checked_id(session_id: str) -> str:
    """``session_id`` where it is one; raises ``RunError``."""
    if not re.fullmatch(SESSION_ID, session_id) or session_id.endswith("\n"):
        raise RunError("session_id", session_id, "1 to 40 of a-z, 0-9 and -")
    return session_id


def _same(folder: SessionFolder, spec: SessionSpec) -> SessionFolder:
    if not folder.record_file.is_file() or folder.record().spec_hash != spec_hash(spec):
        raise RunConflict("session_id", folder.session_id, "an id that no session with another specification has")
    return folder


def _ending(job_ended_as: str) -> dict[str, Any]:
    update: dict[str, Any] = {"updated_ns": time.time_ns(), "phase": "ended"}
    if job_ended_as == RunState.STOPPED:
        return update | {"state": RunState.STOPPED}
    message = f"the Ray job ended ({job_ended_as}) before the session did; resume it to go on behind its last bar"
    failure = RunFailure(field="job", value=job_ended_as, rule="a job that reports its end", message=message)
    return update | {"state": RunState.FAILED, "error": failure}


def _info(folder: SessionFolder) -> SessionInfo:
    try:
        return SessionInfo(folder.session_id, folder.spec(), folder.record(), folder.status())
    except (RunError, SpecError, ValueError) as error:
        return SessionInfo(folder.session_id, None, None, None, str(error))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(path.name, str(path), f"a readable file ({error.strerror})") from error


def _parse(model: type[_M], path: Path) -> _M:
    try:
        return model.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([path.name, *(str(part) for part in first["loc"])])
        raise RunError(field, first["input"], first["msg"]) from error
