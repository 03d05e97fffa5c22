"""``desk ingest | data | backtest | sweep | jobs | report``: bars in, runs started, followed and looked at."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.cli_access import running_settings
from cluster.cli_queue import PriorityOption, place_of, queue_of, register, submit, take_turns
from cluster.cli_remote import DataDirOption, ImageOption, PythonOption, TokenFileOption, ToOption, look, send
from cluster.cli_remote import register as register_remote
from cluster.cli_search import (
    ConstraintOption,
    EtaOption,
    ExtendOption,
    GenerationOption,
    ObjectiveOption,
    PatienceOption,
    RungsOption,
    SearchOption,
    SetsOption,
    TargetOption,
    TimeBudgetOption,
    continuous_axis,
    extend,
    print_study,
    search_of,
)
from cluster.cli_strategy import is_file_name, named_strategies, users_strategy
from cluster.console import FAILED, CommandError, JsonOption, command, console, errors, print_json, print_table
from cluster.local import ray_token
from cluster.run_queue import Priority, time_left_s
from conf.settings import Settings, load_settings, read_mapping

if TYPE_CHECKING:
    from cluster.ray_jobs import RayJobs
    from cluster.runs import Progress as RunProgress
    from cluster.runs import RunFolder
    from strategies.spec import SweepSpec

data = typer.Typer(no_args_is_help=True, help="The bar store.")
jobs = typer.Typer(no_args_is_help=True, help="Runs and their Ray jobs.")

FOLLOW_INTERVAL_S = 0.1
LOOK_AHEAD_MARK = "LOOK-AHEAD (fills at the close that decided them)"
# The columns of a printed leaderboard.
SHOWN = ("sharpe", "total_return", "cagr", "max_drawdown", "trades", "win_rate")

ProductOption = typer.Option(..., "--product", "-p", help="For example BTC-USD.")
PRODUCTS_HELP = "For example BTC-USD; given several times, a strategy over several products that share one cash."
ProductsOption = typer.Option(..., "--product", "-p", help=PRODUCTS_HELP)
DecideOnOption = typer.Option(
    None, "--decide-on", help="Longer bars that the strategy decides on; fills stay on these."
)
GranularityOption = typer.Option("ONE_HOUR", "--granularity", "-g", help="ONE_MINUTE … ONE_DAY.")
StartOption = typer.Option(None, "--start", help="First moment, ISO 8601 (UTC without an offset).")
EndOption = typer.Option(None, "--end", help="End, exclusive.")
FeeOption = typer.Option(60.0, "--fee-bps", help="Fee on the notional of each fill, basis points.")
SlippageOption = typer.Option(5.0, "--slippage-bps", help="Slippage on both sides, basis points.")
FillOption = typer.Option("next_open", "--fill", help="next_open, or same_close (a look-ahead, marked as such).")
CashOption = typer.Option(10_000.0, "--cash", help="Initial cash, quote units.")
RunIdOption = typer.Option(None, "--run-id", help="Your own id; a repeat starts nothing.")
DetachOption = typer.Option(False, "--detach", help="Do not wait for the end.")


def ingest(
    product: str | None = typer.Option(None, "--product", "-p", help="For example BTC-USD."),
    granularity: str | None = typer.Option(None, "--granularity", "-g", help="ONE_MINUTE … ONE_DAY."),
    start: str | None = StartOption,
    end: str | None = EndOption,
    file: Path | None = typer.Option(None, "--file", "-f", help="A file instead of the venue: JSON, CSV, Lean zip."),
    venue: str | None = typer.Option(None, "--venue", help="simulator or coinbase (public candles, no key)."),
    replace: bool = typer.Option(False, "--replace", help="Let a file's bars win over stored ones that differ."),
    as_json: bool = JsonOption,
) -> None:
    """Bring bars into the store: from the venue (resumes, never fetches twice) or from a file."""
    words = [sys.executable, "-m", "jobs.ingest"]
    options = {"--product": product, "--granularity": granularity, "--start": start, "--end": end}
    options |= {"--file": str(file) if file else None, "--venue": venue}
    words += [part for name, value in options.items() if value is not None for part in (name, value)]
    words += [name for name, on in {"--replace": replace, "--json": as_json}.items() if on]
    # Started by name: what runs on the floor above is never imported from here.
    raise typer.Exit(subprocess.run(words, check=False).returncode)


@data.command("ls")
@command
def data_ls(as_json: bool = JsonOption) -> None:
    """The series in the store."""
    from cluster.market_data import BarStore

    found = BarStore(load_settings().bars_path).ls()
    if as_json:
        print_json(found)
        return
    rows = [
        [i.product_id, i.granularity, i.rows, _day(i.first_ns), _day(i.last_ns), ", ".join(i.sources) or i.problem]
        for i in found
    ]
    columns = ["product", "granularity", "bars>", "first", "last", "source"]
    print_table(
        f"bars in {load_settings().bars_path}", columns, rows, "" if rows else "empty: fill it with desk ingest"
    )


@data.command("check")
@command
def data_check(
    product: str | None = typer.Option(None, "--product", "-p", help="Only this product."),
    granularity: str | None = typer.Option(None, "--granularity", "-g", help="Only this granularity."),
    as_json: bool = JsonOption,
) -> None:
    """Check every stored series: damage, order, OHLC rules, gaps. Exit code 1 where something is damaged."""
    from cluster.market_data import BarStore

    store = BarStore(load_settings().bars_path)
    chosen = [i for i in store.ls() if product in {None, i.product_id} and granularity in {None, i.granularity}]
    if not chosen:
        raise CommandError("no such series in the store (desk data ls)")
    found = {f"{i.product_id} {i.granularity}": store.check(i.product_id, i.granularity) for i in chosen}
    if as_json:
        print_json(found)
    else:
        rows = [
            [name, f.severity, f.rule, _moment(f.start_ns), _moment(f.end_ns), f.missing, f.detail]
            for name, findings in found.items()
            for f in findings
        ]
        title = f"{len(chosen)} series checked, {len(rows)} findings"
        if not rows:
            console.print(title)
            return
        print_table(title, ["series", "severity", "finding", "from", "to", "missing>", "detail"], rows)
    if any(finding.severity == "error" for findings in found.values() for finding in findings):
        raise typer.Exit(FAILED)


@command
def backtest(
    strategy: str = typer.Argument(
        ..., help="A shipped strategy, or your own: a .py file (code; it runs with your rights)."
    ),
    product: list[str] = ProductsOption,
    granularity: str = GranularityOption,
    decide_on: str | None = DecideOnOption,
    param: list[str] = typer.Option([], "--param", help="name=value; repeatable. The others take their default."),
    start: str | None = StartOption,
    end: str | None = EndOption,
    fee_bps: float = FeeOption,
    slippage_bps: float = SlippageOption,
    fill: str = FillOption,
    cash: float = CashOption,
    run_id: str | None = RunIdOption,
    priority: Priority = PriorityOption,
    detach: bool = DetachOption,
    as_json: bool = JsonOption,
) -> None:
    """One strategy with one set of parameters, as a Ray job (a sweep of one)."""
    from strategies.base import parameter_table
    from strategies.registry import find
    from strategies.spec import parse_spec

    if is_file_name(strategy):
        strategy = users_strategy(Path(strategy)).name
    given = dict(_assignment(text, "--param") for text in param)
    first = parameter_table(find(strategy))[0]
    values = {name: [_number(value, f"--param {name}")] for name, value in given.items()} or {
        first.name: [first.default]
    }
    spec = parse_spec(
        {
            **_period(product, granularity, decide_on, start, end),
            "grids": [{"strategy": strategy, "grid": values}],
            "costs": _costs(fee_bps, slippage_bps, fill, cash),
        }
    )
    _run(spec, run_id, detach, as_json, priority, kind="backtest")


@command
def sweep(
    spec_file: Path | None = typer.Argument(
        None,
        help="A specification as YAML or JSON, instead of the options; or your own strategy, a .py file (code; it runs "
        "with your rights and the job's).",
    ),
    product: list[str] = typer.Option([], "--product", "-p", help=PRODUCTS_HELP),
    granularity: str = GranularityOption,
    decide_on: str | None = DecideOnOption,
    grid: list[str] = typer.Option(
        [],
        "--grid",
        "-G",
        help="STRATEGY.PARAM=start:stop:step or =v1,v2,…; repeatable, several strategies allowed. With a strategy file "
        "PARAM=… is one of its own.",
    ),
    start: str | None = StartOption,
    end: str | None = EndOption,
    fee_bps: float = FeeOption,
    slippage_bps: float = SlippageOption,
    fill: str = FillOption,
    cash: float = CashOption,
    sort_by: str = typer.Option(
        "oos_sharpe", "--sort-by", help="The figure the leaderboard is sorted by; oos_: on bars that were held out."
    ),
    seed: int = typer.Option(0, "--seed", help="Kept with the results."),
    search: str | None = SearchOption,
    sets: int | None = SetsOption,
    objective: list[str] = ObjectiveOption,
    constraint: list[str] = ConstraintOption,
    generation: int | None = GenerationOption,
    eta: int | None = EtaOption,
    rungs: int | None = RungsOption,
    patience: int | None = PatienceOption,
    time_budget_s: float | None = TimeBudgetOption,
    target: float | None = TargetOption,
    extended: str | None = ExtendOption,
    top: int = typer.Option(10, "--top", min=1, max=1000, help="Rows of the leaderboard to print."),
    run_id: str | None = RunIdOption,
    priority: Priority = PriorityOption,
    to: str | None = ToOption,
    token_file: Path | None = TokenFileOption,
    data_dir: str = DataDirOption,
    python: str = PythonOption,
    image: str | None = ImageOption,
    detach: bool = DetachOption,
    as_json: bool = JsonOption,
) -> None:
    """A parameter sweep over one or more strategies, or a search through their spaces, as a Ray job."""
    from strategies.spec import parse_spec

    if extended is not None:
        _run(extend(load_settings().runs_path, extended, sets), extended, detach, as_json, priority, top=top)
        return
    searched = search_of(
        search,
        sets,
        objectives=objective,
        constraints=constraint,
        generation=generation,
        eta=eta,
        rungs=rungs,
        patience=patience,
        time_budget_s=time_budget_s,
        target=target,
    )
    own = users_strategy(spec_file) if spec_file is not None and is_file_name(spec_file.name) else None
    if spec_file is not None and own is None:
        content: dict[str, Any] = read_mapping(spec_file)
        if not content:
            raise CommandError(f"{spec_file}: no such file, or it is empty", field="spec_file")
        content = named_strategies(content, spec_file.parent)
    else:
        if not product:
            raise CommandError("--product is needed without a specification file", field="product", rule="required")
        content = {
            **_period(product, granularity, decide_on, start, end),
            "grids": _grids(grid, own.name if own else None),
            "costs": _costs(fee_bps, slippage_bps, fill, cash),
            "sort_by": sort_by,
            "seed": seed,
        }
    content |= searched
    where = {"token_file": token_file, "data_dir": data_dir, "python": python, "image": image}
    _run(parse_spec(content), run_id, detach, as_json, priority, top=top, to=to, where=where)


@data.command("rm")
@command
def data_rm(product: str = ProductOption, granularity: str = GranularityOption, as_json: bool = JsonOption) -> None:
    """Remove one series from the store; also the way out where a file of it is damaged."""
    from cluster.market_data import BarStore
    from strategies.model import Granularity

    if granularity not in set(Granularity):
        raise CommandError(f"granularity: {granularity!r} is none of {', '.join(Granularity)}", field="granularity")
    removed = BarStore(load_settings().bars_path).remove(product, Granularity(granularity))
    if as_json:
        print_json({"removed": removed})
    else:
        console.print(f"{product} {granularity}: {'removed' if removed else 'was not in the store'}")


@jobs.command("ls")
@command
def jobs_ls(
    limit: int = typer.Option(20, "--limit", min=1, help="At most so many, newest first."), as_json: bool = JsonOption
) -> None:
    """All runs, newest first."""
    from cluster.runs import list_runs

    settings = load_settings()
    runs = list_runs(settings.runs_path)[:limit]
    if as_json:
        print_json(runs)
        return
    rows = []
    places = {each.run_id: place for place, each in enumerate(queue_of(settings).waiting(), 1)}
    for run in runs:
        progress, record = run.progress, run.record
        if progress is None or record is None:
            rows.append([run.run_id, "DAMAGED", "", "", "", run.problem])
            continue
        done = f"{progress.done_sets}/{progress.total_sets}"
        left_s = time_left_s(progress, time.time_ns())
        bars = f"{record.product_id} {record.granularity} ({record.data_source})"
        state = f"waits, {places[run.run_id]}" if run.run_id in places else progress.state
        rows.append([run.run_id, state, record.kind, done, "" if left_s is None else f"{left_s:.0f}", bars])
    print_table(f"runs in {settings.runs_path}", ["run", "state", "kind", "sets>", "left, s>", "bars"], rows)


@jobs.command("show")
@command
def jobs_show(
    run_id: str = typer.Argument(..., help="The run."),
    top: int = typer.Option(10, "--top", min=1, max=1000, help="Rows of the leaderboard."),
    as_json: bool = JsonOption,
) -> None:
    """One run: its state and its leaderboard so far."""
    from cluster.runs import open_run

    settings = load_settings()
    folder = open_run(settings.runs_path, run_id)
    progress = _settled(settings, folder)
    if as_json:
        rows = folder.leaderboard(top)
        print_json({"run": folder.record(), "progress": progress, "leaderboard": rows, "report": folder.report_file})
        return
    console.print(f"{run_id}: {progress.state} {progress.done_sets}/{progress.total_sets}")
    _print_leaderboard(folder, top)


@jobs.command("logs")
@command
def jobs_logs(
    run_id: str = typer.Argument(..., help="The run."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job has ended."),
) -> None:
    """What a run's Ray job has printed."""
    client = ray_jobs(running_settings())
    job_id = _last_job(client, run_id)
    for text in client.tail(job_id) if follow else [client.logs(job_id)]:
        sys.stdout.write(text)


@jobs.command("stop")
@command
def jobs_stop(run_id: str = typer.Argument(..., help="The run."), as_json: bool = JsonOption) -> None:
    """Stop a run, or take it out of the queue; what is finished stays, and ``desk jobs retry`` goes on from there."""
    from cluster.runs import RunState, open_run, settle

    settings = running_settings()
    folder = open_run(settings.runs_path, run_id)
    client = ray_jobs(settings)
    if queue_of(settings).withdraw(folder):
        stopped = settle(folder, RunState.STOPPED).state is RunState.STOPPED
    else:
        stopped = not folder.progress().state.ended and client.stop(_last_job(client, run_id))
    progress = _settled(settings, folder)
    if as_json:
        print_json({"run_id": run_id, "stopped": stopped, "progress": progress})
    else:
        console.print(f"{run_id}: {'stopping' if stopped else 'was not running'} ({progress.state})")


@command
def report(
    run_id: str | None = typer.Argument(None, help="The run; without it, the newest that has succeeded."),
    rebuild: bool = typer.Option(False, "--rebuild", help="Make the report anew from the results."),
    as_json: bool = JsonOption,
) -> None:
    """The path of a run's report: one HTML file that opens anywhere, without a network."""
    from cluster.runs import RunState, list_runs, open_run

    runs_dir = load_settings().runs_path
    if run_id is None:
        ended = [r.run_id for r in list_runs(runs_dir) if r.progress and r.progress.state == RunState.SUCCEEDED]
        if not ended:
            raise CommandError("no run has succeeded yet (desk jobs ls)")
        run_id = ended[0]
    folder = open_run(runs_dir, run_id)
    if rebuild or not folder.report_file.exists():
        words = [sys.executable, "-m", "jobs.report", "--run-dir", str(folder.path)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise CommandError(f"the report could not be made: {done.stderr.strip() or done.stdout.strip()}")
    if as_json:
        print_json({"run_id": run_id, "report": folder.report_file})
    else:
        sys.stdout.write(f"{folder.report_file}\n")


def _run(
    spec: SweepSpec,
    run_id: str | None,
    detach: bool,
    as_json: bool,
    priority: Priority,
    top: int = 10,
    kind: Any = "sweep",
    to: str | None = None,
    where: dict[str, Any] | None = None,
) -> None:
    """Check, lay out, queue or send, and (unless detached) follow a run to its leaderboard."""
    from cluster.market_data import BarStore
    from cluster.runs import RunState, prepare_run

    if to is not None:
        sent = send(spec, run_id, kind, to, where or {})
        if sent is None:
            return
        folder, client = sent
        settings = load_settings()
    else:
        settings = running_settings()
        client = ray_jobs(settings)
        folder = prepare_run(settings.runs_path, BarStore(settings.bars_path), spec, run_id, kind)
        if folder.progress().state is not RunState.SUCCEEDED:
            submit(settings, client, folder, priority)
    if detach:
        if as_json:
            print_json({"run_id": folder.run_id, "run_dir": folder.path})
        else:
            console.print(f"submitted {folder.run_id}: desk jobs show {folder.run_id}")
        return
    progress = _follow(settings, folder, client if to is not None else None)
    if progress.state is not RunState.SUCCEEDED:
        detail = progress.error.message if progress.error else f"desk jobs logs {folder.run_id}"
        raise CommandError(f"run {folder.run_id}: {progress.state}: {detail}", run_id=folder.run_id)
    if as_json:
        print_json({"run_id": folder.run_id, "summary": folder.summary(), "report": folder.report_file})
        return
    _print_leaderboard(folder, top)


def _follow(settings: Settings, folder: RunFolder, elsewhere: RayJobs | None) -> RunProgress:
    """A live progress bar on stderr until the run has ended; Ctrl-C leaves the run alone."""
    from cluster.runs import RunState

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=errors) as bar:
        task = bar.add_task(f"{folder.run_id}: starting", total=None)
        asked_s = time.monotonic()
        try:
            while True:
                progress = folder.progress()
                # A driver that was killed says nothing; its job's status tells, asked now and then.
                if time.monotonic() - asked_s > 2.0:
                    progress = look(folder, elsewhere) if elsewhere else _turn(settings, folder)
                    asked_s = time.monotonic()
                place = place_of(settings, folder.run_id) if progress.state is RunState.PENDING else None
                description = f"{folder.run_id}: {progress.phase or progress.state.lower()}"
                if place:
                    description = f"{folder.run_id}: waits, {place[0]} of {place[1]}"
                total = progress.total_sets or None
                bar.update(task, completed=progress.done_sets, total=total, description=description)
                if progress.state.ended:
                    return progress
                time.sleep(FOLLOW_INTERVAL_S)
        except KeyboardInterrupt:
            errors.print(f"the run goes on: desk jobs show {folder.run_id}; stop it: desk jobs stop {folder.run_id}")
            raise


def _turn(settings: Settings, folder: RunFolder) -> RunProgress:
    take_turns(settings, ray_jobs(settings))
    return _settled(settings, folder)


def _settled(settings: Settings, folder: RunFolder) -> RunProgress:
    """The run's progress, corrected where its job has ended without a word."""
    from cluster.ray_jobs import RayJobsError
    from cluster.runs import settle_with_job

    progress = folder.progress()
    if progress.state.ended:
        return progress
    try:
        return settle_with_job(folder, ray_jobs(settings).latest(folder.run_id))
    except RayJobsError:
        # Without Ray what the folder says stands.
        return progress


def _print_leaderboard(folder: RunFolder, top: int) -> None:
    record = folder.record()
    rows, _, note = folder.ranked_rows(top)
    # What was found on the bars it was chosen by stands beside what the same set did on bars that were held out.
    honest = [name for name in ("is_sharpe", "oos_sharpe", "oos_return", "dsr") if rows and name in rows[0]]
    shown = [*honest, *(name for name in SHOWN if not (honest and name in {"cagr", "win_rate"}))]
    cells = [
        [place, row["strategy"], _parameters(row["params"]), *(_metric(name, row[name]) for name in shown)]
        for place, row in enumerate(rows, 1)
    ]
    marks = [mark for mark in (record.data_source, LOOK_AHEAD_MARK if record.look_ahead else "") if mark]
    title = f"{record.product_id} {record.granularity}, {record.bar_count} bars, {', '.join(marks)}"
    print_table(title, ["#>", "strategy", "parameters", *(f"{name}>" for name in shown)], cells)
    if note:
        console.print(note, highlight=False)
    if folder.summary_file.exists():
        summary = folder.summary()
        console.print(f"{record.set_count} parameter sets in {summary.get('wall_s', 0):.1f} s", highlight=False)
        print_study(summary)
    if folder.report_file.exists():
        console.print("report: ", end="")
        sys.stdout.write(f"{folder.report_file}\n")


def _last_job(client: RayJobs, run_id: str) -> str:
    """The id of the run's last Ray job: a run that was resumed has had several."""
    job = client.latest(run_id)
    if job is None:
        raise CommandError(f"run_id: Ray has no job of {run_id!r} (a new desk forgets the jobs of the one before)")
    return job.submission_id


def ray_jobs(settings: Settings) -> RayJobs:
    """The Jobs API of the running desk, or of the cluster the settings name."""
    from pydantic import SecretStr

    from cluster.ray_jobs import RayJobs

    token = ray_token(settings.state_dir)
    address = settings.ray.address or f"127.0.0.1:{settings.ray.dashboard_port}"
    return RayJobs(address, SecretStr(token) if token else None)


def _period(
    products: Sequence[str], granularity: str, decide_on: str | None, start: str | None, end: str | None
) -> dict[str, Any]:
    several = {"product_ids": list(products)} if len(products) > 1 else {}
    period = {"granularity": granularity, "decide_on": decide_on, "start": start, "end": end}
    return {"product_id": products[0], **several, **period}


def _costs(fee_bps: float, slippage_bps: float, fill: str, cash: float) -> dict[str, Any]:
    return {"fee_bps": fee_bps, "slippage_bps": slippage_bps, "fill": fill, "initial_cash": cash}


def _grids(texts: Sequence[str], own: str | None = None) -> list[dict[str, Any]]:
    """The grids of ``--grid`` options; without a strategy before the dot a parameter is of ``own``, a user's."""
    if own is not None and not texts:
        raise CommandError("--grid is needed: PARAM=start:stop:step or =v1,v2,…", field="grid", rule="required")
    grids: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, value = _assignment(text, "--grid")
        strategy, dot, parameter = name.partition(".")
        if own is not None and not dot:
            strategy, parameter = own, name
        elif own is not None and strategy == own.partition("@")[0]:
            strategy = own
        elif not dot:
            raise CommandError(f"--grid {text}: expected STRATEGY.PARAM=…", field="grid", value=text)
        grids.setdefault(strategy, {})[parameter] = _axis(value, text)
    return [{"strategy": strategy, "grid": grid} for strategy, grid in grids.items()]


def _axis(text: str, option: str) -> Any:
    if (continuous := continuous_axis(text)) is not None:
        return continuous
    if ":" not in text:
        return [_number(part, f"--grid {option}") for part in text.split(",")]
    parts = [_number(part, f"--grid {option}") for part in text.split(":")]
    if len(parts) not in {2, 3}:
        raise CommandError(f"--grid {option}: expected start:stop:step", field="grid", value=text)
    return dict(zip(("start", "stop", "step"), [*parts, 1.0][:3], strict=True))


def _assignment(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise CommandError(f"{option} {text}: expected name=value", field=option.strip("-"), value=text)
    return name.strip(), value.strip()


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"{option}: {text!r} is not a number", field=option, value=text, rule="a number") from None


def _parameters(params: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in params.items())


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    if name in {"total_return", "cagr", "max_drawdown", "win_rate", "is_return", "oos_return"}:
        return f"{value:.1%}"
    return f"{value:.0f}" if name == "trades" else f"{value:.2f}"


def _day(ts_ns: int) -> str:
    return _moment(ts_ns)[:10]


def _moment(ts_ns: int) -> str:
    return dt.datetime.fromtimestamp(ts_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M")


register(jobs)
register_remote(jobs)
