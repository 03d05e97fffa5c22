"""A local exchange that speaks Coinbase Advanced Trade's REST over TLS: the real SDK works against it unchanged.

``python -m cluster.exchange_sim --port N --state-dir DIR``. Everything it serves is SIMULATED and every answer says so
(header ``X-Simulated: 1``). This file is the process: options, port, certificates, signals. Its parts:
``exchange_http`` (paths), ``exchange_book`` (matching), ``exchange_history`` (prices), ``exchange_keys`` (TLS, tokens).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import uvicorn
import uvloop

from cluster.exchange_book import Exchange, Fees
from cluster.exchange_faults import Faults
from cluster.exchange_history import DAY_S, History
from cluster.exchange_http import Face
from cluster.exchange_journal import Journal, JournalError
from cluster.exchange_keys import KeyFileError, open_credentials
from cluster.exchange_limits import RateLimits
from cluster.exchange_wire import HttpProtocol, WebSocketProtocol

_STOP_S_MAX: Final = 0.3
_CONNECTIONS_MAX: Final = 1_000
_MESSAGE_BYTES_MAX: Final = 65_536

_log = logging.getLogger("cluster.exchange_sim")


class StartError(RuntimeError):
    """The simulator cannot start; the text names the cause and the way out."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the event loop's business here (``_serve``), so that a stop by SIGTERM ends with exit code 0."""
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator until SIGTERM or SIGINT; 2 where it cannot start."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        with _locked(options.state_dir):
            uvloop.run(_serve(options))
    except (StartError, KeyFileError, JournalError) as error:
        print(f"exchange simulator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(options: argparse.Namespace) -> None:
    now = dt.datetime.now(dt.UTC)
    credentials = open_credentials(options.state_dir, now, options.portfolio)
    first_s = (int(now.timestamp()) - options.history_days * DAY_S) // DAY_S * DAY_S
    if first_s < 0:
        raise StartError(f"--history-days {options.history_days}: history begins in 1970; choose fewer days")
    deposits = {name: getattr(options, name.lower()) for name in ("USD", "BTC", "ETH", "SOL")}
    fees = Fees(options.taker_fee_bps, options.maker_fee_bps)
    listener = _listen(options.host, options.port)
    journal = Journal(options.state_dir / "journal.jsonl")
    exchange = Exchange(History(options.seed), journal, deposits, fees, time.time_ns())
    for name in options.portfolio:
        if all(portfolio.name != name for portfolio in exchange.portfolios.values()):
            exchange.open_portfolio(name, deposits)
    host_port = f"{options.host}:{listener.getsockname()[1]}"
    faults, limits = Faults(options.seed), RateLimits(options.requests_per_s, options.public_requests_per_s)
    face = Face(exchange, credentials, first_s, faults=faults, limits=limits)
    config = uvicorn.Config(
        face,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        # The venue sends no pings and expects none: heartbeats are its keep-alive.
        ws_ping_interval=None,
        ws_max_size=_MESSAGE_BYTES_MAX,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        limit_concurrency=_CONNECTIONS_MAX,
        ssl_certfile=credentials.certificate_file,
        ssl_keyfile=str(credentials.certificate_key_file),
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, loop)
    _write_address(options.state_dir, host_port)
    print(f"exchange simulator (SIMULATED): https://{host_port}", flush=True)
    running = [asyncio.create_task(_tick(face)), asyncio.create_task(face.hub.run())]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in running:
            task.cancel()
        journal.close()


async def _tick(face: Face) -> None:
    """Once a second, just after it has begun, look for resting orders that the path has crossed."""
    while True:
        await asyncio.sleep(1.0 - time.time() % 1.0)
        try:
            face.exchange.advance(face.now_ns())
        except Exception:  # noqa: BLE001 - a loop's edge: the exchange goes on, and its log tells
            _log.exception("looking for crossed orders failed")


def _stop(server: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
    """Stop politely, then not: a client that keeps its connection open must not hold the process."""
    server.should_exit = True
    loop.call_later(_STOP_S_MAX, setattr, server, "force_exit", True)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} of {host} is taken; choose another with --port (0 = a free one)") from None
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; see --host and --port") from None
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the state folder: two exchanges on one journal would destroy it. The lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise StartError(f"--state-dir {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(f"--state-dir {folder}: another simulator is running there") from None
        yield


def _write_address(folder: Path, host_port: str) -> None:
    temporary = folder / ".address.json"
    temporary.write_text(json.dumps({"host_port": host_port, "pid": os.getpid()}))
    os.replace(temporary, folder / "address.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.exchange_sim",
        description="A local exchange that speaks Coinbase Advanced Trade's REST over TLS. Everything is SIMULATED.",
        epilog="Clients trust DIR/ca.pem and sign with DIR/cdp_key.json; DIR/address.json tells host and port. "
        "For tests, POST /sim/price (token in DIR/sim_token) pins the mid of a product.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8443, help="TCP port, 0 = a free one (default %(default)s)")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of keys, certificates and the journal")
    parser.add_argument("--seed", type=_natural, default=7, help="seed of prices and book (default %(default)s)")
    parser.add_argument(
        "--history-days", type=_days, default=1200, help="days of candles before today (default %(default)s)"
    )
    for name, amount in (("usd", "1000000"), ("btc", "10"), ("eth", "100"), ("sol", "1000")):
        parser.add_argument(
            f"--{name}", type=_amount, default=Decimal(amount), help=f"{name.upper()} on a new account ({amount})"
        )
    for name, bps in (("taker", "60"), ("maker", "40")):
        help_text = f"{name} fee in basis points ({bps})"
        parser.add_argument(f"--{name}-fee-bps", type=_fee_bps, default=Decimal(bps), help=help_text)
    parser.add_argument(
        "--portfolio",
        action="append",
        type=_name,
        default=[],
        metavar="NAME",
        help="one more portfolio with its own key DIR/cdp_key_NAME.json and the same deposits; may be repeated",
    )
    for name, whom in (("requests-per-s", "of each key"), ("public-requests-per-s", "of each address without one")):
        help_text = f"requests a second {whom}, 0 = any number (default %(default)s); beyond it 429"
        parser.add_argument(f"--{name}", type=_natural, default=0, help=help_text)
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    return parser


def _port(text: str) -> int:
    return _bounded(text, 0, 65_535)


def _natural(text: str) -> int:
    return _bounded(text, 0, 2**63 - 1)


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", text) or text in {"view", "ed25519"}:
        raise argparse.ArgumentTypeError(f"expected at most 20 small letters and digits, was {text!r}")
    return text


def _days(text: str) -> int:
    return _bounded(text, 1, 20_000)


def _bounded(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, was {text!r}")
    return int(text)


def _amount(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,8})?", text):
        raise argparse.ArgumentTypeError(f"expected an amount of at most 12 + 8 digits, was {text!r}")
    return Decimal(text)


def _fee_bps(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?", text):
        raise argparse.ArgumentTypeError(f"expected basis points below 1000 with at most 2 decimals, was {text!r}")
    return Decimal(text)


if __name__ == "__main__":
    sys.exit(main())
