"""One exchange simulator's engine and one plain reference that are told the same: each step says where they differ."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from cluster.exchange_book import Exchange, Fees, Rules, SelfTrade, SimOrder
from cluster.exchange_history import History
from cluster.exchange_journal import Journal
from cluster.exchange_records import FLAGS
from cluster.exchange_ticket import EditRefusal, Kind, Refusal, read_ticket
from strategies.model import NS_PER_S, Side
from tests.exchange_engine import picture
from tests.properties.exchange_reference import HALTING, PlainExchange, Refused, Resting, Wish

START_NS: Final = 1_741_613_841_500_000_000
DEPOSITS: Final = {"USD": Decimal(900_000), "BTC": Decimal(9), "ETH": Decimal(40)}
OTHER: Final = {"USD": Decimal(500_000), "BTC": Decimal(9), "ETH": Decimal(9)}
CENTRE: Final = {"BTC-USD": 6_000_000, "ETH-USD": 300_000}
HISTORY: Final = History(7)


class Pair:
    """Both exchanges, with two portfolios. ``met`` counts what has happened, by words."""

    def __init__(self, rule: SelfTrade) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.now_ns, self.sent, self.rule = START_NS, 0, rule
        self.met: dict[str, int] = {}
        self.exchange = self.opened()
        self.plain = PlainExchange(HISTORY.seed, rule.value, CENTRE, START_NS)
        self.second = self.exchange.open_portfolio("second", OTHER).portfolio_id
        for portfolio, deposits in (("", DEPOSITS), (self.second, OTHER)):
            for currency, amount in deposits.items():
                self.plain.money[portfolio, currency] = amount
        self.pairs: list[tuple[SimOrder, Resting]] = []
        for product, mid in CENTRE.items():
            self.exchange.push_price(product, mid, self.now_ns)

    def opened(self) -> Exchange:
        self.journal = Journal(self.folder / "journal.jsonl")
        return Exchange(HISTORY, self.journal, DEPOSITS, Fees(), self.now_ns, Rules(self.rule))

    def end(self) -> None:
        """Leave nothing behind."""
        self.journal.close()
        shutil.rmtree(self.folder)

    def meet(self, what: str) -> None:
        """Count something that has happened."""
        self.met[what] = self.met.get(what, 0) + 1

    def place(
        self,
        product: str,
        side: Side,
        kind: Kind,
        size: int,
        distance: int,
        stop_distance: int,
        odd: int,
        post_only: bool,
        lasts_s: int,
        second: bool,
    ) -> None:
        """``distance`` is how far the limit stands away from the mid (negative: it crosses); ``odd`` 0 and 1 make
        prices that mostly contradict each other."""
        mid, away = self.plain.mids[product], -1 if side is Side.BUY else 1
        wish = Wish(self.second if second else "", product, side.value, kind.value, lots=size)
        fields: dict[str, Any] = {"base_size": _text(size, 8)}
        if kind is not Kind.MARKET_IOC:
            wish.limit = mid + away * distance
        if kind in {Kind.LIMIT_GTC, Kind.LIMIT_GTD}:
            fields["post_only"] = wish.post_only = post_only
        if kind.expires:
            wish.end_ns = self.now_ns + lasts_s * NS_PER_S + 250_000_000
            fields["end_time"] = _iso(wish.end_ns)
        if kind.stops or kind.brackets:
            wish.stop = mid - away * (stop_distance if odd else -stop_distance)
            wish.rising = (side is Side.BUY) is not (kind.stops and odd == 1)
            if kind.stops:
                wish.limit = wish.stop - away * distance
            fields["stop_trigger_price" if kind.brackets else "stop_price"] = _text(wish.stop, 2)
            fields["stop_direction"] = "STOP_DIRECTION_STOP_UP" if wish.rising else "STOP_DIRECTION_STOP_DOWN"
        if wish.limit is not None:
            fields["limit_price"] = _text(wish.limit, 2)
        self.send(wish, fields)

    def spend(self, product: str, cents: int, second: bool) -> None:
        wish = Wish(self.second if second else "", product, "BUY", "market_market_ioc", budget=Decimal(cents) / 100)
        self.send(wish, {"quote_size": _text(cents, 2)})

    def send(self, wish: Wish, fields: dict[str, Any]) -> None:
        self.sent += 1
        body: dict[str, Any] = {"client_order_id": f"id-{self.sent}", "product_id": wish.product, "side": wish.side}
        body["order_configuration"] = {wish.kind: fields}
        before = picture(self.exchange)["portfolios"], len(self.exchange.fills)
        try:
            ticket = read_ticket(body, self.now_ns)
            seen = self.exchange.preview(ticket, self.now_ns, wish.portfolio)
        except Refusal:
            seen = None
        assert (picture(self.exchange)["portfolios"], len(self.exchange.fills)) == before
        try:
            expected = self.plain.place(wish)
        except Refused:
            expected = None
        refused, order = "", None
        try:
            order = self.exchange.place(read_ticket(body, self.now_ns), self.now_ns, wish.portfolio)
        except Refusal as refusal:
            refused = refusal.preview
        self.meet(f"{wish.kind} {'accepted' if order else refused}")
        assert (order is None) is (expected is None), (refused, wish)
        assert seen is None or seen.errors == ((refused,) if refused else ())
        if order is not None and expected is not None:
            assert self.exchange.place(read_ticket(body, self.now_ns), self.now_ns, wish.portfolio) is order
            self.pairs.append((order, expected))

    def cancel(self, index: int) -> None:
        """Cancel one of the orders placed so far."""
        order, expected = self.pairs[index]
        refused = self.exchange.cancel([order.order_id], self.now_ns, order.portfolio_id)[order.order_id]
        assert (refused == "") is (expected.state == "OPEN")
        self.plain.cancel(expected)

    def live(self) -> list[int]:
        """Which of the orders placed so far can still execute."""
        return [index for index, (order, _) in enumerate(self.pairs) if order.state.live]

    def amend(self, index: int, size: int | None, moved: int, stop_moved: int | None) -> None:
        """Amend one of the orders placed so far: another size, prices moved by so many ticks."""
        order, expected = self.pairs[index]
        size, limit = size or order.ticket.lots or 1, (order.ticket.ticks or 0) + moved
        stop = None if stop_moved is None or not order.ticket.stop_ticks else order.ticket.stop_ticks + stop_moved
        allowed, refused = True, ""
        try:
            self.plain.amend(expected, size, limit, stop)
        except Refused:
            allowed = False
        try:
            given = None if stop is None else _text(stop, 2)
            price, portfolio_id = _text(limit, 2), order.portfolio_id
            self.exchange.amend(order.order_id, _text(size, 8), price, self.now_ns, portfolio_id, given)
        except EditRefusal as refusal:
            refused = refusal.code
        self.meet(f"amended {refused}")
        assert allowed is (not refused), refused

    def push(self, product: str, offset: int) -> None:
        self.exchange.push_price(product, CENTRE[product] + offset, self.now_ns)
        self.plain.push(product, CENTRE[product] + offset)

    def wait(self, milliseconds: int) -> None:
        self.now_ns += milliseconds * 1_000_000
        self.exchange.advance(self.now_ns)
        self.plain.wait(self.now_ns)

    def set_flags(self, product: str, flags: set[str]) -> None:
        self.exchange.set_product(product, {name: name in flags for name in FLAGS}, self.now_ns)
        self.plain.set_flags(product, flags)

    def restart(self, compact: bool) -> None:
        before, pinned = picture(self.exchange), dict(self.plain.mids)
        if compact:
            self.exchange.compact()
        books = {product: self.exchange._books.get(product) for product in CENTRE}
        self.journal.close()
        self.exchange = self.opened()
        assert picture(self.exchange) == before
        # Pins and what was taken from this second's book are not kept: both are put back to go on in step.
        self.exchange._pinned.update(pinned)
        self.exchange._books.update({product: book for product, book in books.items() if book is not None})
        self.pairs = [(self.exchange.orders[order.order_id], expected) for order, expected in self.pairs]

    def check(self) -> None:
        """Whether both say the same and the engine's own promises hold."""
        self.both_agree()
        self.nothing_is_filled_beyond_its_size_and_no_book_crosses_itself()

    def both_agree(self) -> None:
        for order, expected in self.pairs:
            fills = [(fill.ticks, fill.lots, fill.liquidity) for fill in order.fills]
            assert (order.state.value, fills) == (expected.state, expected.fills), expected.wish
            assert (order.ticket.lots, order.limit_ticks) == (expected.wish.lots, expected.works_at)
        for portfolio_id, portfolio in self.exchange.portfolios.items():
            name = "" if portfolio_id == self.exchange.portfolio_id else portfolio_id
            for currency, account in portfolio.accounts.items():
                assert account.total == self.plain.money.get((name, currency), Decimal(0))
                assert account.hold == self.plain.held(name, currency)
                assert account.available >= 0
                assert account.hold >= 0

    def nothing_is_filled_beyond_its_size_and_no_book_crosses_itself(self) -> None:
        for order in self.exchange.order_list:
            ticket = order.ticket
            assert order.filled_lots == sum(fill.lots for fill in order.fills)
            assert ticket.lots is None or order.filled_lots <= ticket.lots
            assert ticket.quote_size is None or order.filled_value + order.fees <= ticket.quote_size
        for product in CENTRE:
            if self.plain.flags.get(product, set()) & HALTING:
                continue
            bids, asks = (list(self.exchange.records.lines[product, side]) for side in (Side.BUY, Side.SELL))
            assert not bids or not asks or (bids[0].limit_ticks or 0) < (asks[0].limit_ticks or 0)
            ranks = [(-(order.limit_ticks or 0), order.priority) for order in bids]
            assert ranks == sorted(ranks)
            book = self.exchange.book(product, self.now_ns)
            assert not book.bids or not book.asks or book.bids[0][0] < book.asks[0][0]


def _text(units: int, decimals: int) -> str:
    return f"{Decimal(units).scaleb(-decimals):f}"


def _iso(ts_ns: int) -> str:
    seconds, rest_ns = divmod(ts_ns, NS_PER_S)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC) + dt.timedelta(microseconds=rest_ns // 1_000)
    return moment.isoformat()
