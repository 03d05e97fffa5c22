"""What can be backtested: strategies with the ranges of their parameters, and the series in the bar store."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from cluster.market_data import SeriesInfo
from conf.settings import SIMULATED
from serve_apps.api_access import GuardedRoute, Reader, TheDesk
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Nanoseconds, Shape
from strategies.base import AnyStrategy, parameter_table
from strategies.metrics import METRICS
from strategies.model import Granularity
from strategies.registry import CROSS_SECTIONS, STRATEGIES

router = APIRouter(prefix="/v1", tags=["backtests"], route_class=GuardedRoute)


class ParameterView(Shape):
    """One parameter: enough for a form, a grid or a search space."""

    name: str = Field(examples=["fast"])
    kind: Literal["int", "float"]
    default: float
    low: float = Field(description="lowest allowed value")
    high: float = Field(description="highest allowed value")
    description: str


class RuleView(Shape):
    """A rule between two parameters: the first must be smaller than the second."""

    lesser: str = Field(examples=["fast"])
    greater: str = Field(examples=["slow"])


class StrategyView(Shape):
    """A strategy."""

    name: str = Field(examples=["sma_cross"])
    kind: Literal["single product", "cross section"] = Field(
        description="cross section: over several products (product_ids) that share one cash"
    )
    title: str
    parameters: list[ParameterView]
    rules: list[RuleView]


class Strategies(Shape):
    """What a specification may name."""

    strategies: list[StrategyView]
    metrics: list[str] = Field(description="names a leaderboard can be sorted by", examples=[list(METRICS[:3])])


class SeriesView(Shape):
    """One stored series of bars."""

    product_id: str = Field(examples=["BTC-USD"])
    granularity: Granularity
    rows: int = Field(ge=0)
    first_ns: Nanoseconds | None = Field(description="start of the first bar; null where the series is damaged")
    last_ns: Nanoseconds | None = Field(description="start of the last bar")
    data_source: str = Field(description="SIMULATED where no market made the bars", examples=[SIMULATED])
    sources: list[str]
    size_bytes: int = Field(ge=0)
    damaged: bool = Field(description="its list of files cannot be read: `desk data check` says more")


class Data(Shape):
    """The bar store."""

    series: list[SeriesView]


@router.get("/strategies", responses=problems())
async def list_strategies(_: Reader) -> Strategies:
    """Every strategy of both kinds with its parameters and the rules between them."""
    known: tuple[AnyStrategy, ...] = (*STRATEGIES.values(), *CROSS_SECTIONS.values())
    return Strategies(strategies=[_strategy(item) for item in known], metrics=list(METRICS))


@router.get("/data", responses=problems())
async def list_data(desk: TheDesk, _: Reader) -> Data:
    """Every series in the bar store."""
    return Data(series=[_series(info) for info in await asyncio.to_thread(desk.store.ls)])


def _strategy(strategy: AnyStrategy) -> StrategyView:
    return StrategyView(
        name=strategy.name,
        kind=strategy.kind,
        title=strategy.title,
        parameters=[
            ParameterView(
                name=info.name,
                kind=info.kind,
                default=info.default,
                low=info.low,
                high=info.high,
                description=info.description,
            )
            for info in parameter_table(strategy)
        ],
        rules=[RuleView(lesser=lesser, greater=greater) for lesser, greater in strategy.params.BELOW],
    )


def _series(info: SeriesInfo) -> SeriesView:
    damaged = bool(info.problem)
    return SeriesView(
        product_id=info.product_id,
        granularity=info.granularity,
        rows=info.rows,
        first_ns=None if damaged else info.first_ns,
        last_ns=None if damaged else info.last_ns,
        data_source=SIMULATED if info.simulated else ", ".join(info.sources),
        sources=list(info.sources),
        size_bytes=info.size_bytes,
        damaged=damaged,
    )
