"""The peer of bench_orders: what a team would write without Ray. FastAPI, pydantic, redis.asyncio, uvicorn workers.

It makes the same checks: the API key by its keyed hash, the order's form, the product's rules, and the same function
in the same kind of server. One ledger call a request, as one writes it first.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from decimal import Decimal
from typing import Annotated, Any, Literal

import redis.asyncio
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster.ledger import _packed, account_base
from cluster.risk import (
    DECIMAL_PATTERN,
    ID_PATTERN,
    NAME_PATTERN,
    PRODUCT_PATTERN,
    VERSION_PATTERN,
    check_order,
)
from strategies.model import Order, OrderType, Side, TimeInForce
from tests.bench.account import PRODUCT

PEPPER = os.environ.get("BENCH_PEPPER", "")
KEY_HASH = os.environ.get("BENCH_KEY_HASH", "")
# Each worker has its own; the library's default of connections is without a bound.
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
    strategy_version: Annotated[str, Field(pattern=VERSION_PATTERN)]


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
        strategy_version=body.strategy_version,
    )
    if check_order(order, PRODUCT):
        raise HTTPException(422)
    packed = _packed(order, PRODUCT, key_id, (), 0)
    reply = await client.fcall("tt_reserve", 1, account_base(order.account), packed)
    return JSONResponse({"kind": reply[0], "answer": reply[2:]}, 201 if reply[0] in {"ACCEPTED", "REPEATED"} else 422)
