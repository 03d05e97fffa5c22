"""``desk sweep`` and ``desk backtest``: costs and sizing from options, checked by the models that check files too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import cli_spec
from cluster.console import CommandError
from strategies.base import SpecError
from strategies.spec import Costs, parse_spec
from tests.run_samples import make_spec

ONE_SET: dict[str, Any] = {
    "product_id": "BTC-USD",
    "granularity": "ONE_HOUR",
    "grids": [{"strategy": "sma_cross", "grid": {"fast": [5]}}],
}


def costs_of(*texts: str) -> Costs:
    return parse_spec(ONE_SET | cli_spec.costs(60.0, 5.0, "next_open", 1e4, texts)).costs


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), {}),
        (("spread_bps=2",), {"spread_bps": 2.0}),
        (("impact=0.1", "max_volume_share=0.05"), {"impact": 0.1, "max_volume_share": 0.05}),
        (("fee_tiers=10000:40,100000:25",), {"fee_tiers": [[10_000, 40], [100_000, 25]]}),
        (("funding_bps_per_day=-3", "borrow_bps_per_day=1e0"), {"funding_bps_per_day": -3.0, "borrow_bps_per_day": 1}),
        (("both_in_bar=target_first", "at_end=liquidate"), {"both_in_bar": "target_first", "at_end": "liquidate"}),
        (("zero_volume=fills", "locked_bars=waits"), {"zero_volume": "fills", "locked_bars": "waits"}),
        (("maintenance_margin=0.1",), {"maintenance_margin": 0.1}),
    ],
)
def test_every_cost_has_a_word(texts: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert costs_of(*texts) == Costs(**expected)


def test_the_help_names_every_cost_and_sizing_there_is() -> None:
    from strategies.spec import Sizing

    own = {"fee_bps", "slippage_bps", "fill", "initial_cash"}
    assert [name for name in set(Costs.model_fields) - own if name not in str(cli_spec.CostOption.help)] == []
    assert [name for name in Sizing.model_fields if name not in str(cli_spec.SizingOption.help)] == []


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("spread_bps=-1", "costs.spread_bps", "-1"),
        ("spread_bps=nan", "costs.spread_bps", "nan"),
        ("spread_bps=inf", "costs.spread_bps", "inf"),
        ("spread_bps=wide", "costs.spread_bps", "wide"),
        ("spraed_bps=1", "costs.spraed_bps", "no such field"),
        ("at_end=sell", "costs.at_end", "sell"),
        ("fee_tiers=0:60", "costs.fee_tiers[0].volume_30d_from", "0"),
        ("fee_tiers=100:40,50:30", "costs.fee_tiers[1].volume_30d_from", "100"),
    ],
)
def test_what_no_cost_can_be_is_refused_by_field_value_and_rule(text: str, field: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        costs_of(text)
    assert caught.value.field == field
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("spread_bps",), "name=value"),
        (("=2",), "name=value"),
        (("spread_bps=",), "name=value"),
        (("spread_bps=1", "spread_bps=2"), "given 2 times"),
        (("fee_bps=10",), "--fee-bps"),
        (("initial_cash=10",), "--cash"),
        (("fee_tiers=40",), "VOLUME:BPS"),
        (("fee_tiers=1:2:3",), "VOLUME:BPS"),
        (("fee_tiers=much:2",), "much"),
        (("fee_tiers=@/no/such/file.csv",), "No such file"),
    ],
)
def test_an_option_that_cannot_be_read_is_refused(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        costs_of(*texts)


@pytest.mark.parametrize("head", ["", "volume_30d_from,fee_bps\n"])
def test_fee_tiers_come_from_a_file(tmp_path: Path, head: str) -> None:
    (tmp_path / "tiers.csv").write_text(f"{head}10000,40\n\n100000,25\n")
    assert costs_of(f"fee_tiers=@{tmp_path}/tiers.csv") == costs_of("fee_tiers=10000:40,100000:25")


def test_sizing_is_read_and_checked_by_its_model() -> None:
    words = ("kind=volatility", "window=60", "min_quantity=0.001", "quantity_increment=1e-4")
    sizing = parse_spec(ONE_SET | cli_spec.sizing(words)).sizing
    assert (sizing.kind, sizing.window, sizing.min_quantity, sizing.quantity_increment) == (
        "volatility",
        60,
        1e-3,
        1e-4,
    )
    assert cli_spec.sizing(()) == {}
    nested = cli_spec.sizing(("quantities.BTC-USD.min_quantity=0.1", "quantities.ETH-USD.min_quantity=2"))
    assert nested == {"sizing": {"quantities": {"BTC-USD": {"min_quantity": 0.1}, "ETH-USD": {"min_quantity": 2}}}}
    with pytest.raises(CommandError, match="a value of its own"):
        cli_spec.sizing(("kind=units", "kind.of=units"))
    for text, field in (("kind=all", "kind"), ("window=1", "window"), ("window=2.5", "window"), ("size=1", "size")):
        with pytest.raises(SpecError, match=rf"sizing\.{field}"):
            parse_spec(ONE_SET | cli_spec.sizing([text]))


def test_the_line_of_costs_shows_all_that_are_on_and_nothing_else() -> None:
    plain = make_spec().model_dump(mode="json")
    assert cli_spec.costs_line(plain) == "costs: fee 60 bp, slippage 5 bp, fills at next open, cash 10000"
    further = {"spread_bps": 2, "fee_tiers": [[10_000, 40], [1e5, 25]], "at_end": "liquidate", "fill": "same_close"}
    full = make_spec(costs=further, sizing={"kind": "volatility", "window": 60}).model_dump(mode="json")
    assert cli_spec.costs_line(full) == (
        "costs: fee 60 bp, slippage 5 bp, fills at same close, cash 10000, fee_tiers 10000:40 100000:25, spread_bps 2, "
        "at_end liquidate; sizing: kind volatility, window 60"
    )
    assert cli_spec.costs_line({"costs": {"fee_bps": 10.0}}).startswith("costs: fee 10 bp, slippage 5 bp")
    assert cli_spec.costs_line({}).startswith("costs: fee 60 bp")
    line = cli_spec.costs_line({"sizing": {"window": 30, "min_quantity": 0.5}})
    assert line.endswith("; sizing: min_quantity 0.5")


def test_products_are_given_one_by_one_or_with_commas() -> None:
    one = cli_spec.period(["BTC-USD"], "ONE_HOUR", None, None, None)
    assert (one["product_id"], "product_ids" in one) == ("BTC-USD", False)
    for texts in (["BTC-USD,ETH-USD,SOL-USD"], ["BTC-USD", "ETH-USD", "SOL-USD"], ["BTC-USD,ETH-USD", "SOL-USD"]):
        several = cli_spec.period(texts, "ONE_HOUR", None, None, None)
        assert (several["product_id"], several["product_ids"]) == ("BTC-USD", ["BTC-USD", "ETH-USD", "SOL-USD"])
