"""How fast the exchange simulator's engine takes orders: placements a second by kind, and with each one on disk.

    python -m tests.bench.bench_exchange [--quick]

The engine alone, in one process, without HTTP: first with nobody waiting for the disk (wall time and processor time an
order), then with so many clients that each wait for ``synced`` before their next order, as the faces do. Beside it in
the same run a bare file: a line of the same length appended and synced, one after the other. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from cluster.exchange_book import Exchange, Fees
from cluster.exchange_history import History
from cluster.exchange_journal import Journal
from cluster.exchange_ticket import read_ticket
from strategies.model import NS_PER_S

SEED: Final = 7
START_NS: Final = 1_741_613_841_500_000_000
MID_TICKS: Final = 6_000_000
DEPOSITS: Final = {"USD": Decimal(10**9), "BTC": Decimal(10**6)}
CLIENTS: Final = (1, 16, 64)
LINE: Final = b"x" * 699 + b"\n"


def _limit(number: int) -> dict[str, Any]:
    return {"limit_limit_gtc": {"base_size": "0.01", "limit_price": f"{59_000 - number % 500}.00"}}


def _stop(number: int) -> dict[str, Any]:
    price = f"{59_000 - number % 500}.00"
    fields = {"limit_price": price, "stop_price": price, "stop_direction": "STOP_DIRECTION_STOP_DOWN"}
    return {"stop_limit_stop_limit_gtc": {"base_size": "0.01"} | fields}


# Side and configuration of the order with a number.
KINDS: Final[dict[str, tuple[str, Callable[[int], dict[str, Any]]]]] = {
    "market": ("BUY", lambda n: {"market_market_ioc": {"base_size": "0.00001"}}),
    "limit that rests": ("BUY", _limit),
    "limit at once": ("BUY", lambda n: {"sor_limit_ioc": {"base_size": "0.001", "limit_price": "60001.00"}}),
    "stop": ("SELL", _stop),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=4_000, help="of each kind (at most 5,000 may rest)")
    parser.add_argument("--quick", action="store_true", help="few orders")
    options = parser.parse_args()
    orders = 500 if options.quick else min(options.orders, 5_000)
    report = {
        "benchmark": "exchange engine",
        "machine": {"processors": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "seed": SEED,
        "orders": orders,
        "engine": [_engine(name, orders) for name in KINDS],
        "with_every_order_on_disk": [asyncio.run(_durable(clients, orders)) for clients in CLIENTS],
        "bare_file": _bare_file(orders),
    }
    print(json.dumps(report, indent=2))


def _opened(folder: str) -> Exchange:
    exchange = Exchange(History(SEED), Journal(Path(folder) / "journal.jsonl"), DEPOSITS, Fees(), START_NS)
    exchange.push_price("BTC-USD", MID_TICKS, START_NS)
    return exchange


def _place(exchange: Exchange, kind: str, number: int) -> None:
    """The order with this number, a tenth of a millisecond after the one before."""
    side, configuration = KINDS[kind]
    now_ns = START_NS + number * NS_PER_S // 10_000
    body = {"client_order_id": f"{kind}-{number}", "product_id": "BTC-USD", "side": side}
    exchange.place(read_ticket(body | {"order_configuration": configuration(number)}, now_ns), now_ns)


def _engine(kind: str, orders: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        exchange = _opened(folder)
        wall_s, processor_s = time.perf_counter(), time.process_time()
        for number in range(orders):
            _place(exchange, kind, number)
        wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
        began_s = time.perf_counter()
        exchange.compact()
        return {
            "kind": kind,
            "orders_per_s": round(orders / wall_s),
            "processor_us_per_order": round(1e6 * processor_s / orders, 1),
            "fills": len(exchange.fills),
            "snapshot_us_per_order": round(1e6 * (time.perf_counter() - began_s) / orders, 1),
        }


async def _durable(clients: int, orders: int) -> dict[str, Any]:
    """Each client waits until its order is on disk before it places the next."""
    numbers = iter(range(orders))
    with tempfile.TemporaryDirectory() as folder:
        exchange = _opened(folder)

        async def client() -> None:
            for number in numbers:
                _place(exchange, "limit that rests", number)
                await exchange.synced()

        began_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return {"clients": clients, "orders_per_s": round(orders / (time.perf_counter() - began_s))}


def _bare_file(lines: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "lines").open("ab", buffering=0) as file:
        began_s = time.perf_counter()
        for _ in range(lines):
            file.write(LINE)
            os.fsync(file)
        return {"lines_per_s": round(lines / (time.perf_counter() - began_s)), "bytes": len(LINE)}


if __name__ == "__main__":
    main()
