"""Application /v1/orders: the three risk replicas are its ingress. Bare ASGI: read, check, reserve in one ledger call.

The replicas hold no state of their own: any of them may answer any request, and a repeat of an id gets the first
answer from whichever it reaches. FastAPI would cost more than everything else on this path together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec
from ray import serve

from cluster.api_keys import READ, TRADE, ApiKey, KeyRing
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, Verdict
from cluster.risk import ORDER_BYTES_MAX, InvalidOrder, check_order, read_order
from conf.settings import load_secrets, load_settings
from serve_apps.listener import Listener
from serve_apps.problem import MEDIA_TYPE, Problem, forbidden, unauthorised, unavailable
from strategies.model import Product, units

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, dict[str, Any] | list[dict[str, Any]], dict[str, str]]

PREFIX: Final = "/v1/orders"
# How old a replica's copy of the venue's products may be before it asks again.
PRODUCTS_FRESH_S: Final = 5.0
BODY_TIMEOUT_S: Final = 5.0
LISTED_MAX: Final = 500

logger = logging.getLogger("ray.serve")


class OrdersApp:
    """The ASGI application of one risk replica."""

    def __init__(self, ledger: Ledger, keys: KeyRing, own_port: int | None = None) -> None:
        """Answer from ``ledger``, beside Serve's way also on ``own_port``."""
        self._own_port = own_port
        self._ledger = ledger
        self._keys = keys
        self._products: dict[str, Product] = {}
        self._products_read_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; every failure becomes a problem document."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, body, headers = await self._answer(scope, receive)
        except Problem as problem:
            status, body, headers = _failure(problem)
        except LedgerUnavailable as error:
            status, body, headers = _failure(unavailable(str(error)))
        except LedgerError:
            logger.exception("order not decided")
            status, body, headers = _failure(Problem(500, "INTERNAL", "not decided; the fault is logged"))
        await _respond(send, status, body, headers)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open the replica's own port when Serve starts the application, and drain it when Serve ends it."""
        listener = Listener(self, self._own_port) if self._own_port else None
        while True:
            message = await receive()
            if listener is not None:
                await (listener.open() if message["type"] == "lifespan.startup" else listener.close())
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        key = await self._key(scope)
        method = scope["method"]
        client_order_id = unquote(scope["path"].removeprefix(PREFIX).strip("/"))
        if not client_order_id:
            if method == "POST":
                return await self._submit(key, await _body(receive))
            if method == "GET":
                return await self._list(key, scope)
            raise Problem(405, "METHOD_NOT_ALLOWED", f"{method} {PREFIX}", headers={"allow": "GET, POST"})
        account = self._account(scope)
        if method == "GET":
            return await self._show(key, account, client_order_id)
        if method == "DELETE":
            return await self._cancel(key, account, client_order_id)
        raise Problem(405, "METHOD_NOT_ALLOWED", f"{method} {PREFIX}/ID", headers={"allow": "GET, DELETE"})

    async def _submit(self, key: ApiKey, body: bytes) -> Answer:
        try:
            order = read_order(body)
        except InvalidOrder as error:
            raise Problem(400, "INVALID_ORDER", str(error), {"field": error.field, "rule": error.rule}) from None
        if not key.may(TRADE, order.account):
            raise forbidden(TRADE, order.account)
        product = await self._product(order.product_id)
        denials = check_order(order, product)
        verdict = await self._ledger.reserve(order, product, key.key_id, denials)
        return answer_of(verdict, order.account, product)

    async def _show(self, key: ApiKey, account: str, client_order_id: str) -> Answer:
        if not key.may(READ, account):
            raise forbidden(READ, account)
        fields = await self._ledger.order(account, client_order_id)
        if fields is None:
            raise Problem(404, "NOT_FOUND", f"account {account} has no order {client_order_id}")
        await self._product(fields["product"])
        return 200, order_view({"client_order_id": client_order_id, **fields}, self._products), {}

    async def _list(self, key: ApiKey, scope: Scope) -> Answer:
        account, query = self._account(scope), _query(scope)
        if not key.may(READ, account):
            raise forbidden(READ, account)
        which = query.get("status", "recent")
        if which not in {"open", "recent"}:
            raise Problem(400, "INVALID_QUERY", f"status: expected open or recent, was {which!r}", {"field": "status"})
        limit = query.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= LISTED_MAX:
            raise Problem(400, "INVALID_QUERY", f"limit: expected 1 to {LISTED_MAX}, was {limit!r}", {"field": "limit"})
        find = self._ledger.open_orders if which == "open" else self._ledger.recent_orders
        await self._refresh_products()
        return 200, [order_view(fields, self._products) for fields in await find(account, int(limit))], {}

    async def _cancel(self, key: ApiKey, account: str, client_order_id: str) -> Answer:
        # No limit and no halt stands in a cancel's way: only the key is checked.
        if not key.may(TRADE, account):
            raise forbidden(TRADE, account)
        status, outcome = await self._ledger.request_cancel(account, client_order_id, key.key_id)
        if status == "NOT_FOUND":
            raise Problem(404, "NOT_FOUND", f"account {account} has no order {client_order_id}")
        body = {"client_order_id": client_order_id, "account": account, "status": status, "cancel": outcome}
        return (202 if outcome == "REQUESTED" else 200), body, {}

    async def _key(self, scope: Scope) -> ApiKey:
        for name, value in scope["headers"]:
            if name.lower() == b"authorization":
                kind, _, presented = value.decode("latin-1").partition(" ")
                if kind.lower() == "bearer" and (key := await self._keys.key(presented.strip())):
                    return key
        raise unauthorised()

    def _account(self, scope: Scope) -> str:
        account = _query(scope).get("account")
        if not account:
            raise Problem(400, "INVALID_QUERY", "account: name the account (?account=…)", {"field": "account"})
        return account

    async def _product(self, product_id: str) -> Product | None:
        if self._stale():
            await self._refresh_products()
        return self._products.get(product_id)

    def _stale(self) -> bool:
        return asyncio.get_running_loop().time() - self._products_read_at > PRODUCTS_FRESH_S

    async def _refresh_products(self) -> None:
        if self._stale():
            self._products = await self._ledger.products()
            self._products_read_at = asyncio.get_running_loop().time()


def answer_of(verdict: Verdict, account: str, product: Product | None) -> Answer:
    """HTTP status, body and headers of a verdict; raises ``Problem`` for anything but an acceptance."""
    headers = {"idempotent-replayed": "true"} if verdict.kind == "REPEATED" else {}
    answer = verdict.answer
    if verdict.kind == "CONFLICT":
        detail = f"client_order_id {answer['client_order_id']} was already used for another order"
        raise Problem(409, "DUP_ID_DIFFERENT_BODY", detail, {"client_order_id": answer["client_order_id"]})
    if verdict.accepted:
        body = {
            "client_order_id": answer["client_order_id"],
            "account": account,
            "verdict": "ACCEPTED",
            "status": "RESERVED",
            "reserved_notional": f"{units(int(answer['reserved_notional_micros'])):f}",
            "reserved_cash": f"{units(int(answer['reserved_cash_micros'])):f}",
        }
        return 201, body, headers
    denials = [_denial_view(denial, product) for denial in answer["denials"]]
    first = denials[0]
    extra = {"client_order_id": answer["client_order_id"], "verdict": "DENIED", "denials": denials}
    if first["code"] == "RATE_LIMIT":
        wait_ms = max(int(denial["value"]) for denial in answer["denials"])
        headers["retry-after"] = str(max(1, -(-wait_ms // 1000)))
        raise Problem(429, "RATE_LIMIT", first["message"], extra, headers)
    detail = "; ".join(f"{d['scope']}: {d['message']}" for d in denials)
    raise Problem(422, first["code"], detail, extra, headers)


def order_view(fields: dict[str, str], products: dict[str, Product]) -> dict[str, Any]:
    """An order as the API shows it: decimals as text in currency units."""
    product = products.get(fields["product"])
    view: dict[str, Any] = {
        "client_order_id": fields["client_order_id"],
        "status": fields["status"],
        "strategy": fields["strategy"],
        "product_id": fields["product"],
        "side": fields["side"],
        "type": fields["type"],
        "time_in_force": fields["tif"],
        "quantity": fields["quantity"],
        "limit_price": fields["limit_price"] or None,
        "created_ns": int(fields["created_us"]) * 1000,
        "venue_order_id": fields.get("venue_order_id") or None,
        "reason": fields.get("reason") or None,
    }
    if fields["status"] == "DENIED":
        denials = msgspec.json.decode(fields["answer"])["denials"]
        view["denials"] = [_denial_view(denial, product) for denial in denials]
        return view
    view["reserved_notional"] = f"{units(int(fields['reserved_notional'])):f}"
    view["fees"] = f"{units(int(fields['fees'])):f}"
    view["filled_value"] = f"{units(int(fields['filled_value'])):f}"
    if product is not None:
        filled = product.quantity(int(fields["filled_lots"]))
        view["filled_quantity"] = f"{filled:f}"
        value = units(int(fields["filled_value"]))
        view["average_price"] = f"{(value / filled).quantize(Decimal('0.00000001')).normalize():f}" if filled else None
    return view


def _denial_view(denial: dict[str, str], product: Product | None) -> dict[str, str]:
    shown = dict(denial)
    for name in ("value", "limit"):
        text = denial[name]
        if text and denial["unit"] == "micros":
            shown[name], shown["unit"] = f"{units(int(text)):f}", product.quote_currency if product else "USD"
        elif text and denial["unit"] == "lots" and product is not None:
            shown[name], shown["unit"] = f"{product.quantity(int(text)):f}", product.base_currency
    return shown


def _query(scope: Scope) -> dict[str, str]:
    parsed = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    return {name: values[-1] for name, values in parsed.items()}


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "INCOMPLETE_BODY", "the connection closed before the whole body had come")
                chunks.append(message.get("body", b""))
                if sum(map(len, chunks)) > ORDER_BYTES_MAX:
                    raise Problem(413, "BODY_TOO_LARGE", f"an order has at most {ORDER_BYTES_MAX} bytes")
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise Problem(408, "BODY_TOO_SLOW", f"the whole body must come within {BODY_TIMEOUT_S:.0f} s") from None


async def _respond(send: Send, status: int, body: Any, headers: dict[str, str]) -> None:
    payload = msgspec.json.encode(body)
    merged = {"content-type": "application/json", **headers, "content-length": str(len(payload))}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in merged.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": payload})


def _failure(problem: Problem) -> Answer:
    return problem.status, problem.body(), {"content-type": MEDIA_TYPE, **problem.headers}


@serve.deployment(name="risk")
@serve.ingress()
class Risk:
    """One risk replica."""

    def __init__(self) -> None:
        """Connect to the desk's ledger; what is missing stops the replica with its name."""
        settings = load_settings()
        secrets = load_secrets(settings)
        if secrets.api_key_pepper is None:
            raise RuntimeError("secrets: api_key_pepper is missing, so no API key can be checked")
        self._ledger = Ledger.connect(settings, secrets)
        self._asgi = OrdersApp(self._ledger, KeyRing(self._ledger, secrets.api_key_pepper), settings.serve.orders_port)

    def __serve_build_asgi_app__(self) -> OrdersApp:
        """What Serve runs for each request."""
        return self._asgi


app = Risk.bind()  # type: ignore[attr-defined]
