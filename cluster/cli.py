"""The ``desk`` command: the embedded desk up and down, and every other command by its room."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from cluster import (
    cli_accounts,
    cli_arm,
    cli_audit,
    cli_compare,
    cli_data,
    cli_jobs,
    cli_keys,
    cli_limits,
    cli_orders,
    cli_reconcile,
    cli_research,
    cli_risk,
    cli_strategy,
    local,
)
from cluster.cli_exchange import exchange
from cluster.cli_session import session
from cluster.console import FAILED, JsonOption, command, console, errors, print_json, print_table
from conf.settings import Settings, load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The trading desk: backtests and sweeps as Ray jobs, orders through pre-trade risk.",
)
app.add_typer(cli_data.data, name="data")
app.add_typer(cli_jobs.jobs, name="jobs")
app.add_typer(cli_risk.risk, name="risk")
app.add_typer(cli_audit.audit, name="audit")
app.add_typer(cli_limits.limits, name="limits")
app.add_typer(cli_keys.keys, name="keys")
app.add_typer(cli_orders.orders, name="orders")
app.add_typer(cli_accounts.accounts, name="accounts")
app.add_typer(session, name="session")
app.add_typer(cli_strategy.strategy, name="strategy")
app.add_typer(exchange, name="exchange")
app.add_typer(cli_arm.arm, name="arm")
app.command("reconcile")(cli_reconcile.reconcile)
app.command("ingest")(cli_data.ingest)
app.command("backtest")(cli_research.backtest)
app.command("sweep")(cli_research.sweep)
app.command("report")(cli_jobs.report)
app.command("compare")(cli_compare.compare)


@app.callback()
def _root(
    state_dir: Path | None = typer.Option(None, "--state-dir", help="The desk's state folder (DESK_STATE_DIR)."),
) -> None:
    """Options before the command."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(local.NUMBA_CACHE_DIR))
    if state_dir is not None:
        # Child processes and settings read it from here; nothing else is changed in the environment.
        os.environ["DESK_STATE_DIR"] = str(state_dir.resolve())


@app.command("up")
@command
def up(
    profile: str | None = typer.Option(None, "--profile", help="paper or live."), as_json: bool = JsonOption
) -> None:
    """Start the embedded desk, or whatever of it is missing, and wait until it is ready."""
    settings = local.up(load_settings(profile), lambda text: errors.print(text, highlight=False))
    if as_json:
        print_json({"ready": True, "urls": urls(settings)})
    else:
        print_table(f"desk ({settings.data_source})", ["what", "where"], urls(settings).items())


@app.command("down")
@command
def down(as_json: bool = JsonOption) -> None:
    """Stop every process of the desk, whatever was killed before. Data, audit and runs stay."""
    stopped = local.down(load_settings().state_dir, lambda text: errors.print(text, highlight=False))
    if as_json:
        print_json({"stopped": stopped})
    else:
        console.print(f"down ({stopped} processes stopped)" if stopped else "the desk was not running")


@app.command("status")
@command
def status(as_json: bool = JsonOption) -> None:
    """The health of every part. Exit code 1 where one is not healthy."""
    parts = local.status(load_settings())
    if as_json:
        print_json(parts)
    else:
        rows = [[part.name, "healthy" if part.healthy else "NOT HEALTHY", part.detail] for part in parts]
        print_table("desk", ["part", "health", "detail"], rows)
    if not all(part.healthy for part in parts):
        raise typer.Exit(FAILED)


@app.command("demo")
@command
def demo(
    leave: bool = typer.Option(False, "--exit", help="End by itself instead of staying up until Ctrl-C."),
    venue: str | None = typer.Option(None, "--venue", help="coinbase: real public candles; orders stay simulated."),
) -> None:
    """The whole desk once: up, ingest, a sweep as a Ray job, orders through risk and execution."""
    from cluster.demo import run

    run(stay=not leave, venue=venue)


def urls(settings: Settings) -> dict[str, str]:
    """Where a person finds the parts of the running desk."""
    return {
        "API": settings.api_url,
        "API description": f"{settings.api_url}/openapi.json",
        "orders": f"{settings.api_url}/v1/orders",
        "orders, many": f"http://127.0.0.1:{settings.serve.orders_port}/v1/orders",
        "Ray dashboard": f"http://127.0.0.1:{settings.ray.dashboard_port}",
        "API key": str(settings.state_dir / local.API_KEY_FILE),
        "bars": str(settings.bars_path),
        "runs": str(settings.runs_path),
    }


def main() -> None:
    """Entry point of the ``desk`` script."""
    app()


if __name__ == "__main__":
    main()
