"""Options of ``desk backtest`` and ``desk sweep`` as a specification's content, and costs back as a line to read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from cluster.cli_search import continuous_axis
from cluster.console import CommandError

PRODUCTS_HELP: Final = (
    "For example BTC-USD; several, given again or with commas, are for a strategy over products that share one cash."
)
ProductsOption = typer.Option(..., "--product", "--products", "-p", help=PRODUCTS_HELP)
DecideOnOption = typer.Option(
    None, "--decide-on", help="Longer bars that the strategy decides on; fills stay on these."
)
GranularityOption = typer.Option("ONE_HOUR", "--granularity", "-g", help="ONE_MINUTE … ONE_DAY.")
FeeOption = typer.Option(60.0, "--fee-bps", help="Fee on the notional of each fill, basis points.")
SlippageOption = typer.Option(5.0, "--slippage-bps", help="Slippage on both sides, basis points.")
FillOption = typer.Option("next_open", "--fill", help="next_open, or same_close (a look-ahead, marked as such).")
CashOption = typer.Option(10_000.0, "--cash", help="Initial cash, quote units.")
CostOption = typer.Option(
    [],
    "--cost",
    help="A further cost or fill rule, NAME=VALUE, repeatable: spread_bps, impact, max_volume_share, "
    "fee_tiers=VOLUME:BPS,… (or @FILE.csv), funding_bps_per_day, borrow_bps_per_day, maintenance_margin, both_in_bar, "
    "zero_volume, locked_bars, at_end. Example: --cost spread_bps=2 --cost fee_tiers=10000:40,100000:25",
)
SizingOption = typer.Option(
    [],
    "--sizing",
    help="How large a position is, NAME=VALUE, repeatable: kind (percent, units, notional, volatility), window, "
    "min_quantity, quantity_increment; of several products also quantities.PRODUCT.min_quantity and "
    ".quantity_increment. Example: --sizing kind=volatility --sizing window=60",
)
# What has an option of its own, by that option.
_OWN_OPTIONS: Final = {
    "fee_bps": "--fee-bps",
    "slippage_bps": "--slippage-bps",
    "fill": "--fill",
    "initial_cash": "--cash",
}


def period(
    products: Sequence[str], granularity: str, decide_on: str | None, start: str | None, end: str | None
) -> dict[str, Any]:
    """Which bars."""
    names = [name for text in products for name in text.split(",")]
    several = {"product_ids": names} if len(names) > 1 else {}
    content = {"granularity": granularity, "decide_on": decide_on, "start": start, "end": end}
    return {"product_id": names[0], **several, **content}


def costs(fee_bps: float, slippage_bps: float, fill: str, cash: float, further: Sequence[str]) -> dict[str, Any]:
    """``costs`` of a specification from the four options and ``--cost``; the model checks what they are."""
    content: dict[str, Any] = {"fee_bps": fee_bps, "slippage_bps": slippage_bps, "fill": fill, "initial_cash": cash}
    for name, text in _named(further, "--cost"):
        if name in _OWN_OPTIONS:
            raise CommandError(f"--cost {name}={text}: {_OWN_OPTIONS[name]} is its option", field=f"costs.{name}")
        content[name] = _fee_tiers(text) if name == "fee_tiers" else _value(text)
    return {"costs": content}


def sizing(further: Sequence[str]) -> dict[str, Any]:
    """``sizing`` of a specification from ``--sizing``; empty without one."""
    given: dict[str, Any] = {}
    for name, text in _named(further, "--sizing"):
        *path, last = name.split(".")
        place = given
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise CommandError(
                    f"--sizing {name}: {part} is given a value of its own", field=name, rule="one of them"
                )
        place[last] = _value(text)
    return {"sizing": given} if given else {}


def grids(texts: Sequence[str], own: str | None = None) -> list[dict[str, Any]]:
    """The grids of ``--grid`` options; without a strategy before the dot a parameter is of ``own``, a user's."""
    if own is not None and not texts:
        raise CommandError("--grid is needed: PARAM=start:stop:step or =v1,v2,…", field="grid", rule="required")
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, value = assignment(text, "--grid")
        strategy, dot, parameter = name.partition(".")
        if own is not None and not dot:
            strategy, parameter = own, name
        elif own is not None and strategy == own.partition("@")[0]:
            strategy = own
        elif not dot:
            raise CommandError(f"--grid {text}: expected STRATEGY.PARAM=…", field="grid", value=text)
        found.setdefault(strategy, {})[parameter] = _axis(value, text)
    return [{"strategy": strategy, "grid": grid} for strategy, grid in found.items()]


def assignment(text: str, option: str) -> tuple[str, str]:
    """(name, value) of name=value."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise CommandError(f"{option} {text}: expected name=value", field=option.strip("-"), value=text)
    return name.strip(), value.strip()


def number(text: str, option: str) -> float:
    """A number, or an error that names the option."""
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"{option}: {text!r} is not a number", field=option, value=text, rule="a number") from None


def costs_line(content: Mapping[str, Any]) -> str:
    """The costs, rules of filling and sizing that are on, as a sentence; ``content`` is a specification's (spec.json).

    What a specification of an earlier version does not name was not there, which is what its default means.
    """
    from strategies.spec import Costs, Sizing

    given = content.get("costs") or {}
    parts = [f"fee {_shown(given.get('fee_bps', Costs().fee_bps))} bp"]
    parts += [f"slippage {_shown(given.get('slippage_bps', Costs().slippage_bps))} bp"]
    parts += [f"fills at {str(given.get('fill', Costs().fill)).replace('_', ' ')}"]
    parts += [f"cash {_shown(given.get('initial_cash', Costs().initial_cash))}"]
    named = {"fee_bps", "slippage_bps", "fill", "initial_cash"}
    parts += _changed(given, {name: value for name, value in Costs() if name not in named})
    sizes = _changed(content.get("sizing") or {}, dict(Sizing()))
    return "costs: " + ", ".join(parts) + (f"; sizing: {', '.join(sizes)}" if sizes else "")


def _changed(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(given[name])}"
        for name, default in defaults.items()
        if name in given and given[name] != (list(default) if isinstance(default, tuple) else default)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(f"{tier['volume_30d_from']:g}:{tier['fee_bps']:g}" for tier in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _named(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    found = [assignment(text, option) for text in texts]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"{option} {name}: given {names.count(name)} times", field=name, rule="each name once")
    return found


def _value(text: str) -> int | float | str:
    """A number where it is one; whether that is what the field takes its model says."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _fee_tiers(text: str) -> list[list[float]]:
    """``10000:40,100000:25``, or ``@FILE.csv`` with a volume and a fee a line, maybe under their names."""
    if not text.startswith("@"):
        pairs = [part.split(":") for part in text.split(",")]
    else:
        try:
            with Path(text[1:]).open(newline="") as file:
                pairs = [row for row in csv.reader(file) if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise CommandError(f"--cost fee_tiers={text}: {error}", field="costs.fee_tiers", value=text) from None
        pairs = pairs[1:] if pairs and pairs[0][0].strip() == "volume_30d_from" else pairs
    for pair in pairs:
        if len(pair) != 2:
            rule = "VOLUME:BPS pairs, the volume of 30 days from which on the fee is BPS"
            raise CommandError(f"--cost fee_tiers: expected {rule}, was {':'.join(pair)!r}",
                               field="costs.fee_tiers", value=":".join(pair), rule=rule)  # fmt: skip
    return [[number(one, "--cost fee_tiers") for one in pair] for pair in pairs]


def _axis(text: str, option: str) -> Any:
    if (continuous := continuous_axis(text)) is not None:
        return continuous
    if ":" not in text:
        return [number(part, f"--grid {option}") for part in text.split(",")]
    parts = [number(part, f"--grid {option}") for part in text.split(":")]
    if len(parts) not in {2, 3}:
        raise CommandError(f"--grid {option}: expected start:stop:step", field="grid", value=text)
    return dict(zip(("start", "stop", "step"), [*parts, 1.0][:3], strict=True))
