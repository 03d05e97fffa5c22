"""What the desk, an account and each part of it hold, risk and have earned: pure figures of one ledger snapshot.

Every figure is the one the ledger compares with its limits, so that what is shown here is what an order meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from cluster.exposure_figures import (
    AccountFigures,
    Day,
    EquityFigures,
    Position,
    ProductFigures,
    ReferencePrice,
    ScopeFigures,
    StrategyFigures,
    Use,
    fall_ppm,
    ratio_up,
    share_ppm,
)
from cluster.ledger import Snapshot
from cluster.limit_records import CALENDAR, Limit, LimitError, kind_of, parse_record, record_fields
from conf.limits import ANY_KEY
from strategies.model import TradingState

SECONDS_PER_DAY: Final = 86_400
_STRATEGY_LOTS: Final = "max_strategy_position_lots"


def figures(snapshot: Snapshot) -> AccountFigures:
    """Everything of an account: its products and strategies are those with limits or with a booking."""
    books = _Books(snapshot.book, snapshot.limits, snapshot.state, snapshot.now_ms)
    references = references_of(snapshot)
    equity = books.integer("a", "equity")
    products = tuple(_product(books, name, references.get(name), equity) for name in books.names("product", "p"))
    strategies = tuple(_strategy(books, name, references) for name in books.names("strategy", "s", "sp"))
    common = books.scope("account", "a")
    exposure = books.integer("a", "gross") + common["buy_notional"] + common["sell_notional"]
    peak = books.integer("a", "peak")
    uses = books.uses("account", "a") | books.compared(
        "account",
        {
            "max_leverage_ppm": share_ppm(exposure, equity),
            "max_concentration_ppm": max((product.concentration_ppm for product in products), default=0),
            "max_drawdown_ppm": fall_ppm(peak, equity),
            "max_rejects": books.counted("account", "a", "rejects", "reject_window_ms"),
            "max_venue_errors": books.counted("account", "a", "venue_errors", "venue_error_window_ms"),
            "message_burst": books.burst("account", "a", "msg_tat", "message_interval_us"),
        },
    )
    return AccountFigures(
        **common,
        uses=uses,
        equity=equity,
        peak=peak,
        cash=int(snapshot.book["cash"]) if "cash" in snapshot.book else None,
        reserved=int(snapshot.book.get("reserved", "0")),
        fees=int(snapshot.book.get("fees", "0")),
        products=products,
        strategies=strategies,
        keys=tuple(_plain(books, f"key|{name}", f"k|{name}") for name in books.names("key", "k") if name != ANY_KEY),
        groups=tuple(_plain(books, f"group|{name}", f"g|{name}") for name in books.names("group", "g")),
    )


def desk_figures(snapshot: Snapshot) -> EquityFigures:
    """The desk as a whole: the sums over all accounts, as the desk's own limits are compared with."""
    books = _Books(snapshot.desk_book, snapshot.desk_limits, snapshot.desk_state, snapshot.now_ms)
    equity, peak = books.integer("", "equity"), books.integer("", "peak")
    uses = books.uses("global", "") | books.compared("global", {"max_drawdown_ppm": fall_ppm(peak, equity)})
    return EquityFigures(**books.scope("global", ""), uses=uses, equity=equity, peak=peak)


def references_of(snapshot: Snapshot) -> dict[str, ReferencePrice]:
    """Every reference price with its age at the instant of the snapshot; without a limit on the age none is fresh."""
    stale = read_record("account", snapshot.limits.get("account")).get("reference_stale_ms")
    found = {}
    for product_id, packed in snapshot.reference.items():
        bid, ask, set_ms, numerator, denominator, *rest = (int(part) for part in packed.split())
        bid_lots, ask_lots, _, _, volatile_until_ms = [*rest, *(0,) * 5][:5]
        age_ms = max(0, snapshot.now_ms - set_ms)
        found[product_id] = ReferencePrice(
            bid_ticks=bid,
            ask_ticks=ask,
            age_ms=age_ms,
            fresh=stale is not None and isinstance(stale.hard, int) and age_ms <= stale.hard,
            lot_tick_micros=Fraction(numerator, denominator),
            bid_lots=bid_lots,
            ask_lots=ask_lots,
            volatile_ms=max(0, volatile_until_ms - snapshot.now_ms),
        )
    return found


def limited_products(snapshot: Snapshot) -> list[str]:
    """The products the account may trade: those with limits."""
    return sorted(scope.removeprefix("product|") for scope in snapshot.limits if scope.startswith("product|"))


def read_record(scope: str, text: str | None) -> Mapping[str, Limit]:
    """The limits of a record; none where it is missing or cannot be read, as orders are then denied."""
    try:
        return parse_record(scope, text or "")
    except LimitError:
        return {}


def day_number(calendar: str | None, now_ms: int) -> int:
    """The number of the day on the calendar of a ``calendar`` record, days since 1970; of UTC without one."""
    seconds = now_ms // 1000
    words = (calendar or "").split()[1:] or ["0"]
    for offset, until in zip(words[::2], [*words[1::2], None], strict=False):
        if until is None or seconds < int(until):
            return (seconds + int(offset)) // SECONDS_PER_DAY
    return seconds // SECONDS_PER_DAY


class _Books:
    """The book of an account or of the desk, read scope by scope. Prefixes as in the ledger; "" is the desk's own."""

    def __init__(
        self, book: Mapping[str, str], limits: Mapping[str, str], state: Mapping[str, str], now_ms: int
    ) -> None:
        self._fields: dict[str, dict[str, str]] = {}
        for field, text in book.items():
            prefix, _, name = field.rpartition("|")
            self._fields.setdefault(prefix, {})[name] = text
        self._limits = limits
        self._state = state
        self._now_ms = now_ms
        self._day = day_number(limits.get(CALENDAR), now_ms)
        self._records: dict[str, Mapping[str, Limit]] = {}

    def integer(self, prefix: str, name: str) -> int:
        return int(self.text(prefix, name) or "0")

    def text(self, prefix: str, name: str) -> str:
        return self._fields.get(prefix, {}).get(name, "")

    def names(self, kind: str, *prefixes: str) -> list[str]:
        """Products, strategies … that have limits or are in the book."""
        limited = {scope.partition("|")[2] for scope in self._limits if scope.startswith(f"{kind}|")}
        booked = {words[1] for words in (prefix.split("|") for prefix in self._fields) if words[0] in prefixes}
        return sorted(limited | booked)

    def strategy_products(self, strategy: str) -> list[str]:
        start = f"sp|{strategy}|"
        return sorted(prefix.removeprefix(start) for prefix in self._fields if prefix.startswith(start))

    def record(self, scope: str) -> Mapping[str, Limit]:
        if scope not in self._records:
            text = self._limits.get(scope)
            if text is None and scope.startswith("key|"):
                text = self._limits.get(f"key|{ANY_KEY}")
            self._records[scope] = read_record(scope, text)
        return self._records[scope]

    def scope(self, scope: str, prefix: str) -> dict[str, Any]:
        """The fields of ``ScopeFigures`` but its uses."""
        numbers = ("open_orders", "buy_notional", "sell_notional", "gross", "value", "pnl")
        return {
            "scope": scope,
            "state": state if (state := self._state.get(scope)) in TradingState.__members__ else None,
            "cause": self._state.get(f"cause|{scope}") or None,
            "day": self.day(prefix),
            **{name: self.integer(prefix, name) for name in numbers},
        }

    def day(self, prefix: str) -> Day:
        packed = self.text(prefix, "day").split()
        # A record of another day says nothing about today: the ledger starts afresh with the next thing that happens.
        if len(packed) != 6 or int(packed[0]) != self._day:
            return Day(0, 0, 0, 0, 0)
        _, orders, turnover, pnl_start, messages, fills = (int(part) for part in packed)
        return Day(orders, messages, fills, turnover, self.integer(prefix, "pnl") - pnl_start)

    def uses(self, scope: str, prefix: str) -> dict[str, Use]:
        """What every scope compares, as far as its kind has these limits."""
        figures, day = ScopeFigures(**self.scope(scope, prefix), uses={}), self.day(prefix)
        values = {
            "max_open_orders": figures.open_orders,
            "max_open_notional": figures.open_notional,
            "max_gross_exposure": figures.exposure,
            "max_net_exposure": figures.worst_net,
            "max_daily_orders": day.orders,
            "max_daily_turnover": day.turnover + figures.open_notional,
            "max_daily_loss": max(0, -day.pnl),
            "max_order_to_trade": day.messages_per_fill,
            "order_burst": self.burst(scope, prefix, "tat", "order_interval_us"),
        }
        known = record_fields(kind_of(scope))
        return self.compared(scope, {name: value for name, value in values.items() if name in known})

    def compared(self, scope: str, values: Mapping[str, int]) -> dict[str, Use]:
        """Each figure beside its limit in the record of ``scope``."""
        limits = self.record(scope)
        return {
            name: Use(value, limits[name].hard, limits[name].soft) if name in limits else Use(value, None)
            for name, value in values.items()
        }

    def counted(self, scope: str, prefix: str, name: str, window: str) -> int:
        """How often something has happened in the window that runs now."""
        start_ms, _, count = self.text(prefix, name).partition(" ")
        length = self.record(scope).get(window)
        runs = start_ms and length and isinstance(length.hard, int) and self._now_ms - int(start_ms) <= length.hard
        return int(count) if runs else 0

    def burst(self, scope: str, prefix: str, name: str, interval: str) -> int:
        """How many of a burst are used up now; see the generic cell rate algorithm in the ledger."""
        limit = self.record(scope).get(interval)
        if limit is None or not isinstance(limit.hard, int) or limit.hard == 0:
            return 0
        return ratio_up(max(0, self.integer(prefix, name) - self._now_ms * 1000), limit.hard)


def _plain(books: _Books, scope: str, prefix: str) -> ScopeFigures:
    return ScopeFigures(**books.scope(scope, prefix), uses=books.uses(scope, prefix))


def _product(books: _Books, name: str, reference: ReferencePrice | None, equity: int) -> ProductFigures:
    scope, prefix = f"product|{name}", f"p|{name}"
    common, position = books.scope(scope, prefix), _position(books, prefix, reference)
    concentration = share_ppm(common["gross"] + common["buy_notional"] + common["sell_notional"], equity)
    own = {"max_position_lots": position.worst_lots, "max_concentration_ppm": concentration}
    if reference is not None:
        own["max_spread_ppm"] = reference.spread_ppm
    return ProductFigures(
        **common,
        uses=books.uses(scope, prefix) | books.compared(scope, own),
        product_id=name,
        position=position,
        concentration_ppm=concentration,
    )


def _strategy(books: _Books, name: str, references: Mapping[str, ReferencePrice]) -> StrategyFigures:
    scope, prefix = f"strategy|{name}", f"s|{name}"
    positions = {
        product: _position(books, f"sp|{name}|{product}", references.get(product))
        for product in books.strategy_products(name)
    }
    capital = books.record(scope).get("capital")
    peak, pnl = books.integer(prefix, "peak"), books.integer(prefix, "pnl")
    drawdown = None
    own = {
        "max_loss_streak": books.integer(prefix, "streak"),
        "max_repeats": books.counted(scope, prefix, "repeats", "repeat_window_ms"),
        "max_rejects": books.counted(scope, prefix, "rejects", "reject_window_ms"),
    }
    if capital is not None and isinstance(capital.hard, int):
        drawdown = own["max_drawdown_ppm"] = fall_ppm(capital.hard + peak, capital.hard + pnl)
    return StrategyFigures(
        **books.scope(scope, prefix),
        uses=books.uses(scope, prefix) | books.compared(scope, own),
        name=name,
        positions=positions,
        position_uses={
            product: books.compared(f"product|{product}", {_STRATEGY_LOTS: position.worst_lots})[_STRATEGY_LOTS]
            for product, position in positions.items()
        },
        peak=peak,
        drawdown_ppm=drawdown,
        loss_streak=own["max_loss_streak"],
    )


def _position(books: _Books, prefix: str, reference: ReferencePrice | None) -> Position:
    names = ("lots", "buy_lots", "sell_lots", "cost", "realised", "fees", "gross", "value")
    return Position(reference=reference, **{name: books.integer(prefix, name) for name in names})
