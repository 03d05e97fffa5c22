"""Accounts over HTTP: the figures of a worked example, each beside its limit, and the proof of the books."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from conf.limits import AccountLimits
from strategies.model import Side
from tests.api_desk import BTC, LIMITS, ApiDesk, only

pytestmark = pytest.mark.anyio


async def worked_example(desk: ApiDesk) -> None:
    """100,000 cash. Bought 0.5 BTC at 98,000 (fee 10), sold 0.2 of it at 101,000 (fee 5); 0.1 more bid at 99,000."""
    await desk.open_account()
    await desk.fill(await desk.order("buy", "0.5", "98000"), "0.5", "98000", fee="10")
    sell = await desk.order("sell", "0.2", "101000", side=Side.SELL, strategy="manual")
    await desk.fill(sell, "0.2", "101000", fee="5")
    await desk.order("bid", "0.1", "99000", strategy="sma_cross")


async def body(desk: ApiDesk, path: str) -> Any:
    answer = await desk.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_cash_positions_and_equity_of_the_worked_example(desk: ApiDesk) -> None:
    await worked_example(desk)
    account = await body(desk, "/v1/accounts/main")
    assert account["data_source"] == "SIMULATED"
    # 100,000 - 49,000 - 10 + 20,200 - 5; the bid reserves 9,900 and 60 basis points of it.
    expected = {"cash": "71185", "reserved_cash": "9959.4", "free_cash": "61225.6", "fees": "15", "equity": "101185"}
    assert {name: account[name] for name in expected} == expected
    assert (account["open_orders"], account["currency"], account["prices_fresh"]) == (1, "USD", True)
    (position,) = account["positions"]
    assert (position["quantity"], position["value"], position["currency"]) == ("0.30000000", "30000", "BTC")
    assert (await body(desk, "/v1/accounts"))["accounts"][0]["cash"] == account["cash"]


async def test_pnl_of_the_worked_example(desk: ApiDesk) -> None:
    await worked_example(desk)
    pnl = await body(desk, "/v1/accounts/main/pnl")
    btc = only(pnl["products"], product_id="BTC-USD")
    expected = {
        "average_price": "98000",
        "realised": "600",
        "unrealised": "600",
        "fees": "15",
        "mid_price": "100000.00",
    }
    assert {name: btc[name] for name in expected} == {**expected, "mid_price": btc["mid_price"]}
    assert Decimal(btc["mid_price"]) == 100_000
    assert btc["price_fresh"]
    assert btc["price_age_ms"] < 10_000
    totals = {"realised": "600", "unrealised": "600", "fees": "15", "net": "1185"}
    assert {name: pnl[name] for name in totals} == totals
    untouched = only(pnl["products"], product_id="ETH-USD")
    assert (untouched["average_price"], untouched["unrealised"]) == (None, "0")


async def test_exposures_of_the_worked_example_beside_their_limits(desk: ApiDesk) -> None:
    await worked_example(desk)
    exposures = await body(desk, "/v1/accounts/main/exposures")
    assert exposures["gross_use"] == {"value": "39900", "limit": "250000", "used": 0.1596, "unit": "USD"}
    assert (exposures["net"], exposures["reserved_notional"]) == ("30000", "9900")
    assert exposures["open_orders_use"] == {"value": "1", "limit": "200", "used": 0.005, "unit": "orders"}
    btc = only(exposures["products"], product_id="BTC-USD")
    assert (btc["position"], btc["open_buys"], btc["open_sells"]) == ("0.30000000", "0.10000000", "0.00000000")
    assert btc["position_use"] == {"value": "0.40000000", "limit": "5.00000000", "used": 0.08, "unit": "BTC"}
    manual = only(exposures["strategies"], strategy="manual")
    assert (manual["positions"], manual["net"]) == ({"BTC-USD": "0.30000000"}, "30000")
    assert manual["gross_use"] == {"value": "30000", "limit": "100000", "used": 0.3, "unit": "USD"}
    bidder = only(exposures["strategies"], strategy="sma_cross")
    assert (bidder["positions"], bidder["gross_use"]["value"]) == ({}, "9900")


async def test_the_gross_shown_is_the_one_orders_are_checked_against(desk: ApiDesk) -> None:
    tight = LIMITS.model_copy(update={"max_gross_exposure": Decimal(40_000)})
    await desk.open_account(limits=tight)
    # A middle between two ticks and odd quantities, so that every rounding matters.
    await desk.ledger.set_references("main", [(BTC, Decimal("100000.00"), Decimal("100000.01"))])
    await desk.fill(await desk.order("buy", "0.30000001", "99999.99"), "0.30000001", "99999.99")
    use = (await body(desk, "/v1/accounts/main/exposures"))["gross_use"]
    left = Decimal(use["limit"]) - Decimal(use["value"])
    fits = left.quantize(Decimal("0.01"), rounding="ROUND_FLOOR")
    order = await desk.order("fits", "1", str(fits))
    assert order.limit_price == fits
    assert Decimal((await body(desk, "/v1/accounts/main/exposures"))["gross_use"]["value"]) <= 40_000
    await desk.ledger.request_cancel("main", "fits", "test")
    over = replace(order, client_order_id="over", limit_price=fits + Decimal("0.01"))
    verdict = await desk.ledger.reserve(over, BTC, "test")
    assert [denial["code"] for denial in verdict.answer["denials"]] == ["MAX_GROSS"]


async def test_without_a_price_what_needs_one_is_null_and_says_so(desk: ApiDesk) -> None:
    await worked_example(desk)
    await desk.ledger._direct("HDEL", "tt:{main}:reference", "BTC-USD")
    account = await body(desk, "/v1/accounts/main")
    assert (account["equity"], account["prices_fresh"], account["positions"][0]["price_age_ms"]) == (None, False, None)
    exposures = await body(desk, "/v1/accounts/main/exposures")
    assert exposures["gross_use"] == {"value": None, "limit": "250000", "used": None, "unit": "USD"}
    assert only(exposures["products"], product_id="BTC-USD")["value"] is None
    pnl = await body(desk, "/v1/accounts/main/pnl")
    assert (pnl["unrealised"], pnl["net"], pnl["realised"]) == (None, None, "600")


async def test_an_old_price_is_used_and_marked(desk: ApiDesk) -> None:
    await worked_example(desk)
    bid_ask, set_ms, *scale = (await desk.ledger.snapshot("main")).reference["BTC-USD"].rsplit(" ", 3)
    old = " ".join([bid_ask, str(int(set_ms) - 60_000), *scale])
    await desk.ledger._direct("HSET", "tt:{main}:reference", "BTC-USD", old)
    account = await body(desk, "/v1/accounts/main")
    assert (account["equity"], account["prices_fresh"]) == ("101185", False)
    assert account["positions"][0]["price_age_ms"] >= 60_000
    assert not only((await body(desk, "/v1/accounts/main/pnl"))["products"], product_id="BTC-USD")["price_fresh"]


async def test_limits_are_shown_as_they_are_written(desk: ApiDesk) -> None:
    await desk.open_account()
    shown = await body(desk, "/v1/accounts/main/limits")
    assert shown["version"] == 1
    rows = {(row["scope"], row["name"], row["limit"]): (row["value"], row["unit"]) for row in shown["limits"]}
    assert rows[("account", None, "max_gross_exposure")] == ("250000", "USD")
    assert rows[("account", None, "order_rate_per_s")] == ("50", "orders/s")
    assert rows[("account", None, "order_burst")] == ("100", "orders")
    assert rows[("account", None, "reference_stale_ms")] == ("10000", "ms")
    assert rows[("account", None, "taker_fee_bps")] == ("60", "bps")
    assert rows[("strategy", "sma_cross", "order_rate_per_s")] == ("unlimited", "orders/s")
    assert rows[("product", "BTC-USD", "max_position")] == ("5.00000000", "BTC")
    assert len(rows) == 8 + 2 * 5 + 2 * 3


@pytest.mark.parametrize(
    ("changed", "use"),
    [
        ({"max_gross_exposure": "unlimited"}, {"value": "0", "limit": "unlimited", "used": None, "unit": "USD"}),
        ({"max_gross_exposure": Decimal(0)}, {"value": "0", "limit": "0", "used": 1.0, "unit": "USD"}),
    ],
)
async def test_no_limit_and_a_limit_of_nothing(desk: ApiDesk, changed: dict[str, Any], use: dict[str, Any]) -> None:
    await desk.open_account(limits=AccountLimits.model_validate(LIMITS.model_dump() | changed))
    assert (await body(desk, "/v1/accounts/main/exposures"))["gross_use"] == use


async def test_books_not_opened_yet_have_no_cash(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("DEL", "tt:{main}:book")
    account = await body(desk, "/v1/accounts/main")
    assert (account["cash"], account["free_cash"], account["equity"]) == (None, None, None)


async def test_verify_proves_the_books_and_finds_what_was_changed(desk: ApiDesk) -> None:
    await worked_example(desk)
    assert await body(desk, "/v1/accounts/main/verify") == {
        "account": "main",
        "ok": True,
        "differences": [],
        "problem": None,
    }
    await desk.ledger._direct("HINCRBY", "tt:{main}:book", "cash", "1")
    broken = await body(desk, "/v1/accounts/main/verify")
    assert (broken["ok"], [d["figure"] for d in broken["differences"]]) == (False, ["cash (audit replay)"])
    (entry, *_), *_ = await desk.ledger._direct("XRANGE", "tt:{main}:audit", "-", "+", "COUNT", "1")
    await desk.ledger._direct("XDEL", "tt:{main}:audit", entry)
    lost = await body(desk, "/v1/accounts/main/verify")
    assert lost["ok"] is False
    assert "audit entries (expected entry 1, was 2)" in [d["figure"] for d in lost["differences"]]


@pytest.mark.parametrize("part", ["", "/exposures", "/pnl", "/limits", "/verify"])
async def test_another_account_is_refused_and_an_unknown_one_is_not_there(desk: ApiDesk, part: str) -> None:
    await desk.open_account()
    headers = await desk.key(["read"], ["main", "gone"])
    for account, status in (("main", 200), ("second", 403), ("gone", 404)):
        answer = await desk.get(f"/v1/accounts/{account}{part}", headers=headers)
        assert answer.status_code == status, answer.text
