"""``desk exchange``: the exchange simulator as a tool, run in the foreground or, where it runs, told what to do.

For paper trading and for testing any bot that uses Coinbase's SDK: the address, the CA and a key are all it needs.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import typer

from cluster.console import CommandError, JsonOption, command, console, print_json, print_table
from conf.settings import load_settings

exchange = typer.Typer(
    invoke_without_command=True,
    help="The exchange simulator: run it in the foreground (without a command), or control the one that runs.",
)

FOLDER: Final = "exchange"
_ASK_S_MAX: Final = 10.0
_FLAGS: Final = (
    "is_disabled",
    "trading_disabled",
    "cancel_only",
    "limit_only",
    "post_only",
    "auction_mode",
    "view_only",
)
FolderOption = typer.Option(None, "--state-dir", help="The exchange's own folder (default: exchange in the desk's).")


@exchange.callback()
@command
def run(
    context: typer.Context,
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on."),
    port: int = typer.Option(8443, "--port", min=0, max=65_535, help="TCP port, 0 = a free one."),
    folder: Path | None = FolderOption,
    seed: int = typer.Option(7, "--seed", min=0, help="Seed of prices, books and faults."),
    history_days: int = typer.Option(1_200, "--history-days", min=1, max=20_000, help="Days of candles before today."),
    replay: list[str] = typer.Option([], "--replay", metavar="[PRODUCT=]FILE", help="Recorded candles as the price."),
    replay_day: str | None = typer.Option(None, "--replay-day", help="The recorded day that is played today."),
    tape: Path | None = typer.Option(None, "--tape", help="Recorded WebSocket messages to be told again."),
    requests_per_s: int = typer.Option(30, "--requests-per-s", min=0, help="For each key, then 429; 0 = any number."),
    public_requests_per_s: int = typer.Option(10, "--public-requests-per-s", min=0, help="Without a key."),
    usd: str = typer.Option("1000000", "--usd", help="US dollars on a new account."),
    as_json: bool = JsonOption,
) -> None:
    """Run the exchange simulator until Ctrl-C. Everything it serves is SIMULATED."""
    if context.invoked_subcommand is not None:
        return
    where = _folder(folder)
    arguments = ["--host", host, "--port", str(port), "--state-dir", str(where), "--seed", str(seed), "--usd", usd]
    arguments += ["--history-days", str(history_days), "--requests-per-s", str(requests_per_s)]
    arguments += ["--public-requests-per-s", str(public_requests_per_s)]
    # Coinbase documents eight of each for an address.
    arguments += ["--streams-per-s", "8", "--stream-messages-per-s", "8"]
    arguments += [text for file in replay for text in ("--replay", file)]
    arguments += ["--replay-day", replay_day] if replay_day else []
    arguments += ["--tape", str(tape)] if tape else []
    # Its event loop and HTTP server are needed for this alone; the other commands start without them.
    from cluster import exchange_sim

    code = exchange_sim.main(arguments, lambda host_port: _tell_start(host_port, where, as_json))
    if code:
        raise typer.Exit(code)


@exchange.command("status")
@command
def status(folder: Path | None = FolderOption, as_json: bool = JsonOption) -> None:
    """Prices, balances, orders, connections, faults of the exchange that runs."""
    found = _ask(folder, "GET", "/sim/status")
    if as_json:
        print_json(found)
        return
    rows = [
        [name, price, " ".join(found["flags"].get(name, [])), found["replayed"].get(name, {}).get("today", "seeded")]
        for name, price in found["prices"].items()
    ]
    print_table(f"exchange (SIMULATED), {found['time']}", ["product", "price>", "flags", "prices of"], rows)
    money = [
        [portfolio, currency, each["available"], each["hold"]]
        for portfolio, accounts in found["balances"].items()
        for currency, each in accounts.items()
    ]
    print_table("balances", ["portfolio", "currency", "available>", "on hold>"], money)
    orders, offset = found["orders"], found["clock_offset_ms"]
    console.print(f"{orders['open']} open of {orders['all']} orders, {orders['fills']} fills", highlight=False)
    console.print(f"{len(found['streams'])} streams; clock {offset:+d} ms", highlight=False)
    _print_rules(found["faults"])


@exchange.command("price")
@command
def price(
    product_id: str = typer.Argument(..., help="For example BTC-USD."),
    value: str = typer.Argument(..., metavar="PRICE|free", help="The mid to pin; free lets it follow its path again."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Pin a product's price; orders that it crosses are triggered and filled at once."""
    wanted = None if value == "free" else value
    done = _ask(folder, "POST", "/sim/price", {"product_id": product_id, "price": wanted})
    if as_json:
        print_json(done)
    else:
        console.print(f"{product_id} at {done['price']}, {done['fills']} fills", highlight=False)


@exchange.command("fault")
@command
def fault(
    name: str | None = typer.Argument(None, metavar="[NAME|off]", help="A fault; off ends all; nothing shows them."),
    fields: list[str] = typer.Option([], "--set", metavar="FIELD=VALUE", help="The fault's own: ms=200, code=1001 …"),
    method: str | None = typer.Option(None, "--method", help="Only requests of this method."),
    path: str | None = typer.Option(None, "--path", help="Only this path after the API's prefix, e.g. /orders."),
    channel: str | None = typer.Option(None, "--channel", help="Only messages of this channel."),
    share: float = typer.Option(1.0, "--share", min=0.0, max=1.0, help="The part of the matches that is struck."),
    count: int | None = typer.Option(None, "--count", min=0, help="Strike at most so often."),
    rules_file: Path | None = typer.Option(None, "--rules", help="A JSON file with a list of rules."),
    keep: bool = typer.Option(False, "--add", help="Beside the rules there are, not in their place."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Let requests or messages fail on purpose, or show which do and how often they did."""
    if name is None and rules_file is None:
        found = _ask(folder, "GET", "/sim/faults")
    else:
        wanted = [] if rules_file is None else _read_rules(rules_file)
        if name is not None and name != "off":
            matched = {"method": method, "path": path, "channel": channel}
            match = {field: text for field, text in matched.items() if text is not None}
            wanted.append({"match": match, "fault": name, "share": share, "count": count, **_fields(fields)})
        if keep:
            shown = _ask(folder, "GET", "/sim/faults")["rules"]
            counted = ("matched", "struck")
            wanted = [{k: v for k, v in rule.items() if k not in counted} for rule in shown] + wanted
        found = _ask(folder, "POST", "/sim/faults", {"rules": wanted})
    if as_json:
        print_json(found)
    else:
        _print_rules(found)


@exchange.command("clock")
@command
def clock(
    offset_ms: int = typer.Argument(..., help="How far the venue's clock is ahead (-- -30000: behind)."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Let the venue's clock differ from this machine's."""
    done = _ask(folder, "POST", "/sim/clock", {"offset_ms": offset_ms})
    if as_json:
        print_json(done)
    else:
        console.print(f"the venue's clock is {done['offset_ms']:+d} ms off", highlight=False)


@exchange.command("fill")
@command
def fill(
    order_id: str = typer.Argument(..., help="The venue's id of the order, or the client's."),
    quantity: str | None = typer.Option(None, "--quantity", help="How much (default: all that is open)."),
    at: str | None = typer.Option(None, "--price", help="At which price (default: the order's limit)."),
    repeat: bool = typer.Option(False, "--repeat", help="List the last fill once more instead."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Execute an order now, whatever the market does."""
    body: dict[str, Any] = {"order_id": order_id, "client_order_id": order_id, "repeat": repeat}
    body |= {} if quantity is None else {"quantity": quantity}
    body |= {} if at is None else {"price": at}
    done = _ask(folder, "POST", "/sim/fill", body)
    if as_json:
        print_json(done)
    else:
        one, order = done["fill"], done["order"]
        text = f"{one['side']} {one['size']} {one['product_id']} at {one['price']}; the order is {order['status']}"
        console.print(text, highlight=False)


@exchange.command("product")
@command
def product(
    product_id: str = typer.Argument(..., help="For example BTC-USD."),
    flags: list[str] = typer.Argument(..., metavar="FLAG=on|off…", help="For example trading_disabled=on."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Set a product's flags: trading_disabled, cancel_only, limit_only, post_only, auction_mode, offline …"""
    body: dict[str, Any] = {"product_id": product_id}
    for text in flags:
        name, _, value = text.partition("=")
        if value not in ("on", "off"):
            raise CommandError(f"{text!r}: expected FLAG=on or FLAG=off", field=name, value=value)
        body[name] = value == "on"
    done = _ask(folder, "POST", "/sim/product", body)
    if as_json:
        print_json(done)
    else:
        having = [name for name in _FLAGS if done[name]]
        console.print(f"{product_id}: {done['status']} {' '.join(having)}".rstrip(), highlight=False)


@exchange.command("deposit")
@command
def deposit(
    currency: str = typer.Argument(..., help="For example USD."),
    amount: str = typer.Argument(..., help="How much; with a minus (after --) a withdrawal."),
    folder: Path | None = FolderOption,
    as_json: bool = JsonOption,
) -> None:
    """Add to a balance behind everybody's back."""
    done = _ask(folder, "POST", "/sim/deposit", {"currency": currency, "amount": amount})["account"]
    if as_json:
        print_json(done)
    else:
        console.print(f"{currency}: {done['available_balance']['value']} available", highlight=False)


# --- asking the exchange that runs ------------------------------------------------------------------------------------


def _folder(given: Path | None) -> Path:
    return load_settings().state_dir / FOLDER if given is None else given


def _ask(given: Path | None, method: Literal["GET", "POST"], path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer of the control surface; raises ``CommandError`` for a refusal or where no exchange runs."""
    folder = _folder(given)
    try:
        host_port = json.loads((folder / "address.json").read_text())["host_port"]
        token = (folder / "sim_token").read_text().strip()
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandError(f"{folder}: no exchange has been started there; see --state-dir") from None
    # No proxy may stand between: it would get the token.
    with httpx.Client(verify=context, timeout=_ASK_S_MAX, trust_env=False) as client:
        try:
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.request(method, f"https://{host_port}{path}", json=body, headers=headers)
        except httpx.TransportError as error:
            raise CommandError(f"{folder}: no exchange answers at {host_port}: {error}") from None
    if answer.status_code != 200:
        try:
            message = answer.json()["message"]
        except (ValueError, KeyError, TypeError):
            message = answer.text[:200].strip()
        raise CommandError(str(message), code=answer.status_code)
    return answer.json()


def _read_rules(path: Path) -> list[Any]:
    try:
        rules = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: expected a JSON file: {error}", file=str(path)) from None
    rules = rules.get("rules") if isinstance(rules, dict) else rules
    if not isinstance(rules, list):
        raise CommandError(f"{path}: expected a list of rules", file=str(path))
    return rules


def _fields(given: list[str]) -> dict[str, Any]:
    """``FIELD=VALUE`` with the value as JSON where it is some, else as text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CommandError(f"--set {text!r}: expected FIELD=VALUE", field="set", value=text)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


# --- printing ---------------------------------------------------------------------------------------------------------


def _tell_start(host_port: str, folder: Path, as_json: bool) -> None:
    facts = {
        "REST": f"https://{host_port}/api/v3/brokerage",
        "WebSocket": f"wss://{host_port}",
        "CA": str(folder / "ca.pem"),
        "key": str(folder / "cdp_key.json"),
        "key (Ed25519)": str(folder / "cdp_key_ed25519.json"),
        "key (may only look)": str(folder / "cdp_key_view.json"),
        "control": str(folder / "sim_token"),
    }
    if as_json:
        print_json({"simulated": True, "host_port": host_port, **facts})
    else:
        print_table("exchange (SIMULATED), Ctrl-C ends it", ["what", "where"], facts.items())
        console.print(_EXAMPLE.format(key=facts["key"], host_port=host_port, ca=facts["CA"]), highlight=False)
    console.file.flush()


_EXAMPLE: Final = """With Coinbase's SDK:
  client = RESTClient(key_file="{key}", base_url="{host_port}")
  client.session.trust_env, client.session.verify = False, "{ca}\""""


def _print_rules(found: dict[str, Any]) -> None:
    rows = [
        [
            rule["fault"],
            " ".join(f"{name}={text}" for name, text in rule.get("match", {}).items()) or "everything",
            " ".join(f"{name}={value}" for name, value in rule.items() if name not in _SHOWN),
            rule.get("count"),
            rule["struck"],
        ]
        for rule in found["rules"]
    ]
    if rows:
        print_table("faults", ["fault", "where", "with", "at most>", "struck>"], rows)
    else:
        console.print("no faults", highlight=False)


_SHOWN: Final = frozenset({"fault", "match", "count", "matched", "struck"})
