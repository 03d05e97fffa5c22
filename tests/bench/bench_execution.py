"""Orders from the outbox to the exchange simulator and fills back into the books: how many a second, how fast.

    python -m tests.bench.bench_execution [--quick]

The execution service in a process of its own, Valkey with an fsync for every answer, the exchange simulator over TLS.
Closed loop: the outbox is kept from running empty; orders a second by the exchange's own stamps. Open loop: orders are
due at fixed times; from the answer of the reservation to the exchange's stamp of the order, and from the exchange's
stamp of a fill to the audit entry that booked it, both of orders that execute at once and of resting ones; once quietly
and once with each fault of the WebSocket. Beside it in the same run: the SDK called by one thread in a loop, and
sixteen threads through the venue client, both without a ledger. After each run ledger and exchange must agree. Prints
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from conf.settings import RedisSettings
from strategies.model import Order, OrderStatus, TimeInForce
from tests.bench.load import PERCENTILES, percentile_ms
from tests.execution_rig import ACCOUNT, Rig, buy, rig
from tests.servers import Server, binary

AT_ONCE: Final = 64
"""Orders the closed loop keeps on their way; execution itself sends at most sixteen at once."""
PEER_THREADS: Final = 16
WARMING: Final = 64
RESTING_SHARE: Final = 4
"""Every so many-th order of the open loop rests first and is executed later."""
GOAL_MS: Final = 50.0
DEPOSIT: Final = ("--usd", "100000000")
FAULTS: Final[dict[str, dict[str, Any] | None]] = {
    "none": None,
    "ws_duplicate": {"fault": "ws_duplicate", "share": 0.2},
    "ws_gap": {"fault": "ws_gap", "share": 0.01},
    "ws_close": {"fault": "ws_close", "share": 0.01, "code": 1001},
    "ws_silence": {"fault": "ws_silence", "share": 0.002, "s": 5},
}


@dataclass(frozen=True)
class Options:
    """How long and how much."""

    closed_s: float
    open_s: float
    rate_per_s: float
    peer_orders: int
    rounds: int


def main() -> int:
    """Measure and print; 1 where ledger and exchange did not agree in the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--closed-s", type=float, default=15.0)
    parser.add_argument("--open-s", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=25.0, help="orders a second of the open loop")
    parser.add_argument("--peer-orders", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the closed loop and its peers, in turn")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all; only shows that it works")
    given = parser.parse_args()
    options = Options(given.closed_s, given.open_s, given.rate, given.peer_orders, given.rounds)
    if given.quick:
        options = Options(2.0, 3.0, given.rate, 100, 1)
    with tempfile.TemporaryDirectory(prefix="bench-execution-") as name:
        folder = Path(name)
        durable = Server(binary("valkey"), _made(folder / "server"), appendfsync="always")
        with durable.running() as server:
            report = asyncio.run(_measure(server, folder, options))
    print(json.dumps(report, indent=1))
    return 0 if report["agreed"] else 1


async def _measure(server: RedisSettings, folder: Path, options: Options) -> dict[str, Any]:
    closed = [await _closed_round(server, folder, number, options) for number in range(options.rounds)]
    opened = {}
    for name, rule in FAULTS.items():
        async with _desk(server, folder / f"open-{name}") as made:
            opened[name] = await _open_loop(made, options, rule)
    ratios = [run["through_the_outbox"]["orders_per_s"] / run["sdk_one_thread"]["orders_per_s"] for run in closed]
    direct = [
        run["through_the_outbox"]["orders_per_s"] / run["client_sixteen_threads"]["orders_per_s"] for run in closed
    ]
    return {
        "benchmark": "execution",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "appendfsync": "always",
        "goal_p95_ms": GOAL_MS,
        "closed_loop": closed,
        "outbox_to_sdk_one_thread": round(statistics.median(ratios), 2),
        "outbox_to_client_sixteen_threads": round(statistics.median(direct), 2),
        "open_loop": opened,
        "agreed": all(run["agreed"] for run in (*closed, *opened.values())),
    }


@asynccontextmanager
async def _desk(server: RedisSettings, folder: Path) -> AsyncIterator[Rig]:
    """Everything running as the desk runs it: its own rhythm, nothing between execution and what it calls."""
    rhythm = {"reference_interval_s": 1.0, "poll_interval_s": 0.25, "reconcile_interval_s": 30.0}
    async with rig(server, _made(folder), *DEPOSIT, execution=rhythm) as made:
        made.watched, made.constants = False, {}
        made.begin()
        await made.serving()
        yield made


# -- closed loop -------------------------------------------------------------------------------------------------------


async def _closed_round(server: RedisSettings, folder: Path, number: int, options: Options) -> dict[str, Any]:
    """The peers on an exchange of their own, then the desk."""
    async with rig(server, _made(folder / f"peers-{number}"), *DEPOSIT) as made:
        sdk = await asyncio.to_thread(_sdk_one_thread, made, options.peer_orders)
        client = await asyncio.to_thread(_client_threads, made, options.peer_orders)
    async with _desk(server, folder / f"closed-{number}") as made:
        own = await _through_the_outbox(made, options.closed_s)
        agreed = await _agreed(made)
    return {"through_the_outbox": own, "sdk_one_thread": sdk, "client_sixteen_threads": client} | agreed


async def _through_the_outbox(made: Rig, duration_s: float) -> dict[str, Any]:
    """Keep ``AT_ONCE`` orders on their way; the exchange's stamps say how many it took a second."""
    number, end_s = 0, time.monotonic() + duration_s
    while time.monotonic() < end_s:
        missing = AT_ONCE - await made.ledger.outbox_length(ACCOUNT)
        await asyncio.gather(*(made.decided(_immediate(f"c-{number + n}")) for n in range(missing)))
        number += max(0, missing)
        await asyncio.sleep(0.002)
    await made.until(lambda: _drained(made), "the outbox is empty", 60.0)
    created = sorted(o.created_ns for o in await asyncio.to_thread(made.venue.orders) if o.client_order_id[:2] == "c-")
    return {"orders": len(created), "orders_per_s": round(_rate_per_s(created), 1)}


def _sdk_one_thread(made: Rig, orders: int) -> dict[str, Any]:
    """The plain SDK, one call after the other, as a script would."""
    from coinbase.rest import RESTClient

    endpoint = made.venue.endpoint
    assert endpoint.key_secret is not None
    secret = endpoint.key_secret.get_secret_value()
    client = RESTClient(api_key=endpoint.key_name, api_secret=secret, base_url=endpoint.host_port, timeout=10)
    client.session.trust_env, client.session.verify = False, str(endpoint.ca_file)
    histogram, begin_s = HdrHistogram(1, 60_000_000, 3), time.perf_counter()
    for number in range(orders):
        sent_s = time.perf_counter()
        answer = client.market_order_buy(client_order_id=f"s-{number}", product_id="BTC-USD", base_size="0.0001")
        assert answer.to_dict()["success"], answer.to_dict()
        histogram.record_value(round(1e6 * (time.perf_counter() - sent_s)))
    return {"orders_per_s": round(orders / (time.perf_counter() - begin_s), 1)} | _percentiles(histogram)


def _client_threads(made: Rig, orders: int) -> dict[str, Any]:
    """The desk's own client on as many threads as execution uses, without outbox, ledger and books."""
    histogram = HdrHistogram(1, 60_000_000, 3)

    def send(number: int) -> int:
        sent_s = time.perf_counter()
        made.venue.create_order(_immediate(f"d-{number}"))
        return round(1e6 * (time.perf_counter() - sent_s))

    with ThreadPoolExecutor(PEER_THREADS) as pool:
        begin_s = time.perf_counter()
        for taken_us in pool.map(send, range(orders)):
            histogram.record_value(taken_us)
        wall_s = time.perf_counter() - begin_s
    return {"orders_per_s": round(orders / wall_s, 1)} | _percentiles(histogram)


# -- open loop ---------------------------------------------------------------------------------------------------------


async def _open_loop(made: Rig, options: Options, rule: dict[str, Any] | None) -> dict[str, Any]:
    """Orders due at fixed times; how long each took from its acknowledgement, and each fill from the exchange."""
    acknowledged_ns: dict[str, int] = {}
    await _warm(made)
    if rule is not None:
        made.exchange.faults(rule)
    late_ms, begin_s = 0.0, time.monotonic() + 0.1
    async with asyncio.TaskGroup() as group:
        for number in range(round(options.open_s * options.rate_per_s)):
            due_s = begin_s + number / options.rate_per_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            late_ms = max(late_ms, 1e3 * (time.monotonic() - due_s))
            rests = number % RESTING_SHARE == RESTING_SHARE - 1
            order = _resting(f"o-{number}") if rests else _immediate(f"o-{number}")
            group.create_task(_acknowledge(made, order, acknowledged_ns))
            if rests:
                group.create_task(_executed_later(made, order.client_order_id))
    struck = made.exchange.struck() if rule is not None else 0
    if rule is not None:
        made.exchange.faults()
    agreed = await _agreed(made)
    return (
        await _latencies(made, acknowledged_ns)
        | {"struck": struck, "generator_late_ms_max": round(late_ms, 1)}
        | agreed
    )


async def _warm(made: Rig) -> None:
    """Connections of all threads are open before anything counts, as they are in a desk of some minutes."""
    await asyncio.gather(*(made.reserve(_immediate(f"w-{number}")) for number in range(WARMING)))
    await made.agree(60.0)


async def _acknowledge(made: Rig, order: Order, acknowledged_ns: dict[str, int]) -> None:
    await made.reserve(order)
    acknowledged_ns[order.client_order_id] = time.time_ns()


async def _executed_later(made: Rig, name: str) -> None:
    """A resting order is executed by the exchange once it is known to rest."""

    async def rests() -> bool:
        return await made.status(name) == OrderStatus.OPEN

    await made.until(rests, f"{name} rests")
    fields = await made.ledger.order(ACCOUNT, name) or {}
    body = {"order_id": fields["venue_order_id"], "quantity": fields["quantity"]}
    await asyncio.to_thread(made.exchange.ask, "POST", "/sim/fill", body)


async def _latencies(made: Rig, acknowledged_ns: dict[str, int]) -> dict[str, Any]:
    """From both sides' own records: the exchange's stamps, the ledger's audit; one machine, one clock."""
    to_venue, taken, rested = (HdrHistogram(1, 600_000_000, 3) for _ in range(3))
    for order in await asyncio.to_thread(made.venue.orders):
        if asked_ns := acknowledged_ns.get(order.client_order_id):
            # Execution may be told of an order before its sender is.
            to_venue.record_value(max(1, (order.created_ns - asked_ns) // 1_000))
    liquidity = {fill.trade_id: fill.liquidity for fill in await asyncio.to_thread(made.venue.fills)}
    after = ""
    while entries := await made.ledger.audit_entries(ACCOUNT, after):
        after = entries[-1][0]
        ours = (fields for _, fields in entries if fields["kind"] == "FILL" and fields["id"] in acknowledged_ns)
        for fields in ours:
            fill = json.loads(fields["data"])
            booked_us = int(fields["us"]) - int(fill["ts_ns"]) // 1_000
            (rested if liquidity[fill["trade_id"]] == "MAKER" else taken).record_value(max(1, booked_us))
    return {
        "orders": to_venue.get_total_count(),
        "acknowledged_to_venue": _percentiles(to_venue),
        "fill_to_position_at_once": _percentiles(taken),
        "fill_to_position_of_resting": _percentiles(rested),
    }


# -- orders and sums ---------------------------------------------------------------------------------------------------


def _immediate(name: str) -> Order:
    """A small purchase at the market."""
    return buy(name, "BTC-USD", "0.0001")


def _resting(name: str) -> Order:
    """A purchase below the market, which only the exchange's own hand executes."""
    return buy(name, "ETH-USD", "0.01", "2000", time_in_force=TimeInForce.GTC)


async def _drained(made: Rig) -> bool:
    return await made.ledger.outbox_length(ACCOUNT) == 0


async def _agreed(made: Rig) -> dict[str, Any]:
    try:
        took_s = await made.agree(60.0)
    except AssertionError as error:
        return {"agreed": False, "disagreement": str(error)[:500]}
    return {"agreed": True, "agreed_after_s": round(took_s, 2)}


def _rate_per_s(created_ns: Sequence[int]) -> float:
    """Of the middle, without the tenth in which it begins and the tenth in which it ends."""
    middle = created_ns[len(created_ns) // 10 : len(created_ns) * 9 // 10]
    return (len(middle) - 1) / (middle[-1] - middle[0]) * 1e9 if len(middle) > 1 else 0.0


def _percentiles(histogram: HdrHistogram) -> dict[str, float]:
    if not histogram.get_total_count():
        return {}
    found: dict[str, float] = {f"p{name}_ms": percentile_ms(histogram, value) for name, value in PERCENTILES.items()}
    return found | {"max_ms": histogram.get_max_value() / 1000}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
