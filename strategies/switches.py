"""Many parameter sets at once, paid for by the change of target and not by the bar.

For strategies that declare ``Switches`` and sets in the plain case (``kernel.plain``). Orders are carried out by
``kernel.carry_out`` itself, so fills and equity are those of the general loop to the last bit. Between two orders the
equity is ``cash + units * close``, and nobody needs its single values:

- The deepest drawdown asks for the highest and the lowest close of a stretch: two look-ups each in a table of extremes
  over powers of two (M. A. Bender and M. Farach-Colton, "The LCA problem revisited", 2000). Rounding is monotone, so
  the highest equity is that of the highest close. Only a stretch that reaches the old peak is looked at bar by bar.
- All in and long, cash is 0 but for rounding: the returns are the market's, and their sums are differences of running
  sums that begin anew with each tile. Short, or with a part of the cash, the returns are summed over the stretch.

Differences lose digits where a stretch is tiny beside the rest of its tile. The loss is bounded (``_trustworthy``); a
set beyond the bound, like one that is ruined or leaves the doubles, is *refused*, and the general loop runs it.
Memory: tables of a few thousand bars, and some thirty numbers for each set.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from strategies.base import Strategy
from strategies.compiled import compiled, compiled_sums, read_only
from strategies.kernel import Book, Terms, carry_out
from strategies.metrics import (
    EQUAL_WITHIN,
    METRICS,
    MOMENTS,
    Tallies,
    drawdown,
    max_drawdown_bars,
    metrics_of,
)
from strategies.model import Float64Array, Int64Array
from strategies.tables import WORD, Changes, Series, Windows, leading_zeros

# Bars of a tile. It must not follow from the sets of a block: the running sums begin anew with each tile, so a set's
# last digits would depend on which others it is computed with, and a sweep's table on how it was cut.
TILE_BARS: Final = 1024
# Sets whose changes are kept at once; each may change on every bar of a tile.
SETS_AT_ONCE: Final = 1024

# A position is all in where the cash beside it is rounding, at its lowest too: the returns are the market's to as much.
NO_CASH: Final = 1e-14
# Below this an equity has lost digits, and with them the proportion to the close.
SMALLEST_EQUITY: Final = 1e-280
# Drawdowns less deep than this are looked at bar by bar: 1e-12 (EQUAL_WITHIN) of them could be seen.
SHALLOW: Final = 0.01
# Bounds of ``_trustworthy``.
LEAST_SHARE: Final = 1e-3
LEAST_DEVIATION: Final = 1e-6

# One set between two tiles. ``part_*`` are of the segment in hand; ``reach`` are the sums of all tiles looked up in.
ACCOUNT: Final = np.dtype(
    [(name, np.float64) for name in ("cash", "units", "stake", "traded_fractions", "gross_profit", "gross_loss")]
    + [(name, np.int64) for name in ("trades", "wins", "peak_bar", "deepest_bars", "bars_held")]
    + [(name, np.float64) for name in ("equity", "peak", "deepest", "sum1", "sum2", "losses2")]
    + [(name, np.float64) for name in ("reach2", "reach_losses2", "part_sum1", "part_sum2", "part_sum3", "part_sum4")]
    + [(name, np.float64) for name in ("part_equity",)]
    + [(name, np.int64) for name in ("is_deepest", "refused")]
)


class Tile(NamedTuple):
    """Bars ``begin`` to before ``begin + bars``, and what can be looked up of them.

    ``sums`` float64[bars + 1, 4 or 8], where wanted: of the market's returns before a bar, their squares, squared
    losses, third and fourth powers (and nothing, up to a line of the cache). ``extremes`` float64[levels, 2, bars]:
    highest and lowest close of the ``2**level`` bars from a bar on.
    """

    begin: int
    bars: int
    price: Float64Array
    close: Float64Array
    sums: Float64Array
    extremes: Float64Array


class Curve(NamedTuple):
    """The equity curve up to a bar; ``sound`` is False from where only the general loop can go on."""

    equity: float
    peak: float
    peak_bar: int
    deepest: float
    deepest_bars: int
    is_deepest: bool
    bars_held: int
    sound: bool


class Sums(NamedTuple):
    """Sums over returns within a tile: powers 1 to 4, squared losses; ``looked_up`` where running sums were used."""

    one: float
    two: float
    losses: float
    three: float
    four: float
    looked_up: bool


def applies(strategy: Strategy) -> bool:
    """Whether this engine can run ``strategy`` at all (without a compiler it cannot: there are no words of bits)."""
    return strategy.switches is not None and not cast(Any, config).DISABLE_JIT


def account_block(
    strategy: Strategy, rows: Float64Array, series: Series, terms: Terms, years: float, cuts: Int64Array
) -> tuple[Float64Array, Float64Array, NDArray[np.bool_]]:
    """Metrics float64[m, 13], moments float64[m, S, 6], refused bool[m] for own parameters ``rows`` float64[m, k].

    ``cuts`` int64[S + 1], or empty; a refused row's results mean nothing: the general loop has to run it.
    """
    block = _Block(strategy, rows, series, terms, cuts)
    segment = 0
    for begin, end in block.tiles():
        block.advance(begin, end)
        if cuts.size and end == cuts[segment + 1]:
            _end_segment(block.accounts, int(cuts[segment]), end, block.moments, segment)
            segment += 1
    metrics = np.empty((len(rows), len(METRICS)))
    refused = np.zeros(len(rows), dtype=np.bool_)
    _finish(block.accounts, series.close.size, terms.initial_cash, years, metrics, refused)
    return metrics, block.moments, refused


class _Block:
    """The arrays of one call: table, changes, look-ups and accounts; all of bounded size but the accounts."""

    def __init__(
        self,
        strategy: Strategy,
        rows: Float64Array,
        series: Series,
        terms: Terms,
        cuts: Int64Array,
    ) -> None:
        switches = strategy.switches
        if switches is None:
            raise AssertionError(f"{strategy.name} has no switches")
        self.switches, self.rows, self.series, self.terms, self.cuts = switches, read_only(rows), series, terms, cuts
        columns = [strategy.params.names().index(name) for name in switches.windows]
        sizes, places = np.unique(rows[:, columns].astype(np.int64), return_inverse=True)
        self.places = np.ascontiguousarray(places.reshape(len(rows), len(columns)).astype(np.int64))
        per_bar, fixed = switches.memory
        needs = per_bar * sizes + fixed
        self.windows = Windows(sizes, np.cumsum(needs) - needs, np.zeros(int(needs.sum())))
        self.width = tile_bars(series.close.size)
        self.table = np.zeros((sizes.size, switches.lines, self.width))
        self.at_once = min(len(rows), SETS_AT_ONCE)
        most = self.at_once * self.width
        self.changes = Changes(np.zeros(self.at_once + 1, dtype=np.int64), np.empty(most, np.int64), np.empty(most))
        self.sums = np.zeros((self.width + 1, 8 if cuts.size else 4))
        self.extremes = np.empty((self.width.bit_length(), 2, self.width))
        self.carried = np.zeros((len(rows), 2))
        self.accounts = np.zeros(len(rows), dtype=ACCOUNT)
        for name in ("cash", "equity", "peak", "part_equity"):
            self.accounts[name] = terms.initial_cash
        self.moments = np.empty((len(rows), max(cuts.size - 1, 0), len(MOMENTS)))

    def tiles(self) -> list[tuple[int, int]]:
        """(begin, end) of the tiles in order; none goes across a cut."""
        length = self.series.close.size
        borders = self.cuts.tolist() if self.cuts.size else [0, length]
        starts = [at for a, b in itertools.pairwise(borders) for at in range(a, b, self.width)]
        return list(zip(starts, [*starts[1:], length], strict=True))

    def advance(self, begin: int, end: int) -> None:
        """All sets over the bars from ``begin`` to before ``end``; next-open fills were decided one bar before."""
        lag = 0 if self.terms.same_close else 1
        first, last = max(begin - lag, 0), end - lag
        price = self.series.close if self.terms.same_close else self.series.open
        tile = Tile(begin, end - begin, price, self.series.close, self.sums, self.extremes)
        _survey(tile)
        if last > first:
            self.switches.table(self.series, first, last, self.windows, self.table)
        for low in range(0, len(self.rows), self.at_once):
            high = min(low + self.at_once, len(self.rows))
            if last > first:
                some = (self.rows[low:high], self.places[low:high])
                self.switches.scan(*some, self.table, self.series, first, last, self.carried[low:high], self.changes)
            else:
                self.changes.first[:] = 0
            _advance(self.accounts[low:high], self.changes, first + lag - begin, tile, self.terms)


def tile_bars(length: int) -> int:
    """How many bars a tile has in a series of so many: a power of two."""
    return min(TILE_BARS, int(2 ** math.ceil(math.log2(max(length, WORD)))))


@compiled
def _survey(tile: Tile) -> None:
    """Fill the look-ups of ``tile``."""
    sum1 = sum2 = losses = sum3 = sum4 = 0.0
    powers = tile.sums.shape[1] > 4
    for i in range(tile.bars):
        at = tile.begin + i
        change = tile.close[at] / tile.close[at - 1] - 1.0 if at > 0 else 0.0
        square = change * change
        sum1 += change
        sum2 += square
        losses += square if change < 0.0 else 0.0
        tile.sums[i + 1, 0] = sum1
        tile.sums[i + 1, 1] = sum2
        tile.sums[i + 1, 2] = losses
        if powers:
            sum3 += square * change
            sum4 += square * square
            tile.sums[i + 1, 3] = sum3
            tile.sums[i + 1, 4] = sum4
    for side in range(2):
        tile.extremes[0, side, : tile.bars] = tile.close[tile.begin : tile.begin + tile.bars]
    level = 1
    while 2**level <= tile.bars:
        half = 2 ** (level - 1)
        _join(tile.extremes[level - 1], tile.extremes[level], half, tile.bars - 2 * half + 1)
        level += 1


@compiled
def _join(parts: Float64Array, whole: Float64Array, half: int, count: int) -> None:
    for i in range(count):
        one, other = parts[0, i], parts[0, i + half]
        whole[0, i] = one if one > other else other
    for i in range(count):
        one, other = parts[1, i], parts[1, i + half]
        whole[1, i] = one if one < other else other


@compiled
def _advance(accounts: NDArray[Any], changes: Changes, offset: int, tile: Tile, terms: Terms) -> None:
    """Move every account over ``tile``; the changes' bars, plus ``offset``, are the bars of their fills in the tile."""
    for s in range(accounts.size):
        account = accounts[s]
        if account.refused:
            continue
        book = _book_of(account)
        curve = _curve_of(account)
        sums = Sums(0.0, 0.0, 0.0, 0.0, 0.0, False)
        here = 0
        filled = False
        for j in range(changes.first[s], changes.first[s + 1]):
            bar = changes.bar[j] + offset
            if bar > here:
                curve, sums = _pass(book, curve, sums, tile, here, bar, filled)
            book, _ = carry_out(book, changes.target[j], tile.price[tile.begin + bar], terms.fee, terms.slippage)
            here = bar
            filled = True
        curve, sums = _pass(book, curve, sums, tile, here, tile.bars, filled)
        if book.ruined or not curve.sound:
            account.refused = 1
        else:
            _keep(account, book, curve, sums, tile)


@compiled
def _book_of(account: Any) -> Book:
    return Book(
        account.cash,
        account.units,
        account.stake,
        account.traded_fractions,
        account.trades,
        account.wins,
        account.gross_profit,
        account.gross_loss,
        False,
    )


@compiled
def _curve_of(account: Any) -> Curve:
    return Curve(
        account.equity,
        account.peak,
        account.peak_bar,
        account.deepest,
        account.deepest_bars,
        account.is_deepest != 0,
        account.bars_held,
        True,
    )


@compiled
def _keep(account: Any, book: Book, curve: Curve, sums: Sums, tile: Tile) -> None:
    account.cash = book.cash
    account.units = book.units
    account.stake = book.stake
    account.traded_fractions = book.traded_fractions
    account.trades = book.trades
    account.wins = book.wins
    account.gross_profit = book.gross_profit
    account.gross_loss = book.gross_loss
    account.equity = curve.equity
    account.peak = curve.peak
    account.peak_bar = curve.peak_bar
    account.deepest = curve.deepest
    account.deepest_bars = curve.deepest_bars
    account.is_deepest = 1 if curve.is_deepest else 0
    account.bars_held = curve.bars_held
    account.sum1 += sums.one
    account.sum2 += sums.two
    account.losses2 += sums.losses
    if sums.looked_up:
        account.reach2 += tile.sums[tile.bars, 1]
        account.reach_losses2 += tile.sums[tile.bars, 2]
    account.part_sum1 += sums.one
    account.part_sum2 += sums.two
    account.part_sum3 += sums.three
    account.part_sum4 += sums.four


@compiled
def _pass(book: Book, curve: Curve, sums: Sums, tile: Tile, here: int, stop: int, filled: bool) -> tuple[Curve, Sums]:
    """The bars from ``here`` to before ``stop`` with one book; ``filled`` says that it is new on the first of them."""
    begin = tile.begin
    if book.units == 0.0:
        if filled and begin + here > 0:
            sums = _with_return(sums, book.cash / curve.equity - 1.0)
        return _stand(curve, book.cash, begin + here, begin + stop - 1), sums
    entry = book.cash + book.units * tile.close[begin + here]
    from_bar = here
    if filled:
        from_bar = here + 1
        if begin + here > 0:
            sums = _with_return(sums, entry / curve.equity - 1.0)
    highest, lowest = _range_of(book, tile, here, stop)
    if abs(book.cash) <= NO_CASH * (lowest if filled else min(lowest, curve.equity)):
        sums = _with_running_sums(sums, tile, from_bar, stop)
    else:
        sums = _with_stretch(sums, book.cash, book.units, tile, from_bar, stop)
    return _fall(book, curve, tile, here, stop, highest, lowest), sums


@compiled
def _with_return(sums: Sums, change: float) -> Sums:
    square = change * change
    losses = sums.losses + (square if change < 0.0 else 0.0)
    three = sums.three + square * change
    return Sums(sums.one + change, sums.two + square, losses, three, sums.four + square * square, sums.looked_up)


@compiled
def _with_running_sums(sums: Sums, tile: Tile, here: int, stop: int) -> Sums:
    """The market's own returns of the bars from ``here`` to before ``stop``."""
    to, start = tile.sums[stop], tile.sums[here]
    three = sums.three
    four = sums.four
    if tile.sums.shape[1] > 4:
        three += to[3] - start[3]
        four += to[4] - start[4]
    return Sums(
        sums.one + (to[0] - start[0]),
        sums.two + (to[1] - start[1]),
        sums.losses + (to[2] - start[2]),
        three,
        four,
        True,
    )


@compiled
def _with_stretch(sums: Sums, cash: float, units: float, tile: Tile, here: int, stop: int) -> Sums:
    """The returns of ``cash + units * close`` on the bars from ``here`` to before ``stop``, one by one."""
    first = tile.begin + here
    last = tile.begin + stop
    one, two, losses = _stretch_sums(tile.close, cash, units, first, last)
    three = sums.three
    four = sums.four
    if tile.sums.shape[1] > 4:
        more_three, more_four = _stretch_powers(tile.close, cash, units, first, last)
        three += more_three
        four += more_four
    return Sums(sums.one + one, sums.two + two, sums.losses + losses, three, four, sums.looked_up)


@compiled_sums
def _stretch_sums(close: Float64Array, cash: float, units: float, first: int, last: int) -> tuple[float, float, float]:
    one = two = losses = 0.0
    now, before = close[first:last], close[first - 1 : last - 1]
    for i in range(now.size):
        change = (cash + units * now[i]) / (cash + units * before[i]) - 1.0
        square = change * change
        one += change
        two += square
        losses += square if change < 0.0 else 0.0
    return one, two, losses


@compiled_sums
def _stretch_powers(close: Float64Array, cash: float, units: float, first: int, last: int) -> tuple[float, float]:
    three = four = 0.0
    now, before = close[first:last], close[first - 1 : last - 1]
    for i in range(now.size):
        change = (cash + units * now[i]) / (cash + units * before[i]) - 1.0
        square = change * change
        three += square * change
        four += square * square
    return three, four


@compiled
def _stand(curve: Curve, cash: float, first: int, last: int) -> Curve:
    """Without a position on the bars ``first`` to ``last``: all of them are alike."""
    peak, peak_bar, deepest, deepest_bars, is_deepest = (
        curve.peak,
        curve.peak_bar,
        curve.deepest,
        curve.deepest_bars,
        curve.is_deepest,
    )
    if cash >= peak * (1.0 - EQUAL_WITHIN):
        if is_deepest:
            deepest_bars = max_drawdown_bars(peak_bar, first)
        peak = max(cash, peak)
        peak_bar = last
        is_deepest = False
    elif cash < peak * (1.0 - EQUAL_WITHIN - deepest):
        deepest = drawdown(cash, peak)
        is_deepest = True
    sound = curve.sound and SMALLEST_EQUITY < cash < math.inf
    return Curve(cash, peak, peak_bar, deepest, deepest_bars, is_deepest, curve.bars_held, sound)


@compiled
def _fall(book: Book, curve: Curve, tile: Tile, here: int, stop: int, highest: float, lowest: float) -> Curve:
    """With a position: the drawdown, from the highest and the lowest equity alone where it can be told from them."""
    # At a ruin, or where an equity is no number, the general loop takes over from the first bar on.
    sound = curve.sound and lowest > EQUAL_WITHIN * abs(book.cash) and lowest > SMALLEST_EQUITY and highest < math.inf
    held = curve.bars_held + stop - here
    deepest = curve.deepest
    is_deepest = curve.is_deepest
    if highest >= curve.peak * (1.0 - EQUAL_WITHIN):
        curve = _by_bars(book, curve, tile, here, stop)
        deepest = curve.deepest
        is_deepest = curve.is_deepest
    elif lowest < curve.peak * (1.0 - EQUAL_WITHIN - deepest):
        deepest = drawdown(lowest, curve.peak)
        is_deepest = True
        if deepest < SHALLOW:
            curve = _by_bars(book, curve, tile, here, stop)
            deepest = curve.deepest
    equity = book.cash + book.units * tile.close[tile.begin + stop - 1]
    return Curve(equity, curve.peak, curve.peak_bar, deepest, curve.deepest_bars, is_deepest, held, sound)


@compiled
def _range_of(book: Book, tile: Tile, here: int, stop: int) -> tuple[float, float]:
    """Highest and lowest equity on the bars from ``here`` to before ``stop``."""
    level = 63 - leading_zeros(np.uint64(stop - here))
    other = stop - (1 << level)
    top, bottom = tile.extremes[level, 0], tile.extremes[level, 1]
    high = top[here] if top[here] > top[other] else top[other]
    low = bottom[here] if bottom[here] < bottom[other] else bottom[other]
    if book.units < 0.0:
        high, low = low, high
    return book.cash + book.units * high, book.cash + book.units * low


@compiled
def _by_bars(book: Book, curve: Curve, tile: Tile, here: int, stop: int) -> Curve:
    """The drawdown as the general loop follows it; pieces of 64 bars in which nothing can happen are passed over."""
    peak, peak_bar, deepest, deepest_bars, is_deepest = (
        curve.peak,
        curve.peak_bar,
        curve.deepest,
        curve.deepest_bars,
        curve.is_deepest,
    )
    for piece in range(here, stop, WORD):
        end = min(piece + WORD, stop)
        highest, lowest = _range_of(book, tile, piece, end)
        if highest < peak * (1.0 - EQUAL_WITHIN) and lowest >= peak * (1.0 - EQUAL_WITHIN - deepest):
            continue
        for i in range(tile.begin + piece, tile.begin + end):
            equity = book.cash + book.units * tile.close[i]
            if equity >= peak * (1.0 - EQUAL_WITHIN):
                if is_deepest:
                    deepest_bars = max_drawdown_bars(peak_bar, i)
                peak = max(equity, peak)
                peak_bar = i
                is_deepest = False
            elif equity < peak * (1.0 - EQUAL_WITHIN - deepest):
                deepest = drawdown(equity, peak)
                is_deepest = True
    return Curve(curve.equity, peak, peak_bar, deepest, deepest_bars, is_deepest, curve.bars_held, curve.sound)


@compiled
def _end_segment(accounts: NDArray[Any], first: int, end: int, moments: Float64Array, segment: int) -> None:
    """Write the segment of bars ``first`` to before ``end`` into ``moments`` float64[m, S, 6]; the next one begins."""
    for s in range(accounts.size):
        account = accounts[s]
        moments[s, segment, 0] = end - first - (1 if first == 0 else 0)
        moments[s, segment, 1], moments[s, segment, 2] = account.part_sum1, account.part_sum2
        moments[s, segment, 3], moments[s, segment, 4] = account.part_sum3, account.part_sum4
        moments[s, segment, 5] = math.log(account.equity / account.part_equity)
        account.part_sum1 = account.part_sum2 = account.part_sum3 = account.part_sum4 = 0.0
        account.part_equity = account.equity


@compiled
def _finish(
    accounts: NDArray[Any],
    bars: int,
    initial_cash: float,
    years: float,
    metrics: Float64Array,
    refused: NDArray[np.bool_],
) -> None:
    for s in range(accounts.size):
        account = accounts[s]
        mean = account.sum1 / (bars - 1) if bars > 1 else math.nan
        squared_deviations = max(account.sum2 - mean * account.sum1, 0.0)
        refused[s] = account.refused != 0 or not _trustworthy(account, squared_deviations, bars)
        length = max_drawdown_bars(account.peak_bar, bars - 1) if account.is_deepest else account.deepest_bars
        tallies = Tallies(
            bars,
            initial_cash,
            account.equity,
            mean,
            squared_deviations,
            account.losses2,
            account.deepest,
            length,
            account.bars_held,
            account.traded_fractions,
            account.trades,
            account.wins,
            account.gross_profit,
            account.gross_loss,
        )
        metrics[s] = metrics_of(tallies, years)


@compiled
def _trustworthy(account: Any, squared_deviations: float, bars: int) -> bool:
    """Whether the sums are good to 1e-9 of themselves.

    A difference of running sums is wrong by up to 2**-53 of the tile's sum for each bar of the tile: what a set held
    must be a fair share of what its tiles moved. Its variance must not be the small difference of two large sums, nor
    its returns so small that the rounding of each (2e-16) shows.
    """
    if account.bars_held == 0:
        return True
    deviation = math.sqrt(squared_deviations / (bars - 2)) if bars > 2 else 0.0
    return (
        deviation >= LEAST_DEVIATION
        and account.sum2 < math.inf
        and squared_deviations >= LEAST_SHARE * account.sum2
        and account.sum2 >= LEAST_SHARE * account.reach2
        and account.losses2 >= LEAST_SHARE * account.reach_losses2
        and (account.losses2 == 0.0 or account.losses2 >= LEAST_DEVIATION * LEAST_DEVIATION * (bars - 1))
    )
