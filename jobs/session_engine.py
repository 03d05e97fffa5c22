"""The live session itself: bars in, targets, orders out, and everything kept so that a killed one goes on as it was.

How an order comes to be, so that a session killed at any moment sends none twice: the decision, with the id that
belongs to this session and this bar, is on the disk before anything is sent; a repeat of an id gets the first answer.
Clock, bars and the door to the desk are passed in.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, Protocol

from cluster.bar_checks import MarketDataError, iso
from cluster.live_bars import LiveBar, LiveBars
from cluster.run_folder import RunError, RunState
from cluster.session_journal import (
    BAR,
    CORRECTION,
    NOTE,
    Journal,
    JournalError,
    decode_state,
    encode_state,
    read_journal,
)
from cluster.sessions import Checkpoint, SessionFolder, SessionOrder, StopRequest
from jobs.session_orders import DeskSilent, Door
from jobs.session_plan import (
    Plan,
    bar_line,
    correction_line,
    number,
    order_line,
    plan_bar,
    wanted_target,
    way_to,
)
from strategies.base import BarStep
from strategies.compiled import plain
from strategies.model import EXACT, NS_PER_S, TERMINAL, OrderStatus, Product
from strategies.registry import get

# How often a session looks whether somebody wants it to end, and tells that it lives.
WAKE_S: Final = 0.5
BEAT_S: Final = 2.0
# An order that was just sent is followed this long before the loop goes on; a market order is over in less.
FOLLOW_S: Final = 3.0
FOLLOW_INTERVAL_S: Final = 0.1
FLATTEN_S: Final = 30.0
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 30.0
DETAIL_CHARS_MAX: Final = 300
_FILLED: Final = ("filled_quantity", "filled_value", "fees")
# Figures of the checkpoint that the status repeats.
_SHOWN: Final = (
    "bars",
    "live_bars",
    "last_ts_ns",
    "target",
    "position",
    "cash",
    "equity",
    "fees",
    "orders",
    "accepted",
    "denied",
    "filled",
    "skipped",
    "corrections",
)


logger = logging.getLogger(__name__)


class Clock(Protocol):
    """Time as a session sees it."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970 UTC, by the venue's clock."""

    def sleep(self, seconds: float) -> None:
        """Come back so much later."""


class Session:
    """One session on its bars, its door to the desk and its clock."""

    def __init__(
        self,
        folder: SessionFolder,
        product: Product,
        bars: LiveBars,
        door: Door,
        clock: Clock,
        sync: Callable[[int], None] = os.fsync,
        version: str = "",
    ) -> None:
        """Nothing is read or sent before ``run``. ``sync`` brings a file's data to the disk; ``version`` names the
        code that decides, in each order."""
        self.folder = folder
        self._spec = folder.spec()
        self._product = product
        self._bars = bars
        self._door = door
        self._clock = clock
        self._sync = sync
        self._version = version
        strategy = get(self._spec.strategy)
        self._vector = self._spec.backtest().parameters().vector()
        self._start = plain(strategy.start)
        self._on_bar = plain(strategy.on_bar)
        self._state: Any = None
        self._journal: Journal
        self._at: Checkpoint
        self._status = folder.status()
        self._beaten_ns = 0
        self._look_ns = 0
        self._failures = 0

    def run(self) -> RunState:
        """Go on from the checkpoint, or begin, until the session is to end; the state it ended in."""
        self._tell(state=RunState.RUNNING, phase="starting", started_ns=self._clock.time_ns(), problem="", error=None)
        ended = self._begun() and self._work()
        state = RunState.SUCCEEDED if ended else RunState.STOPPED
        self._tell(state=state, phase="ended", problem="")
        return state

    # -- beginning and going on ----------------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether the session is where its checkpoint says, or warmed up; False: it was told to stop meanwhile."""
        checkpoint = self.folder.checkpoint()
        if checkpoint is not None:
            self._resume(checkpoint)
            return True
        self._journal = Journal(self.folder.journal_file, 0, self._sync)
        while (history := self._history()) is None:
            if self.folder.stop_request():
                return False
            self._wait()
        self._warm_up(*history)
        return True

    def _history(self) -> tuple[int, list[LiveBar]] | None:
        """The first bar's time and the bars from it to now; None where the venue does not answer."""
        now_ns, step_ns = self._clock.time_ns(), self._spec.granularity.ns
        first_ns = max(0, now_ns // step_ns - self._spec.warm_up) * step_ns
        try:
            return first_ns, self._bars.history(first_ns, now_ns)
        except passing_errors() as error:
            self._failed_look(error)
            return None

    def _warm_up(self, first_ns: int, history: Sequence[LiveBar]) -> None:
        self._state = self._start(self._vector)
        lines, target = [], math.nan
        for bar in history:
            target = self._step(bar)
            lines.append(bar_line(bar, target))
        capital = f"{Decimal(repr(self._spec.costs.initial_cash)):f}"
        self._at = Checkpoint(
            bars=len(history),
            warm_up_bars=len(history),
            first_ts_ns=first_ns,
            last_ts_ns=self._bars.last_ns,
            strategy_state=encode_state(self._state),
            target=number(target),
            standing=0.0,
            wanted="0",
            cash=capital,
            position="0",
            equity=capital,
            journal_bytes=0,
        )
        self._commit(lines)
        print(f"warmed up: {len(history)} bars from {iso(first_ns)}, target {target}", flush=True)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Read the state back and prove it: the strategy over the same bars must give the same targets and state."""
        self._journal = Journal(self.folder.journal_file, checkpoint.journal_bytes, self._sync)
        self._at = checkpoint
        state = self._state = self._start(self._vector)
        kept = decode_state(checkpoint.strategy_state, like=state)
        bars, target = 0, math.nan
        for line in read_journal(self.folder.journal_file, checkpoint.journal_bytes):
            if line["kind"] not in {BAR, CORRECTION}:
                continue
            bar = LiveBar(*(line[name] for name in LiveBar._fields))
            self._bars.remember(bar)
            if line["kind"] == BAR:
                bars, target = bars + 1, self._step(bar)
                if number(target) != line["target"]:
                    rule = f"the target the session acted on, {line['target']}; the strategy's code has changed"
                    raise JournalError(f"target of the bar at {iso(bar.ts_ns)}", target, rule)
        self._bars.last_ns = max(self._bars.last_ns, checkpoint.last_ts_ns)
        if (bars, self._bars.last_ns) != (checkpoint.bars, checkpoint.last_ts_ns):
            raise JournalError("bars", bars, f"the {checkpoint.bars} bars the checkpoint counts")
        if encode_state(self._state) != checkpoint.strategy_state:
            raise JournalError("strategy_state", "another", "the state the strategy has after the journal's bars")
        self._state = kept
        self._commit([{"kind": NOTE, "what": "resumed", "at_ns": self._clock.time_ns()}])
        print(f"going on behind {iso(checkpoint.last_ts_ns)}, bar {checkpoint.bars}", flush=True)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """Until the session has met ``bars_max`` bars (True) or somebody wants it to end (False)."""
        while True:
            if request := self.folder.stop_request():
                self._end(request)
                return False
            if self._at.order is not None:
                self._settle_order()
            elif self._complete():
                return True
            if self._clock.time_ns() >= self._look_ns and not self._complete():
                self._look()
            self._wait()

    def _complete(self) -> bool:
        return self._spec.bars_max is not None and self._at.live_bars >= self._spec.bars_max

    def _look(self) -> None:
        """Ask the venue what is final now, and take it up bar by bar."""
        now_ns = self._clock.time_ns()
        try:
            found = self._bars.look(now_ns)
        except passing_errors() as error:
            self._failed_look(error)
            return
        self._failures, self._look_ns = 0, self._bars.due_ns
        if found.corrections:
            corrections = self._at.corrections + len(found.corrections)
            self._commit([correction_line(one, now_ns) for one in found.corrections], corrections=corrections)
        for bar in found.final:
            if self._complete():
                return
            self._meet(bar)
        self._tell(phase="live", problem="")

    def _failed_look(self, error: Exception) -> None:
        wait_s = min(RETRY_S_MAX, RETRY_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._look_ns = self._clock.time_ns() + int(wait_s * NS_PER_S)
        logger.warning("no bars: %s", error)
        self._tell(problem=f"no bars: {error}"[:DETAIL_CHARS_MAX])

    def _wait(self) -> None:
        now_ns = self._clock.time_ns()
        if now_ns - self._beaten_ns >= BEAT_S * NS_PER_S:
            self._tell()
        pause_s = FOLLOW_INTERVAL_S if self._at_order() else WAKE_S
        until_look_s = (self._look_ns - now_ns) / NS_PER_S
        self._clock.sleep(max(0.01, min(pause_s, until_look_s if until_look_s > 0 else pause_s)))

    def _at_order(self) -> bool:
        return hasattr(self, "_at") and self._at.order is not None

    def _end(self, request: StopRequest) -> None:
        """Close the position where that is wanted; the order in hand is followed to its end, as long as is decent."""
        deadline_ns = self._clock.time_ns() + int(FLATTEN_S * NS_PER_S)
        self._follow(deadline_ns if request.flatten else self._clock.time_ns() + int(FOLLOW_S * NS_PER_S))
        if request.flatten and self._at.order is None and Decimal(self._at.position):
            now_ns = self._clock.time_ns()
            plan = way_to(Decimal(0), Decimal(self._at.position), self._product, None)
            if plan.action == "ORDER":
                order = self._intent(plan, f"{self.folder.session_id}.close.{self._at.orders}", now_ns, deadline_ns)
                lines = [order_line("DECIDED", order, now_ns, why="stopped", wanted="0")]
                self._commit(lines, order=order, orders=self._at.orders + 1, standing=0.0, wanted="0")
                self._settle_order()
                self._follow(deadline_ns)
        note = {"kind": NOTE, "what": "stopped", "by": request.by, "flatten": request.flatten}
        self._commit([note | {"at_ns": self._clock.time_ns()}])

    # -- a bar ---------------------------------------------------------------------------------------------------------

    def _meet(self, bar: LiveBar) -> None:
        """Take up one final bar: step, decide, write down, send."""
        target = self._step(bar)
        now_ns, step_ns = self._clock.time_ns(), self._spec.granularity.ns
        valid_until_ns = bar.ts_ns + 2 * step_ns
        if fresh := now_ns < valid_until_ns:
            self._look_back()
        equity = self._equity(bar.close)
        plan = plan_bar(self._at, target, bar.close, equity, self._product, self._spec, fresh=fresh)
        order = self._intent(plan, f"{self.folder.session_id}.{bar.ts_ns // NS_PER_S}", bar.ts_ns, valid_until_ns)
        if plan.ask_first:
            plan = self._asked(plan, order)
        update: dict[str, Any] = {
            "bars": self._at.bars + 1,
            "last_ts_ns": bar.ts_ns,
            "strategy_state": encode_state(self._state),
            "target": number(target),
            "equity": f"{equity:f}",
            "skipped": self._at.skipped + (plan.action == "SKIPPED"),
        }
        if plan.acts:
            update |= {"standing": wanted_target(target, self._spec), "wanted": f"{plan.wanted:f}"}
        lines = [bar_line(bar, target, plan, now_ns, f"{equity:f}", self._at.position)]
        if plan.action == "ORDER":
            update |= {"order": order, "orders": self._at.orders + 1}
            lines.append(order_line("DECIDED", order, now_ns, why=plan.why, wanted=f"{plan.wanted:f}"))
        self._commit(lines, **update)
        if plan.action == "ORDER":
            self._settle_order()
            self._follow(self._clock.time_ns() + int(FOLLOW_S * NS_PER_S))

    def _step(self, bar: LiveBar) -> float:
        self._state, target = self._on_bar(self._vector, self._state, BarStep(*bar[1:]))
        target = float(target)
        if not (math.isnan(target) or -1.0 <= target <= 1.0):
            raise RunError(f"target of the bar at {iso(bar.ts_ns)}", target, "a number from -1 to 1, or NaN")
        return target

    def _asked(self, plan: Plan, order: SessionOrder) -> Plan:
        said = self._door.check(self._body(order))
        if said.outcome == "ACCEPTED":
            return plan
        return replace(plan, action="NONE", why=f"LEFT_OVER {said.code}")

    def _equity(self, price: float) -> Decimal:
        """Cash and position of the session, with what its open order has filled so far."""
        cash, position = Decimal(self._at.cash), Decimal(self._at.position)
        if (order := self._at.order) is not None:
            sign = 1 if order.side == "BUY" else -1
            cash -= sign * Decimal(order.filled_value) + Decimal(order.fees)
            position += sign * Decimal(order.filled_quantity)
        return cash + EXACT.multiply(position, Decimal(repr(price)))

    # -- an order ------------------------------------------------------------------------------------------------------

    def _intent(self, plan: Plan, client_order_id: str, bar_ts_ns: int, valid_until_ns: int) -> SessionOrder:
        return SessionOrder(
            client_order_id=client_order_id,
            bar_ts_ns=bar_ts_ns,
            side=plan.side,
            quantity=f"{plan.quantity:f}",
            valid_until_ns=valid_until_ns,
            strategy_version=self._version,
        )

    def _body(self, order: SessionOrder) -> dict[str, Any]:
        named = {"strategy_version": order.strategy_version} if order.strategy_version else {}
        return {
            **named,
            "client_order_id": order.client_order_id,
            "account": self._spec.account,
            "strategy": self._spec.order_strategy,
            "product_id": self._spec.product_id,
            "side": order.side,
            "type": "MARKET",
            "quantity": order.quantity,
        }

    def _settle_order(self) -> None:
        """Send the order in hand where that is not known to have happened, else ask what became of it."""
        order = self._at.order
        if order is None:
            return
        try:
            if order.phase == "INTENT":
                self._send(order)
            else:
                self._ask(order)
        except DeskSilent as error:
            self._tell(problem=str(error)[:DETAIL_CHARS_MAX])

    def _send(self, order: SessionOrder) -> None:
        if self._clock.time_ns() >= order.valid_until_ns:
            # Too late to send; whether it was sent before is the desk's to say.
            known = self._door.order(self._spec.account, order.client_order_id)
            if known is None:
                self._over("NOT_SENT", order, code="TOO_LATE")
            elif known["status"] == OrderStatus.DENIED:
                code = str((known.get("denials") or [{}])[0].get("code", "DENIED"))
                self._over("DENIED", order, denied=1, code=code)
            else:
                self._accepted(order)
            return
        said = self._door.submit(self._body(order))
        if said.outcome == "ACCEPTED":
            self._accepted(order)
        elif said.outcome == "DENIED":
            self._over("DENIED", order, denied=1, code=said.code, detail=said.detail)
        else:
            raise DeskSilent(f"order {order.client_order_id} not taken yet: {said.code} {said.detail}")

    def _accepted(self, order: SessionOrder) -> None:
        accepted = order.model_copy(update={"phase": "ACCEPTED"})
        line = order_line("ACCEPTED", order, self._clock.time_ns())
        self._commit([line], order=accepted, accepted=self._at.accepted + 1)

    def _ask(self, order: SessionOrder) -> None:
        view = self._door.order(self._spec.account, order.client_order_id)
        if view is None:
            raise DeskSilent(f"order {order.client_order_id}: the desk does not know it any more")
        seen = _seen(order, view)
        if OrderStatus(seen.status) in TERMINAL:
            self._booked(seen, view)
        elif seen != order:
            self._commit([], order=seen)

    def _booked(self, order: SessionOrder, view: Mapping[str, Any]) -> None:
        """The order has ended: what it filled is the session's."""
        sign = 1 if order.side == "BUY" else -1
        quantity, value, fees = Decimal(order.filled_quantity), Decimal(order.filled_value), Decimal(order.fees)
        self._over(
            order.status,
            order,
            filled=int(quantity > 0),
            reason=view.get("reason") or "",
            filled_quantity=order.filled_quantity,
            filled_value=order.filled_value,
            average_price=view.get("average_price"),
            fees=order.fees,
            position=f"{Decimal(self._at.position) + sign * quantity:f}",
            cash=f"{Decimal(self._at.cash) - sign * value - fees:f}",
            all_fees=f"{Decimal(self._at.fees) + fees:f}",
        )

    def _look_back(self) -> None:
        """A fill may come late, after its order had ended: what the desk has booked since is the session's too."""
        last = self._at.last_order
        if last is None or self._at.order is not None:
            return
        try:
            view = self._door.order(self._spec.account, last.client_order_id)
        except DeskSilent as error:
            self._tell(problem=str(error)[:DETAIL_CHARS_MAX])
            return
        seen = last if view is None else _seen(last, view)
        quantity, value, fees = (Decimal(getattr(seen, name)) - Decimal(getattr(last, name)) for name in _FILLED)
        if not (quantity or value or fees):
            return
        more = {"filled_quantity": f"{quantity:f}", "filled_value": f"{value:f}", "fees": f"{fees:f}"}
        sign = 1 if last.side == "BUY" else -1
        self._commit(
            [order_line("LATE_FILL", last, self._clock.time_ns(), **more)],
            position=f"{Decimal(self._at.position) + sign * quantity:f}",
            cash=f"{Decimal(self._at.cash) - sign * value - fees:f}",
            fees=f"{Decimal(self._at.fees) + fees:f}",
            last_order=seen,
        )

    def _over(self, event: str, order: SessionOrder, denied: int = 0, filled: int = 0, **told: Any) -> None:
        update: dict[str, Any] = {"order": None, "denied": self._at.denied + denied, "filled": self._at.filled + filled}
        update |= {name: told[name] for name in ("position", "cash") if name in told}
        if "all_fees" in told:
            update |= {"fees": told.pop("all_fees"), "last_order": order}
        self._commit([order_line(event, order, self._clock.time_ns(), **told)], **update)
        words = " ".join(str(told[name]) for name in ("code", "reason", "average_price") if told.get(name))
        print(f"{order.client_order_id}: {order.side} {order.quantity} {event} {words}".rstrip(), flush=True)

    def _follow(self, until_ns: int) -> None:
        while self._at.order is not None and self._clock.time_ns() < until_ns:
            self._clock.sleep(FOLLOW_INTERVAL_S)
            self._settle_order()

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _commit(self, lines: Sequence[Mapping[str, Any]], **update: Any) -> None:
        """Lines to the disk, then the checkpoint that counts them into place."""
        length = self._journal.append(lines)
        self._at = self._at.model_copy(update={**update, "journal_bytes": length})
        self.folder.write_checkpoint(self._at)
        self._tell()

    def _tell(self, **update: Any) -> None:
        now_ns = self._clock.time_ns()
        figures: dict[str, Any] = {}
        if hasattr(self, "_at"):
            at = self._at
            figures = {name: getattr(at, name) for name in _SHOWN}
            figures["open_order"] = at.order.client_order_id if at.order else None
        told = self._status.model_copy(update={**figures, **update})
        if told == self._status:
            # A sign of life without anything new: cheaper than a file brought to the disk.
            self.folder.touch_status()
        else:
            self._status = told.model_copy(update={"updated_ns": now_ns})
            self.folder.write_status(self._status)
        self._beaten_ns = now_ns


def _seen(order: SessionOrder, view: Mapping[str, Any]) -> SessionOrder:
    """The order with what the desk says of it now."""
    figures = {name: str(view.get(name) or "0") for name in _FILLED}
    return order.model_copy(update={"status": str(view["status"]), **figures})


def passing_errors() -> tuple[type[Exception], ...]:
    """Errors of the venue and its bars that the next look may not have."""
    # Here and not above: the venue's SDK is heavy, and a test's bars need none of it.
    from cluster.venue import VenueError

    return VenueError, MarketDataError
