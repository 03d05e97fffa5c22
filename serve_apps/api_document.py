"""The OpenAPI document of the whole HTTP surface: this application's routes and, described by hand, those of orders."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Path, Query, Security
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import Field
from pydantic.json_schema import models_json_schema

from cluster.api_keys import READ, TRADE, ApiKey
from cluster.risk import AmendRequest, OrderRequest
from serve_apps.api_access import presented_key
from serve_apps.api_problems import PROBLEM_SCHEMA, problems
from serve_apps.api_shapes import Decimals, Nanoseconds, Shape
from serve_apps.api_submission import BacktestSubmission, SweepSubmission
from strategies.model import OrderStatus, OrderType, Side, TimeInForce

_REFERENCE: Final = "#/components/schemas/{model}"
_TAGS: Final = [
    {"name": "orders", "description": "Pre-trade risk: three replicas decide and reserve in one atomic step."},
    {"name": "accounts", "description": "What accounts hold, risk and have earned; who is watched by the dead man."},
    {"name": "reconciliation", "description": "The books against the venue, line by line."},
    {"name": "venue", "description": "The venue's own view, cached within the request budget, with its age."},
    {
        "name": "kill switch",
        "description": "Trading states at global, account, strategy and product scope, and one order over its limits.",
    },
    {"name": "limits", "description": "Risk limits in force, their changes and their history."},
    {"name": "approvals", "description": "What waits for a second person, and alerts."},
    {"name": "backtests", "description": "Backtests and sweeps as Ray jobs."},
    {"name": "sessions", "description": "Strategies on live bars, each a Ray job with a key of its own."},
    {"name": "health", "description": "Whether the desk may be used, and every part of it in detail."},
]


def route_name(route: APIRoute) -> str:
    """An operation is called as its function; a test keeps the names apart."""
    return route.name


_NOT_NOW: Final = (
    "nothing is recorded, repeat with the same id: RISK_UNAVAILABLE (the ledger does not answer), RECONCILING (the "
    "account is being compared with the venue), STALE_EPOCH, CLOCK_SKEW"
)

# Routes of another application (serve_apps/orders.py): they are described here and never mounted.
orders_router = APIRouter(prefix="/v1/orders", tags=["orders"], generate_unique_id_function=route_name)

_Trader = Annotated[ApiKey, Security(presented_key, scopes=[TRADE])]
_Reader = Annotated[ApiKey, Security(presented_key, scopes=[READ])]
_OrderId = Annotated[str, Path(description="the sender's own id", examples=["my-order-1"])]
_Account = Annotated[str, Query(description="the account of the order", examples=["main"])]
_SCOPES: Final = ["global", "account", "product|BTC-USD"]
_ORDER_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/OrderRequest"},
                "example": {
                    "client_order_id": "my-order-1",
                    "account": "main",
                    "strategy": "manual",
                    "product_id": "BTC-USD",
                    "side": "BUY",
                    "type": "LIMIT",
                    "quantity": "0.01",
                    "limit_price": "60000.00",
                },
            }
        },
    }
}


_AMEND_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/AmendRequest"},
                "example": {"quantity": "0.02", "limit_price": "59000.00"},
            }
        },
    }
}


class DenialView(Shape):
    """One rule an order broke, or (as a warning) one soft level it passed."""

    code: str = Field(examples=["NOTIONAL_EXCEEDS_MAX"])
    message: str
    scope: str = Field(description="global, account, or strategy, product, key, group with a name", examples=_SCOPES)
    value: str = Field(
        description="what the order would have made of it: a decimal in `unit`, or a word", examples=["60000"]
    )
    limit: str = Field(description="what is allowed, of a warning the soft level", examples=["50000"])
    level: Literal["OVERRIDDEN"] | None = Field(
        default=None,
        description="of a warning: not a soft level but the limit itself was passed, which two people have agreed to "
        "(POST /v1/risk/override); else left out",
    )
    unit: str = Field(
        description="a currency, %, ms, minutes (of the week), orders, ratio (messages per fill); "
        "prices are in the quote currency; empty: value and limit are words",
        examples=["USD"],
    )


class OrderAccepted(Shape):
    """The order is reserved, audited and on its way to the venue."""

    client_order_id: str
    account: str = Field(examples=["main"])
    verdict: Literal["ACCEPTED"]
    status: Literal["RESERVED"]
    reserved_notional: Decimals
    reserved_cash: Decimals = Field(description="fees included; 0 for a sell")
    warnings: list[DenialView] = Field(default=[], description="soft levels passed; left out where there are none")


class WouldBeAccepted(Shape):
    """The order would be reserved, as things stand at this instant."""

    client_order_id: str
    account: str = Field(examples=["main"])
    verdict: Literal["ACCEPTED"]
    reserved_notional: Decimals
    reserved_cash: Decimals = Field(description="fees included; 0 for a sell")
    warnings: list[DenialView]


class WouldBeDenied(Shape):
    """The order would be denied: every rule it breaks."""

    client_order_id: str
    account: str = Field(examples=["main"])
    verdict: Literal["DENIED"]
    denials: list[DenialView] = Field(min_length=1)
    warnings: list[DenialView]


class AmendingTo(Shape):
    """What an order is to be."""

    quantity: Decimals
    limit_price: Decimals


class OrderView(Shape):
    """An order; what a denied one never had is left out."""

    client_order_id: str
    status: OrderStatus
    strategy: str = Field(examples=["manual"])
    product_id: str = Field(examples=["BTC-USD"])
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimals
    limit_price: Decimals | None
    stop_price: Decimals | None = Field(default=None, description="the trigger of STOP_LIMIT and BRACKET")
    end_ns: Nanoseconds | None = Field(default=None, description="when a GTD order expires")
    created_ns: Nanoseconds
    venue_order_id: str | None
    reason: str | None = Field(description="why it ended, where that needs a word")
    denials: list[DenialView] = Field(default=[], description="of a denied order")
    warnings: list[DenialView] = Field(default=[], description="soft levels an accepted order passed")
    post_only: bool = False
    reduce_only: bool = False
    reserved_notional: Decimals | None = None
    fees: Decimals | None = None
    filled_value: Decimals | None = None
    filled_quantity: Decimals | None = None
    average_price: Decimals | None = None
    amending_to: AmendingTo | None = Field(default=None, description="an amendment the venue has not answered yet")


class OrderAmend(Shape):
    """The venue is being asked to amend the order; the larger of old and new is reserved until it has answered."""

    client_order_id: str
    account: str = Field(examples=["main"])
    verdict: Literal["ACCEPTED"]
    amend: Literal["REQUESTED", "ALREADY"]
    quantity: Decimals
    limit_price: Decimals
    reserved_notional: Decimals
    reserved_cash: Decimals
    warnings: list[DenialView] = Field(default=[], description="soft levels passed; left out where there are none")


class OrderCancel(Shape):
    """What became of a cancel."""

    client_order_id: str
    account: str = Field(examples=["main"])
    status: OrderStatus
    cancel: Literal["CANCELLED", "REQUESTED", "ALREADY"]


@orders_router.post(
    "",
    status_code=201,
    openapi_extra=_ORDER_BODY,
    responses=problems(
        400,
        404,
        _409="the id was used for another order (DUP_ID_DIFFERENT_BODY)",
        _422="denied; `denials` lists every rule broken, `code` is the first one's",
        _429="RATE_LIMIT or MSG_RATE: nothing is recorded, the same id may come again after Retry-After",
        _503=_NOT_NOW,
    ),
)
async def submit_order(_: _Trader) -> OrderAccepted:
    """Decide on an order and reserve it. A repeat of an id gets the first answer (Idempotent-Replayed: true).

    An order whose override was approved (POST /v1/risk/override) passes once over limits that can be overridden.
    """
    raise NotImplementedError


@orders_router.post("/check", openapi_extra=_ORDER_BODY, responses=problems(400, 404, _503=_NOT_NOW))
async def check_order(_: _Trader) -> WouldBeAccepted | WouldBeDenied:
    """What an order would be answered at this instant; nothing is reserved or recorded, and the id does not matter.

    A denial is an answer to this question too, so its status is 200; rates are looked at and not used up.
    """
    raise NotImplementedError


@orders_router.get("", responses=problems(400))
async def list_orders(
    _: _Reader,
    account: _Account,
    status: Annotated[Literal["open", "recent"], Query()] = "recent",
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> list[OrderView]:
    """Open orders, oldest first, or recent ones, newest first."""
    raise NotImplementedError


@orders_router.get("/{client_order_id}", responses=problems(400, 404))
async def show_order(_: _Reader, account: _Account, client_order_id: _OrderId) -> OrderView:
    """One order."""
    raise NotImplementedError


@orders_router.delete(
    "/{client_order_id}",
    responses={**problems(400, 404), 202: {"model": OrderCancel, "description": "The venue is being asked."}},
)
async def cancel_order(_: _Trader, account: _Account, client_order_id: _OrderId) -> OrderCancel:
    """Cancel an order: at once where it was not sent yet, else by asking the venue (202). No halt stands in its way."""
    raise NotImplementedError


@orders_router.patch(
    "/{client_order_id}",
    openapi_extra=_AMEND_BODY,
    responses={
        **problems(
            400,
            404,
            _422="denied: AMEND_TYPE, AMEND_NOT_OPEN, AMEND_PENDING, AMEND_BELOW_FILLED, or any rule of an order",
            _429="RATE_LIMIT or MSG_RATE: nothing is recorded",
            _503=_NOT_NOW,
        ),
        202: {"model": OrderAmend, "description": "The venue is being asked."},
    },
)
async def amend_order(_: _Trader, account: _Account, client_order_id: _OrderId) -> OrderAmend:
    """Change quantity (the whole, filled part included) and limit price of a LIMIT order that is GTC.

    Decided as a new order in place of what is open of the old one. The order keeps its id; the same again is answered
    as before.
    """
    raise NotImplementedError


def describe(app: FastAPI) -> None:
    """Let ``app`` serve the whole document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=[*app.routes, *orders_router.routes],
        tags=_TAGS,
    )
    schemas = document["components"]["schemas"]
    schemas |= _schemas()
    order = schemas["OverrideRequest"]["properties"]["order"]
    schemas["OverrideRequest"]["properties"]["order"] = {
        "$ref": _REFERENCE.format(model="OrderRequest"),
        "description": order["description"],
    }
    return document


def _schemas() -> dict[str, Any]:
    """Schemas that no route's signature names: the problem, the bodies read by hand."""
    _, bodies = models_json_schema(
        [(SweepSubmission, "validation"), (BacktestSubmission, "validation")], ref_template=_REFERENCE
    )
    _, orders = msgspec.json.schema_components(
        [OrderRequest, AmendRequest], ref_template=_REFERENCE.replace("model", "name")
    )
    return {"Problem": PROBLEM_SCHEMA, **bodies["$defs"], **_portable(orders)}


def _portable(schemas: Any) -> Any:
    """Patterns in the dialect of JSON Schema, where ``$`` is the very end and Python's ``\\Z`` is unknown."""
    if isinstance(schemas, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schemas.items()
        }
    return [_portable(item) for item in schemas] if isinstance(schemas, list) else schemas
