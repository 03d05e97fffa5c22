"""What an order is compared with, as plain Python over the model of the ledger: written from the rules, not the Lua."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final, NamedTuple

from strategies.model import LEDGER_INTEGER_MAX, Order, OrderType, Side, TimeInForce
from tests.properties.ledger_limits import UNLIMITED, Limit
from tests.properties.ledger_model import (
    BRACKET_PPM,
    LEVELS,
    PPM,
    Account,
    Held,
    Quote,
    Window,
    Worth,
    ceil_div,
    content,
    value_up,
)

RECENT_MIN: Final = 5
END_AHEAD_MS: Final = 1_000


class Rule(NamedTuple):
    """A broken rule; value and limit are None where they are no numbers to compare."""

    code: str
    scope: str
    value: int | None = None
    limit: int | None = None


class Row(NamedTuple):
    """A figure that an order would make of a limit: denied above the hard level, a warning above the soft one."""

    code: str
    scope: str
    name: str
    value: int


@dataclass
class Decision:
    """What becomes of an order."""

    notional: int | None
    cash: int | None
    denials: set[Rule] = field(default_factory=set)
    warnings: set[Rule] = field(default_factory=set)
    tats: dict[str, int] = field(default_factory=dict)
    repeats: Window | None = None

    @property
    def kept(self) -> bool:
        """Whether the answer stays with the id: one for the rate does not."""
        return not {denial.code for denial in self.denials} & {"RATE_LIMIT", "MSG_RATE"}

    def worth(self, lots: int) -> Worth:
        """What is reserved for so many lots of an order that passes."""
        assert self.notional is not None
        assert self.cash is not None
        return Worth(lots, self.notional, self.cash)


class Asked:
    """An order in lots and ticks (None = market), with what decides on it, at one instant of an account.

    ``amends`` is an order that is to become this one: then it is what is not filled yet that is asked for, as if the
    old one were not there, which the caller sees to.
    """

    def __init__(
        self,
        account: Account,
        order: Order,
        lots: int,
        ticks: int | None,
        stop: int | None,
        by: str,
        amends: Held | None = None,
    ) -> None:
        """Nothing is decided yet."""
        self.account, self.order, self.ticks, self.stop, self.by = account, order, ticks, stop, by
        self.amends, self.whole = amends, lots
        self.lots = lots - amends.filled if amends else lots
        lots = self.lots
        self.us = account.us
        self.product, self.strategy = order.product_id, order.strategy
        self.of_product, self.of_strategy = f"product|{self.product}", f"strategy|{self.strategy}"
        self.buys = order.side is Side.BUY
        self.sign = 1 if self.buys else -1
        self.quote = account.quotes.get(order.product_id)
        self.stale_ms = account.record("account").figure("reference_stale_ms")
        self.usable = self.quote is not None and self.us // 1000 - self.quote.set_ms <= self.stale_ms
        price = self._price()
        self.notional = None if price is None else value_up(self.product, lots, price)
        self.cash: int | None = 0
        if self.buys:
            fee_ppm = account.record("account").figure("taker_fee_ppm")
            n = self.notional
            self.cash = None if n is None else n + ceil_div(n * fee_ppm, PPM)
        self.scopes = {
            "global": "",
            "account": "a",
            self.of_strategy: f"s|{self.strategy}",
            self.of_product: f"p|{self.product}",
            f"key|{by}": f"k|{by}",
        }

    def _price(self) -> int | None:
        """The worst it can reasonably be executed at, in ticks; its limit where no price is to be trusted."""
        if self.quote is None or not self.usable:
            return self.ticks
        if self.buys and self.stop is not None and self.order.type is OrderType.BRACKET:
            return ceil_div(self.stop * (PPM + BRACKET_PPM), PPM)
        if not self.buys:
            return max(self.ticks or 0, self.quote.bid)
        buffer = self.account.record("account").figure("market_buffer_ppm")
        return self.ticks if self.ticks is not None else ceil_div(self.quote.ask * (PPM + buffer), PPM)

    def room(self, scope: str) -> tuple[int, int]:
        """(lots the order and those open on its side would close, lots there are to close): the account's position,
        or for a strategy's scope the strategy's own."""
        account, strategy = self.account, self.strategy if scope.startswith("strategy|") else None
        position = account.products[self.product] if strategy is None else account.by_strategy[strategy, self.product]
        same_side = account.open_lots(self.product, self.order.side, strategy)
        return same_side + self.lots, max(-self.sign * position.lots, 0)

    def reduces(self, scope: str) -> bool:
        """Whether it only closes what is held: then it is always let out."""
        wanted, room = self.room(scope)
        return wanted <= room


def refuse_amend(held: Held, lots: int) -> Rule | None:
    """Why an order cannot be amended to so many lots whatever the limits say."""
    if (held.order.type, held.order.time_in_force) != (OrderType.LIMIT, TimeInForce.GTC):
        return Rule("AMEND_TYPE", "account")
    if held.status not in {"OPEN", "PARTIALLY_FILLED"}:
        return Rule("AMEND_NOT_OPEN", "account")
    if held.amend is not None:
        return Rule("AMEND_PENDING", "account")
    if held.cancel_asked:
        return Rule("AMEND_NOT_OPEN", "account")
    if lots <= held.filled:
        return Rule("AMEND_BELOW_FILLED", "account", lots, held.filled)
    return None


def decide(asked: Asked) -> Decision:
    """Every rule broken, or what is reserved; changes nothing."""
    decision = Decision(asked.notional, asked.cash)
    rules = (_state_rules, _market_rules, _held_rules, _order_rules, _funds_rules)
    decision.denials = {denial for rule in rules for denial in rule(asked)}
    for row in rows(asked):
        limit = asked.account.record(row.scope).number(row.name)
        if row.value > limit.hard:
            decision.denials.add(Rule(row.code, row.scope, row.value, int(limit.hard)))
        elif row.value > limit.soft:
            decision.warnings.add(Rule(row.code, row.scope, row.value, int(limit.soft)))
    _repeats(asked, decision)
    if not decision.denials:
        decision.denials = set(_rates(asked, decision.tats))
    return decision


def rows(asked: Asked) -> list[Row]:
    """Everything numeric an order is compared with, without what it is exempt from."""
    found = [*_quantity_rows(asked), *_count_rows(asked), *_price_rows(asked)]
    n = asked.notional
    if n is not None:
        found += _value_rows(asked, n)
        found += [row for row in _exposure_rows(asked, n) if not asked.reduces(row.scope)]
    return found


# -- rows: figures with a limit ----------------------------------------------------------------------------------------


def _quantity_rows(asked: Asked) -> Iterator[Row]:
    account, side = asked.account, asked.order.side
    yield Row("QTY_EXCEEDS_MAX", asked.of_product, "max_order_lots", asked.whole)
    recent = account.recent[asked.product]
    if len(recent) >= RECENT_MIN:
        usual = median_low(recent)
        yield Row("FAT_FINGER", asked.of_product, "fat_finger_ppm", ceil_div(asked.lots * PPM, usual))
    held = account.products[asked.product].lots
    after = asked.sign * held + account.open_lots(asked.product, side) + asked.lots
    yield Row("MAX_POSITION", asked.of_product, "max_position_lots", after)
    held = account.by_strategy[asked.strategy, asked.product].lots
    after = asked.sign * held + account.open_lots(asked.product, side, asked.strategy) + asked.lots
    yield Row("MAX_POSITION", asked.of_product, "max_strategy_position_lots", after)


def _count_rows(asked: Asked) -> Iterator[Row]:
    account, desk, new = asked.account, asked.account.desk, 0 if asked.amends else 1
    for scope, prefix in asked.scopes.items():
        day = desk.today(account, prefix)
        yield Row("MAX_OPEN_ORDERS", scope, "max_open_orders", len(desk.open_in(account, prefix)) + 1)
        yield Row("DAILY_ORDERS", scope, "max_daily_orders", day.orders + new)
        if prefix[:1] in {"a", "s"}:
            yield Row("OTR", scope, "max_order_to_trade", ceil_div(day.messages + 1, max(1, day.fills)))


def _price_rows(asked: Asked) -> Iterator[Row]:
    """Where the order stands to the market, and the market to itself."""
    if asked.quote is None or not asked.usable:
        return
    quote, touch = asked.quote, asked.quote.ask if asked.buys else asked.quote.bid
    price = touch if asked.ticks is None else asked.ticks
    away = ceil_div(abs(2 * price - quote.mid2) * PPM, quote.mid2)
    if asked.stop is not None:
        # Where the market is now says nothing of an order that waits for another one.
        away = ceil_div(abs(price - asked.stop) * PPM, asked.stop)
    if asked.order.type is not OrderType.BRACKET:
        yield Row("PRICE_COLLAR", asked.of_product, "collar_ppm", away)
    if quote.bid < quote.ask:
        spread = ceil_div(2 * (quote.ask - quote.bid) * PPM, quote.mid2)
        yield Row("BAD_BOOK", asked.of_product, "max_spread_ppm", spread)
    if size := _taken_from(asked, quote):
        yield Row("FAT_FINGER", asked.of_product, "max_depth_ppm", ceil_div(asked.lots * PPM, size))


def _taken_from(asked: Asked, quote: Quote) -> int | None:
    """Lots at the price the order takes, 0 if unknown; None for an order that takes none."""
    if asked.stop is not None:
        return None
    if asked.buys:
        return quote.ask_lots if asked.ticks is None or asked.ticks >= quote.ask else None
    return quote.bid_lots if asked.ticks is None or asked.ticks <= quote.bid else None


def _value_rows(asked: Asked, n: int) -> Iterator[Row]:
    account, desk = asked.account, asked.account.desk
    for scope, prefix in asked.scopes.items():
        waiting = desk.open_notional(account, prefix)
        yield Row("NOTIONAL_EXCEEDS_MAX", scope, "max_order_notional", n)
        yield Row("MAX_OPEN_VALUE", scope, "max_open_notional", waiting + n)
        turnover = desk.today(account, prefix).turnover
        yield Row("DAILY_TURNOVER", scope, "max_daily_turnover", turnover + waiting + n)


def _exposure_rows(asked: Asked, n: int) -> Iterator[Row]:
    account, desk, group = asked.account, asked.account.desk, asked.account.group_of(asked.product)
    scopes = {scope: prefix for scope, prefix in asked.scopes.items() if not scope.startswith("key|")}
    if group != "-":
        scopes[f"group|{group}"] = f"g|{group}"
    gross = {s: desk.gross(account, p) + desk.open_notional(account, p) + n for s, p in scopes.items()}
    for scope, prefix in scopes.items():
        yield Row("MAX_GROSS", scope, "max_gross_exposure", gross[scope])
        if scope.partition("|")[0] in {"global", "account", "strategy"}:
            same_side = desk.open_notional(account, prefix, asked.order.side)
            yield Row("MAX_NET", scope, "max_net_exposure", asked.sign * desk.value(account, prefix) + same_side + n)
    share = _share(gross[asked.of_product], account.equity)
    yield Row("CONCENTRATION", "account", "max_concentration_ppm", share)
    yield Row("CONCENTRATION", asked.of_product, "max_concentration_ppm", share)
    yield Row("LEVERAGE", "account", "max_leverage_ppm", _share(gross["account"], account.equity))


def _share(exposure: int, equity: int) -> int:
    """Parts per million of the equity; more than any limit where there is none."""
    return ceil_div(exposure * PPM, equity) if equity > 0 else LEDGER_INTEGER_MAX


# -- rules that are no figures -----------------------------------------------------------------------------------------


def _state_rules(asked: Asked) -> Iterator[Rule]:
    account = asked.account
    if not account.desk.armed():
        yield Rule("NOT_ARMED", "global", account.desk.armed_until_ms, asked.us // 1000)
    for scope in ("global", "account", asked.of_strategy, asked.of_product):
        if scope == asked.of_strategy and scope not in account.limits:
            continue
        holder = account.desk if scope == "global" else account
        state, cause = holder.states[scope], holder.causes.get(scope, "")
        if LEVELS[state] >= 2:
            yield Rule(cause or "TRADING_HALTED", scope)
        elif state == "REDUCING" and not asked.reduces(scope):
            yield Rule(cause or "REDUCE_ONLY_MODE", scope, *asked.room(scope))


def _market_rules(asked: Asked) -> Iterator[Rule]:
    """Whether there is a market to trade in, for this product and strategy, now."""
    account, quote, now_ms = asked.account, asked.quote, asked.us // 1000
    if quote is None:
        yield Rule("MISSING_REFERENCE", asked.of_product)
    elif not asked.usable:
        yield Rule("STALE_REFERENCE", asked.of_product, now_ms - quote.set_ms, asked.stale_ms)
    else:
        if quote.bid >= quote.ask:
            yield Rule("BAD_BOOK", asked.of_product, quote.bid, quote.ask)
        touch = quote.ask if asked.buys else quote.bid
        if asked.stop is not None and asked.sign * (asked.stop - touch) <= 0:
            yield Rule("STOP_PRICE", asked.of_product, asked.stop, touch)
        if now_ms < quote.volatile_until_ms and not asked.reduces(asked.of_product):
            yield Rule("VOLATILITY_HALT", asked.of_product)
        depth = account.record(asked.of_product).number("max_depth_ppm").hard
        if depth != UNLIMITED and _taken_from(asked, quote) == 0:
            yield Rule("MISSING_REFERENCE", asked.of_product)
    for scope in (asked.of_product, asked.of_strategy):
        if not account.is_open(scope) and not asked.reduces(scope):
            yield Rule("MARKET_CLOSED", scope)


def _held_rules(asked: Asked) -> Iterator[Rule]:
    """Exposure counts what is held at its prices: none of them may be older than the order's own."""
    account, now_ms = asked.account, asked.us // 1000
    for product, position in account.products.items():
        quote = account.quotes.get(product)
        fresh = quote is not None and now_ms - quote.set_ms <= asked.stale_ms
        if product != asked.product and position.lots and not fresh and not asked.reduces(asked.of_product):
            yield Rule("STALE_REFERENCE", f"product|{product}")


def _order_rules(asked: Asked) -> Iterator[Rule]:
    account, order = asked.account, asked.order
    if order.end_ns is not None and order.end_ns // 1_000_000 <= asked.us // 1000 + END_AHEAD_MS:
        yield Rule("EXPIRE_IN_PAST", "account", order.end_ns, asked.us // 1000)
    if account.record(asked.of_product).words["restricted"] == "yes":
        yield Rule("SYMBOL_NOT_ALLOWED", asked.of_product)
    versions = account.record(asked.of_strategy).words["versions"]
    if asked.of_strategy not in account.limits:
        yield Rule("STRATEGY_NOT_APPROVED", asked.of_strategy)
    if versions != "any" and order.strategy_version not in versions.split(","):
        yield Rule("STRATEGY_NOT_APPROVED", asked.of_strategy)
    if order.reduce_only and not asked.reduces("account"):
        yield Rule("REDUCE_ONLY_WOULD_INCREASE", "account", *asked.room("account"))
    may_short = account.record(asked.of_strategy).words["short"] == "allowed"
    if not asked.buys and not may_short and not asked.reduces(asked.of_strategy):
        yield Rule("SHORT_NOT_ALLOWED", asked.of_strategy, *asked.room(asked.of_strategy))
    if account.record("account").words["self_trade"] == "deny" and asked.stop is None and _meets_own(asked):
        yield Rule("SELF_TRADE", "account")
    counts = account.duplicate_window_ms(order.strategy) > 0 and not asked.amends
    if counts and asked.us // 1000 < account.duplicates.get(content(order), 0):
        yield Rule("DUPLICATE_ORDER", asked.of_strategy)


def _meets_own(asked: Asked) -> bool:
    """Whether it could be executed against an own order that rests on the other side."""
    for held in asked.account.open_in(f"p|{asked.product}"):
        if held.rests_at is not None and held.order.side is not asked.order.side:
            if asked.order.type is OrderType.MARKET or asked.ticks is None:
                return True
            if asked.ticks >= held.rests_at if asked.buys else asked.ticks <= held.rests_at:
                return True
    return False


def _funds_rules(asked: Asked) -> Iterator[Rule]:
    """Spot: cash for a buy with its fee, holdings for a sell, less what open orders have reserved."""
    account = asked.account
    wanted: int | None = asked.lots
    free = account.products[asked.product].lots - account.open_lots(asked.product, Side.SELL)
    if asked.buys:
        wanted, free = asked.cash, account.cash - account.reserved()
    if wanted is not None and wanted > free:
        yield Rule("INSUFFICIENT_FUNDS", "account", wanted, max(free, 0))


def _repeats(asked: Asked, decision: Decision) -> None:
    """More orders in a window than a strategy may send without a human."""
    record = asked.account.record(asked.of_strategy)
    most = record.number("max_repeats").hard
    if most != UNLIMITED and not asked.amends:
        decision.repeats = asked.account.window(f"s|{asked.strategy}|repeats", record.figure("repeat_window_ms"))
        if decision.repeats.count > most:
            decision.denials.add(Rule("REPEAT_EXECUTION", asked.of_strategy, decision.repeats.count, int(most)))


def _rates(asked: Asked, tats: dict[str, int]) -> Iterator[Rule]:
    """GCRA at every scope, then the budget of messages; what an accepted order leaves is noted in ``tats``."""
    account = asked.account
    for scope, prefix in asked.scopes.items():
        record = account.record(scope)
        interval = record.number("order_interval_us")
        yield from _rate(asked, tats, prefix, Rule("RATE_LIMIT", scope), interval, record.figure("order_burst"), 0)
    record = account.record("account")
    burst, kept = record.figure("message_burst"), record.figure("cancel_reserve")
    yield from _rate(asked, tats, "msg", Rule("MSG_RATE", "account"), record.number("message_interval_us"), burst, kept)


def _rate(
    asked: Asked, tats: dict[str, int], prefix: str, rule: Rule, interval: Limit, burst: int, kept: int
) -> Iterator[Rule]:
    if interval.hard == UNLIMITED:
        return
    interval_us = int(interval.hard)
    arrival = asked.account.desk.arrival(asked.account, prefix, interval_us, burst)
    tats[prefix] = arrival + interval_us
    too_early_us = arrival - asked.us - (burst - kept - 1) * interval_us
    if too_early_us > 0:
        yield rule._replace(value=ceil_div(too_early_us, 1000), limit=0)
