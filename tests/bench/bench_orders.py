"""Orders through the three risk replicas: how many a second, how fast, and where the processors' time goes.

Every control is on (tests/bench/account.py) on a Valkey that fsyncs every write. Closed loop: on the replicas' own
port and through HAProxy, against plain FastAPI + uvicorn calling the same function and against redis-benchmark calling
it with nothing in between; the peers are measured while the desk is down, before and after, so that each has the
machine, which all share with the load generator, to itself. Open loop: users at a constant rate, latency from the time
each meant to send. After each run the books and the audit chain are proven. Prints JSON; ``--quick`` only shows that
it works.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import yaml

from cluster import local
from cluster.api_keys import ALL_ACCOUNTS, TRADE, create_key
from cluster.audit import verify, verify_chain
from cluster.ledger import Ledger, _packed, account_base
from cluster.processes import choose_ports
from conf.settings import RedisSettings, Secrets, ServeSettings, Settings, load_secrets, load_settings, write_secrets
from tests.bench.account import CASH_MICROS, LIMITS, PRODUCT, body, open_account, order
from tests.bench.cpu import Meter, Spent
from tests.bench.load import Measured, closed_loop, open_loop, percentile_ms

# For the closed loop, which leaves more orders open in a minute than a desk in a month.
MAXMEMORY_MB: Final = 6_000
QUIET_PERCENT: Final = 30.0
# A closed loop whose seconds differ more than this, or an open one that is slower than that while it warms up, was
# disturbed: its figures are shown and do not count.
UNEVEN_MAX: Final = 0.30
WARM_P95_MS: Final = 140.0
ATTEMPTS: Final = 3
ACCEPTED: Final = 201
# Where the request of tt_reserve has the order's id and its lots.
ID_ITEM, LOTS_ITEM = 0, 10
# redis-benchmark draws sizes at random: of so many that few are drawn twice within the duplicate window, which the
# second drawing waits for, because the program draws the same ones each time.
SIZES: Final = 1_000_000
CALIBRATING: Final = 2_000
BARE_CASH_MICROS: Final = 10**14
DUPLICATES_MAX: Final = 0.02

Run = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is measured, how long and how often."""

    connections: int
    users: int
    duration_s: float
    open_s: float
    rounds: int
    workers: int
    quiet_s: float


@dataclass(frozen=True)
class Bench:
    """A server under load: its settings, its processes and what the runs so far have cost."""

    settings: Settings
    options: Options
    key: str
    processes: Callable[[], list[psutil.Process]]
    spent: dict[str, Spent]

    def closed(self, way: str, port: int) -> list[Run]:
        """Closed-loop runs, each on an account of its own."""
        return [self._measured(way, f"{way}{number}", self._closed(port)) for number in range(self.options.rounds)]

    def open(self, way: str, port: int) -> list[Run]:
        """Open-loop runs."""
        return [self._measured(way, f"{way}{number}", self._open(port)) for number in range(self.options.rounds)]

    def bare(self, way: str) -> list[Run]:
        """redis-benchmark, calling the function as the replicas do."""
        program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
        if program is None:
            return []
        names = [f"{way}{number}" for number in range(self.options.rounds)]
        return [self._measured(way, name, self._bare(program), BARE_CASH_MICROS) for name in names]

    def _measured(self, way: str, account: str, load: Callable[[str], Run], cash_micros: int = CASH_MICROS) -> Run:
        """One run, repeated where it was disturbed; each attempt on an account of its own."""
        for attempt in range(ATTEMPTS):
            name = f"{account}_{attempt}"
            self._with_ledger(partial(open_account, account=name, cash_micros=cash_micros))
            busy, pressure = _await_quiet(self.options.quiet_s), _pressure()
            meter = Meter(self.processes())
            meter.begin()
            run = load(name)
            spent = meter.end(run["requests"])
            run |= {"busy_before_percent": busy, "pressure_before": pressure, "attempt": attempt + 1}
            run |= self._with_ledger(partial(_proven, account=name))
            if run["steady"]:
                break
        self.spent[way] = self.spent.get(way, Spent()) + spent
        return run

    def _with_ledger(self, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
        return asyncio.run(_with_ledger(self.settings, work))

    def _closed(self, port: int) -> Callable[[str], Run]:
        def load(account: str) -> Run:
            options = self.options
            warm_s = min(2.0, options.duration_s / 2)
            measured = _in_loop(
                closed_loop(port, options.connections, options.duration_s, _requests(self.key, account), warm_s)
            )
            uneven = measured.unevenness()
            return measured.summary(ACCEPTED) | {"unevenness": round(uneven, 2), "steady": uneven <= UNEVEN_MAX}

        return load

    def _open(self, port: int) -> Callable[[str], Run]:
        def load(account: str) -> Run:
            warm, options = Measured(), self.options
            before, _ = self._with_ledger(Ledger.memory)
            measured = _in_loop(open_loop(port, options.users, 1.0, options.open_s, _requests(self.key, account), warm))
            used, allowed = self._with_ledger(Ledger.memory)
            orders = measured.done + warm.done
            return measured.summary(ACCEPTED) | {
                "generator_late_p99_ms": percentile_ms(measured.lateness, 99),
                "ledger_memory_percent": round(100 * used / allowed, 2),
                "ledger_bytes_per_order": round((used - before) / orders) if orders else None,
                "steady": percentile_ms(warm.histogram, 95) <= WARM_P95_MS,
            }

        return load

    def _bare(self, program: str) -> Callable[[str], Run]:
        def load(account: str) -> Run:
            settings, connections = self.settings, self.options.connections
            rate = _redis_benchmark(program, settings, account, connections, CALIBRATING)["requests_per_s"]
            time.sleep(1.5)
            count = max(CALIBRATING, int(rate * self.options.duration_s))
            run = _redis_benchmark(program, settings, account, connections, count)
            book = self._with_ledger(partial(Ledger.snapshot, account=account)).book
            refused = count + CALIBRATING - int(book.get("a|open_orders", 0))
            few = refused <= DUPLICATES_MAX * (count + CALIBRATING)
            return run | {"duplicates": refused, "errors": 0 if few else refused, "steady": True}

        return load


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100, help="closed loop")
    parser.add_argument("--users", type=int, default=100, help="open loop: each sends one order a second")
    parser.add_argument("--duration-s", type=float, default=8.0, help="of a closed loop")
    parser.add_argument("--open-s", type=float, default=60.0, help="of an open loop")
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours; the peers have as many before and after")
    parser.add_argument("--workers", type=int, default=2, help="uvicorn workers of the peer")
    parser.add_argument("--quiet-s", type=float, default=90.0, help="how long to wait for a quiet machine, each run")
    parser.add_argument("--quick", action="store_true", help="one short run of each")
    given = vars(parser.parse_args())
    if given.pop("quick"):
        given |= {"duration_s": 2.0, "open_s": 5.0, "rounds": 1, "quiet_s": 0.0}
    print(json.dumps(measure(Options(**given)), indent=1))


def measure(options: Options) -> dict[str, Any]:
    """Everything, as the report."""
    spent: dict[str, Spent] = {}
    with tempfile.TemporaryDirectory(prefix="bench-orders-") as folder:
        peers = _measure_peers(Path(folder) / "before", options, spent)
        ours = _measure_desk(Path(folder) / "desk", options, spent)
        for name, runs in _measure_peers(Path(folder) / "after", options, spent).items():
            peers[name] += runs
    results = ours | peers
    medians = {name: _median(found) for name, found in results.items()}
    return {
        "benchmark": "orders",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "controls": "all on, as tests/bench/account.py",
        "appendfsync": "always",
        "options": vars(options),
        "ratios": _ratios(medians),
        "medians": medians,
        "where_the_time_goes": {name: cost.table() for name, cost in spent.items()},
        "runs": results,
    }


def _ratios(medians: dict[str, Run]) -> dict[str, float]:
    """Orders a second of ours for one of each peer's."""
    found = {}
    for way in ("own_port", "through_haproxy"):
        for peer in ("plain_fastapi", "redis_benchmark"):
            if medians.get(peer):
                found[f"{way} to {peer}"] = round(
                    float(medians[way]["requests_per_s"]) / float(medians[peer]["requests_per_s"]), 2
                )
    return found


def _median(runs: list[Run]) -> Run:
    """Of the runs that were steady, or of all where none was; errors and differences are summed over all."""
    if not runs:
        return {}
    counted = [run for run in runs if run["steady"]] or runs
    numbers = [name for name, value in counted[0].items() if isinstance(value, int | float) and name != "steady"]
    medians = {name: round(statistics.median(run[name] for run in counted), 3) for name in numbers}
    sums = {name: sum(run[name] for run in runs) for name in ("errors", "books_differences", "chain_findings")}
    return medians | sums | {"steady_runs": sum(run["steady"] for run in runs), "of_runs": len(runs)}


# -- servers -----------------------------------------------------------------------------------------------------------


def _measure_desk(folder: Path, options: Options, spent: dict[str, Spent]) -> dict[str, list[Run]]:
    folder.mkdir()
    limits = folder / "limits.yaml"
    limits.write_text(yaml.safe_dump(LIMITS))
    settings = load_settings("paper", folder).model_copy(
        update={"serve": ServeSettings(http_port=0), "limits_file": limits}
    )
    settings = local.up(settings, lambda text: print(text, file=sys.stderr))
    try:
        key = asyncio.run(_with_ledger(settings, lambda ledger: _key(ledger, load_secrets(settings))))
        bench = Bench(settings, options, key, lambda: local.desk_processes(folder), spent)
        assert settings.serve.orders_port
        ways = {"own_port": settings.serve.orders_port, "through_haproxy": settings.serve.http_port}
        # First, because the memory they leave in use is told in per cent of what a desk has.
        runs = {f"open_{way}": bench.open(f"open_{way}", port) for way, port in ways.items()}
        asyncio.run(_with_ledger(settings, _more_memory))
        return runs | {way: bench.closed(way, port) for way, port in ways.items()}
    finally:
        local.down(folder)


def _measure_peers(folder: Path, options: Options, spent: dict[str, Spent]) -> dict[str, list[Run]]:
    folder.mkdir()
    (port,) = choose_ports(1)
    settings = load_settings("paper", folder)
    settings = settings.model_copy(update={"redis": RedisSettings(port=port, maxmemory_mb=MAXMEMORY_MB)})
    pepper = secrets.token_urlsafe(32)
    write_secrets(folder / "secrets.env", {"redis_password": secrets.token_urlsafe(32), "api_key_pepper": pepper})
    loaded = load_secrets(settings)
    local.start_valkey(settings)
    try:
        asyncio.run(_with_ledger(settings, Ledger.install))
        key = asyncio.run(_with_ledger(settings, lambda ledger: _key(ledger, loaded)))
        with _peer_server(settings, loaded, key, options.workers) as (http_port, server):
            bench = Bench(settings, options, key, lambda: [*local.desk_processes(folder), server], spent)
            runs = {"plain_fastapi": bench.closed("plain_fastapi", http_port)}
        bench = Bench(settings, options, key, lambda: local.desk_processes(folder), spent)
        return runs | {"redis_benchmark": bench.bare("redis_benchmark")}
    finally:
        local.down(folder)


@contextmanager
def _peer_server(settings: Settings, loaded: Secrets, key: str, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    (port,) = choose_ports(1)
    assert loaded.redis_password
    assert loaded.api_key_pepper
    pepper, secret = loaded.api_key_pepper.get_secret_value(), key.split("_", 2)[2]
    environment = os.environ | {
        "BENCH_REDIS_PORT": str(settings.redis.port),
        "BENCH_REDIS_PASSWORD": loaded.redis_password.get_secret_value(),
        "BENCH_PEPPER": pepper,
        "BENCH_KEY_HASH": hmac.new(pepper.encode(), secret.encode(), hashlib.sha256).hexdigest(),
    }
    argv = [sys.executable, "-m", "uvicorn", "tests.bench.plain_fastapi:app", "--port", str(port)]
    argv += ["--workers", str(workers), "--log-level", "error", "--no-access-log"]
    process = subprocess.Popen(argv, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert time.monotonic() < deadline, "the peer does not answer"
            time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _redis_benchmark(program: str, settings: Settings, account: str, connections: int, count: int) -> Run:
    """``count`` reservations with ids of their own and sizes that vary, so that none is another's duplicate."""
    password = load_secrets(settings).redis_password
    assert password
    like = json.loads(_packed(order(account, 0), PRODUCT, "bench", (), 0))
    # The program puts another random number below SIZES into each of these, with leading zeros.
    like[ID_ITEM], like[LOTS_ITEM] = f"{time.time_ns()}-__rand_int__-__rand_int__", "__rand_int__"
    argv = [program, "-p", str(settings.redis.port), "-a", password.get_secret_value(), "-c", str(connections)]
    argv += ["-n", str(count), "-r", str(SIZES), "--csv", "--precision", "3"]
    argv += ["FCALL", "tt_reserve", "1", account_base(account), json.dumps(like)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=True)
    # "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    row = [part.strip('"') for part in done.stdout.strip().splitlines()[-1].rsplit(",", 7)]
    rps, _, _, p50, p95, p99, most = (float(part) for part in row[1:])
    return {"requests": count, "requests_per_s": rps, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": most}


# -- the ledger --------------------------------------------------------------------------------------------------------


async def _with_ledger(settings: Settings, work: Callable[[Ledger], Awaitable[Any]]) -> Any:
    """``work`` with a ledger that is patient: a proof over many open orders takes the server a while."""
    patient = settings.redis.model_copy(update={"timeout_s": 30.0})
    ledger = Ledger.connect(settings.model_copy(update={"redis": patient}), load_secrets(settings))
    try:
        return await work(ledger)
    finally:
        await ledger.close()


async def _key(ledger: Ledger, loaded: Secrets) -> str:
    assert loaded.api_key_pepper
    return (await create_key(ledger, loaded.api_key_pepper, "bench", [TRADE], [ALL_ACCOUNTS])).get_secret_value()


async def _more_memory(ledger: Ledger) -> None:
    await ledger._direct("CONFIG", "SET", "maxmemory", f"{MAXMEMORY_MB}mb")


async def _proven(ledger: Ledger, account: str) -> Run:
    chain = await verify_chain(ledger, account, None)
    return {"books_differences": len(await verify(ledger, account)), "chain_findings": len(chain.findings)}


# -- the machine -------------------------------------------------------------------------------------------------------


def _requests(key: str, account: str) -> Callable[[int], bytes]:
    def request(number: int) -> bytes:
        content = body(account, number)
        head = (
            f"POST /v1/orders HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
            # Serve need not watch for a hang-up then, and an order is decided whether its sender waits or not.
            f"x-request-disconnect-disabled: ?1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        ).encode()
        return head + content

    return request


def _in_loop(load: Any) -> Measured:
    import uvloop

    measured: Measured = uvloop.run(load)
    return measured


def _await_quiet(timeout_s: float) -> float:
    """Wait until the machine has little else to do (a new desk settles first); returns per cent of it busy."""
    deadline = time.monotonic() + timeout_s
    while (busy := psutil.cpu_percent(interval=2.0)) > QUIET_PERCENT and time.monotonic() < deadline:
        pass
    return busy


def _pressure() -> str:
    """How long programs waited for a processor lately, where the kernel tells."""
    try:
        return Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:
        return "not known"


if __name__ == "__main__":
    main()
