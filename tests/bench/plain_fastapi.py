"""The peer of bench_orders: what a team would write without Ray. FastAPI, pydantic, redis.asyncio, uvicorn workers.

It makes the same checks: the API key by its keyed hash, the order's form, the product's rules, and the same function
in the same kind of server. One ledger call a request, as one writes it first.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from decimal import Decimal
from typing import Annotated, Any, Literal

import redis.asyncio
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster.ledger import account_base, fingerprint, value_scale
from cluster.risk import DECIMAL_PATTERN, ID_PATTERN, NAME_PATTERN, PRODUCT_PATTERN, check_order
from strategies.model import Order, OrderType, Product, Side, TimeInForce

PEPPER = os.environ.get("BENCH_PEPPER", "")
KEY_HASH = os.environ.get("BENCH_KEY_HASH", "")
PRODUCT = Product(
    "BTC-USD",
    "BTC",
    "USD",
    Decimal("0.00000001"),
    Decimal("0.01"),
    Decimal("0.00001"),
    Decimal("3400"),
    Decimal("1"),
    Decimal("10000000"),
)
client = redis.asyncio.Redis(
    port=int(os.environ.get("BENCH_REDIS_PORT", "0")),
    password=os.environ.get("BENCH_REDIS_PASSWORD"),
    decode_responses=True,
)
app = FastAPI()


class OrderBody(BaseModel):
    """The body of an order."""

    model_config = ConfigDict(extra="forbid")

    client_order_id: Annotated[str, Field(pattern=ID_PATTERN)]
    account: Annotated[str, Field(pattern=NAME_PATTERN)]
    strategy: Annotated[str, Field(pattern=NAME_PATTERN)]
    product_id: Annotated[str, Field(pattern=PRODUCT_PATTERN)]
    side: Literal["BUY", "SELL"]
    type: Literal["LIMIT"]
    quantity: Annotated[str, Field(pattern=DECIMAL_PATTERN)]
    limit_price: Annotated[str, Field(pattern=DECIMAL_PATTERN)]


async def api_key(authorization: Annotated[str, Header()]) -> str:
    """The key's id; 401 for a wrong one."""
    _, key_id, secret = authorization.removeprefix("Bearer ").split("_", 2)
    presented = hmac.new(PEPPER.encode(), secret.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(presented, KEY_HASH):
        raise HTTPException(401)
    return key_id


@app.post("/v1/orders", status_code=201)
async def submit(body: OrderBody, key_id: Annotated[str, Depends(api_key)]) -> Any:
    """Check and reserve."""
    order = Order(
        body.client_order_id,
        body.account,
        body.strategy,
        body.product_id,
        Side(body.side),
        OrderType.LIMIT,
        TimeInForce.GTC,
        Decimal(body.quantity),
        Decimal(body.limit_price),
    )
    if check_order(order, PRODUCT):
        raise HTTPException(422)
    assert order.limit_price is not None
    arguments: list[Any] = [order.client_order_id, fingerprint(order), order.strategy, order.product_id]
    arguments += [order.side, order.type, order.time_in_force, str(order.quantity), str(order.limit_price), "0"]
    arguments += [str(PRODUCT.lots(order.quantity)), str(PRODUCT.ticks(order.limit_price))]
    arguments += [*(str(n) for n in value_scale(PRODUCT)), key_id, []]
    kind, answer = await client.fcall("tt_reserve", 1, account_base(order.account), json.dumps(arguments))
    return JSONResponse({"kind": kind, "answer": answer}, 201 if kind in {"ACCEPTED", "REPEATED"} else 422)
