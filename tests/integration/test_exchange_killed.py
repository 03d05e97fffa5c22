"""The exchange simulator killed in the middle of work: what it has answered is there afterwards, and nothing twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from cluster.venue import Venue, VenueError, VenueOrder
from strategies.model import Order, OrderStatus, OrderType, Side, TimeInForce
from tests.simulator import Simulator, running_simulator, start_simulator

pytestmark = pytest.mark.slow

CLIENTS: Final = 4
RATES: Final = ("--requests-per-s", "0", "--public-requests-per-s", "0")


def orders(client: int) -> Iterator[Order]:
    """Orders that rest, execute, wait for a trigger; every third rests."""
    for number in itertools.count():
        kind = number % 3
        yield Order(
            client_order_id=f"client-{client}-{number}",
            account="main",
            strategy="manual",
            product_id="BTC-USD",
            side=Side.SELL if kind == 2 else Side.BUY,
            type=(OrderType.LIMIT, OrderType.MARKET, OrderType.STOP_LIMIT)[kind],
            time_in_force=TimeInForce.IOC if kind == 1 else TimeInForce.GTC,
            quantity=Decimal("0.0001"),
            limit_price=None if kind == 1 else Decimal(1_000 + number % 50),
            stop_price=Decimal(1_000 + number % 50) if kind == 2 else None,
        )


class _NoBudget:
    """Requests as fast as they go."""

    def take(self, kind: str, wait_s_max: float) -> None:
        """Never waits."""


class Client(threading.Thread):
    """Places, amends and cancels until the exchange does not answer any more; keeps what it was told."""

    def __init__(self, simulator: Simulator, number: int) -> None:
        super().__init__(name=f"client {number}")
        self.venue = Venue(simulator.endpoint, _NoBudget())
        self.number = number
        self.placed: dict[str, str] = {}
        self.sizes: dict[str, Decimal] = {}
        self.cancelled: set[str] = set()
        self.last_sent: Order | None = None

    def run(self) -> None:
        """Until the connection ends."""
        try:
            for order in orders(self.number):
                self.last_sent = order
                venue_order_id = self.venue.create_order(order)
                self.placed[order.client_order_id] = venue_order_id
                self.last_sent = None
                if order.type is OrderType.LIMIT and order.limit_price is not None:
                    self.venue.edit(venue_order_id, Decimal("0.0002"), order.limit_price)
                    self.sizes[venue_order_id] = Decimal("0.0002")
                elif order.type is OrderType.STOP_LIMIT and self.venue.cancel([venue_order_id])[venue_order_id] is True:
                    self.cancelled.add(venue_order_id)
        except VenueError:
            return
        finally:
            self.venue.close()


@pytest.mark.parametrize("placed_before", [1, 40, 150])
def test_what_was_answered_before_a_kill_is_there_after_it(tmp_path: Path, placed_before: int) -> None:
    simulator = start_simulator(tmp_path, *RATES)
    clients = [Client(simulator, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    while sum(len(client.placed) for client in clients) < placed_before:
        assert all(client.is_alive() for client in clients)
        time.sleep(0.002)
    simulator.process.kill()
    simulator.process.communicate(timeout=10)
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    with running_simulator(tmp_path, *RATES) as again:
        venue = again.venue()
        try:
            _check(venue, clients)
        finally:
            venue.close()


def test_an_order_is_pending_until_it_comes_to_the_book(tmp_path: Path) -> None:
    with running_simulator(tmp_path, "--accept-delay-ms", "1500", "--cancel-delay-ms", "1500") as simulator:
        venue = simulator.venue()
        order = next(each for each in orders(0) if each.type is OrderType.LIMIT)
        venue_order_id = venue.create_order(order)
        assert venue.order(venue_order_id).raw_status == "PENDING"
        assert [each.venue_order_id for each in venue.open_orders()] == [venue_order_id]
        assert _becomes(venue, venue_order_id, "OPEN")
        assert venue.cancel([venue_order_id]) == {venue_order_id: True}
        assert venue.order(venue_order_id).raw_status == "CANCEL_QUEUED"
        assert _becomes(venue, venue_order_id, "CANCELLED")
        venue.close()


def _becomes(venue: Venue, venue_order_id: str, status: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if venue.order(venue_order_id).raw_status == status:
            return True
        time.sleep(0.02)
    return False


def _check(venue: Venue, clients: list[Client]) -> None:
    found = {order.venue_order_id: order for order in venue.orders()}
    for client in clients:
        for client_order_id, venue_order_id in client.placed.items():
            assert found[venue_order_id].client_order_id == client_order_id
        for venue_order_id in client.cancelled:
            assert found[venue_order_id].status is OrderStatus.CANCELLED
        for venue_order_id, size in client.sizes.items():
            assert found[venue_order_id].quantity == size
        if client.last_sent is not None:
            # Never answered: asked again with the same id it is one order, whether it had arrived or not.
            venue_order_id = venue.create_order(client.last_sent)
            assert venue.create_order(client.last_sent) == venue_order_id
    _check_books(venue)


def _check_books(venue: Venue) -> None:
    """Balances are deposits and fills, holds are what rests."""
    everything = venue.orders()
    assert len({order.client_order_id for order in everything}) == len(everything)
    fills = venue.fills()
    balances = {balance.currency: balance for balance in venue.accounts()}
    bought = sum((fill.quantity for fill in fills), Decimal(0))
    paid = sum((fill.quantity * fill.price + fill.fee for fill in fills), Decimal(0))
    usd, btc = balances["USD"], balances["BTC"]
    assert btc.available + btc.hold == 10 + bought
    assert usd.available + usd.hold == 1_000_000 - paid
    resting = [order for order in everything if order.status is OrderStatus.OPEN]
    assert usd.hold == sum((_held(order) for order in resting if order.side is Side.BUY), Decimal(0))
    assert btc.hold == sum((order.quantity or Decimal(0) for order in resting if order.side is Side.SELL), Decimal(0))


def _held(order: VenueOrder) -> Decimal:
    return (order.quantity or Decimal(0)) * (order.limit_price or Decimal(0)) * Decimal("1.006")
