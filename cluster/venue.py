"""Coinbase Advanced Trade through its real SDK; the only importer of ``coinbase``. The simulator is the same code.

What the SDK leaves open is closed here: a timeout on every call, verified TLS whatever the environment says, no
redirects, a request budget, retries only of reads, our ``client_order_id`` always, typed errors, no secret in any text.

``create_order`` has one rule its callers build on: **only ``VenueUnknown`` leaves an order in doubt.** After any other
error the venue has no such order.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import re
import ssl
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import certifi
import requests
import urllib3.exceptions
from coinbase import jwt_generator
from coinbase.rest import RESTClient

from cluster import venue_shapes as shapes
from cluster.venue_endpoint import (
    COINBASE_HOST,
    Budget,
    EndpointError,
    ProcessBudget,
    RequestKind,
    SafeLog,
    VenueEndpoint,
    VenueError,
    VenueGarbage,
    VenueNotFound,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
    check_ca,
    redacted,
    simulator_endpoint,
)
from cluster.venue_shapes import (
    Balance,
    BookSnapshot,
    FeeTier,
    Json,
    KeyPermissions,
    Page,
    Portfolio,
    Preview,
    Quote,
    VenueOrder,
)
from cluster.venue_wire import DeadlineAdapter
from strategies.model import NS_PER_S, Bars, Fill, Granularity, Order, OrderStatus, Product

__all__ = [
    "CANDLES_MAX",
    "COINBASE_HOST",
    "Balance",
    "BookSnapshot",
    "Budget",
    "EndpointError",
    "FeeTier",
    "KeyPermissions",
    "Page",
    "Portfolio",
    "Preview",
    "ProcessBudget",
    "Quote",
    "Venue",
    "VenueEndpoint",
    "VenueError",
    "VenueGarbage",
    "VenueNotFound",
    "VenueOrder",
    "VenueRejected",
    "VenueThrottled",
    "VenueUnauthorised",
    "VenueUnavailable",
    "VenueUnknown",
    "check_key",
    "simulator_endpoint",
]

CANDLES_MAX: Final = 350
_READ_TRIES: Final = 3
_BACKOFF_S: Final = (0.2, 0.8)
_PAGES_MAX: Final = 1_000
_PAGE_SIZE: Final = 250
_FILLS_PAGE_SIZE: Final = 100
_CANCELS_PER_CALL: Final = 100
_ORDER_IDS_PER_CALL: Final = 100
_KNOWN_ORDERS_MAX: Final = 10_000
_LEVELS_MAX: Final = 500
_DUPLICATE: Final = "DUPLICATE_CLIENT_ORDER_ID"
_EQUAL_EDIT: Final = "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"
# How far back an order is looked for by our own id when the caller does not say since when.
_LOOK_BACK_S: Final = 2 * 86_400

_log = logging.getLogger(__name__)


class Venue:
    """The venue at one endpoint. Thread-safe: every thread has its own sessions."""

    def __init__(self, endpoint: VenueEndpoint, budget: Budget | None = None) -> None:
        """Makes no request. ``budget`` None: the endpoint's rates, for this process alone.

        Raises ``EndpointError`` where the certificate file cannot be used.
        """
        _quiet_sdk_log()
        self.endpoint = endpoint
        self.trusted_file = str(endpoint.ca_file) if endpoint.ca_file else certifi.where()
        check_ca(self.trusted_file)
        self._budget = budget or ProcessBudget(
            endpoint.requests_per_s, endpoint.public_requests_per_s, endpoint.cancel_share
        )
        self._local = threading.local()
        # Weak, so that the connections of a thread that has ended go with it.
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._client_order_ids: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    # --- public ---

    def server_time_ns(self) -> int:
        """The venue's clock in nanoseconds UTC (it tells milliseconds)."""
        answer = self._read_public(lambda client: client.get_unix_time())
        return shapes.integer_of(shapes.required(answer, "epoch_millis", "time"), "epochMillis") * 1_000_000

    def products(self) -> list[Product]:
        """All spot products. One that cannot be read is left out and logged: the venue lists hundreds."""
        answer = self._read_public(lambda client: client.get_public_products(product_type="SPOT"))
        found = []
        for item in shapes.list_of(answer, "products"):
            try:
                found.append(shapes.read_product(item))
            except VenueGarbage as error:
                _log.warning("product left out: %s", error)
        if not found:
            raise VenueGarbage("products: none that can be read")
        return found

    def product(self, product_id: str) -> Product:
        """One product; raises ``VenueNotFound``."""
        path = shapes.product_path(product_id)
        found = shapes.read_product(self._read_public(lambda client: client.get_public_product(path)))
        shapes.same_product(found.product_id, product_id)
        return found

    def product_book(self, product_id: str, levels: int) -> BookSnapshot:
        """The best ``levels`` (1 to 500) of each side; needs no key. Raises ``VenueNotFound``, ``ValueError``."""
        if not 1 <= levels <= _LEVELS_MAX:
            raise ValueError(f"levels: expected 1 to {_LEVELS_MAX}, was {levels}")
        name = shapes.product_path(product_id)
        answer = self._read_public(lambda client: client.get_public_product_book(name, limit=levels))
        return shapes.read_book(shapes.object_of(answer, "pricebook"), product_id)

    def candles(self, product_id: str, granularity: Granularity, start_s: int, end_s: int) -> Bars:
        """One page of bars whose start lies in ``[start_s, end_s)`` (UNIX seconds), oldest first.

        At most 350; needs no key. The last bar may still be running. Raises ``ValueError`` where more is asked for.
        """
        length_s = granularity.seconds
        first_s = -(-start_s // length_s) * length_s
        count = max(0, -(-(end_s - first_s) // length_s))
        if count > CANDLES_MAX:
            raise ValueError(f"end_s: expected at most {CANDLES_MAX} bars of {granularity} a page, asked for {count}")
        if count == 0:
            return shapes.make_bars(product_id, granularity, [])
        last_s = first_s + (count - 1) * length_s
        answer = self._read_public(
            lambda client: client.get_public_candles(
                shapes.product_path(product_id), str(first_s), str(last_s), granularity.value
            )
        )
        rows = [shapes.read_candle(item) for item in shapes.list_of(answer, "candles")]
        # Coinbase may send a bar before the start; one that was not asked for is dropped.
        return shapes.make_bars(product_id, granularity, sorted(row for row in rows if first_s <= row[0] <= last_s))

    # --- private reads ---

    def best_bid_ask(self, product_ids: Sequence[str]) -> list[Quote]:
        """Best bid and ask of the products, in the order asked for; needs a key."""
        if not product_ids:
            return []
        answer = self._read(lambda client: client.get_best_bid_ask(product_ids=list(product_ids)))
        found = {quote.product_id: quote for quote in map(shapes.read_quote, shapes.list_of(answer, "pricebooks"))}
        missing = [name for name in product_ids if name not in found]
        if missing:
            raise VenueGarbage(f"best_bid_ask: no answer for {', '.join(missing)}")
        return [found[name] for name in product_ids]

    def accounts(self) -> list[Balance]:
        """All balances."""
        pages = self._pages("accounts", lambda client, cursor: client.get_accounts(limit=_PAGE_SIZE, cursor=cursor))
        return [shapes.read_balance(item) for page in pages for item in shapes.list_of(page, "accounts")]

    def portfolios(self) -> list[Portfolio]:
        """All portfolios of the user, whatever the key's own is."""
        return list(map(shapes.read_portfolio, shapes.list_of(self._read(lambda c: c.get_portfolios()), "portfolios")))

    def fee_tier(self) -> FeeTier:
        """What orders cost now."""
        return shapes.read_fee_tier(self._read(lambda client: client.get_transaction_summary(product_type="SPOT")))

    def key_permissions(self) -> KeyPermissions:
        """What the key may do."""
        return shapes.read_key_permissions(self._read(lambda client: client.get_api_key_permissions()))

    def stream_token(self) -> str:
        """A fresh token for one subscription to the venue's channels; empty without a key."""
        if self.endpoint.key_name is None:
            return ""
        client = self._client(private=True)
        return str(jwt_generator.build_ws_jwt(client.api_key, client.api_secret))

    def order(self, venue_order_id: str) -> VenueOrder:
        """One order by the venue's id; raises ``VenueNotFound``."""
        path = shapes.order_path(venue_order_id)
        found = shapes.read_order(shapes.object_of(self._read(lambda client: client.get_order(path)), "order"))
        if found.venue_order_id != venue_order_id:
            raise VenueGarbage(f"order: asked for {venue_order_id}, the answer is about another")
        return self._seen(found)

    def order_by_client_id(self, client_order_id: str, since_ns: int | None = None) -> VenueOrder | None:
        """The order with our id, looked for among those created since ``since_ns`` (None: two days).

        Coinbase has no look-up by client id, so its list is read, newest first, until the order is found.
        """
        start_ns = time.time_ns() - _LOOK_BACK_S * NS_PER_S if since_ns is None else since_ns
        for found in self._listed(None, None, start_ns):
            if found.client_order_id == client_order_id:
                return found
        return None

    def orders(
        self,
        product_ids: Sequence[str] | None = None,
        statuses: Sequence[OrderStatus] | None = None,
        start_ns: int | None = None,
    ) -> list[VenueOrder]:
        """All orders of these products, in these statuses, created since ``start_ns``; None means any."""
        if statuses is None:
            return list(self._listed(product_ids, None, start_ns))
        found: dict[str, VenueOrder] = {}
        # Coinbase does not take OPEN together with others, and its OPEN leaves out what is still queued. Queued ones
        # are asked for first: an order that opens in between is then seen at least once, and the later sight counts.
        for group in shapes.status_groups(statuses):
            found |= {order.venue_order_id: order for order in self._listed(product_ids, group, start_ns)}
        return [order for order in found.values() if order.status in statuses]

    def open_orders(self) -> list[VenueOrder]:
        """All orders that can still execute: open, and queued for opening, cancelling or editing."""
        queued, opened = shapes.status_groups([OrderStatus.OPEN])
        found: dict[str, VenueOrder] = {}
        # Queued ones are asked for before and after: an order that leaves or enters the book meanwhile is seen either
        # way, and the last sight counts.
        for group in (queued, opened, queued):
            found |= {order.venue_order_id: order for order in self._listed(None, group, None)}
        return list(found.values())

    def fills(self, order_ids: Sequence[str] | None = None, since_ns: int | None = None) -> list[Fill]:
        """Fills of these orders (the venue's ids) or, with None, of all, since ``since_ns``, oldest first.

        Coinbase's fills do not carry our client order id; it is remembered from orders seen, else the order is read.
        """
        if order_ids is None:
            groups: list[list[str] | None] = [None]
        else:
            ids = [shapes.order_path(order_id) for order_id in dict.fromkeys(order_ids)]
            groups = [ids[begin : begin + _ORDER_IDS_PER_CALL] for begin in range(0, len(ids), _ORDER_IDS_PER_CALL)]
        found = [fill for group in groups for fill in self._listed_fills(group, since_ns)]
        # The venue lists the newest first; turned round, fills of one moment keep the order they happened in.
        found.reverse()
        return sorted(found, key=lambda fill: fill.ts_ns)

    def orders_page(
        self,
        product_ids: Sequence[str] | None = None,
        statuses: Sequence[OrderStatus] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page[VenueOrder]:
        """One page of orders created in ``[start_ns, end_ns)``: one request; ``cursor`` is the page's before.

        ``statuses`` are ended ones, or None for orders of any status; OPEN is ``open_orders``'s. Raises
        ``VenueRejected`` for a cursor that is none.
        """
        groups: list[list[str] | None] = [None] if statuses is None else [*shapes.status_groups(statuses)]
        if len(groups) != 1:
            raise ValueError(f"statuses: expected ended ones, was {statuses}")
        answer = self._read(
            lambda client: client.list_orders(
                product_ids=list(product_ids) if product_ids else None,
                order_status=groups[0],
                start_date=_moment(start_ns),
                end_date=_moment(end_ns),
                limit=limit,
                cursor=cursor or None,
            )
        )
        found = (self._seen(shapes.read_order(item)) for item in shapes.list_of(answer, "orders"))
        kept = tuple(order for order in found if _within(order.created_ns, start_ns, end_ns))
        return Page(kept, _next_cursor(answer, cursor))

    def fills_page(
        self,
        order_ids: Sequence[str] | None = None,
        product_ids: Sequence[str] | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> Page[Fill]:
        """One page of fills in ``[since_ns, until_ns)``: one request, so ``client_order_id`` is empty where not known.

        Raises ``VenueRejected`` for a cursor that is none.
        """
        answer = self._read(
            lambda client: client.get_fills(
                order_ids=[shapes.order_path(name) for name in order_ids] if order_ids else None,
                product_ids=list(product_ids) if product_ids else None,
                start_sequence_timestamp=_moment(since_ns),
                end_sequence_timestamp=_moment(until_ns),
                limit=limit,
                cursor=cursor or None,
            )
        )
        found = []
        for item in shapes.list_of(answer, "fills"):
            with self._lock:
                client_order_id = self._client_order_ids.get(shapes.text_of(item, "order_id"), "")
            found.append(shapes.read_fill(item, client_order_id))
        kept = tuple(fill for fill in found if _within(fill.ts_ns, since_ns, until_ns))
        return Page(kept, _next_cursor(answer, cursor))

    # --- orders: never sent twice ---

    def create_order(self, order: Order) -> str:
        """Send one order, once, and return the venue's id for it.

        Raises ``VenueRejected`` (refused, or malformed and not sent), ``VenueUnavailable``, ``VenueThrottled``,
        ``VenueUnauthorised`` (not acted upon), ``VenueUnknown`` (perhaps there: ask ``order_by_client_id``).
        """
        configuration = shapes.order_configuration(order)
        answer = self._write(
            lambda client: client.create_order(
                client_order_id=order.client_order_id,
                product_id=order.product_id,
                side=order.side.value,
                order_configuration=configuration,
            )
        )
        if answer.get("success") is False:
            rejection = shapes.read_rejection(answer)
            if rejection.code == _DUPLICATE:
                # The venue knows the id already: an order of ours is there, so nothing may be released yet.
                raise VenueUnknown(f"create_order: {rejection}")
            raise rejection
        venue_order_id = shapes.read_accepted(answer, order.client_order_id)
        self._remember(venue_order_id, order.client_order_id)
        return venue_order_id

    def preview(self, order: Order) -> Preview:
        """What the venue says the order would come to. Nothing is placed, so it is asked again as any read."""
        configuration = shapes.order_configuration(order)
        return shapes.read_preview(
            self._read(
                lambda client: client.preview_order(
                    product_id=order.product_id, side=order.side.value, order_configuration=configuration
                )
            )
        )

    def edit(
        self, venue_order_id: str, quantity: Decimal, limit_price: Decimal, stop_price: Decimal | None = None
    ) -> None:
        """Change a resting order to these; ``quantity`` is the whole order's, with what is filled already.

        Raises ``VenueRejected`` (it stays as it was), ``VenueUnavailable``, ``VenueThrottled``, ``VenueUnauthorised``
        (not acted upon), ``VenueUnknown`` (perhaps changed: asking again is harmless).
        """
        changes = {"size": shapes.sent_decimal(quantity, "quantity")}
        changes["price"] = shapes.sent_decimal(limit_price, "limit_price")
        if stop_price is not None:
            # Not a parameter of the SDK's method yet, but of the venue's (and of the SDK's next version).
            changes["stop_price"] = shapes.sent_decimal(stop_price, "stop_price")
        path = shapes.order_path(venue_order_id)
        refusal = shapes.read_edit_refusal(self._write(lambda client: client.edit_order(path, **changes)))
        if refusal is None or self._already(refusal, path, quantity, limit_price, stop_price):
            return
        raise refusal

    def _already(
        self, refusal: VenueRejected, venue_order_id: str, quantity: Decimal, limit: Decimal, stop: Decimal | None
    ) -> bool:
        """Whether an edit was refused because an earlier one, whose answer was lost, has done the same."""
        if refusal.code != _EQUAL_EDIT:
            return False
        try:
            found = self.order(venue_order_id)
        except VenueError as error:
            raise VenueUnknown(f"edit: refused as {_EQUAL_EDIT}, and the order could not be read: {error}") from None
        same_stop = stop is None or found.stop_price == stop
        return found.quantity == quantity and found.limit_price == limit and same_stop

    def cancel(self, venue_order_ids: Sequence[str]) -> dict[str, bool | str]:
        """Ask to cancel orders; for each id True where the venue took the request, else its reason as text.

        Raises as ``create_order`` does; after ``VenueUnknown`` some may be cancelled and asking again is harmless.
        """
        results: dict[str, bool | str] = {}
        for begin in range(0, len(venue_order_ids), _CANCELS_PER_CALL):
            group = list(venue_order_ids[begin : begin + _CANCELS_PER_CALL])
            answer = self._write(lambda client, ids=group: client.cancel_orders(order_ids=ids), "cancel")  # type: ignore[misc]
            answered = shapes.read_cancel_results(answer)
            missing = [order_id for order_id in group if order_id not in answered]
            if missing:
                raise VenueUnknown(f"cancel: no answer for {len(missing)} of {len(group)} orders")
            results |= {order_id: answered[order_id] for order_id in group}
        return results

    def _write(self, call: Callable[[Any], Any], kind: RequestKind = "order") -> Json:
        """Send something that changes the venue's state: once, and an unusable answer is doubt, not failure."""
        self._need_key()
        self._budget.take(kind, self.endpoint.timeout_s)
        try:
            return _sent(call, self._client(private=True))
        except VenueGarbage as error:
            raise VenueUnknown(str(error)) from None
        except VenueNotFound as error:
            raise VenueRejected("HTTP_404", str(error)) from None

    def _listed(
        self, product_ids: Sequence[str] | None, statuses: Sequence[str] | None, start_ns: int | None
    ) -> Iterator[VenueOrder]:
        start = None if start_ns is None else shapes.rfc3339(start_ns)
        pages = self._pages(
            "orders",
            lambda client, cursor: client.list_orders(
                product_ids=list(product_ids) if product_ids else None,
                order_status=list(statuses) if statuses else None,
                start_date=start,
                limit=_PAGE_SIZE,
                cursor=cursor,
            ),
        )
        for page in pages:
            for item in shapes.list_of(page, "orders"):
                order = self._seen(shapes.read_order(item))
                if start_ns is None or order.created_ns >= start_ns // 1_000 * 1_000:
                    yield order

    def _listed_fills(self, order_ids: list[str] | None, since_ns: int | None) -> Iterator[Fill]:
        start = None if since_ns is None else shapes.rfc3339(since_ns)
        pages = self._pages(
            "fills",
            lambda client, cursor: client.get_fills(
                order_ids=order_ids, start_sequence_timestamp=start, limit=_FILLS_PAGE_SIZE, cursor=cursor
            ),
        )
        for page in pages:
            for item in shapes.list_of(page, "fills"):
                if (kind := str(item.get("trade_type") or "FILL")) != "FILL":
                    # REVERSAL, CORRECTION, SYNTHETIC: counted as a fill they would make the books wrong twice over.
                    # Left out, the balances differ, and reconciling says so and halts.
                    _log.error("fill left out: trade_type %s of order %s", kind[:40], str(item.get("order_id"))[:64])
                    continue
                # One that was not asked for is dropped, as with candles.
                if order_ids is None or shapes.text_of(item, "order_id") in order_ids:
                    fill = self._fill(item)
                    if since_ns is None or fill.ts_ns >= since_ns // 1_000 * 1_000:
                        yield fill

    def _fill(self, item: Json) -> Fill:
        order_id = shapes.text_of(item, "order_id")
        with self._lock:
            client_order_id = self._client_order_ids.get(order_id)
        if client_order_id is None:
            client_order_id = self.order(order_id).client_order_id
        return shapes.read_fill(item, client_order_id)

    def _seen(self, order: VenueOrder) -> VenueOrder:
        self._remember(order.venue_order_id, order.client_order_id)
        return order

    def _remember(self, venue_order_id: str, client_order_id: str) -> None:
        with self._lock:
            self._client_order_ids[venue_order_id] = client_order_id
            self._client_order_ids.move_to_end(venue_order_id)
            if len(self._client_order_ids) > _KNOWN_ORDERS_MAX:
                self._client_order_ids.popitem(last=False)

    # --- calls ---

    def _read_public(self, call: Callable[[Any], Any]) -> Json:
        """A public read, sent without our key: a 401 can then only mean throttling (facts: issue 60 of the SDK)."""
        try:
            return self._read_with(call, private=False)
        except VenueUnauthorised as error:
            raise VenueThrottled(f"public request refused: {error}", 1.0) from None

    def _read(self, call: Callable[[Any], Any]) -> Json:
        self._need_key()
        return self._read_with(call, private=True)

    def _read_with(self, call: Callable[[Any], Any], private: bool) -> Json:
        """A read with at most two retries; only what a retry can mend is tried again."""
        for attempt in range(_READ_TRIES):
            self._budget.take("read" if private else "public", self.endpoint.timeout_s)
            try:
                return _sent(call, self._client(private))
            except (VenueUnknown, VenueUnavailable, VenueThrottled) as error:
                if attempt == _READ_TRIES - 1 or (isinstance(error, VenueThrottled) and error.retry_after_s > 2):
                    raise _as_read_error(error) from None
                # Jitter, so that processes which failed together do not come back together.
                time.sleep(_BACKOFF_S[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        raise AssertionError("unreachable")

    def _pages(self, name: str, call: Callable[[Any, str | None], Any]) -> Iterator[Json]:
        """All pages of the list called ``name``; raises ``VenueGarbage`` where the venue's cursor does not move."""
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = self._read(lambda client, at=cursor: call(client, at))  # type: ignore[misc]
            yield page
            following = page.get("cursor") or ""
            if not following or page.get("has_next") is False or not page.get(name):
                return
            if following == cursor or not isinstance(following, str):
                raise VenueGarbage("cursor: the venue sent the same page twice")
            cursor = following
        raise VenueGarbage(f"cursor: more than {_PAGES_MAX} pages")

    def _need_key(self) -> None:
        if self.endpoint.key_name is None:
            raise VenueUnauthorised(f"{self.endpoint.host_port}: this call needs a key and the endpoint has none")

    def _client(self, private: bool) -> Any:
        name = "private" if private else "public"
        client = getattr(self._local, name, None)
        if client is None:
            client = self._new_client(private)
            setattr(self._local, name, client)
            with self._lock:
                self._sessions.add(client.session)
        return client

    def _new_client(self, private: bool) -> Any:
        secret = self.endpoint.key_secret
        with_key = private and secret is not None
        client = RESTClient(
            # Given even when absent: the SDK's defaults are what the environment held when it was imported.
            api_key=self.endpoint.key_name if with_key else None,
            api_secret=secret.get_secret_value() if with_key and secret is not None else None,
            base_url=self.endpoint.host_port,
            timeout=self.endpoint.timeout_s,
        )
        session = client.session
        # With trust_env the environment's CA bundle and proxies would override what is set here.
        session.trust_env = False
        session.verify = self.trusted_file
        session.mount("https://", DeadlineAdapter(self.endpoint.timeout_s))
        session.max_redirects = 0
        session.hooks["response"].append(self._check_origin)
        return client

    def _check_origin(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Refuse simulated answers from the real venue and real ones from a simulator."""
        says_simulated = response.headers.get("X-Simulated") == "1"
        if says_simulated != self.endpoint.simulated:
            expected = "SIMULATED" if self.endpoint.simulated else "real"
            raise VenueGarbage(f"{self.endpoint.host_port}: expected a {expected} venue, the answer says otherwise")


def check_key(venue: Venue, allow_transfer: bool) -> KeyPermissions | None:
    """Ask what the key may do before it is used; None in the sandbox, which cannot be asked.

    Raises ``EndpointError`` where it cannot trade, or where a live one may move funds and ``allow_transfer`` is False;
    and what ``Venue.key_permissions`` raises.
    """
    if venue.endpoint.environment == "sandbox":
        return None
    permissions = venue.key_permissions()
    if not permissions.can_view or not permissions.can_trade:
        raise EndpointError("key_name: the key lacks the permission to view or to trade")
    if permissions.can_transfer and venue.endpoint.environment == "live" and not allow_transfer:
        raise EndpointError(
            "key_name: the key may move funds; use one that may only view and trade, or set venue.allow_transfer_key"
        )
    return permissions


def _moment(ns: int | None) -> str | None:
    return None if ns is None else shapes.rfc3339(ns)


def _within(ns: int, start_ns: int | None, end_ns: int | None) -> bool:
    """Whether the time lies in ``[start_ns, end_ns)`` as the venue was asked: in whole microseconds."""
    after = start_ns is None or ns >= start_ns // 1_000 * 1_000
    return after and (end_ns is None or ns < end_ns)


def _next_cursor(answer: Json, asked: str) -> str:
    """The cursor of the next page, empty on the last one; raises ``VenueGarbage`` where it does not move."""
    following = answer.get("cursor") or ""
    if not isinstance(following, str) or (following and following == asked):
        raise VenueGarbage("cursor: the venue sent the same page twice")
    return "" if answer.get("has_next") is False else following


# --- from the SDK's errors to ours ------------------------------------------------------------------------------------


def _sent(call: Callable[[Any], Any], client: Any) -> Json:
    """Run one SDK call and return its answer as a plain dict; every failure becomes one of our errors.

    Ours is raised outside the handlers: the SDK's own would stay attached as its context, and with it frames that
    hold the token.
    """
    try:
        answer: Json = shapes.plain(call(client).to_dict())
    except requests.HTTPError as error:
        failure = _http_error(error.response)
    except multiprocessing.AuthenticationError:
        failure = VenueUnauthorised("this call needs a key")
    except requests.exceptions.JSONDecodeError:
        failure = VenueGarbage("answer: expected JSON, was something else (HTML?)")
    except requests.TooManyRedirects:
        failure = VenueGarbage("answer: a redirect, which is not followed")
    except requests.RequestException as error:
        failure = _connection_error(error)
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
        # The SDK's response classes fail in these ways where the JSON is not an object of the documented shape, the
        # parser with the last one where it is nested without end.
        failure = VenueGarbage(f"answer: not of the documented shape ({type(error).__name__})")
    else:
        return answer
    raise failure


def _http_error(response: requests.Response) -> VenueError:
    status, text = response.status_code, _error_text(response)
    if status in (401, 403):
        return VenueUnauthorised(f"HTTP {status}: {text} (key, scopes, or this machine's clock)")
    if status == 429:
        return VenueThrottled(f"HTTP 429: {text}", _retry_after_s(response))
    if status == 404:
        return VenueNotFound(f"HTTP 404: {text}")
    if status in (400, 405, 413, 414, 415, 422):
        return VenueRejected(_error_code(response) or f"HTTP_{status}", text)
    # 5xx, and what does not say whether it acted (408, 409, 425, …).
    return VenueUnknown(f"HTTP {status}: {text}")


def _connection_error(error: requests.RequestException) -> VenueError:
    """Whether a failed connection can have carried the request: only what surely did not is VenueUnavailable."""
    reason = _cause(error)
    never = isinstance(
        reason,
        (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, ssl.SSLCertVerificationError),
    )
    text = f"{type(error).__name__} ({type(reason).__name__})"
    return VenueUnavailable(f"not reached: {text}") if never else VenueUnknown(f"no answer: {text}")


def _cause(error: BaseException) -> BaseException:
    """The innermost reason that ``requests`` and ``urllib3`` wrapped; bounded, as any chain of causes."""
    inner = error
    for _ in range(8):
        wrapped = [getattr(inner, "reason", None), *inner.args]
        following = next((each for each in wrapped if isinstance(each, BaseException)), None)
        if following is None:
            break
        inner = following
    return inner


def _as_read_error(error: VenueError) -> VenueError:
    """A read has no doubt to leave: what would be VenueUnknown for an order is unavailability here."""
    return VenueUnavailable(str(error)) if isinstance(error, VenueUnknown) else error


def _error_text(response: requests.Response) -> str:
    body = _error_body(response)
    text = body.get("message") or body.get("error_details") or body.get("error") or response.reason or ""
    return redacted(str(text))[:200]


def _error_code(response: requests.Response) -> str:
    return redacted(str(_error_body(response).get("error") or ""))[:80]


def _error_body(response: requests.Response) -> Json:
    try:
        body = response.json()
    except requests.exceptions.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after_s(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(60.0, float(text)) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) else 1.0


def _quiet_sdk_log() -> None:
    """The SDK gives its logger a handler of its own on import; our processes have one place for logs."""
    sdk_log = logging.getLogger("coinbase.RESTClient")
    sdk_log.handlers.clear()
    if not any(isinstance(each, SafeLog) for each in sdk_log.filters):
        sdk_log.addFilter(SafeLog())
