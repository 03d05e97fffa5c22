"""``desk ingest | data``: bars in, listed, checked, resampled and removed."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.cli_spec import GranularityOption
from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from conf.settings import load_settings

if TYPE_CHECKING:
    from strategies.model import Granularity

data = typer.Typer(no_args_is_help=True, help="The bar store.")

ProductOption = typer.Option(..., "--product", "-p", help="For example BTC-USD.")
StartOption = typer.Option(None, "--start", help="First moment, ISO 8601 (UTC without an offset).")
EndOption = typer.Option(None, "--end", help="End, exclusive.")


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


@data.command("rm")
@command
def data_rm(product: str = ProductOption, granularity: str = GranularityOption, as_json: bool = JsonOption) -> None:
    """Remove one series from the store; also the way out where a file of it is damaged."""
    from cluster.market_data import BarStore

    removed = BarStore(load_settings().bars_path).remove(product, _granularity(granularity, "granularity"))
    if as_json:
        print_json({"removed": removed})
    else:
        console.print(f"{product} {granularity}: {'removed' if removed else 'was not in the store'}")


@data.command("resample")
@command
def data_resample(
    product: str = typer.Argument(..., help="For example BTC-USD."),
    source: str = typer.Option(..., "--from", help="The granularity of the stored bars, for example ONE_MINUTE."),
    granularity: str = typer.Option(..., "--to", help="The granularity to make of them, a whole multiple."),
    start: str | None = typer.Option(None, "--start", help="Only bars that begin at this moment or later, ISO 8601."),
    end: str | None = typer.Option(None, "--end", help="Only bars that end at this moment or earlier, ISO 8601."),
    replace: bool = typer.Option(False, "--replace", help="Let the new bars win over stored ones that differ."),
    as_json: bool = JsonOption,
) -> None:
    """Make longer bars of stored ones and store them, marked as resampled.

    A bar that the stored ones do not reach the end of is not made; where none is stored none is made, so gaps stay.
    The first bar begins with the first stored one, which may be inside it. Example: desk data resample BTC-USD --from
    ONE_MINUTE --to FOUR_HOUR
    """
    from cluster.bar_resampling import resample_stored
    from cluster.market_data import BarStore

    fine, coarse = _granularity(source, "from"), _granularity(granularity, "to")
    store = BarStore(load_settings().bars_path)
    found = resample_stored(
        store, product, fine, coarse, _instant_ns(start, "start"), _instant_ns(end, "end"), replace=replace
    )
    if as_json:
        print_json(found)
        return
    lines = [
        f"{product}: {found.bars} bars of {fine} made {found.made} of {coarse}, {_moment(found.first_ns)} to "
        f"{_moment(found.last_ns)} UTC: {found.new} new, {found.updated} updated, {found.unchanged} unchanged; "
        f"{len(found.gaps)} gaps",
        "the stored bars end inside the last bar: it was left out" if found.unfinished else "",
        "the stored bars begin inside the first bar: it is made of less than its length" if found.starts_inside else "",
    ]
    console.print("\n".join(line for line in lines if line), highlight=False, markup=False)


def _granularity(text: str, option: str) -> Granularity:
    from strategies.model import Granularity

    if text not in set(Granularity):
        rule = f"one of {', '.join(Granularity)}"
        raise CommandError(f"{option}: expected {rule}, was {text!r}", field=option, value=text, rule=rule)
    return Granularity(text)


def _instant_ns(text: str | None, option: str) -> int | None:
    from pydantic import TypeAdapter, ValidationError

    from strategies.spec import Instant, nanoseconds, spec_error

    try:
        moment: dt.datetime | None = TypeAdapter(Instant).validate_python(text)
    except ValidationError as error:
        raise spec_error(error).under(option) from None
    return None if moment is None else nanoseconds(moment)


def _day(ts_ns: int) -> str:
    return _moment(ts_ns)[:10]


def _moment(ts_ns: int) -> str:
    return dt.datetime.fromtimestamp(ts_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M")
