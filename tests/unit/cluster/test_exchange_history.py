"""The seeded price path: exact aggregates, one path whatever the process, clustering, bounded caches."""

from __future__ import annotations

import numpy as np
import pytest

from cluster import exchange_history
from cluster.exchange_history import DAY_S, MARKETS, MINUTE_S, Candles, History
from strategies.model import NS_PER_S, Float64Array, Granularity

# 2025-03-10T13:37:21.123456789Z: in the middle of a minute of a day of no importance.
NOW_NS = 1_741_613_841_123_456_789
NOW_S = NOW_NS // NS_PER_S
TODAY_S = NOW_S // DAY_S * DAY_S


def rows(candles: Candles) -> list[tuple[int, ...]]:
    columns = (candles.start_s, candles.open, candles.high, candles.low, candles.close, candles.volume)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("granularity", list(Granularity))
def test_a_coarse_candle_is_the_exact_aggregate_of_its_minutes(granularity: Granularity) -> None:
    history = History(7)
    start_s = TODAY_S - 2 * DAY_S
    coarse = history.candles("ETH-USD", granularity, start_s, NOW_S + 1, NOW_NS)
    buckets: dict[int, list[tuple[int, ...]]] = {}
    for row in rows(history.candles("ETH-USD", Granularity.ONE_MINUTE, start_s, NOW_S + 1, NOW_NS)):
        buckets.setdefault(row[0] // granularity.seconds * granularity.seconds, []).append(row)
    assert len(coarse) == -(-(NOW_S - start_s) // granularity.seconds)
    for start, opened, high, low, closed, volume in rows(coarse):
        inside = buckets[start]
        assert (opened, closed) == (inside[0][1], inside[-1][4])
        assert (high, low) == (max(row[2] for row in inside), min(row[3] for row in inside))
        assert volume == sum(row[5] for row in inside)


def test_the_path_does_not_depend_on_who_asks_what_first() -> None:
    wanted = ("BTC-USD", Granularity.FIVE_MINUTE, TODAY_S - 3 * DAY_S, TODAY_S, NOW_NS)
    first = History(7)
    second = History(7)
    second.candles("SOL-USD", Granularity.ONE_DAY, TODAY_S - 300 * DAY_S, TODAY_S, NOW_NS)
    second.mid_ticks("BTC-USD", NOW_NS - 30 * DAY_S * NS_PER_S)
    assert rows(first.candles(*wanted)) == rows(second.candles(*wanted))
    later_ns = NOW_NS + 5 * DAY_S * NS_PER_S
    assert rows(first.candles(*wanted)) == rows(History(7).candles(*wanted[:4], later_ns))


def test_seeds_and_products_have_paths_of_their_own() -> None:
    span = (Granularity.ONE_HOUR, TODAY_S - DAY_S, TODAY_S, NOW_NS)
    paths = [rows(History(seed).candles(name, *span)) for seed in (1, 2) for name in MARKETS]
    assert all(paths[i] != paths[j] for i in range(len(paths)) for j in range(i))


def test_the_path_is_continuous_over_minutes_and_days() -> None:
    candles = History(7).candles("BTC-USD", Granularity.ONE_MINUTE, TODAY_S - 3 * DAY_S, TODAY_S, NOW_NS)
    assert (np.diff(candles.start_s) == MINUTE_S).all()
    assert (candles.open[1:] == candles.close[:-1]).all()
    assert (candles.low <= np.minimum(candles.open, candles.close)).all()
    assert (candles.high >= np.maximum(candles.open, candles.close)).all()
    assert (candles.low > 0).all()
    assert (candles.volume > 0).all()


def test_a_running_minute_grows_into_the_finished_one() -> None:
    history = History(7)
    begin_s = NOW_S // MINUTE_S * MINUTE_S

    def seen(now_ns: int) -> tuple[int, ...]:
        return rows(history.candles("BTC-USD", Granularity.ONE_MINUTE, begin_s, begin_s + MINUTE_S, now_ns))[0]

    finished = seen((begin_s + MINUTE_S) * NS_PER_S)
    before = seen(begin_s * NS_PER_S + NS_PER_S // 10)
    for step in range(1, 600):
        now_ns = begin_s * NS_PER_S + step * NS_PER_S // 10
        _, opened, high, low, closed, volume = running = seen(now_ns)
        assert (running[0], opened) == finished[:2]
        assert before[2] <= high <= finished[2]
        assert finished[3] <= low <= before[3]
        assert before[5] <= volume <= finished[5]
        assert closed == history.mid_ticks("BTC-USD", now_ns)
        before = running
    # A nanosecond before its end the minute lacks at most the last tick of its way.
    last = seen((begin_s + MINUTE_S) * NS_PER_S - 1)
    assert max(abs(a - b) for a, b in zip(last[1:5], finished[1:5], strict=True)) <= 1


def test_a_minute_without_volume_yet_is_not_there() -> None:
    begin_s = NOW_S // MINUTE_S * MINUTE_S
    candles = History(7).candles("BTC-USD", Granularity.ONE_MINUTE, begin_s, begin_s + 60, begin_s * NS_PER_S)
    assert len(candles) == 0


@pytest.mark.parametrize(
    ("start_s", "stop_s", "first_s", "expected"),
    [
        (TODAY_S, TODAY_S, 0, []),
        (TODAY_S + 3600, TODAY_S, 0, []),
        (TODAY_S, TODAY_S + 1, 0, [TODAY_S]),
        (TODAY_S + 1, TODAY_S + 3601, 0, [TODAY_S + 3600]),
        (NOW_S + 3600, NOW_S + 7200, 0, []),
        (TODAY_S - 7200, TODAY_S + 1, TODAY_S, [TODAY_S]),
        (0, TODAY_S + 1, TODAY_S, [TODAY_S]),
    ],
)
def test_only_candles_that_begin_inside_the_asked_and_known_span_are_given(
    start_s: int, stop_s: int, first_s: int, expected: list[int]
) -> None:
    candles = History(7).candles("BTC-USD", Granularity.ONE_HOUR, start_s, stop_s, NOW_NS, first_s)
    assert candles.start_s.tolist() == expected


def test_volatility_clusters_and_tails_are_fat() -> None:
    for name in MARKETS:
        hours = History(7).candles(name, Granularity.ONE_HOUR, TODAY_S - 365 * DAY_S, TODAY_S, NOW_NS)
        returns = np.diff(np.log(hours.close))
        assert autocorrelation(np.abs(returns), 1) > 0.1
        assert autocorrelation(np.abs(returns), 24) > 0.03
        assert abs(autocorrelation(returns, 1)) < 0.05
        centred = returns - returns.mean()
        assert (centred**4).mean() / (centred**2).mean() ** 2 > 4.0


def autocorrelation(values: Float64Array, lag: int) -> float:
    return float(np.corrcoef(values[lag:], values[:-lag])[0, 1])


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_no_seed_leaves_the_range_of_a_plausible_price(seed: int) -> None:
    history = History(seed)
    for name, market in MARKETS.items():
        long_run = market.price / float(market.product.quote_increment)
        for years in range(0, 12, 3):
            mid = history.mid_ticks(name, NOW_NS - years * 365 * DAY_S * NS_PER_S)
            assert long_run / 20 < mid < long_run * 20


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_history, "_CACHED_DAYS", 5)
    history = History(7)
    long_ago = rows(history.candles("BTC-USD", Granularity.ONE_DAY, TODAY_S - 20 * DAY_S, TODAY_S, NOW_NS))
    assert len(history._days) == 5
    assert len(history._node_days) <= exchange_history._CACHED_NODE_DAYS
    assert rows(history.candles("BTC-USD", Granularity.ONE_DAY, TODAY_S - 20 * DAY_S, TODAY_S, NOW_NS)) == long_ago


def test_a_day_beyond_the_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match="day: expected 0"):
        History(7).mid_ticks("BTC-USD", 36_600 * DAY_S * NS_PER_S)
