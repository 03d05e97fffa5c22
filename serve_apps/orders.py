"""Application /v1/orders: the three risk replicas are its ingress. Bare ASGI: read, check, reserve in one ledger call.

The replicas hold no state of their own: any of them may answer any request, and a repeat of an id gets the first
answer from whichever it reaches. FastAPI would cost more than everything else on this path together.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec
from ray import serve

from cluster.api_keys import READ, TRADE, ApiKey, KeyRing
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, order_of
from cluster.risk import ORDER_BYTES_MAX, InvalidOrder, check_order, read_amend, read_order
from conf.settings import load_secrets, load_settings
from serve_apps.listener import Listener
from serve_apps.order_views import Answer, amend_of, answer_of, check_of, order_view
from serve_apps.problem import MEDIA_TYPE, Problem, forbidden, unauthorised, unavailable, unknown_account
from strategies.model import Order, OrderStatus, Product

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PREFIX: Final = "/v1/orders"
CHECK: Final = "check"
# How old a replica's copy of the venue's products may be before it asks again.
PRODUCTS_FRESH_S: Final = 5.0
BODY_TIMEOUT_S: Final = 5.0
LISTED_MAX: Final = 500
QUERY_FIELDS_MAX: Final = 20
# How the ledger begins the message of a refusal that concerns no order: this server may not decide at all now.
RECONCILING: Final = "RECONCILING"
_UNFIT: Final = (RECONCILING, "STALE_EPOCH")
_SILENT: Final = "the ledger does not answer"

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
            status, body, headers = _failure(_unavailable(error))
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
        client_order_id = _order_id(scope["path"])
        if not client_order_id:
            if method == "POST":
                return await self._submit(key, await _body(receive))
            if method == "GET":
                return await self._list(key, scope)
            raise Problem(405, "METHOD_NOT_ALLOWED", f"{method} {PREFIX}", headers={"allow": "GET, POST"})
        # An order may be called "check" too: it is asked for and cancelled as any other.
        if method == "POST" and client_order_id == CHECK:
            return await self._check(key, await _body(receive))
        account = self._account(scope)
        if method == "GET":
            return await self._show(key, account, client_order_id)
        if method == "DELETE":
            return await self._cancel(key, account, client_order_id)
        if method == "PATCH":
            return await self._amend(key, account, client_order_id, await _body(receive))
        raise Problem(405, "METHOD_NOT_ALLOWED", f"{method} {PREFIX}/ID", headers={"allow": "GET, DELETE, PATCH"})

    async def _submit(self, key: ApiKey, body: bytes) -> Answer:
        order = _order(key, body)
        product = await self._product(order.product_id)
        denials = check_order(order, product)
        try:
            verdict = await self._ledger.reserve(order, product, key.key_id, denials)
        except LedgerUnavailable as error:
            raise await self._undecided(order, error) from None
        return answer_of(verdict, order.account, product)

    async def _check(self, key: ApiKey, body: bytes) -> Answer:
        order = _order(key, body)
        product = await self._product(order.product_id)
        denials = check_order(order, product)
        try:
            verdict = await self._ledger.check(order, product, key.key_id, denials)
        except LedgerUnavailable as error:
            raise await self._undecided(order, error) from None
        return 200, check_of(verdict, order.account, product), {}

    async def _undecided(self, order: Order, error: LedgerUnavailable) -> Exception:
        # An account that nobody has opened is never reconciled: to come again would not help.
        if str(error).startswith(RECONCILING) and order.account not in await self._ledger.accounts():
            return unknown_account(order.account)
        return error

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
        if not re.fullmatch("[0-9]{1,9}", limit) or not 1 <= int(limit) <= LISTED_MAX:
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

    async def _amend(self, key: ApiKey, account: str, client_order_id: str, body: bytes) -> Answer:
        try:
            quantity, limit_price = read_amend(body)
        except InvalidOrder as error:
            raise Problem(400, "INVALID_ORDER", str(error), {"field": error.field, "rule": error.rule}) from None
        if not key.may(TRADE, account):
            raise forbidden(TRADE, account)
        fields = await self._ledger.order(account, client_order_id)
        product = None if fields is None else await self._product(fields["product"])
        if fields is None or fields["status"] == OrderStatus.DENIED or product is None:
            raise Problem(404, "NOT_FOUND", f"account {account} has no order {client_order_id} that can be amended")
        order = replace(
            order_of(client_order_id, account, fields), quantity=quantity, limit_price=limit_price, stop_price=None
        )
        if not key.may(TRADE, account, order.strategy):
            raise forbidden(TRADE, account)
        verdict = await self._ledger.amend(order, product, key.key_id, check_order(order, product))
        if verdict is None:
            raise Problem(404, "NOT_FOUND", f"account {account} has no order {client_order_id}")
        return amend_of(verdict, order, product)

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


def _unavailable(error: LedgerUnavailable) -> Problem:
    text = str(error)
    for code in _UNFIT:
        if text.startswith(code):
            return Problem(503, code, f"{text}; nothing was recorded", headers={"retry-after": "1"})
    # What follows the colon may name hosts, and the caller need not even have shown a key.
    return unavailable(text.partition(":")[0] if text.startswith(_SILENT) else text)


def _order(key: ApiKey, body: bytes) -> Order:
    """The order in ``body``, which ``key`` may send."""
    try:
        order = read_order(body)
    except InvalidOrder as error:
        raise Problem(400, "INVALID_ORDER", str(error), {"field": error.field, "rule": error.rule}) from None
    if not key.may(TRADE, order.account, order.strategy):
        raise forbidden(TRADE, order.account)
    return order


def _order_id(path: str) -> str:
    """The id at the end of the path, "" where all orders are meant; a path of somebody else's is none of ours."""
    if path == PREFIX:
        return ""
    if not path.startswith(f"{PREFIX}/"):
        raise Problem(404, "NOT_FOUND", "nothing is at this path")
    return unquote(path.removeprefix(PREFIX).strip("/"))


def _query(scope: Scope) -> dict[str, str]:
    text = scope.get("query_string", b"").decode("latin-1")
    try:
        parsed = parse_qs(text, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        raise Problem(400, "INVALID_QUERY", f"at most {QUERY_FIELDS_MAX} fields") from None
    return {name: values[-1] for name, values in parsed.items()}


async def _body(receive: Receive) -> bytes:
    """The whole body. Nearly always it is there with the first step, which then costs no timer."""
    first = _Begun(receive())
    if first.ended and not first.result.get("more_body"):
        return _piece(first.result, 0)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            message = await first
            chunks, size = [_piece(message, 0)], 0
            while message.get("more_body"):
                size += len(chunks[-1])
                message = await receive()
                chunks.append(_piece(message, size))
    except TimeoutError:
        raise Problem(408, "BODY_TOO_SLOW", f"the whole body must come within {BODY_TIMEOUT_S:.0f} s") from None
    return b"".join(chunks)


def _piece(message: MutableMapping[str, Any], size: int) -> bytes:
    """The part of a body in ``message``, ``size`` bytes having come before it."""
    if message["type"] == "http.disconnect":
        raise Problem(400, "INCOMPLETE_BODY", "the connection closed before the whole body had come")
    piece: bytes = message.get("body", b"")
    if size + len(piece) > ORDER_BYTES_MAX:
        raise Problem(413, "BODY_TOO_LARGE", f"an order has at most {ORDER_BYTES_MAX} bytes")
    return piece


class _Begun:
    """A call that has run up to its first wait; ``await`` lets it go on. A timer costs more than all of that."""

    def __init__(self, call: Awaitable[Any]) -> None:
        self._steps = call.__await__()
        self._waits_for: Any = None
        self.result: Any = None
        self.ended = False
        self._step(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        while not self.ended:
            try:
                value = yield self._waits_for
            except BaseException as error:  # noqa: BLE001 - it is the call's, a cancellation above all
                self._step(error)
            else:
                self._step(None, value)
        return self.result

    def _step(self, error: BaseException | None, value: Any = None) -> None:
        try:
            self._waits_for = self._steps.send(value) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self.result, self.ended = end.value, True


async def _respond(send: Send, status: int, body: Any, headers: dict[str, str]) -> None:
    payload = msgspec.json.encode(body)
    raw = [(b"content-length", b"%d" % len(payload))]
    raw += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    if "content-type" not in headers:
        raw.append(_JSON)
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": payload})


_JSON: Final = (b"content-type", b"application/json")


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
