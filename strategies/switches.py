"""Many parameter sets at once, paid for by the change of target and not by the bar.

For strategies that declare ``Switches`` and sets in the plain case (``kernel.plain``). Orders are carried out by the
operations of ``kernel.carry_out`` in their order, so fills and equity are those of the general loop to the last bit.
Between two orders the equity is ``cash + units * close``, and nobody needs its single values:

- The deepest drawdown asks for the highest and the lowest close of a stretch: two look-ups each in a table of extremes
  over powers of two (M. A. Bender and M. Farach-Colton, "The LCA problem revisited", 2000). Rounding is monotone, so
  the highest equity is that of the highest close. Only a stretch that reaches the old peak is looked at bar by bar.
- All in and long, cash is 0 but for rounding: the returns are the market's, and their sums are differences of running
  sums that begin anew with each tile. Short, or with a part of the cash, the returns are summed over the stretch.

Differences lose digits where a stretch is tiny beside the rest of its tile. The loss is bounded (``_trustworthy``); a
set beyond the bound, like one that is ruined or leaves the doubles, is *refused*, and the general loop runs it.
Memory: tables of a few thousand bars, and some thirty numbers for each set.

What happens at a change is written out within one loop (``compiled_step``), without arrays whose references would be
counted (``tables.address``) and without branches on what nobody can foresee: 25 to 30 ns a change instead of 110.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.base import Strategy
from strategies.compiled import compiled, compiled_step, compiled_sums
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
from strategies.scans import Scan
from strategies.tables import WORD, Changes, Series, address, addresses, leading_zeros

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
    """Bars ``begin`` to before ``begin + bars``, and what can be looked up of them; arrays are by their addresses.

    ``sums`` has ``columns`` 4 or 8 values for each bar, and for the one after the last: sums over the bars before it of
    the market's returns, their squares, squared losses, third and fourth powers (and nothing, up to a line of the
    cache). ``extremes`` has ``width`` pairs a level: highest close of the ``2**level`` bars from a bar on, and the
    lowest one negated.
    """

    begin: int
    bars: int
    columns: int
    width: int
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


def account_block(
    strategy: Strategy, rows: Float64Array, series: Series, terms: Terms, years: float, cuts: Int64Array
) -> tuple[Float64Array, Float64Array, NDArray[np.bool_]]:
    """Metrics float64[m, 13], moments float64[m, S, 6], refused bool[m] for own parameters ``rows`` float64[m, k].

    ``cuts`` int64[S + 1], or empty; a refused row's results mean nothing: the general loop has to run it.
    """
    block = _Block(strategy, rows, series, terms, cuts)
    segment = 0
    for begin, end in block.reaches():
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
        self.rows, self.series, self.terms, self.cuts = rows, series, terms, cuts
        self.scan = Scan(strategy, rows, series)
        width = self.scan.width
        self.sums = np.zeros((width + 1, 8 if cuts.size else 4))
        self.extremes = np.empty((width.bit_length(), 2 * width))
        self.accounts = np.zeros(len(rows), dtype=ACCOUNT)
        for name in ("cash", "equity", "peak", "part_equity"):
            self.accounts[name] = terms.initial_cash
        self.moments = np.empty((len(rows), max(cuts.size - 1, 0), len(MOMENTS)))

    def reaches(self) -> list[tuple[int, int]]:
        """(begin, end) of the bars gone through at once, in order; none goes across a cut."""
        length = self.series.close.size
        borders = self.cuts.tolist() if self.cuts.size else [0, length]
        starts = [at for a, b in itertools.pairwise(borders) for at in range(a, b, self.scan.reach)]
        return list(zip(starts, [*starts[1:], length], strict=True))

    def advance(self, begin: int, end: int) -> None:
        """All sets over the bars from ``begin`` to before ``end``; next-open fills were decided one bar before."""
        lag = 0 if self.terms.same_close else 1
        first, last = max(begin - lag, 0), end - lag
        price = self.series.close if self.terms.same_close else self.series.open
        looked_up = (price, self.series.close, self.sums, self.extremes)
        for low, high, changes in self.scan.changes(first, last):
            _advance(self.accounts[low:high], changes, first + lag, begin, end, self.scan.width, *looked_up, self.terms)


@compiled
def _advance(
    accounts: NDArray[Any],
    changes: Changes,
    offset: int,
    begin: int,
    end: int,
    width: int,
    price: Float64Array,
    close: Float64Array,
    sums: Float64Array,
    extremes: Float64Array,
    terms: Terms,
) -> None:
    """Move every account over the bars from ``begin`` to before ``end``, a tile of ``width`` after the other.

    The changes' bars plus ``offset`` are the bars of their fills. ``changes.first`` is moved on to the set's next one.
    """
    found = addresses(changes)
    ends = changes.first[1:].copy()
    for tile_begin in range(begin, end, width):
        bars = min(width, end - tile_begin)
        _survey(close, tile_begin, bars, sums, extremes)
        looked_up = (address(price), address(close), address(sums), address(extremes))
        tile = Tile(tile_begin, bars, sums.shape[1], width, *looked_up)
        for s in range(accounts.size):
            if not accounts[s].refused:
                found.first[s] = _advance_one(accounts[s], found, found.first[s], ends[s], offset, tile, terms)


@compiled
def _advance_one(account: Any, changes: Changes, j: int, last: int, offset: int, tile: Tile, terms: Terms) -> int:
    """Move one account over ``tile``, beginning with change ``j``; the next change of those before ``last``."""
    book = _book_of(account)
    curve = _curve_of(account)
    sums = Sums(0.0, 0.0, 0.0, 0.0, 0.0, False)
    to_place = offset - tile.begin
    here = 0
    filled = j < last and changes.bar[j] + to_place == 0
    if filled:
        book = _ordered(book, changes.target[j], tile.price[tile.begin], terms.fee, terms.slippage)
        j += 1
    while True:
        stop = min(changes.bar[j] + to_place, tile.bars) if j < last else tile.bars
        curve, sums = _pass(book, curve, sums, tile, here, stop, filled)
        if stop == tile.bars:
            break
        book = _ordered(book, changes.target[j], tile.price[tile.begin + stop], terms.fee, terms.slippage)
        here = stop
        filled = True
        j += 1
    if book.ruined or not curve.sound:
        account.refused = 1
    else:
        _keep(account, book, curve, sums, tile)
    return j


@compiled
def _survey(close: Float64Array, begin: int, bars: int, sums: Float64Array, extremes: Float64Array) -> None:
    """Fill the look-ups of a tile."""
    returns = np.zeros(bars)
    for i in range(1 if begin == 0 else 0, bars):
        returns[i] = close[begin + i] / close[begin + i - 1] - 1.0
    sum1 = sum2 = losses = sum3 = sum4 = 0.0
    powers = sums.shape[1] > 4
    for i in range(bars):
        change = returns[i]
        square = change * change
        loss = min(change, 0.0)
        sum1 += change
        sum2 += square
        losses += loss * loss
        sums[i + 1, 0], sums[i + 1, 1], sums[i + 1, 2] = sum1, sum2, losses
        if powers:
            sum3 += square * change
            sum4 += square * square
            sums[i + 1, 3], sums[i + 1, 4] = sum3, sum4
    for i in range(bars):
        extremes[0, 2 * i] = close[begin + i]
        extremes[0, 2 * i + 1] = -close[begin + i]
    level = 1
    while 2**level <= bars:
        half = 2 ** (level - 1)
        _join(extremes[level - 1], extremes[level], 2 * half, 2 * (bars - 2 * half + 1))
        level += 1


@compiled
def _join(parts: Float64Array, whole: Float64Array, apart: int, count: int) -> None:
    one, other = parts[:count], parts[apart : apart + count]
    for i in range(count):
        whole[i] = one[i] if one[i] > other[i] else other[i]


@compiled_step
def _ordered(book: Book, target: float, price: float, fee: float, slippage: float) -> Book:
    """``carry_out``, operation by operation, but without branches: which way an order goes nobody can foresee.

    Both ways are worked out side by side, so that nothing waits for the direction. Ruin and an order that is not made
    are left to ``carry_out`` itself.
    """
    units = book.units
    value = units * price
    buying = target * (book.cash + value) > value
    closing = units if target * units <= 0.0 else 0.0
    closing_fee = fee * abs(closing)
    up, down = price * (1.0 + slippage), price * (1.0 - slippage)
    worth_up = book.cash + units * up - closing_fee * up
    worth_down = book.cash + units * down - closing_fee * down
    wanted_up = target * worth_up / (up * (1.0 + fee))
    wanted_down = target * worth_down / (down * (1.0 + fee))
    fill_price = up if buying else down
    worth = worth_up if buying else worth_down
    wanted_units = wanted_up if buying else wanted_down
    quantity = wanted_units - units
    made = quantity > 0.0 if buying else quantity < 0.0
    if not (made & (worth > EQUAL_WITHIN * abs(book.cash))):
        return carry_out(book, target, price, fee, slippage)[0]
    notional = abs(quantity) * fill_price
    result = worth - book.stake
    tolerance = EQUAL_WITHIN * book.stake
    ended = closing != 0.0
    won = ended & (result > tolerance)
    lost = ended & (result < -tolerance)
    return Book(
        book.cash - quantity * fill_price - fee * notional,
        wanted_units,
        worth if ended | (units == 0.0) else book.stake,
        book.traded_fractions + notional / worth,
        book.trades + int(ended),
        book.wins + int(won),
        book.gross_profit + (result if won else 0.0),
        book.gross_loss - (result if lost else 0.0),
        False,
    )


@compiled_step
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


@compiled_step
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


@compiled_step
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
        account.reach2 += tile.sums[tile.bars * tile.columns + 1]
        account.reach_losses2 += tile.sums[tile.bars * tile.columns + 2]
    account.part_sum1 += sums.one
    account.part_sum2 += sums.two
    account.part_sum3 += sums.three
    account.part_sum4 += sums.four


@compiled_step
def _pass(book: Book, curve: Curve, sums: Sums, tile: Tile, here: int, stop: int, filled: bool) -> tuple[Curve, Sums]:
    """The bars from ``here`` to before ``stop`` with one book; ``filled`` says that it is new on the first of them."""
    highest, lowest = _range_of(book, tile, here, stop)
    entry = book.cash + book.units * tile.close[tile.begin + here]
    change = entry / curve.equity - 1.0
    sums = _with_return(sums, change if filled & (tile.begin + here > 0) else 0.0)
    after = here + 1 if filled else here
    holds = book.units != 0.0
    all_in = abs(book.cash) <= NO_CASH * (curve.equity if (curve.equity < lowest) & (not filled) else lowest)
    if holds & (not all_in):
        sums = _with_stretch(sums, book.cash, book.units, tile, after, stop)
    else:
        sums = _with_running_sums(sums, tile, after, stop if holds else after, holds)
    return _fall(book, curve, tile, here, stop, highest, lowest), sums


@compiled_step
def _with_return(sums: Sums, change: float) -> Sums:
    square = change * change
    loss = min(change, 0.0)
    three = sums.three + square * change
    losses = sums.losses + loss * loss
    return Sums(sums.one + change, sums.two + square, losses, three, sums.four + square * square, sums.looked_up)


@compiled_step
def _with_running_sums(sums: Sums, tile: Tile, here: int, stop: int, holds: bool) -> Sums:
    """The market's own returns of the bars from ``here`` to before ``stop``."""
    start, to = here * tile.columns, stop * tile.columns
    three = sums.three
    four = sums.four
    if tile.columns > 4:
        three += tile.sums[to + 3] - tile.sums[start + 3]
        four += tile.sums[to + 4] - tile.sums[start + 4]
    return Sums(
        sums.one + (tile.sums[to] - tile.sums[start]),
        sums.two + (tile.sums[to + 1] - tile.sums[start + 1]),
        sums.losses + (tile.sums[to + 2] - tile.sums[start + 2]),
        three,
        four,
        sums.looked_up | holds,
    )


@compiled_step
def _with_stretch(sums: Sums, cash: float, units: float, tile: Tile, here: int, stop: int) -> Sums:
    """The returns of ``cash + units * close`` on the bars from ``here`` to before ``stop``, one by one."""
    one, two, losses, three, four = _stretch_sums(tile.close, cash, units, tile.begin + here, tile.begin + stop)
    return Sums(
        sums.one + one, sums.two + two, sums.losses + losses, sums.three + three, sums.four + four, sums.looked_up
    )


@compiled_sums
def _stretch_sums(
    close: Float64Array, cash: float, units: float, first: int, last: int
) -> tuple[float, float, float, float, float]:
    one = two = losses = three = four = 0.0
    for i in range(first, last):
        change = (cash + units * close[i]) / (cash + units * close[i - 1]) - 1.0
        square = change * change
        loss = min(change, 0.0)
        one += change
        two += square
        losses += loss * loss
        three += square * change
        four += square * square
    return one, two, losses, three, four


@compiled_step
def _fall(book: Book, curve: Curve, tile: Tile, here: int, stop: int, highest: float, lowest: float) -> Curve:
    """The drawdown, from the highest and the lowest equity alone where it can be told from them."""
    # At a ruin, or where an equity is no number, the general loop takes over from the first bar on.
    sound = curve.sound & (lowest > EQUAL_WITHIN * abs(book.cash)) & (lowest > SMALLEST_EQUITY) & (highest < math.inf)
    equity = book.cash + book.units * tile.close[tile.begin + stop - 1]
    held = curve.bars_held + (stop - here if book.units != 0.0 else 0)
    depth = drawdown(lowest, curve.peak)
    deeper = lowest < curve.peak * (1.0 - EQUAL_WITHIN - curve.deepest)
    if (highest >= curve.peak * (1.0 - EQUAL_WITHIN)) | (deeper & (depth < SHALLOW)):
        curve = _by_bars(book, curve, tile, here, stop)
        depth = curve.deepest
        deeper = curve.is_deepest
    return Curve(
        equity,
        curve.peak,
        curve.peak_bar,
        depth if deeper else curve.deepest,
        curve.deepest_bars,
        curve.is_deepest | deeper,
        held,
        sound,
    )


@compiled_step
def _range_of(book: Book, tile: Tile, here: int, stop: int) -> tuple[float, float]:
    """Highest and lowest equity on the bars from ``here`` to before ``stop``."""
    level = 63 - leading_zeros(np.uint64(stop - here))
    one = 2 * (level * tile.width + here)
    other = 2 * (level * tile.width + stop - (1 << level))
    high, other_high = tile.extremes[one], tile.extremes[other]
    low, other_low = tile.extremes[one + 1], tile.extremes[other + 1]
    some = book.cash + book.units * (high if high > other_high else other_high)
    rest = book.cash - book.units * (low if low > other_low else other_low)
    return some if some > rest else rest, rest if some > rest else some


@compiled
def _by_bars(book: Book, curve: Curve, tile: Tile, here: int, stop: int) -> Curve:
    """The drawdown as the general loop follows it; pieces of 64 bars in which nothing can happen are passed over."""
    if book.units == 0.0:
        return _seen(curve, book.cash, tile.begin + here, tile.begin + stop - 1)
    for piece in range(here, stop, WORD):
        end = min(piece + WORD, stop)
        highest, lowest = _range_of(book, tile, piece, end)
        if highest < curve.peak * (1.0 - EQUAL_WITHIN) and lowest >= curve.peak * (1.0 - EQUAL_WITHIN - curve.deepest):
            continue
        for i in range(tile.begin + piece, tile.begin + end):
            curve = _seen(curve, book.cash + book.units * tile.close[i], i, i)
    return curve


@compiled_step
def _seen(curve: Curve, equity: float, first: int, last: int) -> Curve:
    """The drawdown after an ``equity`` that is the same on all bars from ``first`` to ``last``."""
    peak, peak_bar, deepest, deepest_bars, is_deepest = (
        curve.peak,
        curve.peak_bar,
        curve.deepest,
        curve.deepest_bars,
        curve.is_deepest,
    )
    if equity >= peak * (1.0 - EQUAL_WITHIN):
        if is_deepest:
            deepest_bars = max_drawdown_bars(peak_bar, first)
        peak = max(equity, peak)
        peak_bar = last
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
