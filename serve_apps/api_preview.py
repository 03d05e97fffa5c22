"""What an order would come to: the venue's own preview of total, fee and market, before anything is sent."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from pydantic import Field, StrictBool

from cluster.api_keys import TRADE
from cluster.ledger import fingerprint
from cluster.venue import Preview, VenueError, VenueRejected
from serve_apps.api_access import GuardedRoute, TheDesk, Trader, account_snapshot
from serve_apps.api_problems import problems
from serve_apps.api_risk import known_product, order_in
from serve_apps.api_shapes import Decimals, Shape
from serve_apps.api_venue import FAILING, OfVenue, head_of, problem_of
from serve_apps.problem import forbidden

router = APIRouter(prefix="/v1/preview", tags=["venue"], route_class=GuardedRoute)

PREVIEW_S: Final = 1.0


class PreviewRequest(Shape):
    """An order that is not sent."""

    order: dict[str, StrictBool | str | None] = Field(description="the body it would be sent with to /v1/orders")


class PreviewView(OfVenue):
    """What the venue says of it; the desk's own limits are asked at /v1/orders/check."""

    quantity: Decimals = Field(description="in base currency")
    notional: Decimals = Field(description="in quote currency, fees included")
    fee: Decimals
    best_bid: Decimals
    best_ask: Decimals
    errors: list[str] = Field(description="why the venue would not take it; none: it would", examples=[[]])
    warnings: list[str] = Field(examples=[[]])


@router.post("", responses=problems(404, _422="the order breaks a rule of the product's", **FAILING))
async def preview_order(desk: TheDesk, key: Trader, request: PreviewRequest) -> PreviewView:
    """Ask the venue what an order would come to. Nothing is placed, reserved or recorded."""
    order = order_in(request.order)
    if not key.may(TRADE, order.account, order.strategy):
        raise forbidden(TRADE, order.account)
    await account_snapshot(desk, key, order.account, TRADE)
    await known_product(desk, order)
    try:
        answer = await desk.venue.read(("preview", fingerprint(order)), PREVIEW_S, lambda venue: venue.preview(order))
    except (VenueRejected, VenueError) as error:
        raise problem_of(error) from None
    found: Preview = answer.value
    return PreviewView(
        quantity=f"{found.quantity:f}",
        notional=f"{found.notional:f}",
        fee=f"{found.fee:f}",
        best_bid=f"{found.best_bid:f}",
        best_ask=f"{found.best_ask:f}",
        errors=list(found.errors),
        warnings=list(found.warnings),
        **head_of(desk, answer),
    )
