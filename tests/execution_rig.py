"""A real ledger, the exchange simulator over TLS and the execution service between them, each a process of its own.

The processes are forked from one that has everything imported (multiprocessing's forkserver), so that a crash and a new
life cost tenths of a second. ``disagreements`` compares what the ledger holds with what the exchange itself lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from cluster import exchange_sim
from cluster.ledger import Ledger, LedgerUnavailable
from cluster.venue import Venue, VenueOrder, simulator_endpoint
from conf.settings import CONF_DIR, ExecutionSettings, RedisSettings, Settings, VenueSettings, read_mapping
from strategies.model import (
    TERMINAL,
    Fill,
    Order,
    OrderStatus,
    OrderType,
    Product,
    Side,
    TimeInForce,
    micros_exact,
)
from tests.crash_points import CrashPoint, Life, calls_made, lines_of, live, print_into
from tests.servers import redis_secrets

ACCOUNT: Final = "main"
PRICES: Final = {"BTC-USD": "60000", "ETH-USD": "3000", "SOL-USD": "150"}
"""What the mids are pinned at, so that nothing moves but what a test moves."""
START_S_MAX: Final = 30.0
HURRIED: Final[Mapping[str, float]] = {"SETTLED_S": 1.0, "RECONCILE_AGAIN_S": 0.2}
"""Constants of execution for a venue on this machine, where what was sent has soon arrived: tests wait less."""
POLL_S: Final = 0.02
_KEYS: Final = ("ca.pem", "ca_key.pem", "server.pem", "server_key.pem", "cdp_key.json", "cdp_key_ed25519.json")
# What would latch a halt of its own accord, or stop a test of thousands of orders, in the limits the desk comes with.
_LOOSENED: Final[dict[str, Any]] = {
    **dict.fromkeys(("max_daily_loss", "max_drawdown_percent", "max_rejects", "max_venue_errors"), "unlimited"),
    **dict.fromkeys(("max_order_to_trade", "reference_halt_ms", "volatility_percent"), "unlimited"),
    **dict.fromkeys(("order_rate_per_s", "message_rate_per_s", "max_daily_turnover", "max_open_notional"), "unlimited"),
    **dict.fromkeys(("max_gross_exposure", "max_net_exposure", "max_concentration_percent"), "unlimited"),
    **dict.fromkeys(("max_leverage", "max_position", "max_strategy_position", "max_daily_orders"), "unlimited"),
    "max_open_orders": 100_000,
    "reference_stale_ms": 600_000,
    "self_trade": "allow",
}


def forks() -> ForkServerContext:
    """Where processes come from: one with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.execution_rig"])
    return context


# -- the exchange ------------------------------------------------------------------------------------------------------


class Exchange:
    """An exchange simulator in ``folder``; ``keys`` is a folder whose keys it takes, which saves making them."""

    def __init__(self, folder: Path, keys: Path | None = None, *options: str) -> None:
        """Nothing runs before ``start``; ``options`` are those of its command line."""
        self.folder = folder
        self.host_port = ""
        self._options = options
        self._process: ForkServerProcess | None = None
        self._session = requests.Session()
        self._session.trust_env = False
        folder.mkdir(parents=True, exist_ok=True)
        for name in _KEYS if keys else ():
            shutil.copy2(keys / name, folder / name)  # type: ignore[operator]

    def start(self) -> None:
        """Start (again, on the port it had) and wait until it answers; the mids are pinned."""
        port = self.host_port.rpartition(":")[2] or "0"
        (self.folder / "address.json").unlink(missing_ok=True)
        options = ["--port", port, "--state-dir", str(self.folder), "--history-days", "2", *self._options]
        process = forks().Process(target=_exchange, args=(options, self.folder / "log"), daemon=True)
        process.start()
        self._process = process
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline and process.is_alive():
            with contextlib.suppress(OSError, ValueError, requests.RequestException):
                self.host_port = json.loads((self.folder / "address.json").read_text())["host_port"]
                self._session.verify = str(self.folder / "ca.pem")
                if self.ask("GET", "/healthz") == {"status": "ok"}:
                    for product_id, price in PRICES.items():
                        self.pin(product_id, price)
                    return
            time.sleep(POLL_S)
        raise AssertionError(f"the exchange did not start: {process.exitcode}")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request of the control surface; raises what ``requests`` raises."""
        token = (self.folder / "sim_token").read_text()
        answer = self._session.request(
            method,
            f"https://{self.host_port}{path}",
            json=body,
            timeout=10,
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def pin(self, product_id: str, price: str) -> int:
        """Pin a product's mid; how many resting orders that filled."""
        return int(self.ask("POST", "/sim/price", {"product_id": product_id, "price": price})["fills"])

    def faults(self, *rules: dict[str, Any]) -> None:
        """Replace all faults by these; none ends them."""
        self.ask("POST", "/sim/faults", {"rules": list(rules)})

    def clock(self, offset_s: float) -> None:
        """Let the exchange's clock be wrong by so much."""
        self.ask("POST", "/sim/clock", {"offset_ms": round(offset_s * 1000)})

    def struck(self) -> int:
        """How often the rules have struck."""
        return sum(int(rule.get("struck", 0)) for rule in self.ask("GET", "/sim/faults")["rules"])

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._session.close()


def _exchange(options: list[str], log: Path) -> None:
    print_into(log)
    exchange_sim.main(options)


# -- the three together ------------------------------------------------------------------------------------------------


@dataclass
class Rig:
    """Everything, with clients of its own for which nothing is broken. ``venue`` is what the exchange itself says."""

    folder: Path
    settings: Settings
    exchange: Exchange
    ledger: Ledger
    venue: Venue
    constants: Mapping[str, float] = field(default_factory=lambda: HURRIED)
    watched: bool = True
    clock: Path | None = None
    lives: list[tuple[ForkServerProcess, Path]] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    may_deny: bool = False
    denied: list[str] = field(default_factory=list)
    products: dict[str, Product] = field(default_factory=dict)

    # -- execution's process ---

    def begin(self, point: CrashPoint | None = None) -> None:
        """A new life of execution, to end at ``point``."""
        number = len(self.lives)
        journal, log = self.folder / f"calls-{number}", self.folder / f"log-{number}"
        life = Life(self.settings, redis_secrets(), journal, log, point, self.constants, self.watched, self.clock)
        process = forks().Process(target=live, args=(life,), daemon=True)
        process.start()
        self.lives.append((process, journal))

    @property
    def alive(self) -> bool:
        """Whether the latest life has not ended."""
        return self.lives[-1][0].is_alive()

    @property
    def killed_itself(self) -> bool:
        """Whether the latest life ended by SIGKILL."""
        return self.lives[-1][0].exitcode == -9

    def calls(self, life: int = -1) -> Counter[str]:
        """How often each call was made in a life."""
        return calls_made(self.lives[life][1])

    def lines(self, life: int = -1) -> list[tuple[str, str, str]]:
        """What was written down of a life; see ``lines_of``."""
        return lines_of(self.lives[life][1])

    def kill(self) -> None:
        """End every life as a crash does."""
        for process, _ in self.lives:
            process.kill()
            process.join()

    def log(self) -> str:
        """What the latest life has printed."""
        return (self.folder / f"log-{len(self.lives) - 1}").read_text()[-6000:]

    # -- orders ---

    async def reserve(self, order: Order, patience_s: float = 20.0) -> None:
        """Ask until the ledger decides, as every caller must; it must accept."""
        await self.until(lambda: self.decided(order), f"order {order.client_order_id} is decided", patience_s)

    async def decided(self, order: Order) -> bool:
        """Ask once, with the same id each time: whether the ledger has decided. It must accept (see ``may_deny``)."""
        with contextlib.suppress(LedgerUnavailable):
            verdict = await self.ledger.reserve(order, self.products[order.product_id], "test")
            if not verdict.accepted:
                assert self.may_deny, verdict
                self.denied.append(order.client_order_id)
            elif order.client_order_id not in self.accepted:
                self.accepted.append(order.client_order_id)
            return True
        return False

    async def fill(self, client_order_id: str) -> None:
        """Let the exchange execute all of an order that rests there."""
        listed = await asyncio.to_thread(self.venue.orders)
        (order,) = (order for order in listed if order.client_order_id == client_order_id)
        await asyncio.to_thread(self.exchange.ask, "POST", "/sim/fill", {"order_id": order.venue_order_id})

    async def status(self, client_order_id: str) -> str:
        """Where an order stands in the ledger."""
        fields = await self.ledger.order(ACCOUNT, client_order_id)
        return "" if fields is None else fields["status"]

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 20.0) -> float:
        """Wait until it holds; seconds it took. A life that has ended by itself is an error."""
        begin_s = time.monotonic()
        while not await holds():
            if time.monotonic() - begin_s > timeout_s:
                raise AssertionError(f"not within {timeout_s} s: {what}\n{self.log()}")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - begin_s

    async def serving(self) -> float:
        """Wait until execution has started up: the ledger takes orders."""
        return await self.until(self._admitted, "execution serves", 30.0)

    async def _admitted(self) -> bool:
        return (await self.ledger.snapshot(ACCOUNT)).admitted

    # -- the comparison ---

    async def agree(self, timeout_s: float = 10.0) -> float:
        """Wait until ledger and exchange hold the same; seconds it took."""
        begin_s = time.monotonic()
        found = ["nothing compared yet"]
        while found:
            if time.monotonic() - begin_s > timeout_s:
                raise AssertionError(f"no agreement within {timeout_s} s: {found}\n{self.log()}")
            await asyncio.sleep(POLL_S)
            found = await self.disagreements()
        return time.monotonic() - begin_s

    async def agrees(self) -> bool:
        """Whether ledger and exchange hold the same now."""
        return not await self.disagreements()

    async def disagreements(self) -> list[str]:
        """How ledger and exchange differ; a moment in which an order moves may show as one."""
        ours = {name: await self.ledger.order(ACCOUNT, name) or {} for name in self.accepted}
        listed = await asyncio.to_thread(self.venue.orders)
        fills = await asyncio.to_thread(self.venue.fills)
        found = [f"the exchange has {order.client_order_id}, which nobody asked for" for order in listed
                 if order.client_order_id not in ours]  # fmt: skip
        theirs: dict[str, list[VenueOrder]] = {name: [] for name in ours}
        for order in listed:
            theirs.setdefault(order.client_order_id, []).append(order)
        for name, fields in ours.items():
            found += self._order_differs(name, fields, theirs[name])
        if waiting := await self.ledger.outbox_length(ACCOUNT):
            found.append(f"{waiting} outbox entries are not finished")
        return found + await self._book_differs(fills)

    def _order_differs(self, name: str, fields: dict[str, str], theirs: list[VenueOrder]) -> list[str]:
        status = fields.get("status", "absent")
        if "amend" in fields and not terminal(status):
            return [f"{name} is still being amended"]
        if len(theirs) > 1:
            return [f"{name} is at the exchange {len(theirs)} times"]
        if not theirs:
            # Never sent, or refused: both end without an order there.
            ended = status in {OrderStatus.CANCELLED, OrderStatus.REJECTED} and fields["filled_lots"] == "0"
            return [] if ended else [f"{name} is {status} here and not at the exchange"]
        (order,) = theirs
        lots = str(self.products[order.product_id].lots(order.filled_quantity))
        if (status, order.status, lots) == ("REJECTED", OrderStatus.CANCELLED, "0") and fields["filled_lots"] == "0":
            # Given up here, it came to the venue afterwards and was cancelled there.
            return []
        same = {order.status, *({OrderStatus.PARTIALLY_FILLED} if order.status is OrderStatus.OPEN else ())}
        booked = fields.get("filled_lots", "0")
        if fields and order.quantity is not None and order.quantity != Decimal(fields["quantity"]):
            return [f"{name}: {fields['quantity']} ordered here, {order.quantity} there"]
        return (
            []
            if status in same and booked == lots
            else [f"{name}: {status} {booked} here, {order.status} {lots} there"]
        )

    async def _book_differs(self, fills: list[Fill]) -> list[str]:
        """Positions and cash against the exchange's fills, each rounded to micros as the ledger documents it."""
        book = (await self.ledger.snapshot(ACCOUNT)).book
        cash, lots = self.opening_cash_micros, Counter(self.opening_lots)
        for fill in fills:
            sign = 1 if fill.side is Side.BUY else -1
            cash -= sign * micros_exact(fill.price * fill.quantity) + micros_exact(fill.fee)
            lots[fill.product_id] += sign * self.products[fill.product_id].lots(fill.quantity)
        booked = {name: int(book.get(f"p|{name}|lots", "0")) for name in PRICES}
        found = [
            f"{name}: {booked[name]} lots here, {lots[name]} there" for name in PRICES if booked[name] != lots[name]
        ]
        if int(book.get("cash", "0")) != cash:
            found.append(f"cash: {book.get('cash')} micros here, {cash} there")
        return found

    opening_cash_micros: int = 0
    opening_lots: dict[str, int] = field(default_factory=dict)

    async def note_opening(self) -> None:
        """Remember what the exchange's account holds; before anything is traded."""
        balances = {b.currency: b.available + b.hold for b in await asyncio.to_thread(self.venue.accounts)}
        products = {product.product_id: product for product in await asyncio.to_thread(self.venue.products)}
        self.products = {name: products[name] for name in PRICES}
        self.opening_cash_micros = micros_exact(balances["USD"])
        self.opening_lots = {name: p.lots(balances[p.base_currency]) for name, p in self.products.items()}


@contextlib.asynccontextmanager
async def rig(
    server: RedisSettings,
    folder: Path,
    *options: str,
    keys: Path | None = None,
    between: Callable[[int], int] | None = None,
    execution: dict[str, Any] | None = None,
    venue: dict[str, Any] | None = None,
) -> AsyncIterator[Rig]:
    """An empty ledger on ``server`` and a new exchange; no execution yet. All processes end with it.

    ``between`` makes of the exchange's port the one where execution finds it; ``execution`` and ``venue`` change
    settings.
    """
    exchange = Exchange(folder / "desk" / "exchange", keys, *options)
    exchange.start()
    port = int(exchange.host_port.rpartition(":")[2])
    settings = _settings(server, folder, between(port) if between else port, execution or {}, venue or {})
    ledger = Ledger.connect(settings, redis_secrets())
    own_venue = Venue(simulator_endpoint(exchange.host_port, exchange.folder))
    made = Rig(folder, settings, exchange, ledger, own_venue)
    try:
        await ledger._direct("FLUSHALL")
        await ledger._direct("FUNCTION", "FLUSH")
        await ledger.install()
        await made.note_opening()
        yield made
    finally:
        made.kill()
        exchange.kill()
        own_venue.close()
        await ledger.close()


def _settings(
    server: RedisSettings,
    folder: Path,
    port: int,
    execution: dict[str, Any],
    venue: dict[str, Any],
) -> Settings:
    limits = folder / "limits.yaml"
    limits.write_text(yaml.safe_dump(_loosened(read_mapping(CONF_DIR / "limits.yaml"))))
    rhythm = {"reference_interval_s": 0.5, "poll_interval_s": 0.1, "reconcile_interval_s": 2.0} | execution
    reach = {"host_port": f"127.0.0.1:{port}", "requests_per_s": 1000.0} | venue
    return Settings(
        state_dir=folder / "desk",
        redis=server,
        limits_file=limits,
        execution=ExecutionSettings(account=ACCOUNT, **rhythm),
        venue=VenueSettings(**reach),
    )


def _loosened(limits: Any) -> Any:
    if not isinstance(limits, dict):
        return limits
    return {name: _LOOSENED.get(name, _loosened(value)) for name, value in limits.items()}


def buy(client_order_id: str, product_id: str, quantity: str, price: str | None = None, **changed: Any) -> Order:
    """A purchase: at the market without a price, else a limit that stays."""
    given: dict[str, Any] = {
        "client_order_id": client_order_id,
        "account": ACCOUNT,
        "strategy": "manual",
        "product_id": product_id,
        "side": Side.BUY,
        "type": OrderType.MARKET if price is None else OrderType.LIMIT,
        "time_in_force": TimeInForce.IOC if price is None else TimeInForce.GTC,
        "quantity": Decimal(quantity),
        "limit_price": None if price is None else Decimal(price),
    }
    return Order(**(given | changed))


def terminal(status: str) -> bool:
    """Whether an order has ended."""
    return bool(status) and OrderStatus(status) in TERMINAL
