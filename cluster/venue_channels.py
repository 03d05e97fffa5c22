"""What Coinbase's channels say, as our events: pure, one message in, events out.

Shapes follow Coinbase's AsyncAPI page and frames recorded from production: ``sequence_num`` counts all messages of one
connection, there is no ``client_id``, numbers are strings. The SDK's own reader raises on errors and unknown channels;
here a message that cannot be read becomes a ``StreamError`` and the rest of it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from cluster import venue_shapes as shapes
from cluster.venue_endpoint import VenueGarbage, redacted
from cluster.venue_shapes import Json, Quote
from strategies.model import OrderStatus, Side

HEARTBEATS: Final = "heartbeats"
USER: Final = "user"
_TEXT_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Connected:
    """All channels of the group (``user`` or ``market``) are subscribed; what was missed before is to be asked for."""

    channel_group: str
    connection: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The group's connection is gone, or could not be made; a new one is tried by itself."""

    reason: str
    channel_group: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were lost, repeated or came out of order; ``Lost`` and a new connection follow."""

    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class StreamError:
    """The venue said that something went wrong, or a message could not be read; the connection goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class OrderUpdate:
    """What one of our orders has come to in all, never a single fill. ``status`` None: a word we do not know."""

    venue_order_id: str
    client_order_id: str
    product_id: str
    status: OrderStatus | None
    filled_quantity: Decimal
    average_price: Decimal
    total_fees: Decimal
    snapshot: bool
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Candle:
    """A five-minute bar as it stands now; ``start_s`` in UNIX seconds, prices and volume in the product's units."""

    product_id: str
    start_s: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class MarketFill:
    """Two strangers traded; ``side`` is the maker's. A snapshot repeats what was told before: see ``trade_id``."""

    product_id: str
    trade_id: str
    side: Side
    price: Decimal
    quantity: Decimal
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The venue's heartbeat, one a second."""

    counter: int


StreamEvent = Connected | Lost | Gap | StreamError | OrderUpdate | Quote | Candle | MarketFill | Beat


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the venue. ``sequence`` None: it carries none, as errors do and what could not be read."""

    channel: str
    sequence: int | None
    subscribed: frozenset[str] = frozenset()
    events: list[StreamEvent] = field(default_factory=list)


def read_message(raw: bytes, product_ids: frozenset[str]) -> Message:
    """Read one message; never raises. Products that are not of ``product_ids`` (empty: any) become errors."""
    content = _parse(raw)
    if content is None:
        return Message("", None, events=[StreamError(f"not a JSON object: {_shown(raw)}")])
    if content.get("type") == "error":
        said = f"{content.get('message', '')} {content.get('reason', '')}".strip()
        return Message("", None, events=[StreamError(redacted(said)[:_TEXT_MAX] or "error")])
    channel, sequence = content.get("channel"), content.get("sequence_num")
    if not isinstance(channel, str) or not isinstance(sequence, int) or isinstance(sequence, bool):
        return Message("", None, events=[StreamError(f"neither channel nor sequence_num: {_shown(raw)}")])
    if channel == "subscriptions":
        return Message(channel, sequence, _subscribed(content))
    if channel not in _CHANNELS:
        return Message(channel, sequence)
    return Message(channel, sequence, events=_read_events(channel, content, product_ids))


def _read_events(channel: str, content: Json, product_ids: frozenset[str]) -> list[StreamEvent]:
    """Each item is read on its own, so that one that is garbage does not hide the others."""
    listed, newest_first, read = _CHANNELS[channel]
    found: list[StreamEvent] = []
    try:
        frame = _Frame(shapes.time_ns_of(shapes.text_of(content, "timestamp"), "timestamp"), product_ids)
        items = _items(shapes.list_of(content, "events"), listed, newest_first)
    except VenueGarbage as error:
        return [StreamError(f"{channel}: {error}")]
    for item, snapshot in items:
        try:
            event = read(frame, item, snapshot)
        except VenueGarbage as error:
            event = StreamError(f"{channel}: {error}")
        if event is not None:
            found.append(event)
    return found


def _items(events: list[Json], listed: str, newest_first: bool) -> list[tuple[Json, bool]]:
    """What the events list, oldest first, and whether it is of a snapshot; the events themselves without a list."""
    if not listed:
        return [(event, False) for event in events]
    found: list[tuple[Json, bool]] = []
    for event in events:
        # An event of the user channel may be about positions only.
        items = [] if listed == "orders" and event.get(listed) is None else shapes.list_of(event, listed)
        snapshot = event.get("type") == "snapshot"
        found += [(item, snapshot) for item in (reversed(items) if newest_first else items)]
    return found


def _parse(raw: bytes) -> Json | None:
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _shown(raw: bytes) -> str:
    return redacted(raw[:_TEXT_MAX].decode("utf-8", "replace"))


def _subscribed(content: Json) -> frozenset[str]:
    """The names of all channels the connection has now; the venue's list holds earlier ones too."""
    events = content.get("events")
    named: set[str] = set()
    for event in events if isinstance(events, list) else []:
        listed = event.get("subscriptions") if isinstance(event, dict) else None
        named |= set(listed) if isinstance(listed, dict) else set()
    return frozenset(named)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What all items of a message share."""

    ts_ns: int
    product_ids: frozenset[str]

    def product_of(self, item: Json) -> str:
        """The product by the name we asked for; raises ``VenueGarbage`` where we did not."""
        name = shapes.text_of(item, "product_id")
        if not self.product_ids or name in self.product_ids:
            return name
        # Market channels of BTC-USDC speak of BTC-USD, its alias.
        if f"{name}C" in self.product_ids and name.endswith("-USD"):
            return f"{name}C"
        raise VenueGarbage(f"product_id: {name[:40]!r} was not asked for")


def _beat(_: _Frame, item: Json, __: bool) -> Beat:
    return Beat(shapes.integer_of(shapes.required(item, "heartbeat_counter"), "heartbeat_counter"))


def _quote(frame: _Frame, item: Json, _: bool) -> Quote | None:
    """None where the venue has no best bid or ask: a side is empty."""
    if not item.get("best_bid") or not item.get("best_ask"):
        return None
    return Quote(
        frame.product_of(item),
        shapes.positive_of(item, "best_bid"),
        shapes.decimal_of(item, "best_bid_quantity"),
        shapes.positive_of(item, "best_ask"),
        shapes.decimal_of(item, "best_ask_quantity"),
        frame.ts_ns,
    )


def _candle(frame: _Frame, item: Json, _: bool) -> Candle:
    return Candle(frame.product_of(item), *shapes.read_candle(item))


def _fill(frame: _Frame, item: Json, _: bool) -> MarketFill:
    return MarketFill(
        frame.product_of(item),
        shapes.text_of(item, "trade_id"),
        shapes.read_side(item),
        shapes.positive_of(item, "price"),
        shapes.positive_of(item, "size"),
        shapes.time_ns_of(shapes.text_of(item, "time"), "time"),
    )


def _order(frame: _Frame, item: Json, snapshot: bool) -> OrderUpdate:
    filled = shapes.amount_of(item, "cumulative_quantity")
    word = shapes.text_of(item, "status")
    try:
        status = shapes.read_status(word, filled)
    except VenueGarbage:
        status = None
    return OrderUpdate(
        venue_order_id=shapes.text_of(item, "order_id"),
        client_order_id=shapes.text_of(item, "client_order_id"),
        product_id=shapes.text_of(item, "product_id"),
        status=status,
        filled_quantity=filled,
        average_price=shapes.amount_of(item, "avg_price"),
        total_fees=shapes.amount_of(item, "total_fees", signed=True),
        snapshot=snapshot,
        ts_ns=frame.ts_ns,
    )


# What the list is called in an event, whether the venue begins it with the newest, and how an item is read.
_CHANNELS: Final[Mapping[str, tuple[str, bool, Callable[[_Frame, Json, bool], StreamEvent | None]]]] = {
    HEARTBEATS: ("", False, _beat),
    USER: ("orders", False, _order),
    "ticker": ("tickers", False, _quote),
    "candles": ("candles", True, _candle),
    "market_trades": ("trades", True, _fill),
}
