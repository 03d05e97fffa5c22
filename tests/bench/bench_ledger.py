"""What a call costs the ledger's server: microseconds of its main thread, and bytes of memory.

    python -m tests.bench.bench_ledger [--quick]

Each verb on an account with every control on (tests/bench/account.py), one call a round trip and in pipelines, on
Valkey and, where it is installed, on Redis; beside it in the same run a plain SET and a bare script that reads a
counter, compares it and counts it up. Processor time is the server's own account of its main thread, so a slow client
does not show in it; every write is fsynced (once a pipeline). Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import redis

from cluster.ledger import Ledger, _packed, account_base, value_scale
from conf.settings import RedisSettings, Settings
from strategies.model import Side
from tests.bench.account import BID, PRODUCT, open_account, order
from tests.servers import KINDS, PASSWORD, Kind, Server, binary, redis_secrets

ACCOUNT: Final = "bench"
BASE: Final = account_base(ACCOUNT)
BY: Final = "bench"
PIPELINE: Final = 64
BARE_SCRIPT: Final = """
local n = tonumber(redis.call('GET', KEYS[1]) or '0')
if n >= tonumber(ARGV[1]) then
  return 0
end
return redis.call('INCR', KEYS[1])
"""
SAMPLED: Final = 1_000

Command = tuple[str, ...]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4_096, help="of each verb, each way, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few calls, one round")
    options = parser.parse_args()
    calls, rounds = (256, 1) if options.quick else (options.calls, options.rounds)
    report = {
        "benchmark": "ledger",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "controls": "all on, as tests/bench/account.py",
        "appendfsync": "always",
        "pipeline": PIPELINE,
        "calls": calls,
        "rounds": rounds,
        "servers": [_measure_server(kind, calls, rounds) for kind in KINDS if _installed(kind)],
    }
    print(json.dumps(report, indent=1))


def _installed(kind: Kind) -> bool:
    return kind == "valkey" or shutil.which("redis-server") is not None


def _measure_server(kind: Kind, calls: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        server = Server(binary(kind), Path(folder), appendfsync="always", maxmemory="6gb")
        with server.running() as settings:
            name, version, epoch = asyncio.run(_opened(settings, Path(folder)))
            with redis.Redis(port=settings.port, password=PASSWORD, decode_responses=True) as client:
                bench = Bench(client, str(epoch))
                for _ in range(rounds):
                    bench.round(calls)
                return {"server": f"{name} {version}", "us_per_call": bench.table(), "bytes": bench.bytes()}


async def _opened(settings: RedisSettings, folder: Path) -> tuple[str, str, int]:
    ledger = Ledger.connect(Settings(state_dir=folder, redis=settings), redis_secrets())
    try:
        await ledger.install()
        return *(await ledger.server()), await open_account(ledger, ACCOUNT)
    finally:
        await ledger.close()


@dataclass
class Bench:
    """One server: what its calls have cost so far."""

    client: redis.Redis
    epoch: str
    costs: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    terminal: list[int] = field(default_factory=list)

    def round(self, calls: int) -> None:
        """Every verb, single and pipelined, on orders of its own."""
        for way, size in (("single", 1), ("pipelined", PIPELINE)):
            self._cost("SET", way, size, [("SET", f"plain:{n}", "x" * 100) for n in self._next(calls)])
            bare = ("EVAL", BARE_SCRIPT, "1", "bare:counter", "1000000000")
            self._cost("bare script", way, size, [bare] * calls)
            self._cost("check", way, size, [self._order("tt_check", n) for n in self._next(calls)])
            filled, released, cancelled = (self._reserved(way, size, calls) for _ in range(3))
            cancels = [self._verb("tt_request_cancel", f"o-{n}", BY) for n in cancelled]
            self._cost("request_cancel", way, size, cancels)
            sent = [self._fenced("tt_mark_sent", f"o-{n}") for n in [*filled, *released]]
            self._cost("mark_sent", way, size, sent)
            self._cost("ack", way, size, [self._fenced("tt_ack", f"o-{n}", "OPEN", f"v-{n}") for n in filled])
            self._cost("fill", way, size, [self._fill(n) for n in filled])
            ends = [self._fenced("tt_release", f"o-{n}", "CANCELLED", "bench", BY) for n in released]
            self._cost("release", way, size, ends)
            self._cost("set_references", way, size, [self._reference(n) for n in range(calls)])
            self.terminal = filled

    def table(self) -> dict[str, dict[str, float]]:
        """Verb -> microseconds of the server's main thread a call (median of the rounds), and how many SETs that is."""
        found = {}
        for verb, ways in self.costs.items():
            medians = {way: statistics.median(values) for way, values in ways.items()}
            plain = {way: statistics.median(values) for way, values in self.costs["SET"].items()}
            found[verb] = {way: round(value, 1) for way, value in medians.items()} | {
                f"{way}_in_SETs": round(value / plain[way], 1) for way, value in medians.items()
            }
        return found

    def bytes(self) -> dict[str, float]:
        """What an order and an audit entry take, by the server's own account of the keys."""
        held = self._next(SAMPLED)
        before = self._used()
        self._call([self._order("tt_reserve", n) for n in held], PIPELINE)
        grown = self._used() - before
        share = {name: self._share(f"{BASE}:{name}", size) for name, size in _SIZES.items()}
        share["resting"] = self._share(f"{BASE}:resting:{PRODUCT.product_id}:{Side.BUY}", "ZCARD")
        record = self._average([f"{BASE}:order:o-{n}" for n in held])
        ended = self.terminal[-SAMPLED:]
        kept = self._average([f"{BASE}:order:o-{n}" for n in ended]) + self._average(
            [f"{BASE}:fills:o-{n}" for n in ended]
        )
        return {
            "open_order": round(record + share["open"] + share["resting"] + share["outbox"]),
            "terminal_order_with_one_fill": round(kept),
            "audit_entry": round(share["audit"]),
            "used_memory_per_reservation": round(grown / SAMPLED),
        }

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _reserved(self, way: str, size: int, calls: int) -> list[int]:
        numbers = self._next(calls)
        self._cost("reserve", way, size, [self._order("tt_reserve", n) for n in numbers])
        return numbers

    def _order(self, verb: str, number: int) -> Command:
        return "FCALL", verb, "1", BASE, _packed(order(ACCOUNT, number), PRODUCT, BY, (), int(self.epoch))

    def _verb(self, verb: str, *arguments: str) -> Command:
        return "FCALL", verb, "1", BASE, *arguments

    def _fenced(self, verb: str, *arguments: str) -> Command:
        return self._verb(verb, self.epoch, *arguments)

    def _fill(self, number: int) -> Command:
        asked = order(ACCOUNT, number)
        assert asked.limit_price is not None
        lots, ticks = PRODUCT.lots(asked.quantity), PRODUCT.ticks(asked.limit_price)
        value = PRODUCT.notional_micros(lots, ticks)
        amounts = (str(lots), str(value), str(value * 6 // 1000), "1")
        return self._fenced("tt_fill", f"o-{number}", f"t-{number}", *amounts, asked.product_id, asked.side.value)

    def _reference(self, number: int) -> Command:
        bid = PRODUCT.ticks(BID) + number % 7
        scale = (str(part) for part in value_scale(PRODUCT))
        return self._verb("tt_set_reference", PRODUCT.product_id, str(bid), str(bid + 1), *scale, "1000000", "1000000")

    def _next(self, calls: int) -> list[int]:
        return list(islice(self.numbers, calls))

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _cost(self, verb: str, way: str, size: int, commands: Sequence[Command]) -> None:
        before = self._main_thread_s()
        replies = self._call(commands, size)
        spent_s = self._main_thread_s() - before
        _check(verb, replies)
        self.costs.setdefault(verb, {}).setdefault(way, []).append(1e6 * spent_s / len(commands))

    def _call(self, commands: Sequence[Command], size: int) -> list[Any]:
        if size == 1:
            return [self._direct(*command) for command in commands]
        replies: list[Any] = []
        for start in range(0, len(commands), size):
            pipe = self.client.pipeline(transaction=False)
            for command in commands[start : start + size]:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            replies += pipe.execute()
        return replies

    def _direct(self, *command: str) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _main_thread_s(self) -> float:
        found: Any = self.client.info("cpu")
        return float(found["used_cpu_user_main_thread"]) + float(found["used_cpu_sys_main_thread"])

    def _used(self) -> int:
        found: Any = self.client.info("memory")
        return int(found["used_memory"])

    def _share(self, key: str, size: str) -> float:
        """Bytes an element of a stream or a sorted set."""
        return self._memory(key) / max(1, int(self._direct(size, key)))

    def _average(self, keys: Sequence[str]) -> float:
        return sum(self._memory(key) for key in keys) / max(1, len(keys))

    def _memory(self, key: str) -> int:
        return int(self._direct("MEMORY", "USAGE", key, "SAMPLES", "0") or 0)


_SIZES: Final = {"open": "ZCARD", "outbox": "XLEN", "audit": "XLEN"}
_ANSWERS: Final = {
    "check": "CHECKED",
    "reserve": "ACCEPTED",
    "request_cancel": "CANCELLED",
    "mark_sent": "SENT",
    "ack": "OPEN",
    "fill": "APPLIED",
    "release": "CANCELLED",
}


def _check(verb: str, replies: Sequence[Any]) -> None:
    """A verb that was refused costs something else; that is not what is measured."""
    wanted = _ANSWERS.get(verb)
    if wanted is not None:
        odd = [reply for reply in replies if reply[0] != wanted]
        assert not odd, (verb, odd[0])
    if verb == "check":
        assert json.loads(replies[0][2])["verdict"] == "ACCEPTED", replies[0]


if __name__ == "__main__":
    main()
