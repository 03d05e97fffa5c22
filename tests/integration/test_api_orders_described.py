"""What the document says of /v1/orders is what the risk replicas answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from serve_apps.api_document import OrderAccepted, OrderCancel, OrderView
from serve_apps.orders import OrdersApp
from tests.api_desk import ApiDesk

pytestmark = pytest.mark.anyio

ORDER = {
    "client_order_id": "o-1",
    "account": "main",
    "strategy": "manual",
    "product_id": "BTC-USD",
    "side": "BUY",
    "type": "LIMIT",
    "quantity": "0.01",
    "limit_price": "90000",
}


def reads(model: type[BaseModel], answer: Any) -> None:
    """The answer has the documented fields and no other."""
    model.model_validate_json(httpx.Response(200, json=answer).content)


async def test_every_answer_of_orders_is_as_documented(desk: ApiDesk) -> None:
    await desk.open_account()
    documented = desk.app.openapi()["paths"]
    application: Any = OrdersApp(desk.ledger, desk.app.state.desk.keys)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(application), base_url="http://desk", headers=desk.client.headers
    ) as client:
        accepted = await client.post("/v1/orders", json=ORDER)
        assert accepted.status_code == 201, accepted.text
        reads(OrderAccepted, accepted.json())
        refusals = [
            await client.post("/v1/orders", json=ORDER | {"quantity": "0.02"}),
            await client.post("/v1/orders", json=ORDER | {"client_order_id": "o-2", "quantity": "50"}),
            await client.post("/v1/orders", content=b"{"),
            await client.post("/v1/orders", json=ORDER, headers={"authorization": ""}),
        ]
        assert [answer.status_code for answer in refusals] == [409, 422, 400, 401]
        assert {str(answer.status_code) for answer in refusals} <= set(documented["/v1/orders"]["post"]["responses"])
        listed = (await client.get("/v1/orders", params={"account": "main"})).json()
        assert {order["status"] for order in listed} == {"RESERVED", "DENIED"}
        for order in listed:
            reads(OrderView, order)
        one = await client.get("/v1/orders/o-1", params={"account": "main"})
        reads(OrderView, one.json())
        cancelled = await client.delete("/v1/orders/o-1", params={"account": "main"})
        reads(OrderCancel, cancelled.json())
        missing = await client.get("/v1/orders/none", params={"account": "main"})
        assert str(missing.status_code) in documented["/v1/orders/{client_order_id}"]["get"]["responses"]
