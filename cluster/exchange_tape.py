"""Recorded WebSocket messages, played again to the exchange simulator's listeners: real books, tickers and trades.

Read are text files with a JSON object in each line, alone or after ``TIME: `` (UNIX seconds, with or without something
before it), as recorders of the feeds write them. Messages of Coinbase Exchange (snapshot, l2update, ticker, match) are
told as Advanced Trade tells the same thing; messages of Advanced Trade itself as they are. It begins anew when it ends.
A product that is traded here gets its price from the tape, and books around it are made as always, so that stream, REST
and matching agree; any other product of the tape can be listened to, not traded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from cluster import exchange_shapes as shapes

Json = dict[str, Any]
BYTES_MAX: Final = 200_000_000
_LINE: Final = re.compile(r"^(?:[^{}]*?([0-9]{9,11}(?:\.[0-9]+)?):? *)?(\{.*\})\s*$")
_LEVELS_MAX: Final = 1_000
# Between the end and the new beginning, in seconds.
_PAUSE_S: Final = 1.0
_SIDES: Final = {"buy": "bid", "sell": "offer"}
_CHANNELS: Final = {"l2_data": "level2"}


class TapeError(RuntimeError):
    """A recording cannot be played; the text names file, line and rule."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of the tape: when it comes after the beginning, on which channel, about which product."""

    at_s: float
    channel: str
    product_id: str
    event: Json

    @property
    def subscribed(self) -> str:
        """The name by which its channel is asked for."""
        return _CHANNELS.get(self.channel, self.channel)

    def now(self, now_ns: int) -> Json:
        """The event with its own times moved to now."""
        return _restamped(self.event, shapes.timestamp(now_ns))


@dataclass
class Tape:
    """A recording that is being played; ``books`` and ``tickers`` are what a new listener must know first."""

    story: list[Told]
    books: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)
    tickers: dict[str, Json] = field(default_factory=dict)
    _next: int = 0
    _began_s: float | None = None

    @property
    def products(self) -> frozenset[str]:
        """The products it tells about."""
        return frozenset(told.product_id for told in self.story)

    def due(self, now_s: float) -> Iterator[Told]:
        """What is to be told now (monotonic seconds), in order; remembered for later listeners."""
        if self._began_s is None:
            self._began_s = now_s
        elapsed_s = now_s - self._began_s
        while self._next < len(self.story) and self.story[self._next].at_s <= elapsed_s:
            told = self.story[self._next]
            self._next += 1
            self._remember(told)
            yield told
        if self._next >= len(self.story) and elapsed_s > self.story[-1].at_s + _PAUSE_S:
            self._next, self._began_s = 0, now_s

    def snapshot(self, subscribed: str, product_id: str, now_ns: int) -> Json | None:
        """What a new listener of the channel is told first; None where the tape has said nothing yet."""
        moment = shapes.timestamp(now_ns)
        if subscribed == "level2" and product_id in self.books:
            levels = list(self.books[product_id].items())[:_LEVELS_MAX]
            updates = [_update(side, price, size, moment) for (side, price), size in levels]
            return {"type": "snapshot", "product_id": product_id, "updates": updates}
        if subscribed == "ticker" and product_id in self.tickers:
            return {"type": "snapshot", "tickers": [self.tickers[product_id]]}
        if subscribed == "market_trades":
            return {"type": "snapshot", "trades": []}
        return None

    def mid(self, product_id: str) -> Decimal | None:
        """The middle of the product's book, else of its ticker, as the tape has told it so far."""
        book = self.books.get(product_id, {})
        bids = [Decimal(price) for side, price in book if side == "bid"]
        offers = [Decimal(price) for side, price in book if side == "offer"]
        if bids and offers:
            return (max(bids) + min(offers)) / 2
        ticker = self.tickers.get(product_id)
        if ticker is None:
            return None
        if ticker.get("best_bid") and ticker.get("best_ask"):
            return (Decimal(ticker["best_bid"]) + Decimal(ticker["best_ask"])) / 2
        return Decimal(ticker["price"])

    def _remember(self, told: Told) -> None:
        event = told.event
        if told.channel == "ticker":
            self.tickers[told.product_id] = event["tickers"][0]
        if told.channel != "l2_data":
            return
        book = self.books.setdefault(told.product_id, {})
        if event["type"] == "snapshot":
            book.clear()
        for update in event["updates"]:
            level = (update["side"], update["price_level"])
            if Decimal(update["new_quantity"]):
                book[level] = update["new_quantity"]
            else:
                book.pop(level, None)


def read_tape(path: Path) -> Tape:
    """Read a recording; raises ``TapeError`` where a line is broken or nothing can be told."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise TapeError(f"{path}: expected at most {BYTES_MAX} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TapeError(f"{path}: expected a readable text file: {error}") from None
    story: list[Told] = []
    first_s, at_s = None, 0.0
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        if match is None:
            continue
        if match[1] is not None:
            first_s = float(match[1]) if first_s is None else first_s
            # Recorders of several connections may write a little out of order.
            at_s = max(at_s, float(match[1]) - first_s)
        try:
            story += [Told(at_s, *each) for each in _told(json.loads(match[2]))]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, InvalidOperation) as error:
            raise TapeError(f"{path} line {number}: not a message of a feed: {type(error).__name__}") from None
    if not story:
        raise TapeError(f"{path}: holds no message of a feed that can be told")
    return Tape(story)


def _told(message: Json) -> Iterator[tuple[str, str, Json]]:
    """Channel, product and event of everything a recorded message says; nothing for acknowledgements and the like."""
    if "channel" in message:
        for event in message["events"]:
            product_id = _product_of(event)
            if product_id and message["channel"] in ("l2_data", "ticker", "market_trades", "candles"):
                yield message["channel"], product_id, event
        return
    kind = message.get("type")
    if kind not in ("snapshot", "l2update", "ticker", "match", "last_match"):
        return
    product_id = str(message["product_id"])
    if kind == "snapshot":
        rows = [("bid", *row) for row in message["bids"]] + [("offer", *row) for row in message["asks"]]
        yield "l2_data", product_id, _book("snapshot", product_id, rows)
    elif kind == "l2update":
        rows = [(_SIDES[side], price, size) for side, price, size in message["changes"]]
        yield "l2_data", product_id, _book("update", product_id, rows)
    elif kind == "ticker":
        yield "ticker", product_id, {"type": "update", "tickers": [_ticker(message)]}
    else:
        yield "market_trades", product_id, {"type": "update", "trades": [_trade(message)]}


def _product_of(event: Json) -> str:
    rows = event.get("tickers") or event.get("trades") or event.get("candles") or [event]
    return str(rows[0].get("product_id", ""))


def _book(kind: str, product_id: str, rows: list[tuple[str, str, str]]) -> Json:
    updates = [_update(side, price, _size(size), "") for side, price, size in rows]
    return {"type": kind, "product_id": product_id, "updates": updates}


def _update(side: str, price: str, size: str, moment: str) -> Json:
    return {"side": side, "event_time": moment, "price_level": price, "new_quantity": size}


def _size(text: str) -> str:
    """A level that is gone has "0" in Advanced Trade, "0.00000000" in Exchange; raises ``InvalidOperation``."""
    return text if Decimal(text) else "0"


def _ticker(message: Json) -> Json:
    price, opened = Decimal(message["price"]), Decimal(message["open_24h"])
    change = (price - opened) / opened * 100 if opened else Decimal(0)
    return {
        "type": "ticker",
        "product_id": message["product_id"],
        "price": message["price"],
        "volume_24_h": message["volume_24h"],
        "low_24_h": message["low_24h"],
        "high_24_h": message["high_24h"],
        "low_52_w": message["low_24h"],
        "high_52_w": message["high_24h"],
        "price_percent_chg_24_h": shapes.plain(change.quantize(Decimal("1e-8"))),
        "best_bid": message["best_bid"],
        "best_ask": message["best_ask"],
        # The older feed does not say how much stands there.
        "best_bid_quantity": message.get("best_bid_size", "0"),
        "best_ask_quantity": message.get("best_ask_size", "0"),
    }


def _trade(message: Json) -> Json:
    return {
        "trade_id": str(message["trade_id"]),
        "product_id": message["product_id"],
        "price": message["price"],
        "size": message["size"],
        "side": message["side"].upper(),
        "time": message["time"],
    }


def _restamped(event: Json, moment: str) -> Json:
    if "updates" in event:
        return event | {"updates": [update | {"event_time": moment} for update in event["updates"]]}
    if "trades" in event:
        return event | {"trades": [trade | {"time": moment} for trade in event["trades"]]}
    return event
