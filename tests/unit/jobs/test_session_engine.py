"""A live session on its own bars: targets as in the backtest, orders once, and a kill at any point changes nothing."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.run_folder import RunError, RunState, replace_file, to_json
from cluster.session_journal import JournalError
from cluster.sessions import StopRequest
from cluster.venue_endpoint import VenueUnavailable
from jobs.session_engine import Session
from jobs.session_orders import Said
from strategies.backtest import run
from strategies.model import NS_PER_S, Bars
from strategies.registry import STRATEGIES
from tests.bar_samples import pick
from tests.session_parts import (
    MINUTE_NS,
    Bench,
    Fuse,
    Killed,
    bench,
    fused,
    minute_bars,
    run_with,
    same_targets,
)

FAST: dict[str, Any] = {"params": {"fast": 2, "slow": 5}}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed loses nothing it has written, so nobody here need wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("name", STRATEGIES)
def test_targets_are_those_of_the_backtest_for_every_strategy(tmp_path: Path, name: str) -> None:
    met = bench(tmp_path, strategy=name, params={}, warmup_bars=150, start=150, bars_max=200)
    assert met.session().run() is RunState.SUCCEEDED
    assert (met.checkpoint.bars, met.checkpoint.live_bars) == (350, 200)
    assert same_targets(met)


def test_thousands_of_bars_and_every_order_once(tmp_path: Path) -> None:
    met = bench(tmp_path, minute_bars(2_100), bars_max=2_000, **FAST)
    met.session().run()
    assert same_targets(met)
    decided = [line["client_order_id"] for line in met.lines("order") if line["event"] == "DECIDED"]
    assert len(decided) > 90
    assert list(met.desk.orders) == decided
    assert [what for what, _ in met.desk.requests].count("submit") == len(decided)


def test_the_position_is_the_target_in_whole_lots_and_the_money_adds_up(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=120, **FAST)
    met.session().run()
    cash, position = Decimal(10_000), Decimal(0)
    for line in met.lines("order"):
        if line["event"] == "FILLED":
            sign = 1 if line["side"] == "BUY" else -1
            position += sign * Decimal(line["filled_quantity"])
            cash -= sign * Decimal(line["filled_value"]) + Decimal(line["fees"])
    assert (Decimal(met.checkpoint.cash), Decimal(met.checkpoint.position)) == (cash, position)
    (first,) = [line for line in met.lines("bar") if line["live"]][:1]
    bought = next(line for line in met.lines("order") if line["event"] == "DECIDED")
    close = next(line for line in met.lines("bar") if line["ts_ns"] == bought["bar_ts_ns"])["close"]
    most = Decimal(first["equity"]) / (Decimal(repr(close)) * Decimal("1.006") * Decimal("1.0005"))
    assert 0 <= most - Decimal(bought["quantity"]) < Decimal("0.00000001")


def test_only_a_change_of_target_makes_an_order(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=200)
    met.session().run()
    changes = 0
    standing = 0.0
    for line in met.lines("bar"):
        wanted = line["target"] or 0.0
        if line["live"] and wanted != standing:
            changes, standing = changes + 1, wanted
    assert met.checkpoint.orders == changes > 0


def test_a_position_begins_with_the_first_live_bar_where_the_target_stands(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=1)
    met.session().run()
    (only,) = met.desk.accepted
    assert only["side"] == "BUY"
    assert met.lines("bar")[-2]["target"] == met.lines("bar")[-1]["target"] == 1.0


def test_each_order_names_the_code_that_decided_also_after_another_code_goes_on(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=2)
    sessions_own = met.session()
    sessions_own._version = "one"
    asked: list[Any] = []
    submit = met.desk.submit

    def killed(body: Mapping[str, Any]) -> Said:
        asked.append(dict(body))
        raise Killed("before it was answered")

    met.desk.submit = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        sessions_own.run()
    met.desk.submit = submit  # type: ignore[method-assign]
    again = met.session()
    again._version = "two"
    again.run()
    assert asked == met.desk.accepted
    assert asked[0]["strategy_version"] == "one"


def test_history_makes_no_orders_and_counts_as_no_live_bar(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=1, warmup_bars=60)
    met.session().run()
    assert [line["live"] for line in met.lines("bar")] == [False] * 60 + [True]
    assert all(int(name.split(".")[1]) * NS_PER_S >= int(met.market.bars.ts_ns[60]) for name in met.desk.orders)


# -- killed at every point ---------------------------------------------------------------------------------------------


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Fuse]:
    return fused(monkeypatch)


def crash_bench(folder: Path) -> Bench:
    """Eight live bars whose target keeps changing; the first exits are denied, so that every kind of request occurs."""
    met = bench(folder, start=82, bars_max=8, params={"fast": 1, "slow": 2}, warmup_bars=30)
    refused_until_ns = int(met.market.bars.ts_ns[86])

    def deny(body: Mapping[str, Any]) -> str:
        early = int(body["client_order_id"].split(".")[1]) * NS_PER_S < refused_until_ns
        return "TRADING_HALTED" if early and body["side"] == "SELL" else ""

    met.desk.deny = deny
    return met


def test_killed_at_every_point_it_goes_on_bit_by_bit_and_sends_nothing_twice(
    tmp_path: Path, points: list[Fuse]
) -> None:
    reference = crash_bench(tmp_path / "whole")
    whole = Fuse()
    assert run_with(reference, points, whole) is RunState.SUCCEEDED
    assert {"before submit", "after check", "after order", "half of journal", "before checkpoint.json"} <= set(
        whole.passed
    )
    events = {line["event"] for line in reference.lines("order")}
    assert events == {"DECIDED", "ACCEPTED", "DENIED", "FILLED"}
    expected = reference.checkpoint.model_copy(update={"journal_bytes": 0})
    assert len(whole.passed) > 100
    for at, name in enumerate(whole.passed):
        points[0] = Fuse()
        met = crash_bench(tmp_path / str(at))
        with pytest.raises(Killed, match=name):
            run_with(met, points, Fuse(at))
        assert run_with(met, points, Fuse()) is RunState.SUCCEEDED
        assert met.story() == reference.story(), (at, name)
        assert met.checkpoint.model_copy(update={"journal_bytes": 0}) == expected, (at, name)
        assert met.desk.orders == reference.desk.orders, (at, name)


def test_killed_again_and_again_it_ends_the_same(tmp_path: Path, points: list[Fuse]) -> None:
    reference = crash_bench(tmp_path / "whole")
    run_with(reference, points, Fuse())
    for step in (43, 51, 62):
        points[0] = Fuse()
        met = crash_bench(tmp_path / f"every-{step}")
        kills, state = 0, None
        while state is None and kills < 100:
            try:
                state = run_with(met, points, Fuse(step + kills % 7))
            except Killed:
                kills += 1
        assert (state, kills >= 2) == (RunState.SUCCEEDED, True), (state, kills)
        assert met.story() == reference.story()
        assert met.desk.orders == reference.desk.orders


# -- going on ----------------------------------------------------------------------------------------------------------


def test_bars_missed_while_it_was_away_are_met_and_only_the_newest_may_trade(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=5, **FAST)
    met.session().run()
    sent = len(met.desk.orders)
    _extend(met, 300)
    met.clock.now_ns = int(met.market.bars.ts_ns[200]) + 1_000_000_000
    met.session().run()
    assert same_targets(met)
    late = [line for line in met.lines("bar") if line["live"] and line["why"] == "TOO_LATE"]
    assert len(late) > 10
    away = [name for name in list(met.desk.orders)[sent:] if int(name.split(".")[1]) * NS_PER_S < met.clock.now_ns]
    assert away
    first_ns = int(away[0].split(".")[1]) * NS_PER_S
    assert first_ns >= int(met.market.bars.ts_ns[199])


def _extend(met: Bench, bars_max: int) -> None:
    """The same session, meant to last longer: as if it had been killed after its first bars."""
    spec = met.folder.spec().model_copy(update={"bars_max": bars_max})
    replace_file(met.folder.spec_file, to_json(spec))


def test_a_journal_that_does_not_fit_the_strategy_is_refused(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=30, **FAST)
    met.session().run()
    spec = met.folder.spec().model_copy(update={"params": {"fast": 3, "slow": 9}, "bars_max": 40})
    replace_file(met.folder.spec_file, to_json(spec))
    with pytest.raises(JournalError, match="strategy's code has changed"):
        met.session().run()


def test_a_state_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=30, **FAST)
    met.session().run()
    leaves = [list(leaf) for leaf in met.checkpoint.strategy_state]
    place = next(i for i, leaf in enumerate(leaves) if leaf[0] in {"float", "float64"})
    leaves[place][1] = (math.nextafter(float.fromhex(leaves[place][1]), math.inf)).hex()
    met.folder.write_checkpoint(met.checkpoint.model_copy(update={"strategy_state": leaves}))
    with pytest.raises(JournalError, match="strategy_state"):
        met.session().run()


# -- the desk --------------------------------------------------------------------------------------------------------


def test_a_denied_entry_is_noted_and_not_sent_again(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=60)
    met.desk.deny = lambda body: "NOTIONAL_EXCEEDS_MAX" if body["side"] == "BUY" else ""
    met.session().run()
    denied = [line for line in met.lines("order") if line["event"] == "DENIED"]
    assert denied
    assert {line["code"] for line in denied} == {"NOTIONAL_EXCEEDS_MAX"}
    assert [what for what, _ in met.desk.requests] == ["submit"] * len(denied)
    assert (met.checkpoint.denied, met.checkpoint.position) == (len(denied), "0")


def test_a_denied_exit_is_tried_again_only_once_the_desk_would_take_it(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=120)
    open_again_ns = 0

    def deny(body: Mapping[str, Any]) -> str:
        nonlocal open_again_ns
        if body["side"] == "BUY" or met.clock.now_ns >= open_again_ns > 0:
            return ""
        open_again_ns = open_again_ns or met.clock.now_ns + 5 * MINUTE_NS
        return "TRADING_HALTED"

    met.desk.deny = deny
    met.session().run()
    asked = [what for what, _ in met.desk.requests]
    assert asked.count("check") == 5
    sells = [line for line in met.lines("order") if line["side"] == "SELL"]
    assert [line["event"] for line in sells[:5]] == ["DECIDED", "DENIED", "DECIDED", "ACCEPTED", "FILLED"]
    assert sells[2]["why"] == "LEFT_OVER"
    assert sells[0]["quantity"] == sells[2]["quantity"]


def test_a_silent_desk_is_asked_again_with_the_same_id_until_it_is_too_late(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=3)
    met.desk.silent = lambda what: what == "submit"
    met.session().run()
    (first,) = {name for what, name in met.desk.requests if what == "submit"}
    assert len(met.desk.requests) > 10
    assert [(line["event"], line.get("code")) for line in met.lines("order")] == [
        ("DECIDED", None),
        ("NOT_SENT", "TOO_LATE"),
    ]
    assert met.desk.orders == {}
    assert met.lines("order")[0]["client_order_id"] == first


def test_an_order_whose_answer_was_lost_is_found_again(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=3)
    real, lost = met.desk.submit, []

    def deaf(body: Mapping[str, Any]) -> Said:
        lost.append(real(body))
        return Said("LATER", "NO_ANSWER")

    met.desk.submit = deaf  # type: ignore[method-assign]
    met.session().run()
    assert [line["event"] for line in met.lines("order")] == ["DECIDED", "ACCEPTED", "FILLED"]
    assert len(met.desk.orders) == 1


def test_while_an_order_is_open_nothing_else_is_sent(tmp_path: Path) -> None:
    met = bench(tmp_path, start=82, bars_max=40, params={"fast": 1, "slow": 2}, warmup_bars=30)
    stuck_until_ns = met.clock.now_ns + 10 * MINUTE_NS
    met.desk.silent = lambda what: what == "order" and met.clock.now_ns < stuck_until_ns
    met.session().run()
    skipped = [line for line in met.lines("bar") if line["live"] and line["why"] == "ORDER_OPEN"]
    assert skipped
    first, second = list(met.desk.orders)[:2]
    assert int(second.split(".")[1]) - int(first.split(".")[1]) >= 9 * 60
    assert same_targets(met)


def test_a_part_that_was_not_filled_is_missed_on_the_way_in_and_made_up_for_on_the_way_out(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=120)
    met.desk.fills = lambda _: Decimal("0.5")
    met.session().run()
    events = [(line["side"], line["event"]) for line in met.lines("order") if line["event"] != "ACCEPTED"]
    assert events[:2] == [("BUY", "DECIDED"), ("BUY", "CANCELLED")]
    sells = [line for line in met.lines("order") if line["event"] == "DECIDED" and line["side"] == "SELL"]
    assert len(sells) > 3
    assert [line["why"] for line in sells[:3]] == ["", "LEFT_OVER", "LEFT_OVER"]
    for before, after in itertools.pairwise(sells[:4]):
        left = Decimal(before["quantity"]) - (Decimal(before["quantity"]) / 2).quantize(Decimal("0.00000001"))
        assert Decimal(after["quantity"]) == left


def test_a_fill_that_comes_after_its_order_has_ended_is_the_sessions_too(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=6)
    late_ns = met.clock.now_ns + 3 * MINUTE_NS
    met.desk.fills = lambda _: Decimal("0.5") if met.clock.now_ns < late_ns else Decimal(1)
    met.session().run()
    (bought,) = met.desk.accepted
    assert Decimal(met.checkpoint.position) == Decimal(bought["quantity"])
    lines = [line for line in met.lines("order") if Decimal(line.get("filled_quantity", "0"))]
    assert [line["event"] for line in lines] == ["CANCELLED", "LATE_FILL"]
    spent = sum(Decimal(line["filled_value"]) + Decimal(line["fees"]) for line in lines)
    assert Decimal(met.checkpoint.cash) == 10_000 - spent
    assert Decimal(met.checkpoint.fees) == sum(Decimal(line["fees"]) for line in lines)


@pytest.mark.parametrize(("long_only", "sells_first"), [(True, False), (False, True)])
def test_a_short_target_is_no_position_unless_risk_shall_decide(
    tmp_path: Path, long_only: bool, sells_first: bool
) -> None:
    params = {"fast": 5, "slow": 21, "allow_short": 1}
    met = bench(tmp_path, start=95, bars_max=60, params=params, long_only=long_only)
    met.desk.deny = lambda body: "SHORT_NOT_ALLOWED" if body["side"] == "SELL" and sells_first else ""
    met.session().run()
    targets = {line["target"] for line in met.lines("bar") if line["live"]}
    assert -1.0 in targets
    assert (next(iter(met.desk.orders.values()))[0]["side"] == "SELL") is sells_first


def test_less_than_the_venue_takes_makes_no_order(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64, bars_max=2, costs={"initial_cash": 0.5})
    met.session().run()
    assert met.lines("bar")[-1]["why"] in {"BELOW_MIN", ""}
    assert next(line["why"] for line in met.lines("bar") if line["live"]) == "BELOW_MIN"
    assert met.desk.requests == []


# -- the venue ---------------------------------------------------------------------------------------------------------


def test_a_venue_that_is_away_is_waited_for(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=30, **FAST)
    away = (met.clock.now_ns + 3 * MINUTE_NS, met.clock.now_ns + 6 * MINUTE_NS)
    problems = []

    def fetch(start_s: int, end_s: int) -> Bars:
        if away[0] <= met.clock.now_ns < away[1]:
            problems.append(met.folder.status().problem)
            raise VenueUnavailable("not reached")
        return met.market.fetch(start_s, end_s)

    assert met.session(fetch).run() is RunState.SUCCEEDED
    assert "no bars: not reached" in problems
    assert met.folder.status().problem == ""
    assert same_targets(met)


def test_a_bar_that_the_venue_corrects_is_told_and_changes_no_target(tmp_path: Path) -> None:
    met = bench(tmp_path, bars_max=20, **FAST)
    wanted = run(met.folder.spec().backtest(), met.market.bars.between(0, 80)).target
    corrected = pick(met.market.bars, slice(None))
    corrected.close[65] = corrected.high[65] = corrected.high[65] + 1

    def fetch(start_s: int, end_s: int) -> Bars:
        met.market.bars = corrected if met.clock.now_ns > int(corrected.ts_ns[68]) else met.market.bars
        return met.market.fetch(start_s, end_s)

    met.session(fetch).run()
    (line,) = met.lines("correction")
    assert (line["what"], line["ts_ns"]) == ("CORRECTED", int(corrected.ts_ns[65]))
    assert (line["close"], met.checkpoint.corrections) == (corrected.close[65], 1)
    found = [math.nan if bar["target"] is None else bar["target"] for bar in met.lines("bar")]
    assert np.array_equal(np.array(found), wanted, equal_nan=True)
    met.session().run()
    assert met.checkpoint.corrections == 1


def test_minutes_without_a_trade_are_absent_and_the_backtest_is_of_the_same_bars(tmp_path: Path) -> None:
    whole = minute_bars(200)
    kept = np.flatnonzero(np.random.default_rng(3).random(200) > 0.3)
    bars = pick(whole, kept)
    start = int(np.searchsorted(kept, 100))
    met = bench(tmp_path, bars, start=start, bars_max=40, warmup_bars=80, **FAST)
    met.session().run()
    first = int(np.searchsorted(bars.ts_ns, met.lines("bar")[0]["ts_ns"]))
    wanted = run(met.folder.spec().backtest(), bars.between(first, first + met.checkpoint.bars)).target
    found = [math.nan if line["target"] is None else line["target"] for line in met.lines("bar")]
    assert np.array_equal(np.array(found), wanted, equal_nan=True)
    assert [line["ts_ns"] for line in met.lines("bar")] == bars.ts_ns[first : first + met.checkpoint.bars].tolist()


# -- the end -----------------------------------------------------------------------------------------------------------


def stop_at(met: Bench, moment_ns: int, flatten: bool) -> Session:
    def fetch(start_s: int, end_s: int) -> Bars:
        if met.clock.now_ns >= moment_ns and not met.folder.stop_file.exists():
            met.folder.write_stop(StopRequest(by="a test", at_ns=met.clock.now_ns, flatten=flatten))
        return met.market.fetch(start_s, end_s)

    return met.session(fetch)


@pytest.mark.parametrize("flatten", [False, True])
def test_a_stopped_session_keeps_its_position_unless_it_shall_be_closed(tmp_path: Path, flatten: bool) -> None:
    met = bench(tmp_path, start=64)
    session = stop_at(met, met.clock.now_ns + 2 * MINUTE_NS, flatten)
    assert session.run() is RunState.STOPPED
    assert met.folder.status().state is RunState.STOPPED
    held = Decimal(met.desk.accepted[0]["quantity"])
    assert Decimal(met.checkpoint.position) == (0 if flatten else held)
    sides = [body["side"] for body in met.desk.accepted]
    assert sides == (["BUY", "SELL"] if flatten else ["BUY"])
    assert met.lines()[-1]["what"] == "stopped"


def test_it_can_be_stopped_while_it_waits_for_the_venue(tmp_path: Path) -> None:
    met = bench(tmp_path)

    def fetch(_: int, __: int) -> Bars:
        met.folder.write_stop(StopRequest(by="a test", at_ns=1))
        raise VenueUnavailable("not reached")

    assert met.session(fetch).run() is RunState.STOPPED
    assert met.folder.checkpoint() is None


def test_a_target_out_of_range_ends_it(tmp_path: Path) -> None:
    met = bench(tmp_path, start=64)
    session = met.session()
    session._on_bar = lambda vector, state, bar: (state, 2.0)
    with pytest.raises(RunError, match="target of the bar"):
        session.run()
