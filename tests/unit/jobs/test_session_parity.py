"""A session beside its backtest: what differs is named, and slippage is reckoned against the model's price."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.run_folder import RunError
from jobs.session_parity import DIFFERS, REFUSED, SAME, compare, main
from tests.session_parts import MINUTE_NS, Bench, bench

FAST: dict[str, Any] = {"params": {"fast": 2, "slow": 5}}


def rewrite(met: Bench, change: Any) -> None:
    """The journal with each line changed; the checkpoint counts it again."""
    lines = [change(line) for line in met.lines()]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    met.folder.journal_file.write_bytes(data)
    met.folder.write_checkpoint(met.checkpoint.model_copy(update={"journal_bytes": len(data)}))


def test_targets_that_are_the_backtests_are_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    met = bench(tmp_path, bars_max=100, **FAST)
    met.session().run()
    capsys.readouterr()
    assert main(["--session-dir", str(met.folder.path), "--json"]) == SAME
    found = json.loads(capsys.readouterr().out)
    assert (found["differences"], found["first_difference"], found["bars"], found["live_bars"]) == (0, None, 160, 100)
    # The double fills at the very price the model assumes, before its slippage of 5 basis points.
    assert (found["median_bps"], found["total_cost"]) == (0.0, 0.0)
    assert found["mean_model_bps"] == pytest.approx(-5, abs=0.01)
    assert found["fees"] == pytest.approx(float(met.checkpoint.fees))
    assert found["session_equity"] == float(met.checkpoint.equity)
    assert found["session_equity"] == pytest.approx(found["model_equity"], rel=0.02)


@pytest.mark.parametrize("value", [0.5, None, 5e-324])
def test_the_first_target_that_differs_is_named_however_little(
    tmp_path: Path, value: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    met = bench(tmp_path, bars_max=40, **FAST)
    met.session().run()
    place = next(i for i, line in enumerate(met.lines("bar")) if i > 70 and line["target"] == 0.0)
    ts_ns = met.lines("bar")[place]["ts_ns"]
    rewrite(met, lambda line: line | {"target": value} if line.get("ts_ns") == ts_ns else line)
    assert main(["--session-dir", str(met.folder.path)]) == DIFFERS
    assert "1 differences" in capsys.readouterr().out
    first = compare(met.folder).first_difference
    assert first is not None
    assert (first.bar, first.ts_ns, first.session, first.backtest) == (place, ts_ns, value, 0.0)


@pytest.mark.parametrize(
    ("side", "factor", "bps"),
    [("BUY", "1.001", 10), ("BUY", "0.999", -10), ("SELL", "0.998", 20), ("SELL", "1.002", -20)],
)
def test_slippage_is_above_0_where_the_session_did_worse(tmp_path: Path, side: str, factor: str, bps: float) -> None:
    met = bench(tmp_path, bars_max=100)
    met.session().run()

    def worse(line: dict[str, Any]) -> dict[str, Any]:
        if line.get("event") != "FILLED" or line["side"] != side:
            return line
        return line | {"filled_value": f"{Decimal(line['filled_value']) * Decimal(factor):f}"}

    rewrite(met, worse)
    changed = [one for one in compare(met.folder).slippage if one.side == side]
    assert changed
    for one in changed:
        assert one.reference_bps == pytest.approx(bps)
        assert one.cost == pytest.approx(one.quantity * (one.reference or 0) * bps / 1e4)


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_the_models_price_is_that_of_its_rule_and_the_newest_fill_may_wait_for_it(tmp_path: Path, fill: str) -> None:
    met = bench(tmp_path, start=64, bars_max=1, costs={"fill": fill})
    met.session().run()
    (one,) = compare(met.folder).slippage
    bars = met.market.bars
    assert one.reference == (None if fill == "next_open" else float(bars.close[64]))
    met.clock.now_ns += MINUTE_NS
    spec = met.folder.spec().model_copy(update={"bars_max": 2})
    met.folder.spec_file.write_text(spec.model_dump_json())
    met.session().run()
    (one,) = compare(met.folder).slippage
    assert one.reference == float(bars.open[65] if fill == "next_open" else bars.close[64])


def test_the_picture_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=60, **FAST)
    met.session().run()
    page = Path(compare(met.folder).picture).read_text()
    assert "default-src 'none'" in page
    assert "SIMULATED" in page
    assert "%DATA%" not in page
    assert met.checkpoint.live_bars == 60
    assert page.count("<tr>") == 1 + met.checkpoint.filled


def test_a_session_without_a_live_bar_is_compared_and_one_that_has_not_begun_is_refused(tmp_path: Path) -> None:
    met = bench(tmp_path)
    with pytest.raises(RunError, match="has begun"):
        compare(met.folder)
    assert main(["--session-dir", str(tmp_path / "nowhere")]) == REFUSED
    session = met.session()
    assert session._begun()
    found = compare(met.folder)
    assert (found.differences, found.bars, found.live_bars, found.fills) == (0, 60, 0, 0)
