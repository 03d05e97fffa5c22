"""Application deadman: when the desk falls silent, its orders are cancelled at the venue and the account is halted.

A process of its own, because it must outlive execution, and with a way of its own to the venue, because it must work
while the ledger is down. What counts as silence is decided in ``cluster.deadman``. Each step is bounded and may be
repeated: a dead man that was killed while it cancelled goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ray import serve

from cluster.clock_check import Clock, HostClock
from cluster.deadman import PART, Phase, Trip, Watch, is_armed, trader_part, traders_of
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable
from cluster.venue import Venue, VenueError
from cluster.venue_endpoint import (
    EndpointError,
    TokenBucket,
    VenueRejected,
    VenueUnauthorised,
    configured_endpoint,
)
from conf.limits import load_limits
from conf.settings import ExecutionSettings, Settings, load_secrets, load_settings
from strategies.model import TradingState

LOOK_INTERVAL_S: Final = 1.0
CANCEL_INTERVAL_S: Final = 0.5
CANCELS_PER_CALL: Final = 100
# An order may still be on its way when the desk dies; only after this long has the venue surely shown it.
SETTLED_S: Final = 15.0
BY: Final = "deadman"

logger = logging.getLogger("ray.serve")

Beats = Mapping[str, Mapping[str, Any]]


class DeadMan:
    """Watches over one account: ``step`` again and again."""

    def __init__(
        self,
        ledger: Ledger,
        make_venue: Callable[[], Venue],
        settings: ExecutionSettings,
        *,
        clock: Clock | None = None,
        ask: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        note: Path | None = None,
    ) -> None:
        """Watch over ``settings.account``; ``make_venue`` is called at the first trip and after its key was refused.

        ``note`` is a file in which a trip is remembered while the ledger, where it stands too, is down.
        """
        self._ledger = ledger
        self._make_venue = make_venue
        self._venue: Venue | None = None
        self._account = settings.account
        self._clock = clock or HostClock()
        self._ask = ask
        self._note = note
        self._watch = Watch(settings.account, settings.deadman_s)
        self._trip: Trip | None = None
        self._tripped_s = 0.0
        self._halted = False
        # Whether the venue may still have orders that it was not yet asked to cancel.
        self._left = False
        self._trips = 0
        self._recovered = False
        self._told: set[str] = set()
        if (reason := self._noted()) is not None:
            self._go_on("", reason)

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._watch.phase

    async def run(self) -> None:
        """Watch for good."""
        while True:
            await self.step()
            await asyncio.sleep(CANCEL_INTERVAL_S if self._left else LOOK_INTERVAL_S)

    async def step(self) -> None:
        """Look once, and do what the phase asks for: at most one round of cancels, one try to halt, one heartbeat."""
        beats = await self._beats()
        if beats is not None and not self._recovered:
            self._recover(beats)
        trip = self._watch.look(self._clock.monotonic_s(), beats)
        if trip is not None:
            self._begin(trip)
            self._write_note(trip.reason)
        if self.phase is Phase.CANCELLING:
            await self._cancel_and_halt(beats)
        elif self.phase is Phase.TRIPPED and beats is not None:
            await self._watch_again_when_resumed(beats)
        await self._beat()

    def close(self) -> None:
        """Close the connections to the venue."""
        if self._venue is not None:
            self._venue.close()
            self._venue = None

    def _begin(self, trip: Trip) -> None:
        self._trip, self._tripped_s, self._halted = trip, self._clock.monotonic_s(), False
        self._left = True
        self._trips += 1
        self._told.clear()
        logger.critical("DEADMAN: %s: every order of account %s is being cancelled", trip.reason, self._account)

    def _recover(self, beats: Beats) -> None:
        """Take up what the dead man before us, by its last heartbeat, was about to do."""
        self._recovered = True
        last = beats.get(PART, {})
        if last.get("account") != self._account or self.phase is not Phase.WAITING:
            return
        if last.get("phase") == Phase.CANCELLING:
            self._go_on(str(last.get("part", "")), str(last.get("reason", "")))
        elif last.get("phase") == Phase.TRIPPED:
            self._watch.tripped()
            self._trip = Trip(str(last.get("part", "")), str(last.get("reason", "")))

    def _go_on(self, part: str, reason: str) -> None:
        self._watch.phase = Phase.CANCELLING
        self._begin(Trip(part, reason))

    def _noted(self) -> str | None:
        """Why the dead man before us has tripped, where it was killed before it was done."""
        try:
            return self._note.read_text(encoding="utf-8") if self._note else None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("DEADMAN: the note of a trip cannot be read: %s", error)
            return "a dead man was interrupted"

    def _write_note(self, reason: str | None) -> None:
        if self._note is None:
            return
        try:
            if reason is None:
                self._note.unlink(missing_ok=True)
            else:
                self._note.write_text(reason, encoding="utf-8")
        except OSError as error:
            # A full disk must not keep orders from being cancelled.
            self._tell(f"the note of the trip is not written: {error}")

    # -- tripped -------------------------------------------------------------------------------------------------------

    async def _cancel_and_halt(self, beats: Beats | None) -> None:
        """One round. It is over when the venue's own list is empty, long enough after the halt to be believed."""
        # Whether it was halted before the list was read: an order let through in between would not be on it.
        halted = self._halted
        empty, _ = await asyncio.gather(self._cancel_round(), self._halt())
        self._left = not empty
        settled = self._clock.monotonic_s() - self._tripped_s >= SETTLED_S
        if empty and halted and settled and beats is not None and await self._end_traders(beats):
            self._watch.tripped()
            self._write_note(None)
            logger.critical("DEADMAN: account %s has no order left at the venue and is halted", self._account)

    async def _cancel_round(self) -> bool:
        """Ask for the venue's open orders and cancel them all; True where there are none."""
        try:
            if self._venue is None:
                self._venue = self._make_venue()
            found = [order.venue_order_id for order in await self._ask(self._venue.open_orders)]
        except VenueError as error:
            self._failed(error)
            return False
        for begin in range(0, len(found), CANCELS_PER_CALL):
            await self._cancel(found[begin : begin + CANCELS_PER_CALL])
        return not found

    async def _cancel(self, order_ids: list[str]) -> None:
        """Ask to cancel these. What fails is on the venue's list of the next round, and holds up no other."""
        if self._venue is None:
            return
        try:
            answers = await self._ask(self._venue.cancel, order_ids)
        except VenueRejected as error:
            self._failed(error)
            if len(order_ids) > 1:
                # One that the venue cannot bear must not save the others.
                await self._cancel(order_ids[: len(order_ids) // 2])
                await self._cancel(order_ids[len(order_ids) // 2 :])
            return
        except VenueError as error:
            self._failed(error)
            return
        logger.warning("DEADMAN: asked to cancel %d orders", len(order_ids))
        if refused := [f"{name}: {answer}" for name, answer in answers.items() if answer is not True]:
            # What is about to end anyway may not be cancelled; the venue's list says when it has.
            self._tell(f"{len(refused)} cancels refused, for example {refused[0]}")

    def _failed(self, error: VenueError) -> None:
        self._tell(f"orders could not be cancelled yet: {error}")
        if isinstance(error, (VenueUnauthorised, EndpointError)):
            # The key may have been replaced since.
            self.close()

    async def _halt(self) -> None:
        if self._halted or self._trip is None:
            return
        reason = f"dead man: {self._trip.reason}"
        try:
            await self._ledger.tighten(self._account, "account", TradingState.CANCEL_ALL, BY, reason, "DEADMAN")
        except (LedgerUnavailable, LedgerError) as error:
            self._tell(f"account {self._account} could not be halted yet: {error}")
            return
        self._halted = True
        logger.critical("DEADMAN: account %s is halted (CANCEL_ALL)", self._account)

    async def _end_traders(self, beats: Beats, names: list[str] | None = None) -> bool:
        """Let go of traders' heartbeats (None: all): whoever trades on asks anew. True where that is written."""
        for name, beat in traders_of(self._account, beats).items():
            if is_armed(beat) and (names is None or name in names):
                kept = {key: value for key, value in beat.items() if key not in {"at_ms", "age_ms"}}
                ended = kept | {"ended": True, "ended_by": BY}
                try:
                    await self._ledger.beat(trader_part(self._account, name), ended)
                except (LedgerUnavailable, LedgerError) as error:
                    self._tell(f"heartbeats are not ended yet: {error}")
                    return False
        return True

    async def _watch_again_when_resumed(self, beats: Beats) -> None:
        try:
            state = (await self._ledger.snapshot(self._account)).state.get("account")
        except (LedgerUnavailable, LedgerError):
            return
        if state is None or state == TradingState.CANCEL_ALL:
            return
        # A silence that began while nothing could be traded is over with it.
        if await self._end_traders(beats, self._watch.overdue(self._clock.monotonic_s())):
            self._watch.resumed()
            logger.warning("DEADMAN: account %s was resumed: it is watched anew", self._account)

    # -- heartbeats ----------------------------------------------------------------------------------------------------

    async def _beats(self) -> Beats | None:
        try:
            return await self._ledger.heartbeats()
        except (LedgerUnavailable, LedgerError, ValueError, KeyError, TypeError) as error:
            # What cannot be read says as little as a server that is away.
            logger.warning("DEADMAN: no heartbeats: %s", error)
            return None

    async def _beat(self) -> None:
        silence_s = self._watch.silence_s(self._clock.monotonic_s())
        detail = {
            "account": self._account,
            "phase": self.phase.value,
            "silence_s": None if silence_s is None else round(silence_s, 1),
            "part": self._trip.part if self._trip else "",
            "reason": self._trip.reason if self._trip else "",
            "trips": self._trips,
        }
        try:
            await self._ledger.beat(PART, detail)
        except (LedgerUnavailable, LedgerError) as error:
            logger.warning("DEADMAN: no heartbeat of its own: %s", error)

    def _tell(self, what: str) -> None:
        """Log once a trip: each round would say it again."""
        level = logging.DEBUG if what in self._told else logging.ERROR
        if len(self._told) < 1_000:
            self._told.add(what)
        logger.log(level, "DEADMAN: %s", what)


class ReservedShare:
    """The dead man's request budget: the share that is kept for cancels, which nobody else of a dead desk uses."""

    def __init__(self, requests_per_s: float, cancel_share: float) -> None:
        """That share of ``requests_per_s``, and one a second at least."""
        self._bucket = TokenBucket(max(1.0, requests_per_s * cancel_share))

    def take(self, kind: str, wait_s_max: float) -> None:
        """Wait for a token of any kind; raises ``VenueThrottled`` where that takes longer than ``wait_s_max``."""
        self._bucket.take(wait_s_max)


def venue_of(settings: Settings) -> Venue:
    """The settings' venue on the dead man's own budget; raises ``EndpointError``."""
    share = ReservedShare(settings.venue.requests_per_s, settings.venue.cancel_share)
    return Venue(configured_endpoint(settings, load_secrets(settings)), share)


@serve.deployment(name="deadman")
class DeadManService:
    """The replica: one task for good."""

    def __init__(self) -> None:
        """Read settings and limits; what is missing stops the replica with its name."""
        settings = load_settings()
        account = settings.execution.account
        if account not in load_limits(settings.limits_file).accounts:
            raise RuntimeError(f"execution.account: {account} has no limits in {settings.limits_file}")
        self._ledger = Ledger.connect(settings, load_secrets(settings))
        note = settings.state_dir / "deadman.tripped"
        self._deadman = DeadMan(self._ledger, lambda: venue_of(settings), settings.execution, note=note)
        self._task: asyncio.Task[None] | None = None

    async def check_health(self) -> None:
        """Start the task on the replica's own loop; afterwards fail when it has ended."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._deadman.run())
        if self._task.done():
            why = "it was cancelled" if self._task.cancelled() else repr(self._task.exception())
            raise RuntimeError(f"the dead man ended: {why}")

    async def close(self) -> None:
        """Close every connection."""
        self._deadman.close()
        await self._ledger.close()


app = DeadManService.bind()  # type: ignore[attr-defined]
