"""Accounts and the desk over HTTP: the figures of a worked example, each beside its limit, and proof of the books."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from cluster.ledger import Reference, account_base
from conf.limits import AccountLimits
from strategies.model import Side, TradingState
from tests.api_desk import BTC, ETH, LIMITS, ApiDesk, forget_admissions, only
from tests.limit_samples import account_limits

pytestmark = pytest.mark.anyio

BASE = account_base("main")


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


def shows(shown: Any, **expected: object) -> None:
    assert {name: shown[name] for name in expected} == expected


async def without_price(desk: ApiDesk) -> None:
    """A product was opened with before anybody quoted it."""
    await desk.open_account(prices=False)
    await desk.ledger._direct("HSET", f"{BASE}:book", "p|BTC-USD|lots", "50000000", "p|BTC-USD|cost", "400000000")
    await desk.ledger._direct("HSET", f"{BASE}:book", "p|BTC-USD|value", "400000000", "a|value", "400000000")


# -- the account -------------------------------------------------------------------------------------------------------


async def test_cash_positions_and_equity_of_the_worked_example(desk: ApiDesk) -> None:
    await worked_example(desk)
    account = await body(desk, "/v1/accounts/main")
    assert account["data_source"] == "SIMULATED"
    # 100,000 - 49,000 - 10 + 20,200 - 5; the bid reserves 9,900 and 60 basis points of it.
    shows(account, cash="71185", reserved_cash="9959.4", free_cash="61225.6", fees="15", equity="101185", peak="101185")
    shows(account, open_orders=1, currency="USD", prices_fresh=True, state="ACTIVE", admitted=True)
    (position,) = account["positions"]
    assert (position["quantity"], position["value"], position["currency"]) == ("0.30000000", "30000", "BTC")
    assert (await body(desk, "/v1/accounts"))["accounts"][0]["cash"] == account["cash"]


async def test_an_account_says_that_it_waits_to_be_reconciled(desk: ApiDesk) -> None:
    await desk.open_account()
    await forget_admissions(desk)
    for path in ("/v1/accounts/main", "/v1/accounts/main/exposures"):
        assert (await body(desk, path))["admitted"] is False


async def test_books_not_opened_yet_have_no_cash(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("DEL", f"{BASE}:book")
    shows(await body(desk, "/v1/accounts/main"), cash=None, free_cash=None, equity=None)
    shows(await body(desk, "/v1/accounts/main/exposures"), equity=None, leverage=None, drawdown_percent=None)
    shows(await body(desk, "/v1/accounts/main/pnl"), equity=None, net="0")


# -- profit and loss ---------------------------------------------------------------------------------------------------


async def test_pnl_of_the_worked_example(desk: ApiDesk) -> None:
    await worked_example(desk)
    pnl = await body(desk, "/v1/accounts/main/pnl")
    earned = {"realised": "600", "unrealised": "600", "fees": "15", "net": "1185"}
    btc = only(pnl["products"], product_id="BTC-USD")
    shows(btc, position="0.30000000", average_price="98000", value="30000", price_fresh=True, **earned)
    assert Decimal(btc["mid_price"]) == 100_000
    assert btc["price_age_ms"] < 10_000
    shows(pnl, equity="101185", peak="101185", drawdown="0", drawdown_percent="0", prices_fresh=True, **earned)
    assert pnl["day"] == {"orders": 3, "messages": 3, "fills": 2, "turnover": "69200", "net": "1185"}
    shows(only(pnl["products"], product_id="ETH-USD"), average_price=None, unrealised="0", value="0", net="0")


async def test_a_strategy_earns_with_its_own_positions(desk: ApiDesk) -> None:
    await worked_example(desk)
    await desk.fill(await desk.order("own", "0.1", "99500", strategy="sma_cross"), "0.1", "99500")
    pnl = await body(desk, "/v1/accounts/main/pnl")
    manual, other = (only(pnl["strategies"], strategy=name) for name in ("manual", "sma_cross"))
    shows(manual, realised="600", unrealised="600", fees="15", net="1185", peak="1185", loss_streak=0)
    shows(other, realised="0", unrealised="50", fees="0", net="50", drawdown_percent=None)
    shows(other["positions"][0], product_id="BTC-USD", position="0.10000000", average_price="99500", value="10000")
    assert other["day"]["fills"] == 1
    # The account's position is the sum of both, bought at both their costs.
    shows(only(pnl["products"], product_id="BTC-USD"), position="0.40000000", average_price="98375", net="1235")


async def test_a_fall_from_the_peak_is_told_in_money_and_per_cent(desk: ApiDesk) -> None:
    await worked_example(desk)
    await desk.quote(btc=90_000)
    # 0.3 BTC lost 10,000 each: 101,185 - 3,000.
    pnl = await body(desk, "/v1/accounts/main/pnl")
    shows(pnl, equity="98185", peak="101185", drawdown="3000", drawdown_percent="2.9648", net="-1815")
    strategy = only(pnl["strategies"], strategy="manual")
    shows(strategy, net="-1815", peak="1185")


@pytest.mark.parametrize("bid_ask", [("100000.00", "100000.01"), ("99999.97", "100000.00"), ("0.01", "0.02")])
async def test_every_figure_is_exact_to_the_last_micro(desk: ApiDesk, bid_ask: tuple[str, str]) -> None:
    await desk.open_account()
    bought = {"a": ("0.00000003", "100000.33"), "b": ("0.12345679", "99999.99"), "c": ("0.00000001", "98765.43")}
    for name, (quantity, price) in bought.items():
        await desk.fill(await desk.order(name, quantity, price), quantity, price, fee="0.000001")
    bid, ask = map(Decimal, bid_ask)
    await desk.ledger.set_references("main", [Reference(BTC, bid, ask)])
    pnl, exposures = await body(desk, "/v1/accounts/main/pnl"), await body(desk, "/v1/accounts/main/exposures")
    lots = sum(Decimal(quantity) for quantity, _ in bought.values())
    micro = Decimal("0.000001")
    cost = sum((Decimal(q) * Decimal(p)).quantize(micro) for q, p in bought.values())
    middle = (Decimal(bid_ask[0]) + Decimal(bid_ask[1])) / 2
    value = (lots * middle).quantize(micro, "ROUND_FLOOR")
    (btc,) = (item for item in pnl["products"] if item["product_id"] == "BTC-USD")
    assert Decimal(btc["value"]) == value
    assert Decimal(btc["unrealised"]) == Decimal(pnl["unrealised"]) == value - cost
    assert Decimal(pnl["net"]) == value - cost - 3 * micro
    assert Decimal(pnl["equity"]) == 100_000 - cost - 3 * micro + value
    gross = (lots * middle.quantize(Decimal("0.01"), "ROUND_CEILING")).quantize(micro, "ROUND_CEILING")
    assert Decimal(exposures["gross"]) == Decimal(exposures["gross_use"]["value"]) == gross


# -- exposures ---------------------------------------------------------------------------------------------------------


async def test_exposures_of_the_worked_example_beside_their_limits(desk: ApiDesk) -> None:
    await worked_example(desk)
    exposures = await body(desk, "/v1/accounts/main/exposures")
    gross = {"value": "39900", "limit": "250000", "soft": "200000", "used": 0.1596, "level": "OK", "unit": "USD"}
    assert exposures["gross_use"] == exposures["uses"]["max_gross_exposure"] == gross
    shows(exposures, gross="30000", net="30000", reserved_notional="9900", open_buy_notional="9900")
    shows(exposures, open_sell_notional="0", equity="101185", leverage="0.394328", drawdown_percent="0")
    shows(exposures["open_orders_use"], value="1", limit="200", soft="160", used=0.005, unit="orders")
    shows(exposures["uses"]["max_net_exposure"], value="39900", limit="unlimited", soft=None, used=None, level="OK")
    shows(exposures["uses"]["max_daily_turnover"], value="79100")
    btc = only(exposures["products"], product_id="BTC-USD")
    shows(btc, position="0.30000000", open_buys="0.10000000", open_sells="0.00000000", average_price="98000")
    shows(btc, value="30000", concentration_percent="39.4328", volatile_ms=0, state="ACTIVE", cause=None)
    shows(btc["position_use"], value="0.40000000", limit="5.00000000", soft="4.00000000", used=0.08, unit="BTC")
    assert btc["uses"]["max_position"] == btc["position_use"]
    shows(btc["uses"]["max_spread_bps"], value="0.1", unit="bps")


async def test_exposures_by_strategy_key_and_group(desk: ApiDesk) -> None:
    products = {
        "BTC-USD": {"max_strategy_position": {"hard": 2, "soft": "0.25"}, "group": "majors"},
        "ETH-USD": {"group": "majors"},
    }
    limits = account_limits(
        products=products,
        strategies={"manual": {"max_gross_exposure": 100_000}, "sma_cross": {}},
        groups={"majors": {"max_gross_exposure": 40_000}},
        keys={"*": {"max_open_orders": 10}},
    )
    await desk.open_account(limits=limits)
    await desk.fill(await desk.order("buy", "0.3", "98000"), "0.3", "98000")
    await desk.order("bid", "0.1", "99000", strategy="sma_cross")
    exposures = await body(desk, "/v1/accounts/main/exposures")
    manual = only(exposures["strategies"], strategy="manual")
    shows(manual, positions={"BTC-USD": "0.30000000"}, net="30000", gross="30000", reserved_notional="0")
    shows(manual["gross_use"], value="30000", limit="100000", used=0.3, level="OK")
    shows(manual["position_uses"]["BTC-USD"], value="0.30000000", soft="0.25000000", level="SOFT")
    bidder = only(exposures["strategies"], strategy="sma_cross")
    shows(bidder, positions={}, net="0", gross="0", open_buy_notional="9900")
    assert bidder["gross_use"]["value"] == "9900"
    (key,) = exposures["keys"]
    shows(key, name="test", reserved_notional="9900", state=None)
    shows(key["uses"]["max_open_orders"], value="1", limit="10", level="OK")
    assert key["day"]["orders"] == 2
    (group,) = exposures["groups"]
    shows(group, name="majors", gross="30000", open_buy_notional="9900")
    shows(group["uses"]["max_gross_exposure"], value="39900", limit="40000", used=0.9975, level="SOFT")


async def test_the_gross_shown_is_the_one_orders_are_checked_against(desk: ApiDesk) -> None:
    tight = AccountLimits.model_validate(LIMITS.model_dump() | {"max_gross_exposure": 40_000})
    await desk.open_account(limits=tight)
    # A middle between two ticks and odd quantities, so that every rounding matters.
    await desk.ledger.set_references("main", [Reference(BTC, Decimal("100000.00"), Decimal("100000.01"))])
    await desk.fill(await desk.order("buy", "0.30000001", "99999.99"), "0.30000001", "99999.99")
    use = (await body(desk, "/v1/accounts/main/exposures"))["gross_use"]
    left = Decimal(use["limit"]) - Decimal(use["value"])
    fits = left.quantize(Decimal("0.01"), rounding="ROUND_FLOOR")
    order = await desk.order("fits", "1", str(fits))
    assert order.limit_price == fits
    full = (await body(desk, "/v1/accounts/main/exposures"))["gross_use"]
    assert Decimal(full["value"]) <= 40_000
    assert full["level"] == ("HARD" if Decimal(full["value"]) == 40_000 else "SOFT")
    await desk.ledger.request_cancel("main", "fits", "test")
    over = replace(order, client_order_id="over", limit_price=fits + Decimal("0.01"))
    verdict = await desk.ledger.reserve(over, BTC, "test")
    assert [denial["code"] for denial in verdict.answer["denials"]] == ["MAX_GROSS"]


async def test_without_a_price_what_needs_one_is_null_and_says_so(desk: ApiDesk) -> None:
    await without_price(desk)
    account = await body(desk, "/v1/accounts/main")
    shows(account, equity=None, prices_fresh=False)
    shows(account["positions"][0], price_age_ms=None, value=None)
    exposures = await body(desk, "/v1/accounts/main/exposures")
    shows(exposures, net=None, equity=None, leverage=None, prices_fresh=False)
    # Orders are compared with what is known all the same: the position counts at its cost.
    assert exposures["uses"]["max_net_exposure"]["value"] == "400"
    shows(only(exposures["products"], product_id="BTC-USD"), value=None, mid_price=None, price_fresh=False)
    shows(await body(desk, "/v1/accounts/main/pnl"), unrealised=None, net=None, equity=None, realised="0")


async def test_an_old_price_is_used_and_marked(desk: ApiDesk) -> None:
    await worked_example(desk)
    bid, ask, set_ms, *rest = (await desk.ledger.snapshot("main")).reference["BTC-USD"].split()
    old = " ".join([bid, ask, str(int(set_ms) - 60_000), *rest])
    await desk.ledger._direct("HSET", f"{BASE}:reference", "BTC-USD", old)
    account = await body(desk, "/v1/accounts/main")
    shows(account, equity="101185", prices_fresh=False)
    assert account["positions"][0]["price_age_ms"] >= 60_000
    assert not only((await body(desk, "/v1/accounts/main/pnl"))["products"], product_id="BTC-USD")["price_fresh"]


async def test_a_halt_and_its_cause_stand_with_the_scope(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger.tighten("main", "strategy|manual", TradingState.REDUCING, "test", "drill")
    await desk.ledger.set_references("main", [Reference(ETH, Decimal("4000.01"), Decimal("4000.00"))])
    exposures = await body(desk, "/v1/accounts/main/exposures")
    shows(only(exposures["strategies"], strategy="manual"), state="REDUCING", cause=None)
    shows(only(exposures["products"], product_id="ETH-USD"), state="HALTED", cause="BAD_BOOK")


@pytest.mark.parametrize(
    ("limit", "use"),
    [
        ("unlimited", {"value": "0", "limit": "unlimited", "soft": None, "used": None, "level": "OK", "unit": "USD"}),
        (0, {"value": "0", "limit": "0", "soft": None, "used": 1.0, "level": "HARD", "unit": "USD"}),
    ],
)
async def test_no_limit_and_a_limit_of_nothing(desk: ApiDesk, limit: object, use: dict[str, Any]) -> None:
    changed = LIMITS.model_dump() | {"max_gross_exposure": limit}
    await desk.open_account(limits=AccountLimits.model_validate(changed))
    assert (await body(desk, "/v1/accounts/main/exposures"))["gross_use"] == use


async def test_a_limit_that_is_missing_is_shown_as_missing(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("HSET", f"{BASE}:limits", "account", "max_open_orders=5")
    use = (await body(desk, "/v1/accounts/main/exposures"))["gross_use"]
    assert use == {"value": "0", "limit": None, "soft": None, "used": None, "level": None, "unit": "USD"}


# -- the desk ----------------------------------------------------------------------------------------------------------


async def two_accounts(desk: ApiDesk) -> None:
    """main holds 0.3 BTC bought at 98,000, second 0.2 bought at 101,000 (fee 7) and bids for 0.1 more at 99,000."""
    await desk.open_account("main")
    await desk.open_account("second", cash=50_000)
    await desk.fill(await desk.order("m", "0.3", "98000"), "0.3", "98000")
    await desk.fill(await desk.order("s", "0.2", "101000", account="second"), "0.2", "101000", fee="7")
    await desk.order("bid", "0.1", "99000", account="second")


async def test_the_desks_exposures_are_the_sums_over_its_accounts(desk: ApiDesk) -> None:
    await two_accounts(desk)
    whole = await body(desk, "/v1/exposures")
    assert [account["account"] for account in whole["accounts"]] == ["main", "second"]
    shows(whole, data_source="SIMULATED", currency="USD")
    shows(whole["desk"], gross="50000", net="50000", reserved_notional="9900", state="ACTIVE")
    # 100,000 + 0.3 x 2,000, and 50,000 - 0.2 x 1,000 - 7.
    shows(whole["desk"], equity="150393", peak="150600")
    assert whole["desk"]["day"]["orders"] == 3
    shows(whole["desk"]["uses"]["max_gross_exposure"], value="59900", limit="unlimited")
    for name in ("gross", "net", "reserved_notional", "equity"):
        assert Decimal(whole["desk"][name]) == sum(Decimal(account[name]) for account in whole["accounts"])
    assert whole["accounts"][1] == await same_but_time(desk, "/v1/accounts/second/exposures", whole["accounts"][1])


async def test_the_desks_pnl_is_the_sums_over_its_accounts(desk: ApiDesk) -> None:
    await two_accounts(desk)
    whole = await body(desk, "/v1/pnl")
    assert whole["totals"] == {"realised": "0", "unrealised": "400", "fees": "7", "net": "393"}
    shows(whole["desk"], net="393", equity="150393", peak="150600", drawdown="207", drawdown_percent="0.1374")
    assert whole["desk"]["day"]["net"] == "393"
    assert [account["net"] for account in whole["accounts"]] == ["600", "-207"]


async def same_but_time(desk: ApiDesk, path: str, like: dict[str, Any]) -> dict[str, Any]:
    """An answer with the times, and the rates that pass with them, of an earlier one."""
    found: dict[str, Any] = await body(desk, path)
    found["as_of_ns"] = like["as_of_ns"]
    for one, other in zip(found["products"], like["products"], strict=True):
        one["price_age_ms"] = other["price_age_ms"]
    for one, other in _scopes(found, like):
        one["uses"] |= {name: other["uses"][name] for name in ("order_burst", "message_burst") if name in one["uses"]}
    return found


def _scopes(found: dict[str, Any], like: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    parts = [(found, like)]
    for name in ("products", "strategies", "keys"):
        parts += zip(found[name], like[name], strict=True)
    return parts


@pytest.mark.parametrize("path", ["/v1/exposures", "/v1/pnl"])
async def test_a_key_for_some_accounts_does_not_see_the_desk(desk: ApiDesk, path: str) -> None:
    await two_accounts(desk)
    headers = await desk.key(["read"], ["second"])
    answer = (await desk.get(path, headers=headers)).json()
    assert (answer["desk"], [account["account"] for account in answer["accounts"]]) == (None, ["second"])
    assert answer.get("totals", {"net": "-207"})["net"] == "-207"


@pytest.mark.parametrize("path", ["/v1/exposures", "/v1/pnl"])
async def test_a_desk_without_accounts_has_figures_of_nothing(desk: ApiDesk, path: str) -> None:
    answer = await body(desk, path)
    assert answer["accounts"] == []
    shows(answer["desk"], equity="0", peak="0", drawdown_percent="0")


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_limits_are_shown_as_they_are_written(desk: ApiDesk) -> None:
    await desk.open_account()
    shown = await body(desk, "/v1/accounts/main/limits")
    shows(shown, version=1, desk_version=1, calendar="UTC", unreadable=[])
    rows = {(r["scope"], r["name"], r["limit"]): (r["value"], r["soft"], r["unit"]) for r in shown["limits"]}
    assert len(rows) == len(shown["limits"])
    assert rows[("account", None, "max_gross_exposure")] == ("250000", "200000", "USD")
    assert rows[("account", None, "max_open_orders")] == ("200", "160", "")
    assert rows[("account", None, "order_rate_per_s")] == ("50", None, "per second")
    assert rows[("account", None, "order_burst")] == ("100", None, "")
    assert rows[("account", None, "reference_stale_ms")] == ("10000", None, "ms")
    assert rows[("account", None, "taker_fee_bps")] == ("60", None, "bps")
    assert rows[("strategy", "sma_cross", "order_rate_per_s")] == ("unlimited", None, "per second")
    assert rows[("strategy", "sma_cross", "versions")] == ("any", None, "")
    assert rows[("product", "BTC-USD", "max_position")] == ("5", "4", "BTC")
    assert rows[("global", None, "max_daily_loss")] == ("unlimited", None, "USD")
    scopes = [(row["scope"], row["name"]) for row in shown["limits"]]
    order = ["global", "account", "strategy", "product", "key", "group"]
    assert scopes == sorted(scopes, key=lambda scope: (order.index(scope[0]), scope[1] or ""))


async def test_a_record_that_cannot_be_read_is_named_and_hides_no_other(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("HSET", f"{BASE}:limits", "account", "max_open_orders", "strange", "max_open_orders=1")
    shown = await body(desk, "/v1/accounts/main/limits")
    assert shown["unreadable"] == ["account", "strange"]
    assert {row["scope"] for row in shown["limits"]} >= {"global", "strategy", "product"}


# -- the proof ---------------------------------------------------------------------------------------------------------


async def test_verify_proves_the_books_and_finds_what_was_changed(desk: ApiDesk) -> None:
    await worked_example(desk)
    assert await body(desk, "/v1/accounts/main/verify") == {
        "account": "main",
        "ok": True,
        "differences": [],
        "problem": None,
    }
    await desk.ledger._direct("HINCRBY", f"{BASE}:book", "cash", "1")
    broken = await body(desk, "/v1/accounts/main/verify")
    assert (broken["ok"], [d["figure"] for d in broken["differences"]]) == (False, ["cash (audit replay)"])
    (entry, *_), *_ = await desk.ledger._direct("XRANGE", f"{BASE}:audit", "-", "+", "COUNT", "1")
    await desk.ledger._direct("XDEL", f"{BASE}:audit", entry)
    lost = await body(desk, "/v1/accounts/main/verify")
    assert lost["ok"] is False
    assert any("audit entries" in d["figure"] for d in lost["differences"]) or lost["problem"]


@pytest.mark.parametrize("part", ["", "/exposures", "/pnl", "/limits", "/verify"])
async def test_another_account_is_refused_and_an_unknown_one_is_not_there(desk: ApiDesk, part: str) -> None:
    await desk.open_account()
    headers = await desk.key(["read"], ["main", "gone"])
    for account, status in (("main", 200), ("second", 403), ("gone", 404)):
        answer = await desk.get(f"/v1/accounts/{account}{part}", headers=headers)
        assert answer.status_code == status, answer.text
