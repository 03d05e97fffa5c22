"""A live session beside the backtest of its own bars: ``python -m jobs.session_parity --session-dir DIR``.

The bars, as the session met them, go through the backtest: its targets must be the session's to the last bit. Then each
order that was filled is compared with the price the model of the session's costs assumes for it. Writes parity.html.
Exit status: 0 no difference, 1 targets differ, 2 refused.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.bar_checks import data_hash, iso
from cluster.live_bars import LiveBar, bars_of
from cluster.run_folder import RunError, replace_file
from cluster.session_journal import BAR, CORRECTION, ORDER, read_journal
from cluster.sessions import SessionFolder, SessionSpec
from jobs.report import plotly_source
from jobs.report_series import sample
from jobs.session_plan import wanted_target
from strategies import kernel
from strategies.backtest import run
from strategies.model import Bars, Float64Array, Int64Array
from strategies.registry import get

POINTS_MAX: Final = 4_000
FILLS_SHOWN_MAX: Final = 500
SAME: Final = 0
DIFFERS: Final = 1
REFUSED: Final = 2
_BASIS_POINTS: Final = 1e4


@dataclass(frozen=True, slots=True)
class Difference:
    """The first bar whose targets differ; None is not a number."""

    bar: int
    ts_ns: int
    session: float | None
    backtest: float | None


@dataclass(frozen=True, slots=True)
class Slippage:
    """One filled order beside the model. Prices in quote units; basis points and costs are above 0 where the session
    paid more (or got less): against the undisturbed ``reference`` price, and against the ``model`` price, which is the
    reference with the model's slippage on it. The price of an order is the average of its fills."""

    client_order_id: str
    bar_ts_ns: int
    side: str
    quantity: float
    price: float
    fee: float
    reference: float | None
    model: float | None
    reference_bps: float | None
    model_bps: float | None
    cost: float | None
    model_cost: float | None


@dataclass(frozen=True, slots=True)
class Parity:
    """What ``desk session parity`` prints. Costs in quote units."""

    session_id: str
    data_source: str
    bars: int
    live_bars: int
    data_hash: str
    differences: int
    first_difference: Difference | None
    corrections: int
    fill_rule: str
    fills: int
    compared: int
    median_bps: float | None
    mean_bps: float | None
    total_cost: float
    median_model_bps: float | None
    mean_model_bps: float | None
    total_model_cost: float
    fees: float
    model_fees: float
    session_equity: float | None
    model_equity: float | None
    orders: dict[str, int]
    slippage: list[Slippage]
    picture: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare one session; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.session_parity", description=__doc__)
    parser.add_argument("--session-dir", type=Path, required=True, help="the session's folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        found = compare(SessionFolder(options.session_dir.resolve()))
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    print(json.dumps(asdict(found), indent=1, allow_nan=False) if options.json else _words(found))
    return DIFFERS if found.differences else SAME


def compare(folder: SessionFolder) -> Parity:
    """Bars, targets and fills of the session so far, beside the backtest; writes the picture. Raises ``RunError``."""
    spec, told = folder.spec(), _told(folder)
    bars = told.bars(spec)
    if not len(bars):
        raise RunError("session_id", folder.session_id, "a session with bars")
    backtest = run(spec.backtest(), bars)
    places = _different(told.targets, backtest.target)
    slippage = [_slippage(line, told, spec) for line in told.filled]
    compared = [one for one in slippage if one.reference_bps is not None]
    model_equity = _model_equity(told, bars, spec)
    orders: dict[str, int] = {}
    for line in told.orders:
        orders[line["event"]] = orders.get(line["event"], 0) + 1
    found = Parity(
        session_id=folder.session_id,
        data_source=folder.record().data_source,
        bars=len(bars),
        live_bars=len(told.live),
        data_hash=data_hash(bars),
        differences=len(places),
        first_difference=_difference(int(places[0]), told, backtest.target) if len(places) else None,
        corrections=told.corrections,
        fill_rule=spec.costs.fill,
        fills=len(slippage),
        compared=len(compared),
        median_bps=_median([one.reference_bps for one in compared]),
        mean_bps=_mean([one.reference_bps for one in compared]),
        total_cost=math.fsum(one.cost or 0.0 for one in compared),
        median_model_bps=_median([one.model_bps for one in compared]),
        mean_model_bps=_mean([one.model_bps for one in compared]),
        total_model_cost=math.fsum(one.model_cost or 0.0 for one in compared),
        fees=math.fsum(one.fee for one in slippage),
        model_fees=math.fsum(one.quantity * (one.model or 0.0) for one in compared)
        * spec.costs.fee_bps
        / _BASIS_POINTS,
        session_equity=told.equity[-1] if told.equity else None,
        model_equity=float(model_equity[-1]) if len(model_equity) else None,
        orders=orders,
        slippage=slippage,
        picture=str(folder.parity_file),
    )
    replace_file(folder.parity_file, _page(found, spec, told, bars, model_equity).encode())
    return found


@dataclass(frozen=True)
class _Told:
    """What the journal tells."""

    rows: list[LiveBar]
    stamps: Int64Array
    targets: Float64Array
    live: list[int]
    equity: list[float]
    orders: list[dict[str, Any]]
    corrections: int

    def bars(self, spec: SessionSpec) -> Bars:
        return bars_of(spec.product_id, spec.granularity, self.rows)

    @property
    def filled(self) -> list[dict[str, Any]]:
        return [line for line in self.orders if Decimal(line.get("filled_quantity", "0")) > 0]


def _told(folder: SessionFolder) -> _Told:
    checkpoint = folder.checkpoint()
    if checkpoint is None:
        raise RunError("session_id", folder.session_id, "a session that has begun")
    rows: list[LiveBar] = []
    targets: list[float] = []
    live: list[int] = []
    equity: list[float] = []
    orders: list[dict[str, Any]] = []
    corrections = 0
    for line in read_journal(folder.journal_file, checkpoint.journal_bytes):
        if line["kind"] == BAR:
            rows.append(LiveBar(*(line[name] for name in LiveBar._fields)))
            targets.append(math.nan if line["target"] is None else line["target"])
            if line["live"]:
                live.append(len(rows) - 1)
                equity.append(float(line["equity"]))
        elif line["kind"] == ORDER:
            orders.append(line)
        else:
            corrections += line["kind"] == CORRECTION
    stamps = np.array([bar.ts_ns for bar in rows], dtype=np.int64)
    return _Told(rows, stamps, np.array(targets, dtype=np.float64), live, equity, orders, corrections)


def _different(session: Float64Array, backtest: Float64Array) -> np.ndarray:
    """int64[m]: the bars at which the targets are not the same bits; any NaN is the same as any other."""
    both_nan = np.isnan(session) & np.isnan(backtest)
    same_bits = session.view(np.int64) == np.ascontiguousarray(backtest).view(np.int64)
    return np.flatnonzero(~(both_nan | same_bits))


def _difference(place: int, told: _Told, backtest: Float64Array) -> Difference:
    pair = [None if math.isnan(value) else value for value in (float(told.targets[place]), float(backtest[place]))]
    return Difference(place, told.rows[place].ts_ns, *pair)


def _slippage(line: Mapping[str, Any], told: _Told, spec: SessionSpec) -> Slippage:
    quantity = float(line["filled_quantity"])
    price = float(Decimal(line["filled_value"]) / Decimal(line["filled_quantity"]))
    direction = 1.0 if line["side"] == "BUY" else -1.0
    reference = _reference(line["bar_ts_ns"], told, spec)
    model = None if reference is None else reference * (1.0 + direction * spec.costs.slippage_bps / _BASIS_POINTS)
    return Slippage(
        client_order_id=line["client_order_id"],
        bar_ts_ns=line["bar_ts_ns"],
        side=line["side"],
        quantity=quantity,
        price=price,
        fee=float(line["fees"]),
        reference=reference,
        model=model,
        reference_bps=None if reference is None else direction * (price / reference - 1.0) * _BASIS_POINTS,
        model_bps=None if model is None else direction * (price / model - 1.0) * _BASIS_POINTS,
        cost=None if reference is None else direction * (price - reference) * quantity,
        model_cost=None if model is None else direction * (price - model) * quantity,
    )


def _reference(bar_ts_ns: int, told: _Told, spec: SessionSpec) -> float | None:
    """The model's price before slippage for a decision on this bar; None where the bar it needs is not there yet."""
    place = int(np.searchsorted(told.stamps, bar_ts_ns, side="right")) - 1
    if spec.costs.fill == "same_close":
        return told.rows[place].close if place >= 0 else None
    return told.rows[place + 1].open if place + 1 < len(told.rows) else None


def _model_equity(told: _Told, bars: Bars, spec: SessionSpec) -> Float64Array:
    """float64[live bars]: what the model makes of the session's targets, flat until its first live bar."""
    if not told.live:
        return np.empty(0)
    first = told.live[0]
    targets = np.zeros(len(bars))
    targets[first:] = [wanted_target(float(target), spec) for target in told.targets[first:]]
    costs = spec.costs
    terms = kernel.Terms(
        costs.fee_bps / _BASIS_POINTS, costs.slippage_bps / _BASIS_POINTS, costs.look_ahead, costs.initial_cash
    )
    trace = kernel.new_trace(len(bars))
    kernel.account(targets, bars.open, bars.close, terms, trace)
    equity: Float64Array = trace.equity[first:]
    return equity


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _words(found: Parity) -> str:
    first = found.first_difference
    lines = [
        f"{found.session_id} ({found.data_source}): {found.bars} bars, {found.live_bars} of them live",
        f"targets: {found.differences} differences",
    ]
    if first is not None:
        lines.append(f"first: bar {first.bar} at {iso(first.ts_ns)}: {first.session}, backtest {first.backtest}")
    lines.append(
        f"slippage of {found.compared} of {found.fills} filled orders against {found.fill_rule}: median "
        f"{_figure(found.median_bps)} bp, mean {_figure(found.mean_bps)} bp, total {found.total_cost:.2f}"
    )
    lines.append(found.picture)
    return "\n".join(lines)


# -- the picture -------------------------------------------------------------------------------------------------------


def _page(found: Parity, spec: SessionSpec, told: _Told, bars: Bars, model: Float64Array) -> str:
    values = {
        "TITLE": escape(f"{get(spec.strategy).title} on {spec.product_id}, live"),
        "BANNER": '<div class="banner">SIMULATED: prices and fills are from the exchange simulator</div>'
        if found.data_source == "SIMULATED"
        else "",
        "LEAD": escape(
            f"Session {found.session_id} · {found.live_bars:,} live bars of {spec.granularity} after "
            f"{found.bars - found.live_bars:,} of history"
        ),
        "TILES": _tiles(found),
        "ROWS": "".join(_row(one) for one in found.slippage[-FILLS_SHOWN_MAX:]),
        "NOTE": escape(_note(found, spec)),
        "DATA": _data(found, told, bars, model),
        "PLOTLY": plotly_source(),
    }
    template = Path(__file__).with_name("session_parity.html").read_text()
    return re.sub(r"%([A-Z_]+)%", lambda match: values[match[1]], template)


def _tiles(found: Parity) -> str:
    tiles = {
        "Targets that differ": f"{found.differences:,} of {found.bars:,}",
        "Filled orders": f"{found.fills:,}",
        "Slippage, median": f"{_figure(found.median_bps)} bp",
        "Slippage, mean": f"{_figure(found.mean_bps)} bp",
        "Slippage, total": _figure(found.total_cost),
        "Beyond the model, total": _figure(found.total_model_cost),
        "Equity": _figure(found.session_equity),
        "Equity of the model": _figure(found.model_equity),
    }
    return "".join(
        f'<div class="tile"><div class="label">{escape(name)}</div><div class="value">{escape(value)}</div></div>'
        for name, value in tiles.items()
    )


def _row(one: Slippage) -> str:
    cells = [_time(one.bar_ts_ns), one.side, f"{one.quantity:g}", f"{one.price:,.2f}", _figure(one.reference)]
    cells += [_figure(one.reference_bps), _figure(one.model_bps), _figure(one.cost), f"{one.fee:,.2f}"]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _note(found: Parity, spec: SessionSpec) -> str:
    price = "the next bar's open" if spec.costs.fill == "next_open" else "the deciding bar's close"
    return (
        f"A filled order is compared with {price}; above 0 is worse. Beyond the model is what is left after its own "
        f"slippage of {spec.costs.slippage_bps:g} bp. The price of an order is the average of its fills; "
        f"{found.fills - found.compared} wait for the bar they are compared with. The model's equity starts flat at "
        "the first live bar and fills every change of target at once, whatever became of the session's orders."
    )


def _data(found: Parity, told: _Told, bars: Bars, model: Float64Array) -> str:
    first = told.live[0] if told.live else 0
    close = bars.close[first:]
    at = sample(close, POINTS_MAX) if len(close) else np.empty(0, dtype=np.int64)
    equity = np.array(told.equity)
    data = {
        "ts": [_time(told.rows[first + place].ts_ns) for place in at.tolist()],
        "close": [float(f"{value:.8g}") for value in close[at].tolist()],
        "equity": [float(f"{value:.8g}") for value in equity[at].tolist()] if len(equity) == len(close) else [],
        "model": [float(f"{value:.8g}") for value in model[at].tolist()] if len(model) == len(close) else [],
        "fills": [
            {"ts": _time(one.bar_ts_ns), "side": one.side, "price": one.price, "bps": one.reference_bps}
            for one in found.slippage[-POINTS_MAX:]
        ],
    }
    # Inside a script element only "</" and "<!--" could end it early; escaping every "<" covers both.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}".replace("-", "−")


def _time(ts_ns: int) -> str:
    return f"{datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    sys.exit(main())
