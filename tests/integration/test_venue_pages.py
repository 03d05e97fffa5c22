"""History by pages through the real SDK: the cursor walks all of it once, newest first, one request a page."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from cluster.venue import Page, Venue, VenueRejected
from strategies.model import Order, OrderStatus, OrderType, Side, TimeInForce
from tests.simulator import running_simulator

pytestmark = pytest.mark.slow

ORDERS = 7


class Counting:
    """A budget without bound that counts what it gave."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, kind: str, wait_s_max: float) -> None:
        self.taken += 1


@pytest.fixture(scope="module")
def budget() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory, budget: Counting) -> Iterator[Venue]:
    """Seven purchases, every one filled, and another that rests."""
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--seed", "5") as simulator:
        venue = Venue(simulator.endpoint, budget)
        for number in range(ORDERS):
            venue.create_order(order(f"page-{number}", OrderType.MARKET, TimeInForce.IOC, None))
        venue.create_order(order("resting", OrderType.LIMIT, TimeInForce.GTC, Decimal("1000.00")))
        yield venue
        venue.close()


def order(client_order_id: str, kind: OrderType, in_force: TimeInForce, limit: Decimal | None) -> Order:
    return Order(
        client_order_id, "main", "manual", "BTC-USD", Side.BUY, kind, in_force, Decimal("0.01"), limit_price=limit
    )


def walked(page: Any, **filters: Any) -> list[Any]:
    """All pages, two at a time."""
    found: list[Any] = []
    cursor = ""
    for _ in range(20):
        answer: Page[Any] = page(limit=2, cursor=cursor, **filters)
        assert len(answer.items) <= 2
        found += answer.items
        cursor = answer.cursor
        if not cursor:
            return found
    raise AssertionError("the cursor never ends")


def test_the_cursor_walks_every_order_once_and_newest_first(venue: Venue) -> None:
    names = [one.client_order_id for one in walked(venue.orders_page)]
    assert names == ["resting", *(f"page-{number}" for number in reversed(range(ORDERS)))]


def test_orders_are_filtered_by_status_product_and_time(venue: Venue) -> None:
    filled = walked(venue.orders_page, statuses=[OrderStatus.FILLED])
    assert len(filled) == ORDERS
    assert walked(venue.orders_page, product_ids=["ETH-USD"]) == []
    middle = filled[3]
    later = walked(venue.orders_page, start_ns=middle.created_ns)
    earlier = walked(venue.orders_page, end_ns=middle.created_ns)
    assert {one.client_order_id for one in later} >= {middle.client_order_id, "resting"}
    assert middle.client_order_id not in {one.client_order_id for one in earlier}
    assert len(later) + len(earlier) == ORDERS + 1


def test_open_orders_have_no_pages(venue: Venue) -> None:
    with pytest.raises(ValueError, match="OPEN"):
        venue.orders_page(statuses=[OrderStatus.OPEN])


def test_fills_have_pages_and_each_costs_one_request(venue: Venue, budget: Counting) -> None:
    fills = walked(venue.fills_page)
    assert sum(fill.quantity for fill in fills) == Decimal("0.01") * ORDERS
    assert [fill.ts_ns for fill in fills] == sorted((fill.ts_ns for fill in fills), reverse=True)
    (one,) = {fill.venue_order_id for fill in fills[:1]}
    assert {fill.venue_order_id for fill in walked(venue.fills_page, order_ids=[one])} == {one}
    assert walked(venue.fills_page, product_ids=["ETH-USD"]) == []
    stranger = Venue(venue.endpoint, budget)
    before = budget.taken
    assert {fill.client_order_id for fill in stranger.fills_page(limit=100).items} == {""}
    assert budget.taken == before + 1
    stranger.close()


def test_a_cursor_that_is_none_is_refused(venue: Venue) -> None:
    for page in (venue.orders_page, venue.fills_page):
        with pytest.raises(VenueRejected):
            page(cursor="no cursor of yours")
