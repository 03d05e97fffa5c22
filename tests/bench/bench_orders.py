"""Orders a second through the three risk replicas, on their own port and through HAProxy, against plain FastAPI.

Both make the same checks in the same function on a Valkey that fsyncs every write; both share two cores with the load
generator. The peer is measured while the desk is down, before and after, so that it has the machine to itself.
Prints JSON. Closed loop: see tests/bench/load.py for what that means.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster import local
from cluster.api_keys import ALL_ACCOUNTS, TRADE, create_key
from cluster.ledger import Ledger, limit_fields
from cluster.processes import choose_ports
from conf.limits import AccountLimits
from conf.settings import RedisSettings, Secrets, ServeSettings, Settings, load_secrets, load_settings, write_secrets
from tests.bench.load import closed_loop
from tests.bench.plain_fastapi import PRODUCT

UNLIMITED = {"max_order_notional": "unlimited", "max_open_orders": "unlimited"}
SCOPE = {**UNLIMITED, "max_gross_exposure": "unlimited", "order_rate_per_s": 1_000_000, "order_burst": 1_000_000}
LIMITS = AccountLimits.model_validate(
    {
        **SCOPE,
        "taker_fee_bps": 60,
        "market_buffer_bps": 100,
        "reference_stale_ms": 3_600_000,
        "products": {"BTC-USD": {**UNLIMITED, "max_position": 1_000_000}},
        "strategies": {"manual": SCOPE},
    }
)
MAXMEMORY_MB = 6_000
QUIET_PERCENT = 30.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours; the peer has as many before and after")
    parser.add_argument("--workers", type=int, default=2, help="uvicorn workers of the peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-orders-") as folder:
        peer = _measure_peer(Path(folder) / "peer-before", options)
        ours = _measure_ours(Path(folder) / "desk", options)
        peer += _measure_peer(Path(folder) / "peer-after", options)
    result = {
        "benchmark": "orders, closed loop",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "connections": options.connections,
        "duration_s": options.duration_s,
        "appendfsync": "always",
        "ours": _median(ours["own_port"]),
        "ours_through_haproxy": _median(ours["through_haproxy"]),
        "plain_fastapi": _median(peer),
        "ratio_requests_per_s": _ratio(ours["own_port"], peer),
        "ratio_requests_per_s_through_haproxy": _ratio(ours["through_haproxy"], peer),
        "runs": {"ours": ours, "plain_fastapi": peer},
    }
    print(json.dumps(result, indent=1))


def _ratio(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> float:
    return round(float(_median(ours)["requests_per_s"]) / float(_median(peer)["requests_per_s"]), 2)


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in runs[0] if name != "statuses"]
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in names if name != "errors"} | {
        "errors": sum(run["errors"] for run in runs)
    }


def _measure_ours(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    settings = load_settings("paper", folder)
    redis = settings.redis.model_copy(update={"maxmemory_mb": MAXMEMORY_MB})
    settings = local.up(settings.model_copy(update={"serve": ServeSettings(http_port=0), "redis": redis}))
    try:
        names = [f"{way}{number}" for way in ("own_port", "through_haproxy") for number in range(options.rounds)]
        key = asyncio.run(_open_accounts(settings, load_secrets(settings), names))
        assert settings.serve.orders_port
        ports = {"own_port": settings.serve.orders_port, "through_haproxy": settings.serve.http_port}
        return {
            name: [_run(port, key, f"{name}{number}", options, settings) for number in range(options.rounds)]
            for name, port in ports.items()
        }
    finally:
        local.down(folder)


def _measure_peer(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    folder.mkdir()
    (port,) = choose_ports(1)
    settings = load_settings("paper", folder)
    settings = settings.model_copy(update={"redis": RedisSettings(port=port, maxmemory_mb=MAXMEMORY_MB)})
    pepper = secrets.token_urlsafe(32)
    write_secrets(folder / "secrets.env", {"redis_password": secrets.token_urlsafe(32), "api_key_pepper": pepper})
    loaded = load_secrets(settings)
    with _valkey(settings), _peer_server(settings, loaded, options.workers) as (http_port, set_key):
        names = [f"bench{number}" for number in range(options.rounds)]
        key = asyncio.run(_open_accounts(settings, loaded, names))
        set_key(key, http_port)
        return [_run(http_port, key, f"bench{number}", options, settings) for number in range(options.rounds)]


@contextmanager
def _valkey(settings: Settings) -> Iterator[None]:
    local.start_valkey(settings)
    try:
        yield
    finally:
        local.down(settings.state_dir)


@contextmanager
def _peer_server(settings: Settings, loaded: Secrets, workers: int) -> Iterator[tuple[int, Callable[[str, int], None]]]:
    (http_port,) = choose_ports(1)
    assert loaded.redis_password
    assert loaded.api_key_pepper
    processes: list[subprocess.Popen[bytes]] = []

    def begin(key: str, port: int) -> None:
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
        processes.append(subprocess.Popen(argv, env=environment))
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/openapi.json", trust_env=False)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    try:
        yield http_port, begin
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)


async def _open_accounts(settings: Settings, loaded: Secrets, accounts: list[str]) -> str:
    """Accounts nobody executes for, so that only the orders application is at work; one a run. Returns an API key."""
    ledger = Ledger.connect(settings, loaded)
    try:
        await ledger.install()
        for account in accounts:
            await ledger.set_limits(account, limit_fields(LIMITS, {PRODUCT.product_id: PRODUCT}), "bench")
            await ledger.open_account(account, 2 * 10**15, {}, "bench")
            await ledger.set_references(account, [(PRODUCT, Decimal("50000.00"), Decimal("50000.01"))])
        assert loaded.api_key_pepper
        key = await create_key(ledger, loaded.api_key_pepper, "bench", [TRADE], [ALL_ACCOUNTS])
        return key.get_secret_value()
    finally:
        await ledger.close()


def _run(port: int, key: str, account: str, options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    def request(number: int) -> bytes:
        body = (
            f'{{"client_order_id":"o-{number}","account":"{account}","strategy":"manual","product_id":"BTC-USD",'
            f'"side":"BUY","type":"LIMIT","quantity":"0.0001","limit_price":"40000.00"}}'
        ).encode()
        head = (
            f"POST /v1/orders HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
            # Serve need not watch for a hang-up then, and an order is decided whether its sender waits or not.
            f"x-request-disconnect-disabled: ?1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        return head + body

    import uvloop

    busy = _await_quiet()
    measured = uvloop.run(closed_loop(port, options.connections, options.duration_s, request))
    differences = asyncio.run(_verify(settings, account))
    return measured.summary(good=201) | {"books_differences": differences, "busy_before_percent": busy}


def _await_quiet(timeout_s: float = 90.0) -> float:
    """Wait until the machine has little else to do (a new desk settles first); returns per cent of it busy."""
    deadline = time.monotonic() + timeout_s
    while (busy := psutil.cpu_percent(interval=2.0)) > QUIET_PERCENT and time.monotonic() < deadline:
        pass
    return busy


async def _verify(settings: Settings, account: str) -> int:
    ledger = Ledger.connect(
        settings.model_copy(update={"redis": settings.redis.model_copy(update={"timeout_s": 30.0})}),
        load_secrets(settings),
    )
    try:
        return len(await ledger.verify(account))
    finally:
        await ledger.close()


if __name__ == "__main__":
    main()
