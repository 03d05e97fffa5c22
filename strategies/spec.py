"""What a user may ask for: costs, one backtest, a sweep over grids; everything checked before anything starts."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from strategies.base import (
    RULE_NAMES,
    AnyStrategy,
    ParameterInfo,
    Params,
    Rules,
    SpecError,
    full_vector,
    parameter_table,
)
from strategies.cross_section import CrossSection
from strategies.metrics import METRICS
from strategies.model import Float64Array, Granularity, Int64Array
from strategies.nearness import places
from strategies.panel import PRODUCTS_MAX, quote_currency
from strategies.registry import CROSS_SECTIONS, STRATEGIES, find
from strategies.resample import ResampleError, require_multiple
from strategies.search_spec import Continuous, Search, check_names
from strategies.segments import HONEST_COLUMNS

MAX_SETS: Final = 10_000_000
# What an axis of a search may have; written out it is a list.
LEVELS_MAX: Final = 1_000_000

_FIRST_INSTANT = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LAST_INSTANT = dt.datetime(2262, 1, 1, tzinfo=dt.UTC)  # int64 nanoseconds end in April of that year


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _instant(value: object) -> dt.datetime:
    """A moment in UTC from a datetime, a date or ISO 8601 text; without an offset it is read as UTC."""
    rule = "a moment like 2024-05-01 or 2024-05-01T12:00:00Z between 1970 and 2262"
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise SpecError("", value, rule) from None
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if not isinstance(value, dt.datetime):
        raise SpecError("", value, rule)
    moment = value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value
    if not _FIRST_INSTANT <= moment < _LAST_INSTANT:
        raise SpecError("", value, rule)
    return moment.astimezone(dt.UTC)


def _optional_instant(value: object) -> dt.datetime | None:
    return None if value is None else _instant(value)


Instant = Annotated[dt.datetime | None, BeforeValidator(_optional_instant)]
Number = Annotated[float, Field(strict=True)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
ProductId = Annotated[str, Field(strict=True, pattern=r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$")]


def nanoseconds(moment: dt.datetime) -> int:
    """Exact nanoseconds since 1970 UTC."""
    return (moment - _FIRST_INSTANT) // dt.timedelta(microseconds=1) * 1_000


def _tiers(value: object) -> object:
    """A tier as a table writes it, [volume, fee], or under its names."""
    if not isinstance(value, list | tuple):
        return value
    return [
        {"volume_30d_from": tier[0], "fee_bps": tier[1]} if isinstance(tier, list | tuple) and len(tier) == 2 else tier
        for tier in value
    ]


class FeeTier(_Spec):
    """From this volume on, in quote units traded within the 30 days before a fill, the fee is this one."""

    volume_30d_from: Annotated[Number, Field(gt=0, le=1e18)]
    fee_bps: Annotated[Number, Field(ge=0, le=1_000)]


class Costs(_Spec):
    """What trading costs, when an order is filled and what keeps it from being filled; the same on both sides.

    The rules are those at the top of strategies/kernel.py. All but the first four are off at their defaults.
    """

    fee_bps: Annotated[Number, Field(ge=0, le=1_000, description="fee on the notional of each fill, basis points")] = (
        60.0
    )
    slippage_bps: Annotated[Number, Field(ge=0, le=1_000, description="added to a buy's price, taken off a sell's")] = (
        5.0
    )
    fill: Annotated[
        Literal["next_open", "same_close"],
        Field(description="next_open: at the next bar's open; same_close: at the deciding bar's close, a LOOK-AHEAD"),
    ] = "next_open"
    initial_cash: Annotated[Number, Field(ge=1e-6, le=1e15, description="cash before the first bar, quote units")] = (
        10_000.0
    )
    fee_tiers: Annotated[
        tuple[FeeTier, ...],
        BeforeValidator(_tiers),
        Field(max_length=32, description="[volume of 30 days from which on, fee_bps], …; below the first: fee_bps"),
    ] = ()
    spread_bps: Annotated[Number, Field(ge=0, le=1_000, description="between bid and ask; a fill pays half of it")] = (
        0.0
    )
    impact: Annotated[
        Number,
        Field(ge=0, le=0.5, description="a fill moves its price by impact * sqrt(quantity / the bar's volume)"),
    ] = 0.0
    max_volume_share: Annotated[
        Number,
        Field(ge=0, le=1, description="most of a bar's volume that is filled; the rest waits; 0: no limit"),
    ] = 0.0
    funding_bps_per_day: Annotated[
        Number, Field(ge=-1_000, le=1_000, description="on the position's value: longs pay it, shorts get it")
    ] = 0.0
    borrow_bps_per_day: Annotated[
        Number, Field(ge=0, le=1_000, description="on what is borrowed: a short's units, a leveraged long's cash")
    ] = 0.0
    maintenance_margin: Annotated[
        Number,
        Field(ge=0, le=0.5, description="a leveraged position is closed where equity falls to this share of its value"),
    ] = 0.05
    both_in_bar: Annotated[
        Literal["stop_first", "target_first"],
        Field(description="what a bar that reaches both the stop and the target did; stop_first is pessimistic"),
    ] = "stop_first"
    zero_volume: Annotated[
        Literal["waits", "fills"], Field(description="whether orders wait or are filled on a bar without volume")
    ] = "waits"
    locked_bars: Annotated[
        Literal["fills", "waits"],
        Field(description="waits: no buy on a bar that stands still above the close before, no sell below it"),
    ] = "fills"
    at_end: Annotated[
        Literal["hold", "liquidate"],
        Field(description="liquidate: what is held at the last close is sold there, as after a delisting"),
    ] = "hold"

    @property
    def look_ahead(self) -> bool:
        """Whether fills use a price that was needed to decide them; every report must say so."""
        return self.fill == "same_close"

    @property
    def plain(self) -> bool:
        """Whether only fee, slippage, fill and initial cash count: the model that live sessions are compared with."""
        kept = {"fee_bps", "slippage_bps", "fill", "initial_cash", *_MEANS_NOTHING_WITHOUT_RULES, "zero_volume"}
        return all(value == getattr(_NO_COSTS, name) for name, value in self if name not in kept)

    @model_validator(mode="after")
    def _tiers_rise(self) -> Self:
        for i, (lower, upper) in enumerate(itertools.pairwise(self.fee_tiers), start=1):
            if not lower.volume_30d_from < upper.volume_30d_from:
                rule = f"more than the tier before it, {lower.volume_30d_from:g}"
                raise SpecError(f"fee_tiers[{i}].volume_30d_from", upper.volume_30d_from, rule)
        return self


_NO_COSTS: Final = Costs()
_MEANS_NOTHING_WITHOUT_RULES: Final = ("maintenance_margin", "both_in_bar")  # leverage above 1, a stop and a target


class Quantities(_Spec):
    """Which quantities of one product can be ordered; the fields mean what they mean in ``Sizing``."""

    min_quantity: Annotated[Number, Field(ge=0, le=1e15)] = 0.0
    quantity_increment: Annotated[Number, Field(ge=0, le=1e15)] = 0.0


class Sizing(_Spec):
    """How large a position a target is, and which quantities can be ordered.

    ``size`` (a rule, sweepable) counts: percent, the fraction of equity; units, base units; notional, quote units;
    volatility, the wanted yearly volatility of the position, measured over the last ``window`` returns of the product.
    """

    kind: Literal["percent", "units", "notional", "volatility"] = "percent"
    window: Annotated[
        int, Field(strict=True, ge=2, le=10_000, description="returns in the measured volatility, for kind volatility")
    ] = 30
    min_quantity: Annotated[
        Number, Field(ge=0, le=1e15, description="smaller orders are not made, but for closing; 0: none is too small")
    ] = 0.0
    quantity_increment: Annotated[
        Number,
        Field(ge=0, le=1e15, description="orders are rounded down to multiples, but for closing; 0: not rounded"),
    ] = 0.0
    quantities: Annotated[
        dict[ProductId, Quantities],
        Field(max_length=PRODUCTS_MAX, description="of several products, those that take not the two above but these"),
    ] = Field(default_factory=dict)

    def quantities_of(self, product_id: str) -> tuple[float, float]:
        """``min_quantity`` and ``quantity_increment`` of a product."""
        own = self.quantities.get(product_id, self)
        return own.min_quantity, own.quantity_increment


class _Period(_Spec):
    """Which bars: a product, a bar length and a stretch of time (None: as far as there are bars).

    ``product_ids`` are those of a strategy over several products, which share one cash; ``product_id`` is then the
    first of them. With ``decide_on`` the strategy sees only finished bars of that length, made of the others; orders,
    fills and equity stay on bars of ``granularity``.
    """

    product_id: ProductId
    product_ids: Annotated[tuple[ProductId, ...], Field(max_length=PRODUCTS_MAX)] = ()
    granularity: Granularity
    decide_on: Granularity | None = None
    start: Instant = None
    end: Instant = None

    @model_validator(mode="before")
    @classmethod
    def _first_product(cls, data: object) -> object:
        if isinstance(data, dict) and "product_id" not in data and isinstance(data.get("product_ids"), list | tuple):
            return data | {"product_id": data["product_ids"][0]} if data["product_ids"] else data
        return data

    @model_validator(mode="after")
    def _products_fit_together(self) -> Self:
        for position, product_id in enumerate(self.product_ids):
            if product_id in self.product_ids[:position]:
                raise SpecError(f"product_ids[{position}]", product_id, "each product once")
            if quote_currency(product_id) != quote_currency(self.product_ids[0]):
                rule = f"the quote currency of {self.product_ids[0]}: one cash pays for all"
                raise SpecError(f"product_ids[{position}]", product_id, rule)
        if self.product_ids and self.product_id != self.product_ids[0]:
            raise SpecError("product_id", self.product_id, f"the first of product_ids, {self.product_ids[0]}")
        if self.decide_on is not None:
            try:
                require_multiple(self.granularity, self.decide_on)
            except ResampleError as error:
                raise SpecError("decide_on", error.value, error.rule) from None
        return self

    @property
    def start_ns(self) -> int | None:
        """``start`` in nanoseconds UTC."""
        return None if self.start is None else nanoseconds(self.start)

    @property
    def end_ns(self) -> int | None:
        """``end`` in nanoseconds UTC."""
        return None if self.end is None else nanoseconds(self.end)

    @model_validator(mode="after")
    def _end_after_start(self) -> Self:
        if self.start is not None and self.end is not None and not self.start < self.end:
            raise SpecError("end", self.end.isoformat(), f"later than start = {self.start.isoformat()}")
        return self


class BacktestSpec(_Period):
    """One strategy with one set of parameters and rules; those not named take their default."""

    strategy: Annotated[str, Field(strict=True)]
    params: dict[str, Number] = Field(default_factory=dict)
    costs: Costs = Field(default_factory=Costs)
    sizing: Sizing = Field(default_factory=Sizing)
    seed: Seed = 0

    @model_validator(mode="after")
    def _parameters_exist_and_fit(self) -> Self:
        strategy = find(self.strategy)
        for name, value in self.params.items():
            _parameter(strategy, name, f"params.{name}").check(value, f"params.{name}")
        try:
            strategy.params(**self._own())
        except ValidationError as error:
            raise spec_error(error).under("params") from None
        _check_products(self.product_ids, strategy, "strategy", lambda name: self.params.get(name, 0.0))
        require_quantities(self.sizing, self.product_ids)
        return self

    def parameters(self) -> Params:
        """All parameters of the strategy, defaults filled in."""
        return find(self.strategy).params(**self._own())

    def rules(self) -> Rules:
        """All rules, defaults filled in."""
        return Rules(**{name: value for name, value in self.params.items() if name in RULE_NAMES})

    def vector(self) -> Float64Array:
        """float64[k + 6], parameters and rules in the order of ``parameter_table``."""
        return full_vector(self.parameters(), self.rules())

    def _own(self) -> dict[str, float]:
        return {name: value for name, value in self.params.items() if name not in RULE_NAMES}


class Range(_Spec):
    """The values start, start + step, … up to and including ``stop``, reckoned in decimal (0.1, 0.2, 0.3)."""

    start: Number
    stop: Number
    step: Annotated[Number, Field(gt=0)]

    @model_validator(mode="after")
    def _stop_not_before_start(self) -> Self:
        if self.stop < self.start:
            raise SpecError("stop", self.stop, f"at least start = {self.start:g}")
        return self

    def count(self) -> int:
        """The number of values, by division: nothing is expanded."""
        steps: int = (_exact(self.stop) - _exact(self.start)) // _exact(self.step)
        return steps + 1

    def values(self) -> list[float]:
        """The values in rising order."""
        start, step = _exact(self.start), _exact(self.step)
        return [float(start + i * step) for i in range(self.count())]


def _axis_kind(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return "<values>"
    if isinstance(value, Continuous) or (isinstance(value, dict) and {"low", "high"} & value.keys()):
        return "<continuous>"
    return "<range>" if isinstance(value, dict | Range) else None


Axis = Annotated[
    Annotated[tuple[Number, ...], Tag("<values>")]
    | Annotated[Range, Tag("<range>")]
    | Annotated[Continuous, Tag("<continuous>")],
    Discriminator(
        _axis_kind,
        custom_error_type="axis",
        custom_error_message="a list of numbers or a range {{start, stop, step}}; for a search also {{low, high}}",
    ),
]


class StrategyGrid(_Spec):
    """Every combination of the named parameters' values; parameters not named take their default."""

    strategy: Annotated[str, Field(strict=True)]
    grid: dict[str, Axis]

    @model_validator(mode="after")
    def _axes_exist_and_fit(self) -> Self:
        strategy = find(self.strategy)
        if not self.grid:
            raise SpecError("grid", self.grid, "at least one parameter with its values")
        for name, axis in self.grid.items():
            _check_axis(_parameter(strategy, name, f"grid.{name}"), axis, f"grid.{name}")
        return self

    def count(self) -> int:
        """Combinations by multiplication, before any is dropped for breaking a rule between parameters.

        A continuous axis, which only a search can have, counts as one.
        """
        return math.prod(_count(axis) for axis in self.grid.values())

    def combinations(self) -> tuple[Float64Array, int]:
        """float64[m, k] and how many were dropped because they break a rule between parameters (fast < slow).

        Columns are as in ``parameter_table``, rules last. Sets that share windows are near each other
        (strategies/nearness.py); else, and among those with the same windows, the last column varies fastest.
        """
        full, kept = self._expanded()
        kept = kept[np.argsort(places(find(self.strategy), full)[kept], kind="stable")]
        return np.ascontiguousarray(full[kept]), len(full) - len(kept)

    def dropped(self) -> int:
        """How many combinations break a rule between parameters."""
        full, kept = self._expanded()
        return len(full) - len(kept)

    def highest(self, name: str) -> float:
        """The largest value that the grid asks for a parameter; 0 where it does not name it."""
        axis = self.grid.get(name, (0.0,))
        if isinstance(axis, Continuous):
            return axis.high
        return axis.stop if isinstance(axis, Range) else max(axis)

    def check_space(self, field: str) -> None:
        """Raise ``SpecError`` where a search could find no set that keeps the strategy's rules, or an axis is too long.

        Each parameter takes the least value above those it must exceed: where that fails, everything does.
        """
        strategy = find(self.strategy)
        axes = {info.name: self.grid.get(info.name, (info.default,)) for info in parameter_table(strategy)}
        for name, axis in axes.items():
            if isinstance(axis, Range) and axis.count() > LEVELS_MAX:
                rule = f"at most {LEVELS_MAX} values; for more, {{low, high}}"
                raise SpecError(f"{field}.{name}", axis.count(), rule)
        least = {name: _least_above(axis, -math.inf) for name, axis in axes.items()}
        for _ in strategy.params.BELOW:
            for lesser, greater in strategy.params.BELOW:
                if not least[lesser] < least[greater]:
                    least[greater] = _least_above(axes[greater], least[lesser])
        if math.inf in least.values():
            rules = " and ".join(f"{lesser} < {greater}" for lesser, greater in strategy.params.BELOW)
            raise SpecError(field, self.grid, f"a combination with {rules}")

    def _expanded(self) -> tuple[Float64Array, Int64Array]:
        """Every combination, float64[n, k], and which of them keep the rules between parameters, int64[m]."""
        strategy = find(self.strategy)
        columns = [self._values(info) for info in parameter_table(strategy)]
        full = np.stack([column.ravel() for column in np.meshgrid(*columns, indexing="ij")], axis=1)
        return full, np.flatnonzero(strategy.params.keeps_order(full))

    def _values(self, info: ParameterInfo) -> Float64Array:
        axis = self.grid.get(info.name, (info.default,))
        if isinstance(axis, Continuous):
            raise SpecError(
                f"grid.{info.name}", axis.model_dump(), "values or a range: only a search takes low and high"
            )
        return np.array(axis.values() if isinstance(axis, Range) else axis, dtype=np.float64)


class SweepSpec(_Period):
    """A sweep: one or more grids over the same bars at the same costs, the best first by ``sort_by``.

    With ``search`` the grids are spaces, of which the search chooses the sets to run; without it all are run.
    ``purge_bars`` lie between the folds of cross-validation and before the held-out bars: the longest holding time or
    warm-up, where it is known (strategies/segments.py).
    """

    grids: tuple[StrategyGrid, ...]
    costs: Costs = Field(default_factory=Costs)
    sizing: Sizing = Field(default_factory=Sizing)
    seed: Seed = 0
    sort_by: Annotated[str, Field(strict=True)] = "oos_sharpe"
    max_sets: Annotated[int, Field(strict=True, ge=1, le=MAX_SETS)] = 1_000_000
    purge_bars: (
        Annotated[
            int,
            Field(
                strict=True, ge=0, le=10_000_000, description="left out between folds; none: a hundredth of the bars"
            ),
        ]
        | None
    ) = None
    search: Search | None = None

    @model_validator(mode="after")
    def _has_work_of_bounded_size(self) -> Self:
        if self.sort_by not in (*METRICS, *HONEST_COLUMNS):
            raise SpecError("sort_by", self.sort_by, f"one of {', '.join((*METRICS, *HONEST_COLUMNS))}")
        if not self.grids:
            raise SpecError("grids", [], "at least one grid")
        for position, grid in enumerate(self.grids):
            _check_products(self.product_ids, find(grid.strategy), f"grids[{position}].strategy", grid.highest)
        require_quantities(self.sizing, self.product_ids)
        if self.search is not None:
            self._check_search(self.search)
            return self
        for position, grid in enumerate(self.grids):
            for name, axis in grid.grid.items():
                if isinstance(axis, Continuous):
                    field, rule = (
                        f"grids[{position}].grid.{name}",
                        "values or a range: only a search takes low and high",
                    )
                    raise SpecError(field, axis.model_dump(), rule)
        if self.count() > self.max_sets:
            raise SpecError("grids", self.count(), f"at most max_sets = {self.max_sets} parameter sets")
        for position, grid in enumerate(self.grids):
            if grid.dropped() == grid.count():
                rules = " and ".join(f"{lesser} < {greater}" for lesser, greater in find(grid.strategy).params.BELOW)
                raise SpecError(f"grids[{position}].grid", grid.grid, f"a combination with {rules}")
        return self

    def _check_search(self, search: Search) -> None:
        """Raise ``SpecError`` where the search does not fit the grids, none of which is expanded."""
        if search.sets > self.max_sets:
            raise SpecError("search.sets", search.sets, f"at most max_sets = {self.max_sets}")
        check_names(search, [{info.name for info in parameter_table(find(grid.strategy))} for grid in self.grids])
        for position, grid in enumerate(self.grids):
            grid.check_space(f"grids[{position}].grid")

    def count(self) -> int:
        """Parameter sets by multiplication: an upper bound, known before anything is expanded."""
        return self.search.sets if self.search else sum(grid.count() for grid in self.grids)

    def dropped(self) -> int:
        """How many of ``count()`` break a rule between parameters and are not run; a search asks for none that do."""
        if self.search is not None:
            return 0
        return sum(grid.dropped() for grid in self.grids)

    def parameter_sets(self) -> list[tuple[str, Float64Array]]:
        """(strategy name, float64[m, k]) for each grid, in the order of the specification; m = 0 before a search."""
        if self.search is not None:
            return [(grid.strategy, np.empty((0, len(parameter_table(find(grid.strategy)))))) for grid in self.grids]
        return [(grid.strategy, grid.combinations()[0]) for grid in self.grids]


def parse_backtest(data: object) -> BacktestSpec:
    """The specification in ``data`` (a dictionary as from JSON or YAML); raises ``SpecError`` with the dotted path."""
    try:
        return BacktestSpec.model_validate(data)
    except ValidationError as error:
        raise spec_error(error) from None


def parse_spec(data: object) -> SweepSpec:
    """The same for a sweep: ``grids[0].grid.fast`` is the path of an axis."""
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        raise spec_error(error) from None


def spec_error(error: ValidationError) -> SpecError:
    """The first complaint of pydantic's ``error`` as a ``SpecError``."""
    first = error.errors(include_url=False)[0]
    path = ""
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}"
    path = path.strip(".")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        return cause.under(path)
    rule = {"missing": "a value (it is required)", "extra_forbidden": "no such field"}.get(first["type"], first["msg"])
    value = None if first["type"] == "missing" else first["input"]
    return SpecError(path or "spec", value, rule)


def require_quantities(sizing: Sizing, product_ids: tuple[str, ...]) -> None:
    """Raise ``SpecError`` where ``sizing.quantities`` names a product that is none of several ``product_ids``."""
    for product_id, own in sizing.quantities.items():
        if product_id not in product_ids:
            rule = f"one of {', '.join(product_ids)}" if product_ids else "nothing for one product: sizing says it all"
            raise SpecError(f"sizing.quantities.{product_id}", own.model_dump(), rule)


def _check_products(
    product_ids: tuple[str, ...], strategy: AnyStrategy, field: str, highest: Callable[[str], float]
) -> None:
    """Raise ``SpecError`` unless the strategy is for as many products as there are."""
    if not isinstance(strategy, CrossSection):
        if product_ids:
            raise SpecError(field, strategy.name, f"one over several products: {', '.join(CROSS_SECTIONS)}")
        return
    if not product_ids:
        raise SpecError(field, strategy.name, f"one for one product: {', '.join(STRATEGIES)} (or give product_ids)")
    strategy.check_products(len(product_ids))
    for name in strategy.counts:
        if highest(name) > len(product_ids):
            rule = f"at most {len(product_ids)}, the products there are"
            raise SpecError(f"{field.removesuffix('strategy')}{name}", highest(name), rule)


def _parameter(strategy: AnyStrategy, name: str, field: str) -> ParameterInfo:
    for info in parameter_table(strategy):
        if info.name == name:
            return info
    own, rules = ", ".join(strategy.params.names()), ", ".join(RULE_NAMES)
    raise SpecError(field, name, f"a parameter of {strategy.name}: {own}; or a rule: {rules}")


def _count(axis: tuple[float, ...] | Range | Continuous) -> int:
    if isinstance(axis, Continuous):
        return 1
    return axis.count() if isinstance(axis, Range) else len(axis)


def _least_above(axis: tuple[float, ...] | Range | Continuous, bound: float) -> float:
    """The least value of an axis above ``bound``, infinite where there is none."""
    if isinstance(axis, Continuous):
        return max(axis.low, bound + abs(bound) * 1e-12) if bound < axis.high else math.inf
    if isinstance(axis, tuple):
        return min((value for value in axis if value > bound), default=math.inf)
    if bound < axis.start:
        return axis.start
    start, step = _exact(axis.start), _exact(axis.step)
    place = (_exact(bound) - start) // step + 1 if bound < axis.stop else axis.count()
    return float(start + place * step) if place < axis.count() else math.inf


def _check_axis(info: ParameterInfo, axis: tuple[float, ...] | Range | Continuous, field: str) -> None:
    if isinstance(axis, Continuous):
        axis.check(info, field)
        return
    if isinstance(axis, Range):
        # The ends and the step speak for all values between them: nothing is expanded.
        info.check(axis.start, f"{field}.start")
        info.check(axis.stop, f"{field}.stop")
        if info.kind == "int" and not axis.step.is_integer():
            raise SpecError(f"{field}.step", axis.step, "a whole number")
        return
    if not axis:
        raise SpecError(field, [], "at least one value")
    for i, value in enumerate(axis):
        info.check(value, f"{field}[{i}]")
    if len(set(axis)) < len(axis):
        twice = next(value for i, value in enumerate(axis) if value in axis[:i])
        raise SpecError(field, twice, "each value once")


def _exact(value: float) -> Fraction:
    """The decimal number a float was written as: 0.1 is one tenth."""
    return Fraction(repr(float(value)))
