"""The whole order path in one process: client, ledger, execution and venue, everything that can go wrong, and what must
hold all the same. ``run(seed)`` is one run; the same seed is the same run to the last byte.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import hashlib
import logging
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import yaml

from cluster.anchors import Anchors
from cluster.exchange_history import MARKETS
from cluster.exchange_orders import Rules, State
from cluster.exchange_ticket import Refusal, read_ticket
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, StaleEpoch, library_source
from cluster.venue_shapes import order_configuration
from conf.limits import LimitsFile
from conf.settings import CONF_DIR, ExecutionSettings, read_mapping
from conf.trading_hours import calendar
from serve_apps import execution
from strategies.model import Order, OrderType, Product, Side, TimeInForce, TradingState
from tests.simulation.invariants import checkpoint, final
from tests.simulation.plan import Plan, plan_of
from tests.simulation.sim_stream import SimStream, StreamFaults
from tests.simulation.sim_venue import Network, SimVenue, SimVenueServer, VenueFaults
from tests.simulation.sim_wire import SimServer, SimWire, WireFaults
from tests.simulation.virtual_loop import BASE_S, VirtualLoop, Workers, determined

ACCOUNT: Final = "main"
KEY: Final = "test"
PRODUCTS: Final = ("BTC-USD", "ETH-USD")
VENUE_TIMEOUT_S: Final = 3.0
START_S_MAX: Final = 20
SETTLE_S_MAX: Final = 120.0
CHECK_EVERY_S: Final = 1.0
SETTINGS: Final = ExecutionSettings(
    account=ACCOUNT, reference_interval_s=2.0, poll_interval_s=1.0, reconcile_interval_s=7.0, stream=False
)
_current: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


@dataclass
class Outcome:
    """What a run has come to."""

    seed: int
    trace: str
    events: int
    virtual_s: float
    orders: int
    fills: int
    crashes: int
    violations: list[str]
    log: list[str]


@dataclass
class Asked:
    """An order of the client, and everything it was told about it."""

    order: Order
    answers: list[str] = field(default_factory=list)
    amended: bool = False

    @property
    def accepted(self) -> bool:
        """Whether it was ever told yes."""
        return "ACCEPTED" in self.answers


class Process:
    """A process of the desk: its connections, its worker threads, its tasks; ``kill`` ends it at once."""

    def __init__(self, world: World, name: str, wire: WireFaults, venue: VenueFaults) -> None:
        self.name = name
        self.alive = True
        self.random = random.Random(f"{name}/{world.plan.seed}")
        self.wire = SimWire(name, world.server, self.random)
        self.wire.faults = wire
        self.network = Network(name, world.venue, self.random)
        self.network.faults = venue
        self.workers = Workers(world.loop, lambda: self.random.random() * 0.002)
        self.ledger = Ledger(self.wire)  # type: ignore[arg-type]
        self._world = world
        self.stream: SimStream | None = None
        self.fuse = 0
        self.fuse_of_all = False
        self.tasks: list[asyncio.Task[Any]] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process."""
        context = contextvars.copy_context()
        context.run(_current.set, self)
        task = self._world.loop.create_task(work, context=context)
        self.tasks.append(task)
        return task

    def called(self, of_orders: bool) -> None:
        """A call of this process has just been carried out; its answer is on the way."""
        self.fuse -= of_orders or self.fuse_of_all
        if self.fuse == 0 and self.alive and (of_orders or self.fuse_of_all):
            self._world.loop.call_soon(self._world.burn, self)

    def calm(self) -> None:
        """No more faults on its ways."""
        self.fuse = 0
        self.wire.faults, self.network.faults = WireFaults(), VenueFaults()
        if self.stream is not None:
            self.stream.faults = StreamFaults()

    def kill(self) -> None:
        """As SIGKILL: nothing of it runs any more, what it has sent still arrives."""
        self.alive = False
        self._world.note("kill", self.name)
        self.wire.kill()
        self.workers.kill()
        for task in self.tasks:
            task.cancel()
        if self.stream is not None:
            self.stream.kill()


class World:
    """One run."""

    def __init__(self, loop: VirtualLoop, plan: Plan, folder: Path, keep: bool) -> None:
        self.plan = plan
        self.loop = loop
        self.random = random.Random(f"world/{plan.seed}")
        self.log: list[str] = []
        self.events = 0
        self.crashes = 0
        self.violations: list[str] = []
        self.asked: dict[str, Asked] = {}
        self.strangers: list[str] = []
        self.overfilled: list[str] = []
        self.deposited: list[tuple[int, Decimal]] = []
        self.calm = False
        self._keep = keep
        self._digest = hashlib.sha256()
        self._folder = folder
        self.server = SimServer(self.loop, self.note)
        self.server.offset_us = -plan.ledger_behind_ms * 1_000
        self.venue = SimVenueServer(self.loop, self.note)
        self.venue.rules = Rules(cancel_delay_ns=plan.cancel_delay_ms * 1_000_000)
        self.venue.exchange.rules = self.venue.rules
        self.executions: list[Process] = []
        self.client = Process(self, "client", plan.client_wire, VenueFaults())

    # -- what happened -------------------------------------------------------------------------------------------------

    def note(self, *parts: Any) -> None:
        """One event of the trace."""
        self.events += 1
        line = f"{self.loop.time():.7f} {parts!r}"
        self._digest.update(line.encode())
        if self._keep:
            self.log.append(line)

    def violated(self, what: str) -> None:
        """Something that must hold does not."""
        self.note("VIOLATED", what)
        self.violations.append(f"{self.loop.time() - self.plan.begins_s:.3f} s: {what}")

    def outcome(self) -> Outcome:
        """The run, when it is over."""
        return Outcome(
            self.plan.seed,
            self._digest.hexdigest(),
            self.events,
            self.loop.time() - self.plan.begins_s,
            sum(asked.accepted for asked in self.asked.values()),
            len(self.venue.exchange.fills),
            self.crashes,
            self.violations,
            self.log,
        )

    # -- the run -------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Disturbed for a while, then left alone until everything has settled, then looked at."""
        self.server.lua.run("FUNCTION", "LOAD", "REPLACE", library_source())
        self.begin_execution()
        for _ in range(START_S_MAX):
            await asyncio.sleep(1.0)
            if self.server.admitted:
                break
        plan, tasks = self.plan, []
        ends_s = self.loop.time() + plan.lasts_s
        for rate, act in self._disturbances():
            tasks.append(self.loop.create_task(self._again(rate, act)))
        tasks.append(self.loop.create_task(self._look()))
        for number in range(plan.orders):
            at_s = self.random.uniform(0, plan.lasts_s)
            self.client.run(self._trade(f"o{plan.seed}-{number}", at_s, ends_s))
        await asyncio.sleep(plan.lasts_s)
        for task in tasks[:-1]:
            task.cancel()
        await self._settle()
        tasks[-1].cancel()
        for task in [*tasks, *self.client.tasks]:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.violated(f"the simulation itself failed: {task.exception()!r}")
        for process in self.executions:
            process.kill()
        self.client.kill()
        for what in final(self):
            self.violated(what)
        for failure in self.venue.failures:
            self.violated(failure)
        for error in self.loop.errors:
            self.violated(f"an error nobody took: {error}")

    def _disturbances(self) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        plan = self.plan
        return [
            (plan.crashes, self._crash),
            (plan.doubles, self._double),
            (plan.server_restarts, self._restart_server),
            (plan.venue_restarts, self._restart_venue),
            (plan.clock_jumps, self._jump_clock),
            (plan.price_moves, self._move_price),
            (plan.forced_fills, self._force_fill),
            (plan.repeated_fills, self._repeat_fill),
            (plan.user_cancels, self._user_cancel),
            (plan.halts, self._halt),
            (plan.strangers, self._stranger),
            (plan.overfills, self._overfill),
            (plan.deposits, self._deposit),
            (plan.odd_statuses, self._odd_status),
            (plan.product_flags, self._flag_product),
        ]

    async def _again(self, rate: float, act: Callable[[], Awaitable[None]]) -> None:
        while rate:
            await asyncio.sleep(self.random.expovariate(rate))
            await act()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for what in checkpoint(self):
                self.violated(what)

    async def _settle(self) -> None:
        """No more faults: everything that is open must end, and within a bounded time."""
        self.note("calm")
        self.calm = True
        self.client.calm()
        if not self.server.up:
            self.server.start()
        for process in self.executions:
            process.calm()
        living = [process for process in self.executions if process.alive]
        if self.plan.restart_at_end or not living:
            for process in living:
                process.kill()
            self.begin_execution().calm()
        deadline_s = self.loop.time() + SETTLE_S_MAX
        # An order the client still asks for is asked for once more, so that it is answered.
        while self.loop.time() < deadline_s:
            await self.client.run(self._cancel_everything())
            if self._settled():
                # What nobody here has asked for is found by the next look at everything.
                await asyncio.sleep(15.0 if self.strangers or self.deposited else 1.0)
                if self._settled():
                    return
            await asyncio.sleep(1.0)
        self.violated(f"not settled after {SETTLE_S_MAX:g} s: {self._unsettled()}")

    async def _cancel_everything(self) -> None:
        try:
            for fields in await self.client.ledger.open_orders(ACCOUNT):
                await self.client.ledger.request_cancel(ACCOUNT, fields["client_order_id"], KEY)
        except LedgerUnavailable:
            return

    def _settled(self) -> bool:
        run = self.server.lua.run
        base = f"tt:{{desk}}:{ACCOUNT}"
        return run("ZCARD", f"{base}:open") == 0 and run("XLEN", f"{base}:outbox") == 0 and self.server.admitted

    def _unsettled(self) -> str:
        run = self.server.lua.run
        base = f"tt:{{desk}}:{ACCOUNT}"
        found = [
            f"{name} {run('HGET', f'{base}:order:{name}', 'status')}"
            for name in run("ZRANGE", f"{base}:open", "0", "-1")
        ]
        queued, admitted = run("XLEN", f"{base}:outbox"), self.server.admitted
        return f"open: {', '.join(found) or 'none'}; {queued} in the outbox; admitted: {admitted}"

    # -- execution -----------------------------------------------------------------------------------------------------

    def begin_execution(self) -> Process:
        """A new process of execution, supervised as in service."""
        process = Process(self, f"execution-{len(self.executions)}", self.plan.wire, self.plan.venue)
        process.wire.called = process.network.called = process.called
        if self.plan.fuse_calls and not self.calm:
            process.fuse = self.random.randint(1, self.plan.fuse_calls)
            process.fuse_of_all = self.random.random() < 0.15
        self.executions.append(process)
        anchors = Anchors(self._folder, b"a key of the simulation", clock=lambda: self.loop.now_us() * 1_000)
        clock, ask = _Clock(self.loop), process.workers.ask

        def make() -> execution.Execution:
            venue = SimVenue(process.network, VENUE_TIMEOUT_S)

            def listen(product_ids: list[str]) -> SimStream:
                faults = StreamFaults() if self.calm else self.plan.stream or StreamFaults()
                process.stream = SimStream(venue, product_ids, self.venue, faults, process.random)
                return process.stream

            stream = None if self.plan.stream is None else listen
            return execution.Execution(
                process.ledger, venue, limits(), SETTINGS, anchors, ask=ask, clock=clock, stream=stream
            )

        self.note("begin", process.name)
        process.run(execution.supervise(make)).add_done_callback(lambda task: self._execution_ended(process, task))
        return process

    def _execution_ended(self, process: Process, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if not process.alive or task.cancelled():
            return
        process.kill()
        group = error if isinstance(error, BaseExceptionGroup) else None
        stale = group is not None and group.subgroup(StaleEpoch) is not None and group.split(StaleEpoch)[1] is None
        if isinstance(error, StaleEpoch) or stale:
            self.note("fenced", process.name)
            self.loop.call_later(2.0, self._revive)
        else:
            self.violated(f"{process.name} ended: {_told(error)}")

    def burn(self, process: Process) -> None:
        """A process ends in the middle of a call."""
        if process.alive and not self.calm:
            self.crashes += 1
            process.kill()
            self.loop.call_later(self.random.random() ** 2 * 4.0, self._revive)

    def _revive(self) -> None:
        """A service whose only replica has ended is given another. The claim of one just killed may have come late."""
        if not any(process.alive for process in self.executions):
            process = self.begin_execution()
            if self.calm:
                process.calm()

    # -- disturbances --------------------------------------------------------------------------------------------------

    async def _crash(self) -> None:
        self.crashes += 1
        for process in self.executions:
            if process.alive:
                process.kill()
        await asyncio.sleep(self.random.random() ** 2 * 4.0)
        self.begin_execution()

    async def _double(self) -> None:
        self.begin_execution()

    async def _restart_server(self) -> None:
        self.server.stop()
        await asyncio.sleep(self.random.random() ** 2 * 6.0)
        self.server.start()

    async def _restart_venue(self) -> None:
        self.venue.restart()

    async def _jump_clock(self) -> None:
        jump_ms = self.random.choice([-3_000, -500, 500, 3_000])
        if self.random.random() < 0.5:
            self.server.offset_us += jump_ms * 1_000
        else:
            self.venue.offset_ns += jump_ms * 1_000_000
        self.note("clock", self.server.offset_us, self.venue.offset_ns)

    async def _move_price(self) -> None:
        product_id = self.random.choice(PRODUCTS)
        mid = self.venue.exchange.mid_ticks(product_id, self.venue.now_ns())
        ticks = round(mid * (1 + self.random.uniform(-0.004, 0.004)))
        fills = self.venue.exchange.push_price(product_id, ticks, self.venue.now_ns())
        self.note("price", product_id, ticks, fills)

    async def _force_fill(self) -> None:
        """A stranger takes a resting order, or a part of it, at its price."""
        self.venue.exchange.advance(self.venue.now_ns())
        resting = [order for order in self.venue.exchange.open_orders.values() if order.open_lots > 0]
        if not resting:
            return
        order = self.random.choice(resting)
        lots = order.open_lots if self.random.random() < 0.5 else self.random.randint(1, order.open_lots)
        try:
            self.venue.exchange.force_fill(order.order_id, lots, order.limit_ticks, self.venue.now_ns())
        except Refusal as refusal:
            self.note("no fill", str(refusal))
        else:
            self.note("fill", order.ticket.client_order_id, lots)

    async def _repeat_fill(self) -> None:
        filled = [order for order in self.venue.exchange.order_list if order.fills]
        if filled:
            order = self.random.choice(filled)
            self.venue.exchange.repeat_fill(order.order_id, self.venue.now_ns())
            self.note("repeated fill", order.ticket.client_order_id)

    async def _user_cancel(self) -> None:
        """Somebody cancels at the venue itself."""
        opened = list(self.venue.exchange.open_orders.values())
        if opened:
            order = self.random.choice(opened)
            self.venue.exchange.cancel([order.order_id], self.venue.now_ns())
            self.note("cancelled at the venue", order.ticket.client_order_id)

    async def _stranger(self) -> None:
        """Somebody places an order at the venue itself, with the account's own key."""
        name = f"s{self.plan.seed}-{len(self.strangers)}"
        self.strangers.append(name)
        order = self._order(name, self.random)
        body = {
            "client_order_id": name,
            "product_id": order.product_id,
            "side": order.side.value,
            "order_configuration": order_configuration(order),
        }
        try:
            self.venue.exchange.place(read_ticket(body, self.venue.now_ns()), self.venue.now_ns())
        except Refusal as refusal:
            self.note("no stranger", str(refusal))
        else:
            self.note("stranger", name)

    async def _overfill(self) -> None:
        """The venue fills more of an order than was ordered."""
        self.venue.exchange.advance(self.venue.now_ns())
        resting = [order for order in self.venue.exchange.open_orders.values() if order.open_lots > 0]
        if resting:
            order = self.random.choice(resting)
            try:
                self.venue.exchange.force_fill(order.order_id, order.open_lots + 1, None, self.venue.now_ns())
            except Refusal as refusal:
                self.note("no overfill", str(refusal))
            else:
                self.overfilled.append(order.ticket.client_order_id)
                self.note("overfill", order.ticket.client_order_id)

    async def _deposit(self) -> None:
        """Money comes or goes at the venue without an order."""
        amount = Decimal(self.random.choice([-500, -1, 1, 500]))
        self.venue.exchange.deposit("USD", amount, self.venue.now_ns())
        self.deposited.append((self.venue.now_ns(), amount))
        self.note("deposit", str(amount))

    async def _odd_status(self) -> None:
        """The venue shows a word for an order's state that says little, for a moment."""
        if not self.venue.exchange.order_list:
            return
        order = self.random.choice(self.venue.exchange.order_list[-10:])
        words = ["PENDING", "QUEUED"] if order.state is State.OPEN else ["UNKNOWN_ORDER_STATUS"]
        self.venue.exchange.show(order.order_id, self.random.choice(words))
        self.note("odd status", order.ticket.client_order_id, order.shown)
        self.loop.call_later(self.random.uniform(0.2, 3.0), self._show_true, order.order_id)

    def _show_true(self, order_id: str) -> None:
        self.venue.exchange.show(order_id, "")

    async def _flag_product(self) -> None:
        """The venue takes no orders for a product for a while."""
        product_id, flag = self.random.choice(PRODUCTS), self.random.choice(["trading_disabled", "cancel_only"])
        self.venue.exchange.set_product(product_id, {flag: True}, self.venue.now_ns())
        self.note("flag", product_id, flag)
        self.loop.call_later(self.random.uniform(0.5, 5.0), self._unflag, product_id, flag)

    def _unflag(self, product_id: str, flag: str) -> None:
        self.venue.exchange.set_product(product_id, {flag: False}, self.venue.now_ns())

    async def _halt(self) -> None:
        state = self.random.choice([TradingState.HALTED, TradingState.CANCEL_ALL, TradingState.REDUCING])
        scope = self.random.choice(["account", "strategy|manual", "product|BTC-USD"])
        self.client.run(self._halt_and_resume(scope, state))

    async def _halt_and_resume(self, scope: str, state: TradingState) -> None:
        ledger = self.client.ledger
        try:
            await ledger.tighten(ACCOUNT, scope, state, KEY, "the simulation says so")
            await asyncio.sleep(self.random.uniform(0.5, 6.0))
            proposal = await ledger.propose_resume(ACCOUNT, scope, KEY, "first", "it is over")
            await ledger.approve(ACCOUNT, proposal.id, proposal.digest, KEY, "second")
        except LedgerUnavailable:
            return

    # -- the client ----------------------------------------------------------------------------------------------------

    async def _trade(self, name: str, at_s: float, ends_s: float) -> None:
        """One order: asked for until it is answered, asked for again at times, cancelled at times."""
        await asyncio.sleep(at_s)
        source = random.Random(f"{name}/{self.plan.seed}")
        order = self._order(name, source)
        asked = self.asked[name] = Asked(order)
        product = MARKETS[order.product_id].product
        cancels_s = source.expovariate(0.3) if source.random() < self.plan.cancels else None
        while self.loop.time() < ends_s + 20:
            if await self._ask(asked, product) and source.random() < 0.9:
                break
            await asyncio.sleep(source.uniform(0.2, 1.5))
        if asked.accepted and source.random() < self.plan.amends:
            await asyncio.sleep(source.expovariate(2.0))
            await self._amend(asked, source)
        if not asked.accepted or cancels_s is None:
            return
        await asyncio.sleep(cancels_s)
        for _ in range(5):
            try:
                await self.client.ledger.request_cancel(ACCOUNT, name, KEY)
            except LedgerUnavailable:
                await asyncio.sleep(source.uniform(0.05, 1.0))
            else:
                return

    async def _amend(self, asked: Asked, source: random.Random) -> None:
        """Another quantity, or another price, or both."""
        order, product = asked.order, MARKETS[asked.order.product_id].product
        if order.limit_price is None or (order.type, order.time_in_force) != (OrderType.LIMIT, TimeInForce.GTC):
            return
        lots = max(1, round(product.lots(order.quantity) * source.choice([0.5, 1.0, 1.5])))
        ticks = round(product.ticks(order.limit_price) * (1 + source.choice([-0.001, 0.0, 0.001])))
        wanted = replace(order, quantity=product.quantity(lots), limit_price=product.price(ticks))
        for _ in range(5):
            try:
                verdict = await self.client.ledger.amend(wanted, product, KEY)
            except (LedgerUnavailable, LedgerError) as error:
                self.note("no amendment", order.client_order_id, str(error))
                await asyncio.sleep(source.uniform(0.05, 1.0))
            else:
                self.note("amendment", order.client_order_id, verdict and verdict.kind)
                if verdict is not None and verdict.kind != "DENIED":
                    asked.amended = True
                    return
                # It may not be open yet.
                await asyncio.sleep(source.uniform(0.05, 1.0))

    async def _ask(self, asked: Asked, product: Product) -> bool:
        """Ask once; whether that was answered for good."""
        try:
            verdict = await self.client.ledger.reserve(asked.order, product, KEY)
        except LedgerUnavailable:
            return False
        word = "ACCEPTED" if verdict.accepted else verdict.kind if verdict.kind == "CONFLICT" else "DENIED"
        codes = {denial["code"] for denial in verdict.answer.get("denials", ())}
        passing = word == "DENIED" and bool(codes & {"CLOCK_SKEW", "RATE_LIMIT", "MSG_RATE"})
        asked.answers.append("PASSING" if passing else word)
        self.note("answer", asked.order.client_order_id, word, sorted(codes))
        return not passing

    def _order(self, name: str, source: random.Random) -> Order:
        """Any order near the market, most of them small enough to be accepted."""
        product_id = source.choice(PRODUCTS)
        product, side = MARKETS[product_id].product, source.choice(list(Side))
        mid = self.venue.exchange.mid_ticks(product_id, self.venue.now_ns())
        kind = source.random()
        lots = source.choice([1, 100_000, 2_000_000, 20_000_000 if product_id == "BTC-USD" else 200_000_000])
        lots += source.randrange(1_000)
        away = source.choice([-0.004, -0.001, -0.0005, 0.0, 0.0005, 0.002])
        price = product.price(round(mid * (1 + (away if side is Side.BUY else -away))))
        tif = TimeInForce.GTC if kind < 0.65 else TimeInForce.IOC if kind < 0.85 else TimeInForce.FOK
        market = 0.65 <= kind < 0.75
        if source.random() < self.plan.kinds:
            return self._conditional(name, product, side, mid, lots, source)
        return Order(
            client_order_id=name,
            account=ACCOUNT,
            strategy="manual",
            product_id=product_id,
            side=side,
            type=OrderType.MARKET if market else OrderType.LIMIT,
            time_in_force=tif,
            quantity=product.quantity(lots),
            limit_price=None if market else price,
            post_only=tif is TimeInForce.GTC and source.random() < 0.15,
        )

    def _conditional(
        self, name: str, product: Product, side: Side, mid: int, lots: int, source: random.Random
    ) -> Order:
        """An order with a trigger or with an end."""
        up = 1 if side is Side.BUY else -1
        near, far = source.uniform(0.0005, 0.003), source.uniform(0.0005, 0.003)
        ends = source.random() < 0.5
        kind = source.choice([OrderType.LIMIT, OrderType.STOP_LIMIT, OrderType.BRACKET])
        ends = ends or kind is OrderType.LIMIT
        limit, stop = {
            OrderType.LIMIT: (mid * (1 - up * near), None),
            OrderType.STOP_LIMIT: (mid * (1 + up * (near + far)), mid * (1 + up * near)),
            OrderType.BRACKET: (mid * (1 - up * near), mid * (1 + up * far)),
        }[kind]
        second = round(BASE_S + self.loop.time() + source.randint(2, 40))
        return Order(
            client_order_id=name,
            account=ACCOUNT,
            strategy="manual",
            product_id=product.product_id,
            side=side,
            type=kind,
            time_in_force=TimeInForce.GTD if ends else TimeInForce.GTC,
            quantity=product.quantity(lots),
            limit_price=product.price(round(limit)),
            stop_price=None if stop is None else product.price(round(stop)),
            end_ns=second * 1_000_000_000 if ends else None,
        )


class _Clock:
    def __init__(self, loop: VirtualLoop) -> None:
        self.time_s: Callable[[], float] = lambda: BASE_S + loop.time()
        self.monotonic_s: Callable[[], float] = loop.time


@cache
def limits() -> LimitsFile:
    """The limits a desk comes with, a few of them narrow enough to be met."""
    content: Any = yaml.safe_load(yaml.safe_dump(read_mapping(CONF_DIR / "limits.yaml")))
    content["accounts"][ACCOUNT] |= {"max_open_orders": 8, "max_open_notional": 90_000}
    return LimitsFile.model_validate(content)


@cache
def _one_calendar(name: str) -> str:
    """The same whatever day it is, and made once: a summer time is looked for in every day of fifteen years."""
    return calendar(name, dt.datetime.fromtimestamp(BASE_S, dt.UTC))


def _calendar(name: str, _: dt.datetime) -> str:
    return _one_calendar(name)


def _told(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(one) for one in error.exceptions)
    return repr(error)


def run(seed: int, keep: bool = False) -> Outcome:
    """One run of a seed; ``keep`` keeps every event of it."""
    return run_plan(plan_of(seed), keep)


def run_plan(plan: Plan, keep: bool = False) -> Outcome:
    """One run of a plan."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop(plan.begins_s)
    try:
        with ExitStack() as stack:
            stack.enter_context(determined(loop, plan.seed))
            stack.enter_context(patch("asyncio.to_thread", _to_thread))
            stack.enter_context(patch("cluster.limit_records.calendar", _calendar))
            # Nothing is encrypted here, and reading all certificates of the machine takes longer than a run.
            stack.enter_context(patch("ssl.create_default_context", lambda **_: None))
            asyncio.set_event_loop(loop)
            try:
                world = World(loop, plan, folder, keep)
                loop.run_until_complete(world.live())
            finally:
                _end(loop)
    finally:
        logging.disable(level)
        asyncio.set_event_loop(None)
        shutil.rmtree(folder)
    return world.outcome()


async def _to_thread(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return await _current.get().workers.ask(function, *args, **named)


def _end(loop: VirtualLoop) -> None:
    """Leave nothing behind that would say later that it was left."""
    loop.set_exception_handler(lambda *_: None)
    tasks = sorted(asyncio.all_tasks(loop), key=hash)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    loop.close()
