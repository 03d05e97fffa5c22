"""The WebSocket face of the exchange simulator: Coinbase Advanced Trade's channels on the port that serves REST.

One ``Hub`` for all connections. As on Coinbase, the first subscription must come within 5 seconds, a connection that
got nothing for 60 to 90 seconds is closed, every message of a connection has the next ``sequence_num``, the snapshot
comes before the acknowledgement, and names nobody knows get "authentication failure" (a channel) or nothing (a
product). The ``user`` channel tells an order's whole state after each change, and only once the change is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cluster import exchange_shapes as rest
from cluster import exchange_ws_shapes as shapes
from cluster.exchange_book import Book, Exchange
from cluster.exchange_faults import SPOILERS, Faults, Rule, spoil
from cluster.exchange_history import DAY_S, MARKETS
from cluster.exchange_keys import Credentials, Unauthorised, check_stream_token
from cluster.exchange_limits import RateLimits
from cluster.exchange_tape import Tape
from cluster.exchange_ticket import PRICE_TICKS_MAX
from cluster.exchange_wire import cut
from strategies.model import NS_PER_S, Granularity

PRODUCT_CHANNELS: Final = ("level2", "ticker", "ticker_batch", "market_trades", "candles", "status")
CHANNELS: Final = ("heartbeats", "user", *PRODUCT_CHANNELS)
SUBSCRIBE_S_MAX: Final = 5.0
IDLE_S: Final = (60.0, 90.0)
TICK_S: Final = 0.25
TAPE_S: Final = 0.02
# A client that reads nothing is let go when this many messages wait for it (a second of everything is about 20).
QUEUE_MAX: Final = 2_000
SESSIONS_MAX: Final = 200
_SNAPSHOT_ORDERS: Final = 50
_SNAPSHOT_CANDLES: Final = 100
_SNAPSHOT_TRADES: Final = 50
_BATCH_S: Final = 5
_STATUS_S: Final = 10
_NAMES_MAX: Final = 1_000
_POLICY_VIOLATION: Final = 1008
_GOING_AWAY: Final = 1001
_INTERNAL_ERROR: Final = 1011

Message = MutableMapping[str, Any]
_log = logging.getLogger(__name__)


class Ending(NamedTuple):
    """How a connection ends: a close frame, or (``code`` None) without a word."""

    code: int | None
    reason: str = ""


@dataclass(eq=False)
class Session:
    """One connection: what it has subscribed to (product names by channel) and what waits to be sent."""

    number: int
    idle_s: float
    address: str = ""
    subscriptions: dict[str, dict[str, None]] = field(default_factory=dict)
    portfolio: str = ""
    sequence: int = 0
    opened_s: float = 0.0
    last_message_s: float = 0.0
    silent_until_s: float = 0.0
    held_back: str = ""
    outgoing: asyncio.Queue[str | Ending] = field(default_factory=lambda: asyncio.Queue(QUEUE_MAX + 1))
    ended: bool = False

    def put(self, text: str) -> None:
        """Send ``text`` after what waits already; a client that reads nothing is let go."""
        if self.ended:
            return
        if self.outgoing.qsize() >= QUEUE_MAX:
            self.end(Ending(None))
            return
        self.outgoing.put_nowait(text)
        self.last_message_s = time.monotonic()

    def end(self, how: Ending) -> None:
        """Close after what waits already, at once where it is to be cut."""
        if self.ended:
            return
        self.ended = True
        if how.code is None:
            while not self.outgoing.empty():
                self.outgoing.get_nowait()
        self.outgoing.put_nowait(how)

    def takes(self, channel: str, product_id: str) -> bool:
        """Whether a message about the product goes to this connection."""
        return product_id in self.subscriptions.get(channel, ())


class Hub:
    """All WebSocket connections of one exchange."""

    def __init__(
        self,
        exchange: Exchange,
        credentials: Credentials,
        first_s: int,
        clock: Callable[[], int] = time.time_ns,
        faults: Faults | None = None,
        idle_s: tuple[float, float] = IDLE_S,
        tape: Tape | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        """``first_s`` is where candle history begins, ``clock`` gives nanoseconds UTC, ``idle_s`` is from and to.

        ``limits``: new connections (private) and messages without a token (public) of each address a second.
        """
        self.limits = limits or RateLimits()
        self.tape = tape
        self.faults = faults or Faults()
        self.exchange = exchange
        self.credentials = credentials
        self.first_s = first_s
        self.clock = clock
        self.sessions: dict[int, Session] = {}
        self._idle_s = idle_s
        self._random = random.Random(self.faults.seed)  # noqa: S311 - a length of waiting, nothing secret
        self._numbers = itertools.count(1)
        self._began_s = time.monotonic()
        self._beats = 0
        self._last_trade_id = ""
        self._second = clock() // NS_PER_S
        self._books: dict[str, Book] = {}
        self._user_messages: list[tuple[str, rest.Json]] = []
        self._flushing: asyncio.Task[None] | None = None
        exchange.listen(self._heard)

    # --- a connection's life ---

    async def serve(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """ASGI entry for one WebSocket; any path but ``/`` is refused."""
        await receive()
        address = str((scope.get("client") or ("",))[0])
        if scope["path"] != "/" or len(self.sessions) >= SESSIONS_MAX or self.faults.of_connection() is not None:
            await send({"type": "websocket.close"})
            return
        if not self._within(f"connections of {address}", connecting=True):
            await send({"type": "websocket.http.response.start", "status": 429, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"Too many requests\n"})
            return
        await send({"type": "websocket.accept", "headers": [(b"x-simulated", b"1")]})
        session = Session(next(self._numbers), self._random.uniform(*self._idle_s), address)
        session.opened_s = session.last_message_s = time.monotonic()
        self.sessions[session.number] = session
        writing = asyncio.create_task(self._write(session, scope, send))
        try:
            while (message := await receive())["type"] == "websocket.receive":
                self._safe_answer(session, message)
        finally:
            session.ended = True
            del self.sessions[session.number]
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing

    async def _write(
        self, session: Session, scope: MutableMapping[str, Any], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        try:
            while True:
                item = await session.outgoing.get()
                if isinstance(item, str):
                    await send({"type": "websocket.send", "text": item})
                elif item.code is None:
                    cut(scope)
                    return
                else:
                    await send({"type": "websocket.close", "code": item.code, "reason": item.reason})
                    return
        except Exception:  # noqa: BLE001 - the library's own exception for a client that is gone is not exported
            _log.info("connection %s is gone", session.number, exc_info=True)

    def _safe_answer(self, session: Session, message: Message) -> None:
        try:
            self._answer(session, message)
        except Exception:  # noqa: BLE001 - a loop's edge: one bad message must not end the exchange
            _log.exception("message failed on connection %s", session.number)
            session.put(json.dumps(shapes.error("internal error", "the simulator failed; its log says why")))

    def _answer(self, session: Session, message: Message) -> None:
        request = _parse(message)
        if not request.get("jwt") and not self._within(f"messages of {session.address}", connecting=False):
            session.put(json.dumps(shapes.error("rate limit exceeded")))
            return
        kind, channel = request.get("type"), request.get("channel")
        if kind not in ("subscribe", "unsubscribe"):
            session.put(json.dumps(shapes.error("Malformed JSON" if not request else "type is invalid")))
            return
        # What a stranger is told: the venue answers an unknown channel like a missing token.
        if not isinstance(channel, str) or channel not in CHANNELS or not self._may(session, channel, request):
            session.put(json.dumps(shapes.error(shapes.AUTHENTICATION_FAILURE)))
            return
        names = _names(request.get("product_ids"))
        if names is None:
            session.put(json.dumps(shapes.error("product_ids is invalid")))
            return
        if kind == "unsubscribe":
            _unsubscribe(session, channel, names)
        else:
            self._subscribe(session, channel, names)
        subscribed = {name: list(having) for name, having in session.subscriptions.items()}
        self._push(session, "subscriptions", [shapes.subscriptions(subscribed)], self.clock())

    def _within(self, who: str, connecting: bool) -> bool:
        allowance = self.limits.take(who, connecting, time.monotonic())
        return allowance is None or allowance.passes

    def _may(self, session: Session, channel: str, request: dict[str, Any]) -> bool:
        """A token must be good where there is one, and there must be one for ``user``."""
        token = request.get("jwt")
        if token is None or token == "":
            return channel != "user" or (request["type"] == "unsubscribe" and channel in session.subscriptions)
        given = token if isinstance(token, str) else ""
        try:
            name = check_stream_token(given, self.credentials.keys, self.clock() / NS_PER_S)
        except Unauthorised as error:
            _log.info("authentication failure on connection %s: %s", session.number, error)
            return False
        wanted = self.credentials.grant(name).portfolio
        found = [p.portfolio_id for p in self.exchange.portfolios.values() if p.name == wanted]
        session.portfolio = found[0] if wanted and found else self.exchange.portfolio_id
        return True

    def view(self) -> list[rest.Json]:
        """The connections as they are: what each has subscribed to and how much was sent."""
        return [
            {
                "connection": session.number,
                "subscriptions": {name: list(having) for name, having in session.subscriptions.items()},
                "messages": session.sequence,
                "waiting": session.outgoing.qsize(),
            }
            for session in self.sessions.values()
        ]

    # --- subscribing ---

    def _subscribe(self, session: Session, channel: str, names: list[str]) -> None:
        now_ns = self.clock()
        having = session.subscriptions.setdefault(channel, {})
        if channel == "heartbeats":
            having["heartbeats"] = None
        elif channel == "user":
            # What is still to be told is in the snapshot already, and told again after it: harmless, as states add up.
            having |= dict.fromkeys(names) or {session.portfolio: None}
            self._push_user_snapshot(session, names, now_ns)
        else:
            taped = self.tape.products if self.tape else frozenset()
            wanted = [name for name in names if name in MARKETS or name in taped] if names else list(MARKETS)
            self._push_taped(session, channel, [name for name in wanted if name not in MARKETS], now_ns)
            self._push_snapshot(session, channel, [name for name in wanted if name in MARKETS], now_ns)
            having |= dict.fromkeys(wanted)
        if not having:
            del session.subscriptions[channel]

    def _push_snapshot(self, session: Session, channel: str, names: list[str], now_ns: int) -> None:
        self.exchange.advance(now_ns)
        for name in names:
            self._refresh(name, now_ns)
            if channel == "level2":
                self._push(session, "l2_data", [shapes.book_snapshot(self._books[name], now_ns)], now_ns)
            elif channel in ("ticker", "ticker_batch"):
                event = {"type": "snapshot", "tickers": [self._ticker(name, now_ns, channel == "ticker_batch")]}
                self._push(session, channel, [event], now_ns)
            elif channel == "market_trades":
                event = {"type": "snapshot", "trades": self._past_trades(name, now_ns)}
                self._push(session, channel, [event], now_ns)
            elif channel == "candles":
                event = {"type": "snapshot", "candles": self._candles(name, _SNAPSHOT_CANDLES, now_ns)[::-1]}
                self._push(session, channel, [event], now_ns)
        if channel == "status" and names:
            self._push(session, channel, [{"type": "snapshot", "products": self._products(names)}], now_ns)

    def _push_taped(self, session: Session, channel: str, names: list[str], now_ns: int) -> None:
        for name in names:
            event = self.tape.snapshot(channel, name, now_ns) if self.tape else None
            if event is not None:
                self._push(session, "l2_data" if channel == "level2" else channel, [event], now_ns)

    def _push_user_snapshot(self, session: Session, names: list[str], now_ns: int) -> None:
        """Open orders in batches, oldest first; one empty batch where none is open."""
        self.exchange.advance(now_ns)
        orders = [
            shapes.order(order, session.portfolio)
            for order in sorted(self.exchange.open_orders.values(), key=lambda order: order.sequence)
            if order.portfolio_id == session.portfolio and (not names or order.ticket.product_id in names)
        ]
        for begin in range(0, max(len(orders), 1), _SNAPSHOT_ORDERS):
            event = shapes.user_event("snapshot", orders[begin : begin + _SNAPSHOT_ORDERS])
            self._push(session, "user", [event], now_ns)

    # --- telling ---

    def _push(self, session: Session, channel: str, events: list[rest.Json], now_ns: int) -> None:
        self._push_text(session, channel, json.dumps(events, separators=(",", ":")), now_ns)

    def _push_text(self, session: Session, channel: str, events: str, now_ns: int) -> None:
        head = f'{{"channel":"{channel}","timestamp":"{shapes.timestamp(now_ns)}","sequence_num":{session.sequence}'
        session.sequence += 1
        if session.silent_until_s > time.monotonic():
            return
        rule = self.faults.of_message(_ALIASES.get(channel, (channel,)), events)
        if rule is not None and rule.fault in SPOILERS:
            events = _spoiled(events, rule)
        text = f'{head},"events":{events}}}'
        if rule is None or rule.fault in SPOILERS:
            session.put(text)
            if session.held_back:
                session.put(session.held_back)
                session.held_back = ""
        else:
            _strike(session, rule, text)

    def _tell(self, subscribed: str, channel: str, product_id: str, event: rest.Json, now_ns: int) -> None:
        """Send one event to everybody who takes the product on the channel."""
        text = ""
        for session in list(self.sessions.values()):
            if session.takes(subscribed, product_id):
                text = text or json.dumps([event], separators=(",", ":"))
                self._push_text(session, channel, text, now_ns)

    def _heard(self, event: rest.Json) -> None:
        """Called by the exchange in the middle of a change, which must go on whatever happens here."""
        if not self.sessions:
            return
        try:
            self._note(event)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("an event could not be told: %s", event.get("kind"))

    def _note(self, event: rest.Json) -> None:
        """Note an order's state after a change, to be told when the change is on disk."""
        now_ns = self.clock()
        if event["kind"] == "product":
            name = str(event["product_id"])
            self._tell("status", "status", name, _update("products", self._products([name])), now_ns)
        order = self.exchange.orders.get(str(event.get("order_id", "")))
        if order is None:
            return
        trade = shapes.own_trade(order, now_ns) if event["kind"] == "fill" else None
        # Two orders of this exchange that meet are two fills, but one trade.
        if trade is not None and trade["trade_id"] != self._last_trade_id:
            self._last_trade_id = trade["trade_id"]
            self._tell("market_trades", "market_trades", trade["product_id"], _update("trades", [trade]), now_ns)
        portfolio = order.portfolio_id
        if not any("user" in session.subscriptions for session in self.sessions.values()):
            return
        self._user_messages.append((portfolio, shapes.order(order, portfolio)))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        """Tell what was noted, in order, once it is on disk."""
        while self._user_messages:
            known = len(self._user_messages)
            try:
                await self.exchange.synced()
            except OSError:
                # Nobody may hear of what a crash would undo; who reconnects is told what is.
                _log.exception("the journal cannot be written")
                self._user_messages.clear()
                for session in list(self.sessions.values()):
                    if "user" in session.subscriptions:
                        session.end(Ending(_INTERNAL_ERROR))
                return
            ready, self._user_messages = self._user_messages[:known], self._user_messages[known:]
            now_ns = self.clock()
            for portfolio, order in ready:
                text = json.dumps([shapes.user_event("update", [order])], separators=(",", ":"))
                for session in list(self.sessions.values()):
                    if session.portfolio == portfolio and _takes_order(session, order["product_id"]):
                        self._push_text(session, "user", text, now_ns)

    # --- time passing ---

    async def run(self) -> None:
        """Let time pass for all connections; ends when it is cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.tick()
            except Exception:  # noqa: BLE001 - a loop's edge: the exchange goes on, and its log tells
                _log.exception("telling what has changed failed")

    async def play(self) -> None:
        """Tell what is on the tape; ends when it is cancelled."""
        while self.tape is not None:
            await asyncio.sleep(TAPE_S)
            try:
                self._tell_taped(self.tape)
            except Exception:  # noqa: BLE001 - a loop's edge: the exchange goes on, and its log tells
                _log.exception("telling what is on the tape failed")

    def _tell_taped(self, tape: Tape) -> None:
        now_ns, moved = self.clock(), set()
        for told in tape.due(time.monotonic()):
            if told.product_id in MARKETS:
                moved.add(told.product_id)
            else:
                self._tell(told.subscribed, told.channel, told.product_id, told.now(now_ns), now_ns)
        for name in moved:
            mid = tape.mid(name)
            ticks = None if mid is None else int(mid / MARKETS[name].product.quote_increment)
            if ticks is not None and 2 <= ticks <= PRICE_TICKS_MAX and ticks != self.exchange.mid_ticks(name, now_ns):
                self.exchange.push_price(name, ticks, now_ns)
                self.look(name)

    def tick(self) -> None:
        """Send what is due; close who has not subscribed in time or heard nothing for long."""
        now_ns = self.clock()
        for session in list(self.sessions.values()):
            self._close_if_due(session, time.monotonic())
        for name in MARKETS:
            if any(s.takes("level2", name) or s.takes("ticker", name) for s in self.sessions.values()):
                self._refresh(name, now_ns)
        second = now_ns // NS_PER_S
        if second != self._second:
            self._second = second
            self._each_second(second, now_ns)

    def look(self, product_id: str) -> None:
        """The product's book was changed from outside: tell it now, not at the next tick."""
        if self.sessions:
            self._refresh(product_id, self.clock())

    def _close_if_due(self, session: Session, now_s: float) -> None:
        if not session.subscriptions and session.sequence == 0 and now_s - session.opened_s > SUBSCRIBE_S_MAX:
            session.end(Ending(_POLICY_VIOLATION, "no subscription within 5 seconds"))
        elif now_s - session.last_message_s > session.idle_s:
            session.end(Ending(_GOING_AWAY, "idle"))

    def _each_second(self, second: int, now_ns: int) -> None:
        self._beats += 1
        beat = shapes.heartbeat(now_ns, self._beats, time.monotonic() - self._began_s)
        self._tell("heartbeats", "heartbeats", "heartbeats", beat, now_ns)
        for name in MARKETS:
            for channel in PRODUCT_CHANNELS:
                if any(session.takes(channel, name) for session in self.sessions.values()):
                    self._tell_product(channel, name, second, now_ns)

    def _tell_product(self, channel: str, name: str, second: int, now_ns: int) -> None:
        """What a channel says about a product once a second or less often."""
        if channel == "market_trades":
            if trades := self._trades([self.exchange.book(name, now_ns)]):
                self._tell(channel, channel, name, _update("trades", trades), now_ns)
        elif channel == "candles":
            # A gap of a recording has none.
            if candles := self._candles(name, 1, now_ns):
                self._tell(channel, channel, name, _update("candles", candles), now_ns)
        elif channel == "ticker_batch" and second % _BATCH_S == 0:
            event = _update("tickers", [self._ticker(name, now_ns, batch=True)])
            self._tell(channel, channel, name, event, now_ns)
        elif channel == "status" and second % _STATUS_S == 0:
            self._tell(channel, channel, name, _update("products", self._products([name])), now_ns)

    def _refresh(self, name: str, now_ns: int) -> None:
        """Tell the product's book and ticker where the book is another than at the last time."""
        before, after = self._books.get(name), self.exchange.book(name, now_ns)
        self._books[name] = after
        if before is None or (before.bids, before.asks) == (after.bids, after.asks):
            return
        if any(session.takes("level2", name) for session in self.sessions.values()):
            update = shapes.book_update(before, after, now_ns)
            if update is not None:
                self._tell("level2", "l2_data", name, update, now_ns)
        if any(session.takes("ticker", name) for session in self.sessions.values()):
            event = _update("tickers", [self._ticker(name, now_ns, batch=False)])
            self._tell("ticker", "ticker", name, event, now_ns)

    # --- what is told ---

    def _ticker(self, name: str, now_ns: int, batch: bool) -> rest.Json:
        candles, now_s = self.exchange.history.candles, now_ns // NS_PER_S
        hour, day = Granularity.ONE_HOUR, Granularity.ONE_DAY
        today = candles(name, hour, now_s - DAY_S, now_s + 1, now_ns, self.first_s)
        before = candles(name, hour, now_s - 2 * DAY_S, now_s - DAY_S, now_ns, self.first_s)
        month = candles(name, day, now_s - 30 * DAY_S, now_s + 1, now_ns, self.first_s)
        return shapes.ticker(self.exchange.book(name, now_ns), today, before, month, batch)

    def _products(self, names: list[str]) -> list[rest.Json]:
        return [shapes.status_product(self.exchange.product(name)) for name in names]

    def _candles(self, name: str, count: int, now_ns: int) -> list[rest.Json]:
        five = Granularity.FIVE_MINUTE
        now_s = now_ns // NS_PER_S
        start_s = now_s // five.seconds * five.seconds - (count - 1) * five.seconds
        series = self.exchange.history.candles(name, five, start_s, now_s + 1, now_ns, self.first_s)
        return shapes.candles(name, series)

    def _past_trades(self, name: str, now_ns: int) -> list[rest.Json]:
        """One seeded trade a second, newest first."""
        newest = now_ns // NS_PER_S
        seconds = range(newest, max(self.first_s, newest - _SNAPSHOT_TRADES), -1)
        return self._trades([self.exchange.past_book(name, second, now_ns) for second in seconds])

    @staticmethod
    def _trades(books: list[Book]) -> list[rest.Json]:
        """A seeded trade of each book; one that was bought empty has none."""
        return [shapes.market_trade(rest.market_trade(book)) for book in books if book.bids and book.asks]


# A channel is asked for by one name and answers by another.
_ALIASES: Final = {"l2_data": ("l2_data", "level2")}


def _strike(session: Session, rule: Rule, text: str) -> None:
    """Let a fault happen to a message; see ``exchange_faults.FAULTS``."""
    if rule.fault == "ws_duplicate":
        session.put(text)
        session.put(text)
    elif rule.fault == "ws_reorder":
        session.held_back, earlier = text, session.held_back
        if earlier:
            session.put(earlier)
    elif rule.fault == "ws_gap":
        session.sequence += int(rule.fields["numbers"]) - 1
    elif rule.fault == "ws_silence":
        session.silent_until_s = time.monotonic() + rule.fields["s"]
    elif rule.fault == "ws_error":
        session.put(json.dumps(shapes.error(rule.fields["message"])))
        session.put(text)
    elif rule.fault == "ws_close":
        code = rule.fields["code"]
        session.end(Ending(None if code == "abort" else int(code), "simulated"))


def _spoiled(events: str, rule: Rule) -> str:
    if rule.fault == "garbage_json":
        return events[: len(events) // 2]
    return json.dumps(spoil(json.loads(events), rule, MARKETS), separators=(",", ":"))


def _update(name: str, content: list[rest.Json]) -> rest.Json:
    return {"type": "update", name: content}


def _parse(message: Message) -> dict[str, Any]:
    """The message as a JSON object; empty where it is none."""
    try:
        parsed = json.loads(message.get("text") or message.get("bytes") or b"")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _names(given: Any) -> list[str] | None:
    """Product names, each once; None where something else was given."""
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > _NAMES_MAX or not all(isinstance(name, str) for name in given):
        return None
    return list(dict.fromkeys(given))


def _unsubscribe(session: Session, channel: str, names: list[str]) -> None:
    """Without names the whole channel goes."""
    having = session.subscriptions.get(channel, {})
    for name in names:
        having.pop(name, None)
    if not names or not having or channel in ("heartbeats", "user"):
        session.subscriptions.pop(channel, None)


def _takes_order(session: Session, product_id: str) -> bool:
    """Without products in its subscription a connection hears of all orders of the portfolio."""
    having = session.subscriptions.get("user")
    return having is not None and (session.portfolio in having or product_id in having)
