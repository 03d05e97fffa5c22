"""``desk backtest | sweep``: a specification from options or a file, started as a Ray job and followed to its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.cli_access import running_settings
from cluster.cli_data import EndOption, StartOption
from cluster.cli_jobs import ray_jobs, settled
from cluster.cli_leaderboard import print_leaderboard
from cluster.cli_queue import PriorityOption, place_of, submit, take_turns
from cluster.cli_remote import DataDirOption, ImageOption, PythonOption, TokenFileOption, ToOption, look, send
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
    extend,
    search_of,
)
from cluster.cli_spec import (
    PRODUCTS_HELP,
    CashOption,
    CostOption,
    DecideOnOption,
    FeeOption,
    FillOption,
    GranularityOption,
    ProductsOption,
    SizingOption,
    SlippageOption,
    assignment,
    costs,
    grids,
    number,
    period,
    sizing,
)
from cluster.cli_strategy import is_file_name, named_strategies, users_strategy
from cluster.console import CommandError, JsonOption, command, console, errors, print_json
from cluster.run_queue import Priority
from conf.settings import Settings, load_settings, read_mapping

if TYPE_CHECKING:
    from cluster.ray_jobs import RayJobs
    from cluster.runs import Progress as RunProgress
    from cluster.runs import RunFolder
    from strategies.spec import SweepSpec

FOLLOW_INTERVAL_S = 0.1
RunIdOption = typer.Option(None, "--run-id", help="Your own id; a repeat starts nothing.")
DetachOption = typer.Option(False, "--detach", help="Do not wait for the end.")
# Options that say what a specification file says too.
OF_A_SPECIFICATION: Final = (
    "product", "granularity", "decide_on", "grid", "start", "end", "fee_bps", "slippage_bps", "fill", "cash", "cost",
    "sizing_of", "sort_by", "seed", "purge_bars",
)  # fmt: skip


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
    cost: list[str] = CostOption,
    sizing_of: list[str] = SizingOption,
    run_id: str | None = RunIdOption,
    priority: Priority = PriorityOption,
    detach: bool = DetachOption,
    as_json: bool = JsonOption,
) -> None:
    """One strategy with one set of parameters, as a Ray job (a sweep of one).

    Example: desk backtest sma_cross -p BTC-USD --param fast=10 --param slow=50 --cost spread_bps=2
    """
    from strategies.base import parameter_table
    from strategies.registry import find
    from strategies.spec import parse_spec

    if is_file_name(strategy):
        strategy = users_strategy(Path(strategy)).name
    given = dict(assignment(text, "--param") for text in param)
    first = parameter_table(find(strategy))[0]
    values = {name: [number(value, f"--param {name}")] for name, value in given.items()} or {
        first.name: [first.default]
    }
    spec = parse_spec(
        {
            **period(product, granularity, decide_on, start, end),
            "grids": [{"strategy": strategy, "grid": values}],
            **costs(fee_bps, slippage_bps, fill, cash, cost),
            **sizing(sizing_of),
        }
    )
    _run(spec, run_id, detach, as_json, priority, kind="backtest")


@command
def sweep(
    context: typer.Context,
    spec_file: Path | None = typer.Argument(
        None,
        help="A specification as YAML or JSON, instead of the options; or your own strategy, a .py file (code; it runs "
        "with your rights and the job's).",
    ),
    product: list[str] = typer.Option([], "--product", "--products", "-p", help=PRODUCTS_HELP),
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
    cost: list[str] = CostOption,
    sizing_of: list[str] = SizingOption,
    sort_by: str = typer.Option(
        "oos_sharpe", "--sort-by", help="The figure the leaderboard is sorted by; oos_: on bars that were held out."
    ),
    seed: int = typer.Option(0, "--seed", help="Kept with the results."),
    purge_bars: int | None = typer.Option(
        None, "--purge-bars", help="Bars left out between folds, the longest holding time; else a hundredth of all."
    ),
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
    """A parameter sweep over one or more strategies, or a search through their spaces, as a Ray job.

    Example: desk sweep -p BTC-USD --grid sma_cross.fast=5:50:5 --grid sma_cross.slow=20:200:20 --cost spread_bps=2
    """
    from strategies.spec import parse_spec

    if extended is not None:
        _refuse_given(context, *OF_A_SPECIFICATION, why=f"--extend goes on with what {extended} was asked for")
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
        _refuse_given(context, *OF_A_SPECIFICATION, why=f"{spec_file} says it")
        content: dict[str, Any] = read_mapping(spec_file)
        if not content:
            raise CommandError(f"{spec_file}: no such file, or it is empty", field="spec_file")
        content = named_strategies(content, spec_file.parent)
    else:
        if not product:
            raise CommandError("--product is needed without a specification file", field="product", rule="required")
        content = {
            **period(product, granularity, decide_on, start, end),
            "grids": grids(grid, own.name if own else None),
            **costs(fee_bps, slippage_bps, fill, cash, cost),
            **sizing(sizing_of),
            "sort_by": sort_by,
            "seed": seed,
            "purge_bars": purge_bars,
        }
    content |= searched
    where = {"token_file": token_file, "data_dir": data_dir, "python": python, "image": image}
    _run(parse_spec(content), run_id, detach, as_json, priority, top=top, to=to, where=where)


def _run(
    spec: SweepSpec,
    run_id: str | None,
    detach: bool,
    as_json: bool,
    priority: Priority,
    top: int = 10,
    kind: Any = "sweep",
    to: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> None:
    """Check, lay out, queue or send, and (unless detached) follow a run to its leaderboard."""
    from cluster.market_data import BarStore
    from cluster.run_honesty import honesty_of
    from cluster.runs import RunState, prepare_run

    if to is not None:
        sent = send(spec, run_id, kind, to, dict(where or {}))
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
        found = {"summary": folder.summary(), "honesty": honesty_of(folder), "report": folder.report_file}
        print_json({"run_id": folder.run_id, **found})
        return
    print_leaderboard(folder, top)


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
    return settled(settings, folder)


def _refuse_given(context: typer.Context, *names: str, why: str) -> None:
    """Raise ``CommandError`` where one of these options was typed: it would be passed over in silence."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            option = next((word for word in parameter.opts if word.startswith("--")), parameter.opts[0])
            raise CommandError(f"{option} cannot be given here: {why}", field=str(parameter.name), rule="not both")
