"""The venue's own view of the account, read through one cache and the shared request budget; each answer tells its age.

What the desk has booked stands in ``/v1/accounts``; the two are compared by reconciliation, and here one can look.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import ceil
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Path, Query
from pydantic import Field

from cluster.api_keys import READ, ApiKey
from cluster.venue import (
    Balance,
    BookSnapshot,
    EndpointError,
    Page,
    Portfolio,
    Venue,
    VenueError,
    VenueOrder,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
)
from conf.settings import SIMULATED
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk
from serve_apps.api_problems import invalid_request, problems
from serve_apps.api_shapes import Decimals, Nanoseconds, Shape
from serve_apps.problem import Problem, forbidden
from serve_apps.venue_reads import Answer, Resource, told
from strategies.model import NS_PER_S, Fill, OrderStatus, OrderType, Product, Side, TimeInForce

router = APIRouter(prefix="/v1/venue", tags=["venue"], route_class=GuardedRoute)

# For how many seconds an answer is good; the venue is asked no more often than that by one replica.
ACCOUNTS_S: Final = 2.0
PORTFOLIOS_S: Final = 60.0
PRODUCTS_S: Final = 30.0
FEES_S: Final = 60.0
OPEN_ORDERS_S: Final = 1.0
HISTORY_S: Final = 2.0
BOOK_S: Final = 1.0
LEVELS_MAX: Final = 100
PAGE_MAX: Final = 100
_YEAR_10000_NS: Final = 253_402_300_800 * NS_PER_S

T = TypeVar("T")
_PRODUCT: Final = r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$"
ProductPath = Annotated[str, Path(pattern=_PRODUCT, examples=["BTC-USD"])]
ProductQuery = Annotated[str | None, Query(pattern=_PRODUCT, description="only this product", examples=["BTC-USD"])]
SinceQuery = Annotated[int | None, Query(ge=0, lt=_YEAR_10000_NS, description="from this time on, nanoseconds UTC")]
UntilQuery = Annotated[int | None, Query(ge=0, lt=_YEAR_10000_NS, description="before this time, nanoseconds UTC")]
LimitQuery = Annotated[int, Query(ge=1, le=PAGE_MAX, description="at most so many a page")]
CursorQuery = Annotated[str, Query(max_length=500, pattern="^[!-~]*$", description="`cursor` of the page before")]
Wanted = Literal["any", "open", "filled", "cancelled", "expired", "rejected"]


class OfVenue(Shape):
    """What every answer of the venue says first."""

    data_source: str = Field(description="SIMULATED, or the venue that said it", examples=[SIMULATED])
    as_of_ns: Nanoseconds = Field(description="when the venue was asked, by the clock of the desk")
    age_s: float = Field(ge=0, description="how long ago that was", examples=[0.41])
    warning: str | None = Field(description="why it is no newer, where the venue does not answer", examples=[None])


class VenueAccount(Shape):
    """One of the venue's accounts: it has one for each currency."""

    uuid: str
    currency: str = Field(examples=["USD"])
    available: Decimals
    hold: Decimals = Field(description="claimed by open orders")
    total: Decimals


class VenueAccounts(OfVenue):
    """All accounts, empty ones too."""

    accounts: list[VenueAccount]


class VenueBalance(Shape):
    """What is held in one currency."""

    currency: str = Field(examples=["BTC"])
    available: Decimals
    hold: Decimals = Field(description="claimed by open orders")
    total: Decimals


class VenueBalances(OfVenue):
    """Every currency of which something is held, by name."""

    balances: list[VenueBalance]


class VenuePortfolio(Shape):
    """A portfolio of the user; an API key of the venue belongs to exactly one."""

    uuid: str
    name: str = Field(examples=["Default"])
    type: str = Field(examples=["DEFAULT"])
    deleted: bool


class VenuePortfolios(OfVenue):
    """All portfolios."""

    portfolios: list[VenuePortfolio]


class VenueProduct(Shape):
    """A product with the venue's own rules for orders; sizes in base currency units, or quote where named so."""

    product_id: str = Field(examples=["BTC-USD"])
    base_currency: str = Field(examples=["BTC"])
    quote_currency: str = Field(examples=["USD"])
    base_increment: Decimals
    quote_increment: Decimals
    base_min_size: Decimals
    base_max_size: Decimals
    quote_min_size: Decimals
    quote_max_size: Decimals
    status: str = Field(examples=["online"])
    tradable: bool = Field(description="whether new orders are taken at all")
    is_disabled: bool
    trading_disabled: bool
    cancel_only: bool
    limit_only: bool
    post_only: bool
    auction_mode: bool
    view_only: bool


class VenueProducts(OfVenue):
    """Products by id."""

    products: list[VenueProduct]


class OneVenueProduct(OfVenue):
    """One product."""

    product: VenueProduct


class VenueFees(OfVenue):
    """What orders cost now."""

    tier: str = Field(description="the venue's name for it", examples=["Advanced 1"])
    maker_rate: Decimals = Field(description="part of the notional, negative is a rebate", examples=["0.006"])
    taker_rate: Decimals = Field(description="part of the notional", examples=["0.012"])
    volume: Decimals = Field(description="traded in 30 days, USD")


class VenueFill(Shape):
    """A part of an order that was executed."""

    trade_id: str
    venue_order_id: str
    client_order_id: str | None = Field(description="ours; null where the venue does not say and it is not known here")
    product_id: str = Field(examples=["BTC-USD"])
    side: Side
    price: Decimals
    quantity: Decimals
    fee: Decimals = Field(description="negative is a rebate")
    liquidity: str = Field(examples=["TAKER"])
    ts_ns: Nanoseconds


class VenueFills(OfVenue):
    """One page of fills, newest first."""

    fills: list[VenueFill]
    cursor: str | None = Field(description="asks for the next page; null: there is none")


class VenueOrderView(Shape):
    """An order as the venue has it. What was asked for is null where it is of a kind the desk does not send."""

    venue_order_id: str
    client_order_id: str = Field(description="whoever sent it gave it")
    product_id: str = Field(examples=["BTC-USD"])
    side: Side
    status: OrderStatus
    venue_status: str = Field(description="the venue's own word", examples=["OPEN"])
    type: OrderType | None
    time_in_force: TimeInForce | None
    quantity: Decimals | None
    limit_price: Decimals | None
    stop_price: Decimals | None
    post_only: bool
    end_ns: Nanoseconds | None
    filled_quantity: Decimals
    average_price: Decimals | None = Field(description="null while nothing is filled")
    fees: Decimals
    created_ns: Nanoseconds
    reason: str | None = Field(description="why the venue rejected it")


class VenueOrders(OfVenue):
    """One page of orders, newest first."""

    orders: list[VenueOrderView]
    cursor: str | None = Field(description="asks for the next page; null: there is none")


class Level(Shape):
    """One price of a book."""

    price: Decimals
    size: Decimals = Field(description="base currency units")


class VenueBook(OfVenue):
    """The best levels of a product, best first."""

    product_id: str = Field(examples=["BTC-USD"])
    ts_ns: Nanoseconds = Field(description="the venue's time of it")
    bids: list[Level]
    asks: list[Level]


FAILING: Final = {
    "_502": "the venue's answer is of no use: VENUE_UNAUTHORISED, VENUE_GARBAGE; nothing older is known",
    "_503": "VENUE_UNAVAILABLE, VENUE_THROTTLED, VENUE_NOT_CONFIGURED: nothing older is known; RISK_UNAVAILABLE",
}


@router.get("/accounts", responses=problems(**FAILING))
async def list_venue_accounts(desk: TheDesk, key: Reader) -> VenueAccounts:
    """The venue's accounts, one for each currency."""
    answer = await _accounts(desk, key)
    rows = [VenueAccount(uuid=one.uuid, currency=one.currency, **_amounts([one])) for one in answer.value]
    return VenueAccounts(accounts=sorted(rows, key=lambda row: (row.currency, row.uuid)), **head_of(desk, answer))


@router.get("/balances", responses=problems(**FAILING))
async def list_venue_balances(desk: TheDesk, key: Reader) -> VenueBalances:
    """What is held at the venue, currency by currency."""
    answer = await _accounts(desk, key)
    held: dict[str, list[Balance]] = {}
    for one in answer.value:
        held.setdefault(one.currency, []).append(one)
    rows = [VenueBalance(currency=currency, **_amounts(held[currency])) for currency in sorted(held)]
    return VenueBalances(balances=[row for row in rows if Decimal(row.total)], **head_of(desk, answer))


@router.get("/portfolios", responses=problems(**FAILING))
async def list_venue_portfolios(desk: TheDesk, key: Reader) -> VenuePortfolios:
    """The user's portfolios at the venue."""
    _require_own(desk, key)
    answer = await _asked(desk, "portfolios", PORTFOLIOS_S, lambda venue: venue.portfolios())
    return VenuePortfolios(portfolios=[_portfolio(one) for one in answer.value], **head_of(desk, answer))


@router.get("/products", responses=problems(**FAILING))
async def list_venue_products(
    desk: TheDesk,
    _: Reader,
    quote: Annotated[str | None, Query(pattern="^[A-Z0-9]{1,20}$", description="only this quote currency")] = None,
    tradable: Annotated[bool | None, Query(description="only those that take new orders, or that do not")] = None,
) -> VenueProducts:
    """The venue's spot products with their increments, sizes and flags."""
    answer = await _products(desk)
    found = [product for _, product in sorted(answer.value.items()) if quote in {None, product.quote_currency}]
    rows = [_product(product) for product in found if tradable in {None, product.tradable}]
    return VenueProducts(products=rows, **head_of(desk, answer))


@router.get("/products/{product_id}", responses=problems(404, **FAILING))
async def show_venue_product(desk: TheDesk, _: Reader, product_id: ProductPath) -> OneVenueProduct:
    """One product."""
    answer = await _products(desk)
    return OneVenueProduct(product=_product(_known(answer.value, product_id)), **head_of(desk, answer))


@router.get("/fees", responses=problems(**FAILING))
async def show_venue_fees(desk: TheDesk, key: Reader) -> VenueFees:
    """The fee tier orders are charged by."""
    _require_own(desk, key)
    answer = await _asked(desk, "fees", FEES_S, lambda venue: venue.fee_tier())
    tier = answer.value
    rates = {"maker_rate": _text(tier.maker_rate), "taker_rate": _text(tier.taker_rate), "volume": _text(tier.volume)}
    return VenueFees(tier=tier.name, **rates, **head_of(desk, answer))


@router.get("/fills", responses=problems(**FAILING))
async def list_venue_fills(
    desk: TheDesk,
    key: Reader,
    product_id: ProductQuery = None,
    venue_order_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="only of it")] = None,
    since_ns: SinceQuery = None,
    until_ns: UntilQuery = None,
    limit: LimitQuery = 50,
    cursor: CursorQuery = "",
) -> VenueFills:
    """Fills, newest first, a page at a time."""
    _require_own(desk, key)
    orders = [venue_order_id] if venue_order_id else None
    products = [product_id] if product_id else None
    answer: Answer[Page[Fill]] = await _asked(
        desk,
        ("fills", venue_order_id, product_id, since_ns, until_ns, limit, cursor),
        HISTORY_S,
        lambda venue: venue.fills_page(orders, products, since_ns, until_ns, limit, cursor),
        cursor,
    )
    rows = [_fill(one) for one in answer.value.items]
    return VenueFills(fills=rows, cursor=answer.value.cursor or None, **head_of(desk, answer))


@router.get("/orders", responses=problems(**FAILING))
async def list_venue_orders(
    desk: TheDesk,
    key: Reader,
    status: Annotated[Wanted, Query(description="open: all that can still execute")] = "any",
    product_id: ProductQuery = None,
    since_ns: SinceQuery = None,
    until_ns: UntilQuery = None,
    limit: LimitQuery = 50,
    cursor: CursorQuery = "",
) -> VenueOrders:
    """Orders by the time they were created, newest first, a page at a time; also those others have sent."""
    _require_own(desk, key)
    if status == "open":
        listed = await _asked(desk, "open orders", OPEN_ORDERS_S, lambda venue: venue.open_orders())
        wanted = [one for one in listed.value if product_id in {None, one.product_id}]
        page = _page([one for one in wanted if _within(one.created_ns, since_ns, until_ns)], limit, cursor)
        head = head_of(desk, listed)
    else:
        statuses = None if status == "any" else [OrderStatus(status.upper())]
        products = [product_id] if product_id else None
        answer: Answer[Page[VenueOrder]] = await _asked(
            desk,
            ("orders", status, product_id, since_ns, until_ns, limit, cursor),
            HISTORY_S,
            lambda venue: venue.orders_page(products, statuses, since_ns, until_ns, limit, cursor),
            cursor,
        )
        page, head = answer.value, head_of(desk, answer)
    return VenueOrders(orders=[_order(one) for one in page.items], cursor=page.cursor or None, **head)


@router.get("/book/{product_id}", responses=problems(404, **FAILING))
async def show_venue_book(
    desk: TheDesk, _: Reader, product_id: ProductPath, levels: Annotated[int, Query(ge=1, le=LEVELS_MAX)] = 20
) -> VenueBook:
    """The order book of one product."""
    # A product nobody lists is not asked for: whoever makes up names must not spend the budget.
    _known((await _products(desk)).value, product_id)
    answer = await _asked(desk, ("book", product_id), BOOK_S, lambda venue: venue.product_book(product_id, LEVELS_MAX))
    book: BookSnapshot = answer.value
    bids, asks = (
        [Level(price=_text(price), size=_text(size)) for price, size in side[:levels]] for side in _sides(book)
    )
    return VenueBook(product_id=product_id, ts_ns=book.ts_ns, bids=bids, asks=asks, **head_of(desk, answer))


# -- asking ------------------------------------------------------------------------------------------------------------


async def _asked(
    desk: Desk, resource: Resource, good_for_s: float, call: Callable[[Venue], T], cursor: str = ""
) -> Answer[T]:
    """The cached or the venue's answer, or the problem that stands for why there is none."""
    try:
        return await desk.venue.read(resource, good_for_s, call)
    except VenueRejected as error:
        if cursor:
            raise invalid_request(
                "cursor", cursor, "expected the cursor of the page before, with the same filters"
            ) from None
        raise problem_of(error) from None
    except VenueError as error:
        raise problem_of(error) from None


def problem_of(error: VenueError) -> Problem:
    """Why the venue could not be asked; its own text stays inside."""
    if isinstance(error, EndpointError):
        return Problem(503, "VENUE_NOT_CONFIGURED", told(error), headers={"retry-after": "5"})
    if isinstance(error, VenueThrottled):
        return Problem(
            503, "VENUE_THROTTLED", told(error), headers={"retry-after": str(ceil(error.retry_after_s) or 1)}
        )
    if isinstance(error, (VenueUnavailable, VenueUnknown)):
        return Problem(503, "VENUE_UNAVAILABLE", f"{told(error)}; try again", headers={"retry-after": "1"})
    code = "VENUE_UNAUTHORISED" if isinstance(error, VenueUnauthorised) else "VENUE_GARBAGE"
    return Problem(502, code, told(error))


def _require_own(desk: Desk, key: ApiKey) -> None:
    """The venue's account is the one execution trades for; 403 for a key that does not cover it."""
    account = desk.settings.execution.account
    if not key.may(READ, account):
        raise forbidden(READ, account)


async def _accounts(desk: Desk, key: ApiKey) -> Answer[list[Balance]]:
    _require_own(desk, key)
    return await _asked(desk, "accounts", ACCOUNTS_S, lambda venue: venue.accounts())


async def _products(desk: Desk) -> Answer[dict[str, Product]]:
    def by_id(venue: Venue) -> dict[str, Product]:
        return {product.product_id: product for product in venue.products()}

    return await _asked(desk, "products", PRODUCTS_S, by_id)


def _known(products: dict[str, Product], product_id: str) -> Product:
    if product_id not in products:
        raise Problem(404, "UNKNOWN_PRODUCT", f"the venue lists no {product_id}", {"product_id": product_id})
    return products[product_id]


def _page(orders: list[VenueOrder], limit: int, cursor: str) -> Page[VenueOrder]:
    """One page of a whole list, newest first; an order that ends between two pages does not shift the others."""

    def place(order: VenueOrder) -> tuple[int, str]:
        return order.created_ns, order.venue_order_id

    found = sorted(orders, key=place, reverse=True)
    if cursor:
        created, _, order_id = cursor.partition(".")
        if not created.isascii() or not created.isdigit() or not order_id:
            raise invalid_request("cursor", cursor, "expected the cursor of the page before, with the same filters")
        found = [order for order in found if place(order) < (int(created), order_id)]
    page = found[:limit]
    following = f"{page[-1].created_ns}.{page[-1].venue_order_id}" if len(found) > limit else ""
    return Page(tuple(page), following)


def _within(ns: int, since_ns: int | None, until_ns: int | None) -> bool:
    return (since_ns is None or ns >= since_ns) and (until_ns is None or ns < until_ns)


# -- what is shown -----------------------------------------------------------------------------------------------------


def head_of(desk: Desk, answer: Answer[Any]) -> dict[str, Any]:
    """The fields of ``OfVenue``."""
    return {
        "data_source": desk.settings.data_source,
        "as_of_ns": answer.as_of_ns,
        "age_s": answer.age_s,
        "warning": answer.warning,
    }


def _text(amount: Decimal) -> str:
    return f"{amount:f}"


def _text_or_none(amount: Decimal | None) -> str | None:
    return None if amount is None else _text(amount)


def _amounts(balances: list[Balance]) -> dict[str, str]:
    available = sum((one.available for one in balances), Decimal(0))
    hold = sum((one.hold for one in balances), Decimal(0))
    return {"available": _text(available), "hold": _text(hold), "total": _text(available + hold)}


def _portfolio(one: Portfolio) -> VenuePortfolio:
    return VenuePortfolio(uuid=one.uuid, name=one.name, type=one.type, deleted=one.deleted)


def _product(one: Product) -> VenueProduct:
    values = {name: getattr(one, name) for name in VenueProduct.model_fields}
    return VenueProduct(**{name: _text(it) if isinstance(it, Decimal) else it for name, it in values.items()})


def _fill(one: Fill) -> VenueFill:
    return VenueFill(
        trade_id=one.trade_id,
        venue_order_id=one.venue_order_id,
        client_order_id=one.client_order_id or None,
        product_id=one.product_id,
        side=one.side,
        price=_text(one.price),
        quantity=_text(one.quantity),
        fee=_text(one.fee),
        liquidity=one.liquidity,
        ts_ns=one.ts_ns,
    )


def _order(one: VenueOrder) -> VenueOrderView:
    return VenueOrderView(
        venue_order_id=one.venue_order_id,
        client_order_id=one.client_order_id,
        product_id=one.product_id,
        side=one.side,
        status=one.status,
        venue_status=one.raw_status,
        type=one.type,
        time_in_force=one.time_in_force,
        quantity=_text_or_none(one.quantity),
        limit_price=_text_or_none(one.limit_price),
        stop_price=_text_or_none(one.stop_price),
        post_only=one.post_only,
        end_ns=one.end_ns,
        filled_quantity=_text(one.filled_quantity),
        average_price=_text(one.average_price) if one.average_price else None,
        fees=_text(one.total_fees),
        created_ns=one.created_ns,
        reason=one.reject_reason or None,
    )


def _sides(book: BookSnapshot) -> tuple[tuple[tuple[Decimal, Decimal], ...], ...]:
    return book.bids, book.asks
