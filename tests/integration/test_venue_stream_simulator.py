"""The channels of the simulator as a process of its own: an order's life is told, and after every fault again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from cluster.venue import Venue
from cluster.venue_stream import (
    Candle,
    Connected,
    Gap,
    Lost,
    MarketFill,
    OrderUpdate,
    Quote,
    StreamError,
    StreamEvent,
    VenueStream,
)
from strategies.model import Order, OrderStatus, OrderType, Side, TimeInForce
from tests.simulator import Simulator, running_simulator

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

WAIT_S = 20.0
PRODUCT = "ETH-USD"
_counter = iter(range(10**9))


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "60") as running:
        yield running


@pytest.fixture(autouse=True)
def clean(simulator: Simulator) -> Iterator[None]:
    yield
    simulator.control("/sim/faults", rules=[])
    simulator.push_price(PRODUCT, None)


def limit(price: Decimal, quantity: str = "0.5") -> Order:
    name = f"stream-{time.time_ns()}-{next(_counter)}"
    return Order(
        *(name, "main", "manual", PRODUCT, Side.BUY, OrderType.LIMIT, TimeInForce.GTC),
        quantity=Decimal(quantity),
        limit_price=price,
    )


class Heard:
    """Everything a stream has told so far."""

    def __init__(self, venue: Venue) -> None:
        self.venue = venue
        self.events: list[StreamEvent] = []
        self._new = asyncio.Event()

    async def listen(self, stream: VenueStream) -> None:
        async for event in stream.events():
            self.events.append(event)
            self._new.set()

    async def until(self, what: str, holds: Callable[[list[StreamEvent]], bool], since: int = 0) -> list[StreamEvent]:
        """All events from ``since`` on, once ``holds`` of them."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not holds(self.events[since:]):
                    self._new.clear()
                    await self._new.wait()
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_S:g} s for {what}, came: {self.events[since:][-20:]}") from None
        return self.events[since:]

    async def order(self, venue_order_id: str, status: OrderStatus, since: int = 0) -> OrderUpdate:
        """The first update of the order with this status."""

        def fitting(events: list[StreamEvent]) -> list[OrderUpdate]:
            updates = [event for event in events if isinstance(event, OrderUpdate)]
            return [each for each in updates if each.venue_order_id == venue_order_id and each.status is status]

        return fitting(await self.until(f"{status} of {venue_order_id}", lambda events: bool(fitting(events)), since))[
            0
        ]


@asynccontextmanager
async def listening(simulator: Simulator, *channels: str, silent_s: float = 3.0) -> AsyncIterator[Heard]:
    venue = simulator.venue()
    stream = VenueStream(venue, channels, [PRODUCT], silent_s=silent_s)
    heard = Heard(venue)
    task = asyncio.create_task(heard.listen(stream))
    try:
        yield heard
    finally:
        await stream.close()
        await asyncio.wait_for(task, 5)
        venue.close()


async def placed(venue: Venue) -> str:
    """A resting order far below the market."""
    return await asyncio.to_thread(venue.create_order, limit(Decimal(100)))


def groups(events: list[StreamEvent]) -> set[str]:
    return {event.channel_group for event in events if isinstance(event, Connected)}


async def test_an_orders_life_is_told_from_its_opening_to_its_end(simulator: Simulator) -> None:
    async with listening(simulator, "user", "ticker") as heard:
        await heard.until("both groups", lambda events: groups(events) == {"user", "market"})
        order_id = await placed(heard.venue)
        opened = await heard.order(order_id, OrderStatus.OPEN)
        assert (opened.product_id, opened.filled_quantity, opened.snapshot) == (PRODUCT, Decimal(0), False)
        assert opened.client_order_id.startswith("stream-")
        simulator.push_price(PRODUCT, "90")
        filled = await heard.order(order_id, OrderStatus.FILLED)
        assert (filled.filled_quantity, filled.total_fees > 0) == (Decimal("0.5"), True)
        fills = await asyncio.to_thread(heard.venue.fills, [order_id])
        assert sum(fill.quantity for fill in fills) == filled.filled_quantity
        simulator.push_price(PRODUCT, None)
        cancelled = await placed(heard.venue)
        await asyncio.to_thread(heard.venue.cancel, [cancelled])
        await heard.order(cancelled, OrderStatus.CANCELLED)
    assert not [event for event in heard.events if isinstance(event, Lost | Gap | StreamError)]


async def test_what_rests_already_is_told_in_the_snapshot(simulator: Simulator) -> None:
    venue = simulator.venue()
    order_id = await placed(venue)
    async with listening(simulator, "user") as heard:
        found = await heard.order(order_id, OrderStatus.OPEN)
        assert found.snapshot
    assert (await asyncio.to_thread(venue.cancel, [order_id])) == {order_id: True}
    venue.close()


async def test_every_market_channel_speaks(simulator: Simulator) -> None:
    kinds = {Quote, Candle, MarketFill}
    async with listening(simulator, "ticker", "candles", "market_trades", "level2", "status") as heard:
        found = await heard.until("all kinds", lambda events: kinds <= {type(event) for event in events})
        simulator.push_price(PRODUCT, "1234.56")
        since = len(heard.events)

        def pinned(events: list[StreamEvent]) -> bool:
            return any(isinstance(event, Quote) and abs(event.bid - Decimal("1234.56")) < 5 for event in events)

        await heard.until("the pinned price", pinned, max(0, since - 3))
    products = {event.product_id for event in found if isinstance(event, Quote | Candle | MarketFill)}
    assert products == {PRODUCT}
    starts = [event.start_s for event in found if isinstance(event, Candle)]
    assert starts == sorted(starts)
    assert not [event for event in heard.events if isinstance(event, Lost | Gap | StreamError)]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"fault": "ws_reorder", "count": 1}, Gap),
        ({"fault": "ws_gap", "count": 1}, Gap),
        ({"fault": "ws_close", "code": 1000, "count": 2}, Lost),
        ({"fault": "ws_close", "code": 1001, "count": 2}, Lost),
        ({"fault": "ws_close", "code": 1011, "count": 2}, Lost),
        ({"fault": "ws_close", "code": "abort", "count": 2}, Lost),
        ({"fault": "ws_silence", "s": 3, "count": 1}, Lost),
        ({"fault": "ws_error", "count": 1}, StreamError),
        ({"fault": "garbage_json", "count": 2, "match": {"channel": "heartbeats"}}, StreamError),
        ({"fault": "nan_numbers", "count": 2, "match": {"channel": "user"}}, StreamError),
    ],
    ids=str,
)
async def test_after_each_fault_orders_are_told_again(
    simulator: Simulator, rule: dict[str, Any], told: type[StreamEvent]
) -> None:
    async with listening(simulator, "user", "ticker", silent_s=1.5) as heard:
        await heard.until("both groups", lambda events: groups(events) == {"user", "market"})
        since = len(heard.events)
        simulator.control("/sim/faults", rules=[rule])
        struck = [await placed(heard.venue) for _ in range(3)]
        await heard.until("the fault", lambda events: any(isinstance(event, told) for event in events), since)
        simulator.control("/sim/faults", rules=[])
        await _told_again(heard, struck)


async def _told_again(heard: Heard, struck: list[str]) -> None:
    """An order placed now is told, as soon as the user channel is there; nothing was told that never was."""
    async with asyncio.timeout(WAIT_S):
        while True:
            since = len(heard.events)
            order_id = await placed(heard.venue)
            try:
                await asyncio.wait_for(heard.order(order_id, OrderStatus.OPEN, since), 2)
            except (TimeoutError, AssertionError):
                continue
            break
    known = {event.venue_order_id for event in heard.events if isinstance(event, OrderUpdate)}
    real = {order.venue_order_id for order in await asyncio.to_thread(heard.venue.orders)}
    assert {order_id, *struck} <= real
    assert known <= real
    await _cancelled(heard.venue)


async def _cancelled(venue: Venue) -> None:
    resting = await asyncio.to_thread(venue.open_orders)
    await asyncio.to_thread(venue.cancel, [order.venue_order_id for order in resting])
    assert await asyncio.to_thread(venue.open_orders) == []
