"""``desk session``: strategies on live bars: started, followed, stopped over HTTP, proved against the backtest."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer

from cluster.cli_access import AccountOption, call
from cluster.console import FAILED, CommandError, JsonOption, command, console, errors, print_json, print_table
from conf.settings import load_settings

session = typer.Typer(no_args_is_help=True, help="Live sessions: a registered strategy on live bars.")

WATCH_INTERVAL_S: Final = 1.0
_FIGURES: Final = (
    ("live bars", "live_bars"),
    ("target", "target"),
    ("position", "position"),
    ("cash", "cash"),
    ("equity", "equity"),
    ("fees", "fees"),
    ("orders decided", "orders"),
    ("accepted by risk", "accepted"),
    ("denied by risk", "denied"),
    ("filled", "filled"),
    ("changes not acted upon", "skipped"),
    ("corrected bars", "corrections"),
    ("open order", "open_order"),
)

SessionArgument = typer.Argument(..., help="The session's id.")


@session.command("start")
@command
def session_start(
    strategy: str = typer.Argument(..., help="A registered strategy."),
    product: str = typer.Option(..., "--product", "-p", help="For example BTC-USD."),
    granularity: str = typer.Option("ONE_HOUR", "--granularity", "-g", help="ONE_MINUTE … ONE_DAY."),
    param: list[str] = typer.Option([], "--param", help="name=value; repeatable. The others take their default."),
    account: str = AccountOption,
    trades_as: str | None = typer.Option(
        None, "--trades-as", help="The strategy in limits.yaml its orders count for; without it, the strategy's name."
    ),
    capital: float = typer.Option(10_000.0, "--capital", help="What the session may use, quote units."),
    fee_bps: float = typer.Option(60.0, "--fee-bps", help="The model's fee, basis points; kept back when sizing."),
    slippage_bps: float = typer.Option(5.0, "--slippage-bps", help="The model's slippage, basis points."),
    fill: str = typer.Option("next_open", "--fill", help="The model's price: next_open or same_close."),
    warmup_bars: int | None = typer.Option(None, "--warmup-bars", help="History first; else by the windows."),
    bars_max: int | None = typer.Option(None, "--bars", help="End after so many live bars."),
    short: bool = typer.Option(False, "--short", help="Send orders for targets below 0 too (spot denies them)."),
    session_id: str | None = typer.Option(None, "--id", help="Your own id; a repeat is the same session."),
    as_json: bool = JsonOption,
) -> None:
    """Run a strategy on live bars: each change of its target becomes an order through risk."""
    body: dict[str, Any] = {
        "account": account,
        "product_id": product.upper(),
        "granularity": granularity.upper(),
        "strategy": strategy,
        "params": dict(_assignment(text) for text in param),
        "costs": {"fee_bps": fee_bps, "slippage_bps": slippage_bps, "fill": fill, "initial_cash": capital},
        "long_only": not short,
    }
    optional = {"trades_as": trades_as, "warmup_bars": warmup_bars, "bars_max": bars_max, "session_id": session_id}
    body |= {name: value for name, value in optional.items() if value is not None}
    view = _answered("POST", "/v1/sessions", json=body)
    if as_json:
        print_json(view)
    else:
        started = view["session_id"]
        console.print(f"{started}: {view['state']} ({view['data_source']})", highlight=False)
        console.print(f"follow it: desk session watch {started}", highlight=False)


@session.command("stop")
@command
def session_stop(
    session_id: str = SessionArgument,
    flatten: bool = typer.Option(False, "--flatten", help="Close its position first."),
    as_json: bool = JsonOption,
) -> None:
    """Let a session end; its position stays unless --flatten. It can be resumed."""
    answer = _answered("POST", f"/v1/sessions/{session_id}/stop", json={"flatten": flatten})
    if as_json:
        print_json(answer)
    else:
        console.print(f"{session_id}: {answer['stop']} ({answer['state']})", highlight=False)


@session.command("resume")
@command
def session_resume(session_id: str = SessionArgument, as_json: bool = JsonOption) -> None:
    """Let a stopped or failed session go on behind its last bar."""
    view = _answered("POST", f"/v1/sessions/{session_id}/resume")
    if as_json:
        print_json(view)
    else:
        console.print(f"{session_id}: {view['state']}", highlight=False)


@session.command("list")
@command
def session_list(
    limit: int = typer.Option(50, "--limit", min=1, max=500, help="At most so many, newest first."),
    as_json: bool = JsonOption,
) -> None:
    """All sessions, newest first."""
    found = _answered("GET", "/v1/sessions", params={"limit": limit})["sessions"]
    if as_json:
        print_json(found)
        return
    columns = ["session", "state", "strategy", "product", "bars>", "target>", "position>", "equity>", "problem"]
    print_table(f"sessions ({load_settings().data_source})", columns, [_row(view) for view in found])


@session.command("show")
@command
def session_show(session_id: str = SessionArgument, as_json: bool = JsonOption) -> None:
    """One session: what it does, how it is, and its newest orders."""
    view = _answered("GET", f"/v1/sessions/{session_id}")
    if as_json:
        print_json(view)
        return
    spec, figures = view["spec"] or {}, view["figures"] or {}
    rows = [["state", f"{view['state']} {view['phase']}".strip()], ["problem", view["problem"] or "none"]]
    rows += [["error", view["error"]["message"]]] if view["error"] else []
    rows += [[name, f"{spec.get(name)}"] for name in ("strategy", "params", "product_id", "granularity", "account")]
    rows += [["newest bar", _moment(figures.get("last_bar_ns"))]]
    rows += [[words, "" if figures.get(name) is None else f"{figures[name]}"] for words, name in _FIGURES]
    rows += [["last sign of life", _moment(view["alive_ns"])], ["Ray job", view["job_status"] or "none"]]
    print_table(f"session {session_id} ({view['data_source']})", ["what", "value"], rows)
    lines = _answered("GET", f"/v1/sessions/{session_id}/journal", params={"limit": 1000})["lines"]
    for line in [line for line in lines if line["kind"] != "bar"][-10:]:
        console.print(_line(line), highlight=False)


@session.command("watch")
@command
def session_watch(
    session_id: str = SessionArgument,
    seconds: float | None = typer.Option(None, "--seconds", min=0.1, help="Stop watching after so long."),
    as_json: bool = JsonOption,
) -> None:
    """Follow a session line by line until it ends; with --json one JSON document a line. Ctrl-C stops watching only."""
    try:
        for line in _followed(session_id, seconds):
            if as_json:
                sys.stdout.write(json.dumps(line, allow_nan=False) + "\n")
                sys.stdout.flush()
            else:
                console.print(_line(line), highlight=False)
    except KeyboardInterrupt:
        errors.print(f"the session goes on: desk session show {session_id}; stop it: desk session stop {session_id}")
        raise


@session.command("parity")
@command
def session_parity(session_id: str = SessionArgument, as_json: bool = JsonOption) -> None:
    """The session's bars through the backtest: targets must be equal. Exit code 1 where one is not."""
    from cluster.sessions import open_session, sessions_path

    folder = open_session(sessions_path(load_settings()), session_id)
    words = [sys.executable, "-m", "jobs.session_parity", "--session-dir", str(folder.path), "--json"]
    # Started by name: what runs on the floor above is never imported from here.
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode not in {0, 1} or not done.stdout:
        raise CommandError(f"not compared: {done.stderr.strip()[-1000:] or done.stdout.strip()}")
    found = json.loads(done.stdout)
    if as_json:
        print_json(found)
    else:
        _print_parity(found)
    if done.returncode:
        raise typer.Exit(FAILED)


def _print_parity(found: Mapping[str, Any]) -> None:
    bars, differences = found["bars"], found["differences"]
    colour = "green" if differences == 0 else "bold red"
    console.print(
        f"targets: [{colour}]{differences} differences[/] in {bars} bars ({found['live_bars']} live), bit for bit",
        highlight=False,
    )
    if first := found["first_difference"]:
        where = f"bar {first['bar']} at {_moment(first['ts_ns'])}"
        console.print(f"first: {where}: {first['session']}, backtest {first['backtest']}", highlight=False)
    if found["corrections"]:
        console.print(f"{found['corrections']} bars were corrected by the venue after they were final", highlight=False)
    rows = [
        ["median, bp", _figure(found["median_bps"]), _figure(found["median_model_bps"])],
        ["mean, bp", _figure(found["mean_bps"]), _figure(found["mean_model_bps"])],
        ["total cost", _figure(found["total_cost"]), _figure(found["total_model_cost"])],
        ["fees", _figure(found["fees"]), _figure(found["model_fees"])],
        ["equity", _figure(found["session_equity"]), _figure(found["model_equity"])],
    ]
    title = f"{found['compared']} of {found['fills']} filled orders ({found['data_source']}); above 0 is worse"
    columns = ["slippage", f"against {found['fill_rule']}>", "against the model>"]
    rows[3:] = [[*row[:1], f"paid {row[1]}", f"model {row[2]}"] for row in rows[3:]]
    print_table(title, columns, rows)
    sys.stdout.write(f"{found['picture']}\n")


def _followed(session_id: str, seconds: float | None) -> Iterator[dict[str, Any]]:
    """The journal's lines as they come, until the session has ended."""
    until = None if seconds is None else time.monotonic() + seconds
    query: dict[str, Any] = {"limit": 10}
    while True:
        view = _answered("GET", f"/v1/sessions/{session_id}")
        page = _answered("GET", f"/v1/sessions/{session_id}/journal", params=query)
        yield from page["lines"]
        if page["lines"] and "after" in query:
            query = {"after": page["next"], "limit": 1000}
            continue
        query = {"after": page["next"], "limit": 1000}
        if view["ended"]:
            yield {"kind": "state", "state": view["state"], "error": view["error"]}
            return
        if until is not None and time.monotonic() >= until:
            return
        time.sleep(WATCH_INTERVAL_S)


def _answered(method: str, path: str, **request: Any) -> Any:
    status, answer = call(method, path, **request)
    if status >= 300:
        raise CommandError(answer.get("detail", str(status)), **answer)
    return answer


def _row(view: Mapping[str, Any]) -> list[Any]:
    spec, figures = view["spec"] or {}, view["figures"] or {}
    product = f"{spec.get('product_id', '')} {spec.get('granularity', '')}"
    shown = [figures.get(name) for name in ("live_bars", "target", "position", "equity")]
    problem = view["error"]["message"] if view["error"] else view["problem"]
    return [view["session_id"], view["state"] or "DAMAGED", spec.get("strategy", ""), product, *shown, problem]


def _line(line: Mapping[str, Any]) -> str:
    """A line of the journal in words."""
    if line["kind"] == "bar":
        live = f"{line.get('action', '')} {line.get('why', '')}".strip() if line["live"] else "history"
        target = "warming up" if line["target"] is None else f"target {line['target']:g}"
        return f"{_moment(line['ts_ns'])}  close {line['close']:g}  {target}  {live}"
    if line["kind"] == "order":
        told = [str(line[name]) for name in ("code", "reason", "average_price") if line.get(name)]
        words = f"{line['side']} {line['quantity']} {line['event']} {' '.join(told)}".strip()
        return f"{_moment(line['bar_ts_ns'])}  {words}  ({line['client_order_id']})"
    if line["kind"] == "correction":
        return f"{_moment(line['ts_ns'])}  {line['what']}: the venue now says close {line['close']:g}"
    if line["kind"] == "state":
        return f"{line['state']}" + (f": {line['error']['message']}" if line["error"] else "")
    return f"{_moment(line.get('at_ns'))}  {line.get('what', line['kind'])}"


def _assignment(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if name and equals:
            return name.strip(), float(value)
    except ValueError:
        pass
    raise CommandError(f"--param {text}: expected name=number", field="param", value=text, rule="name=number")


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.2f}"


def _moment(ts_ns: int | None) -> str:
    return "" if ts_ns is None else dt.datetime.fromtimestamp(ts_ns // 1_000_000_000, dt.UTC).strftime("%m-%d %H:%M:%S")
