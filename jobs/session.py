"""A live session as a Ray job: ``python -m jobs.session --session-dir DIR`` runs the strategy laid out in DIR.

Each final bar -> the strategy's step -> target -> wanted position -> an order through the desk's risk, where the target
has changed. Starting and going on are the same: what the checkpoint counts is read back and proved by running the
strategy over the journal's bars again, then the bars since are fetched. Exit status: 0 ended, 1 failed, 2 refused,
3 another process is at work, 128 + signal stopped. What went wrong is in DIR/status.json.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from cluster.live_bars import LiveBars
from cluster.run_folder import RunBusy, RunConflict, RunError, RunFailure, RunState
from cluster.runs import code_identity, failure_of
from cluster.sessions import SessionFolder
from jobs.session_engine import RETRY_S, Session, passing_errors
from jobs.session_orders import HttpDoor
from strategies.base import SpecError
from strategies.model import Bars

if TYPE_CHECKING:
    from cluster.venue_budget import SharedBudget
    from cluster.venue_endpoint import VenueEndpoint
    from conf.settings import Secrets, Settings

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
BUSY: Final = 3

# A session that is killed again and again is not restarted for ever.
RESTARTS_MAX: Final = 20
RESTART_WAIT_S: Final = 1.0
COMPARED_S: Final = 600.0
# How often the venue is asked at the start before the session gives up.
FIRST_TRIES: Final = 6
LEDGER_CLOSE_S_MAX: Final = 10.0
# Of the hash of the strategies' sources, as the orders name it.
VERSION_CHARS: Final = 16

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class VenueClock:
    """This machine's clock, put right every ``COMPARED_S`` by what the venue's is ahead: a bar ends by the latter."""

    venue_time_ns: Callable[[], int]
    _ahead_ns: int = 0
    _compared_s: float = -math.inf

    def compare(self) -> None:
        """Ask the venue where that is due; raises what asking raises."""
        if time.monotonic() - self._compared_s > COMPARED_S:
            before_ns = time.time_ns()
            venue_ns = self.venue_time_ns()
            self._ahead_ns = venue_ns - (before_ns + time.time_ns()) // 2
            self._compared_s = time.monotonic()

    def time_ns(self) -> int:
        return time.time_ns() + self._ahead_ns

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive one session; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.session", description=__doc__)
    parser.add_argument("--session-dir", type=Path, required=True, help="the session's folder, with spec.json in it")
    parser.add_argument("--supervise", action="store_true", help="start it again where it is killed")
    options = parser.parse_args(arguments)
    folder = SessionFolder(options.session_dir.resolve())
    if not folder.spec_file.is_file():
        return _say(f"--session-dir: {folder.path} has no spec.json", REFUSED)
    if options.supervise:
        return supervise([sys.executable, "-m", "jobs.session", "--session-dir", str(folder.path)])
    try:
        with folder.driving():
            return drive(folder)
    except RunBusy as error:
        return _say(str(error), BUSY)


def drive(folder: SessionFolder) -> int:
    """Run the session in ``folder``, whose only driver we are; returns the exit status."""
    stop_on_signals(folder)
    try:
        with connected(folder) as session:
            session.run()
    except _told_errors() as error:
        # The typed errors of specification, folder and venue say all there is to say.
        _failed(folder, failure_of(error))
        return _say(f"refused: {error}", REFUSED)
    except Exception as error:
        # The edge of the job: whatever it was, the session must not stay RUNNING.
        logger.exception("session %s failed", folder.session_id)
        _failed(folder, failure_of(error))
        return FAILED
    return DONE


@contextmanager
def connected(folder: SessionFolder) -> Iterator[Session]:
    """The session of ``folder`` with the desk's venue (without any key) and the desk's HTTP interface.

    Raises ``RunConflict`` where the desk's prices are of another source than the session's, and the venue's errors.
    """
    from cluster.venue import Venue
    from cluster.venue_endpoint import configured_endpoint
    from conf.settings import load_secrets, load_settings

    settings = load_settings()
    secrets = load_secrets(settings)
    spec, source = folder.spec(), folder.record().data_source
    if source != settings.data_source:
        raise RunConflict("data_source", settings.data_source, f"the source the session began with, {source}")
    # Candles are public and orders go through risk: without the venue's key nothing else is possible from here.
    endpoint = replace(configured_endpoint(settings, secrets), key_name=None, key_secret=None)
    with ExitStack() as stack:
        budget = stack.enter_context(_shared_budget(settings, secrets, endpoint))
        venue = stack.enter_context(closing(Venue(endpoint, budget)))
        door = stack.enter_context(closing(HttpDoor(settings.api_url, folder.key_file)))
        clock = VenueClock(venue.server_time_ns)

        def fetch(start_s: int, end_s: int) -> Bars:
            clock.compare()
            return venue.candles(spec.product_id, spec.granularity, start_s, end_s)

        _patiently(clock.compare)
        product = _patiently(lambda: venue.product(spec.product_id))
        bars = LiveBars(spec.product_id, spec.granularity, fetch)
        yield Session(folder, product, bars, door, clock, version=code_identity()["code_hash"][:VERSION_CHARS])


@contextmanager
def _shared_budget(settings: Settings, secrets: Secrets, endpoint: VenueEndpoint) -> Iterator[SharedBudget]:
    """The budget of requests that all processes of the desk share, asked for on an event loop of its own."""
    from cluster.ledger import Ledger
    from cluster.venue_budget import SharedBudget

    async def connect() -> Ledger:
        return Ledger.connect(settings, secrets)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="budget", daemon=True)
    thread.start()
    ledger = asyncio.run_coroutine_threadsafe(connect(), loop).result()
    share, public = settings.venue.cancel_share, endpoint.public_requests_per_s
    try:
        yield SharedBudget(ledger, loop, endpoint.requests_per_s, share, public_rate_per_s=public)
    finally:
        asyncio.run_coroutine_threadsafe(ledger.close(), loop).result(LEDGER_CLOSE_S_MAX)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _patiently(call: Callable[[], T]) -> T:
    from cluster.venue import VenueThrottled, VenueUnavailable

    for attempt in range(FIRST_TRIES - 1):
        try:
            return call()
        except (VenueThrottled, VenueUnavailable) as error:
            logger.warning("the venue does not answer: %s", error)
            time.sleep(RETRY_S * 2**attempt)
    return call()


def supervise(argv: Sequence[str]) -> int:
    """Run the session as a process of its own and start it again where a signal it cannot answer has ended it."""
    child: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        told.append(number)
        if child is not None:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    for attempt in range(RESTARTS_MAX + 1):
        child = subprocess.Popen(argv)
        if told:
            child.send_signal(told[0])  # it came in the moment in which there was no child
        status = child.wait()
        if status >= 0 or told:
            return status if status >= 0 else 128 + told[0]
        print(f"killed by {signal.Signals(-status).name}; restart {attempt + 1} of {RESTARTS_MAX}", flush=True)
        time.sleep(RESTART_WAIT_S)
        if told:
            return 128 + told[0]
    return FAILED


def stop_on_signals(folder: SessionFolder) -> None:
    """SIGTERM and SIGINT mark the session STOPPED and end this process at once: every state on the disk is whole."""

    def stop(number: int, _: FrameType | None) -> None:
        status = folder.status()
        if not status.state.ended:
            update = {"state": RunState.STOPPED, "phase": "ended", "updated_ns": time.time_ns()}
            folder.write_status(status.model_copy(update=update))
        print(f"stopped by {signal.Signals(number).name}", flush=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _failed(folder: SessionFolder, failure: RunFailure) -> None:
    status = folder.status()
    update = {"state": RunState.FAILED, "phase": "ended", "updated_ns": time.time_ns(), "error": failure}
    folder.write_status(status.model_copy(update=update))


def _told_errors() -> tuple[type[Exception], ...]:
    return (RunError, SpecError, *passing_errors())


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr if status else sys.stdout, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
