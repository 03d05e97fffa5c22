"""A local exchange that speaks Coinbase Advanced Trade over TLS, REST and WebSocket: the real SDK works unchanged.

``python -m cluster.exchange_sim --port N --state-dir DIR`` or ``desk exchange``. Everything it serves is SIMULATED, and
every answer says so (header ``X-Simulated: 1``). This file is the process: options, port, certificates, signals. Its
parts: ``exchange_http`` (paths), ``exchange_ws`` (channels), ``exchange_book`` (matching), ``exchange_history`` and
``exchange_replay`` (prices), ``exchange_keys`` (TLS, tokens), ``exchange_faults`` (faults on demand).
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
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import uvicorn
import uvloop

from cluster.exchange_book import Exchange, Fees, Rules, SelfTrade
from cluster.exchange_faults import Faults
from cluster.exchange_history import DAY_S, History
from cluster.exchange_http import Face
from cluster.exchange_journal import Journal, JournalError
from cluster.exchange_keys import Credentials, KeyFileError, open_credentials
from cluster.exchange_limits import RateLimits
from cluster.exchange_replay import ReplayError, ReplayHistory, open_recordings
from cluster.exchange_tape import TapeError, read_tape
from cluster.exchange_wire import HttpProtocol, WebSocketProtocol

_STOP_S_MAX: Final = 0.3
_STEP_S: Final = 0.02
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


def main(arguments: list[str] | None = None, started: Callable[[str], None] | None = None) -> int:
    """Run the simulator until SIGTERM or SIGINT; 2 where it cannot start.

    ``started`` is told the address (host:port) once connections are taken; without it one line says it.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        with _locked(options.state_dir):
            uvloop.run(_serve(options, started or _say))
    except (StartError, KeyFileError, JournalError, ReplayError, TapeError) as error:
        print(f"exchange simulator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(options: argparse.Namespace, started: Callable[[str], None]) -> None:
    now = dt.datetime.now(dt.UTC)
    credentials = open_credentials(options.state_dir, now, options.portfolio)
    listener = _listen(options.host, options.port)
    journal = Journal(options.state_dir / "journal.jsonl")
    face = _face(options, credentials, journal, int(now.timestamp()))
    server = _Server(_configuration(face, credentials))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, loop)
    host_port = f"{options.host}:{listener.getsockname()[1]}"
    _write_address(options.state_dir, host_port)
    started(host_port)
    running = [asyncio.create_task(each) for each in (_tick(face), face.hub.run(), face.hub.play())]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in running:
            task.cancel()
        journal.close()


def _face(options: argparse.Namespace, credentials: Credentials, journal: Journal, now_s: int) -> Face:
    """The exchange behind its face, as the options want it; raises ``StartError`` and what reading files raises."""
    first_s = (now_s - options.history_days * DAY_S) // DAY_S * DAY_S
    if first_s < 0:
        raise StartError(f"--history-days {options.history_days}: history begins in 1970; choose fewer days")
    deposits = {name: getattr(options, name.lower()) for name in ("USD", "BTC", "ETH", "SOL")}
    fees = Fees(options.taker_fee_bps, options.maker_fee_bps)
    rules = Rules(
        SelfTrade(options.stp),
        options.reject_duplicates,
        cancel_delay_ns=options.cancel_delay_ms * 1_000_000,
        accept_delay_ns=options.accept_delay_ms * 1_000_000,
    )
    recordings = open_recordings(options.replay, now_s // DAY_S * DAY_S, options.replay_day)
    history = ReplayHistory(options.seed, recordings) if recordings else History(options.seed)
    exchange = Exchange(history, journal, deposits, fees, time.time_ns(), rules)
    for name in options.portfolio:
        if all(portfolio.name != name for portfolio in exchange.portfolios.values()):
            exchange.open_portfolio(name, deposits)
    return Face(
        exchange,
        credentials,
        first_s,
        faults=Faults(options.seed),
        limits=RateLimits(options.requests_per_s, options.public_requests_per_s),
        tape=read_tape(options.tape) if options.tape else None,
        stream_limits=RateLimits(options.streams_per_s, options.stream_messages_per_s),
    )


def _configuration(face: Face, credentials: Credentials) -> uvicorn.Config:
    return uvicorn.Config(
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
        # No proxy stands before it: an address somebody merely names must not count for the rate limits.
        proxy_headers=False,
        timeout_keep_alive=75,
        limit_concurrency=_CONNECTIONS_MAX,
        ssl_certfile=credentials.certificate_file,
        ssl_keyfile=str(credentials.certificate_key_file),
    )


def _say(host_port: str) -> None:
    print(f"exchange simulator (SIMULATED): https://{host_port}", flush=True)


async def _tick(face: Face) -> None:
    """Once a second, just after it has begun, look for resting orders that the path has crossed.

    More often where orders wait for parts of a second.
    """
    rules = face.exchange.rules
    step_s = _STEP_S if rules.cancel_delay_ns or rules.accept_delay_ns else 1.0
    while True:
        await asyncio.sleep(step_s - time.time() % step_s)
        try:
            face.exchange.advance(face.now_ns())
            await face.exchange.synced()
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
        description="A local exchange that speaks Coinbase Advanced Trade over TLS. Everything is SIMULATED.",
        epilog="Clients trust DIR/ca.pem and sign with DIR/cdp_key.json; DIR/address.json tells host and port. "
        "For tests there is a control surface under /sim/ (token in DIR/sim_token): see desk exchange --help.",
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
    parser.add_argument(
        "--replay",
        action="append",
        default=[],
        metavar="[PRODUCT=]FILE",
        help="recorded candles as the price path: Advanced Trade JSON, CSV or Lean zip; may be repeated",
    )
    parser.add_argument(
        "--replay-day", type=_day, help="the recorded day that is played today (YYYY-MM-DD; default the last whole one)"
    )
    parser.add_argument("--tape", type=Path, help="recorded WebSocket messages, told to listeners of their products")
    parser.add_argument(
        "--stp",
        choices=[each.value for each in SelfTrade],
        default=SelfTrade.CANCEL_NEWEST.value,
        help="where own orders would meet (default %(default)s)",
    )
    parser.add_argument(
        "--reject-duplicates", action="store_true", help="refuse a known client_order_id instead of answering again"
    )
    parser.add_argument(
        "--cancel-delay-ms", type=_delay_ms, default=0, help="how long an order is CANCEL_QUEUED (default 0)"
    )
    parser.add_argument(
        "--accept-delay-ms",
        type=_delay_ms,
        default=0,
        help="how long an order is PENDING before it comes to the book, where it can still fail (default 0)",
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
    for name, what in (("streams-per-s", "new WebSocket connections"), ("stream-messages-per-s", "messages, no token")):
        help_text = f"{what} a second of each address, 0 = any number (default %(default)s)"
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


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a day as YYYY-MM-DD, was {text!r}") from None


def _delay_ms(text: str) -> int:
    return _bounded(text, 0, 600_000)


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
