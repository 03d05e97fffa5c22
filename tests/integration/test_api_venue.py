"""The venue's own view over HTTP, from a real exchange: figures, pages, ages, rights, and a venue that goes away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.api_keys import HALT, READ
from cluster.ledger import DESK_BASE, Ledger
from conf.settings import RedisSettings, Settings, VenueSettings
from strategies.model import Order, OrderType, Side, TimeInForce
from tests.api_desk import ApiDesk, open_desk
from tests.simulator import Simulator, running_simulator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

READS = (
    "accounts",
    "balances",
    "portfolios",
    "products",
    "products/BTC-USD",
    "fees",
    "fills",
    "orders",
    "book/BTC-USD",
)
OWN = ("accounts", "balances", "portfolios", "fees", "fills", "orders")


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="module")
def simulator(state_dir: Path) -> Iterator[Simulator]:
    """Five purchases of 0.01 BTC and two that rest."""
    folder = state_dir / "exchange"
    folder.mkdir()
    with running_simulator(folder, "--seed", "5", "--btc", "0", "--usd", "1000000") as running:
        venue = running.venue()
        for number in range(5):
            venue.create_order(order(f"bought-{number}", None))
        for number in range(2):
            venue.create_order(order(f"resting-{number}", "1000.00"))
        venue.close()
        yield running


def order(client_order_id: str, price: str | None) -> Order:
    kind, in_force = (OrderType.LIMIT, TimeInForce.GTC) if price else (OrderType.MARKET, TimeInForce.IOC)
    limit = Decimal(price) if price else None
    quantity = Decimal("0.01")
    return Order(client_order_id, "main", "manual", "BTC-USD", Side.BUY, kind, in_force, quantity, limit_price=limit)


@pytest.fixture
def settings(ledger_server: RedisSettings, simulator: Simulator, state_dir: Path) -> Settings:
    venue = VenueSettings(host_port=simulator.host_port, timeout_s=0.5)
    return Settings(state_dir=state_dir, redis=ledger_server, venue=venue)


@pytest.fixture
async def desk(settings: Settings, ledger: Ledger) -> AsyncIterator[ApiDesk]:
    async with open_desk(settings, ledger) as desk:
        await desk.open_account()
        yield desk


async def body(desk: ApiDesk, path: str, **query: Any) -> Any:
    answer = await desk.get(f"/v1/venue/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def frozen(simulator: Simulator) -> Iterator[None]:
    os.kill(simulator.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(simulator.process.pid, signal.SIGCONT)


async def walked(desk: ApiDesk, path: str, rows: str, **query: Any) -> list[Any]:
    found: list[Any] = []
    for _ in range(20):
        answer = await body(desk, path, **query)
        found += answer[rows]
        if answer["cursor"] is None:
            return found
        query["cursor"] = answer["cursor"]
    raise AssertionError("the cursor never ends")


async def test_every_answer_says_where_it_is_from_and_how_old_it_is(desk: ApiDesk) -> None:
    for path in READS:
        answer = await body(desk, path)
        assert answer["data_source"] == "SIMULATED"
        assert 0 <= answer["age_s"] < 30
        assert abs(time.time_ns() - answer["as_of_ns"]) < 60e9
        assert answer["warning"] is None


async def test_what_is_held_is_what_the_exchange_has_booked(desk: ApiDesk) -> None:
    balances = {row["currency"]: row for row in (await body(desk, "balances"))["balances"]}
    assert Decimal(balances["BTC"]["total"]) == Decimal("0.05")
    assert Decimal(balances["USD"]["hold"]) >= 20
    usd = balances["USD"]
    assert Decimal(usd["available"]) + Decimal(usd["hold"]) == Decimal(usd["total"])
    accounts = (await body(desk, "accounts"))["accounts"]
    assert {row["currency"] for row in accounts} >= set(balances)
    assert all(row["uuid"] for row in accounts)


async def test_products_are_filtered_and_one_is_found_by_its_id(desk: ApiDesk) -> None:
    every = (await body(desk, "products"))["products"]
    assert {"BTC-USD", "ETH-USD"} <= {row["product_id"] for row in every}
    assert (await body(desk, "products", quote="XYZ"))["products"] == []
    tradable = (await body(desk, "products", tradable=True))["products"]
    assert all(row["tradable"] for row in tradable)
    one = (await body(desk, "products/BTC-USD"))["product"]
    assert one in every
    assert Decimal(one["base_increment"]) > 0


@pytest.mark.parametrize("path", ["products/NO-USD", "book/NO-USD"])
async def test_a_product_the_venue_does_not_list_is_404_and_costs_no_request(desk: ApiDesk, path: str) -> None:
    answer = await desk.get(f"/v1/venue/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "UNKNOWN_PRODUCT")
    assert ("book", "NO-USD") not in desk.app.state.desk.venue._kept


async def test_fees_and_portfolios(desk: ApiDesk) -> None:
    fees = await body(desk, "fees")
    assert Decimal(fees["taker_rate"]) >= Decimal(fees["maker_rate"])
    portfolios = (await body(desk, "portfolios"))["portfolios"]
    assert [row["deleted"] for row in portfolios][:1] == [False]


async def test_fills_page_by_page(desk: ApiDesk) -> None:
    fills = await walked(desk, "fills", "fills", limit=2)
    assert sum(Decimal(row["quantity"]) for row in fills) == Decimal("0.05")
    assert [row["ts_ns"] for row in fills] == sorted((row["ts_ns"] for row in fills), reverse=True)
    assert len({row["trade_id"] for row in fills}) == len(fills)
    name = fills[0]["venue_order_id"]
    assert {row["venue_order_id"] for row in await walked(desk, "fills", "fills", venue_order_id=name)} == {name}


async def test_orders_by_status_time_and_page(desk: ApiDesk) -> None:
    every = await walked(desk, "orders", "orders", limit=3)
    assert [row["client_order_id"] for row in every] == [
        *("resting-1", "resting-0"),
        *(f"bought-{number}" for number in (4, 3, 2, 1, 0)),
    ]
    assert len(await walked(desk, "orders", "orders", status="filled", limit=2)) == 5
    assert await walked(desk, "orders", "orders", status="cancelled") == []
    resting = await walked(desk, "orders", "orders", status="open", limit=1)
    assert [row["client_order_id"] for row in resting] == ["resting-1", "resting-0"]
    shown = resting[0]
    assert (shown["type"], shown["time_in_force"], shown["status"], shown["venue_status"]) == (
        "LIMIT",
        "GTC",
        "OPEN",
        "OPEN",
    )
    assert Decimal(shown["limit_price"]) == 1000
    assert shown["average_price"] is None
    cut = every[3]["created_ns"]
    assert len(await walked(desk, "orders", "orders", until_ns=cut)) == 3
    assert await walked(desk, "orders", "orders", product_id="ETH-USD") == []


async def test_the_book_is_in_order_and_as_deep_as_asked(desk: ApiDesk) -> None:
    book = await body(desk, "book/BTC-USD", levels=5)
    bids, asks = ([Decimal(level["price"]) for level in book[side]] for side in ("bids", "asks"))
    assert (bids, asks) == (sorted(bids, reverse=True), sorted(asks))
    assert bids[0] < asks[0]
    assert (len(bids), len(asks)) == (5, 5)


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("orders", {"cursor": "nonsense"}, "cursor"),
        ("orders", {"cursor": "nonsense", "status": "open"}, "cursor"),
        ("fills", {"cursor": "nonsense"}, "cursor"),
        ("fills", {"cursor": "a b"}, "cursor"),
        ("orders", {"status": "OPEN"}, "status"),
        ("orders", {"limit": "0"}, "limit"),
        ("orders", {"since_ns": "-1"}, "since_ns"),
        ("fills", {"since_ns": "NaN"}, "since_ns"),
        ("fills", {"venue_order_id": "../.."}, "venue_order_id"),
        ("book/BTC-USD", {"levels": "101"}, "levels"),
        ("book/btc-usd", {}, "product_id"),
    ],
)
async def test_bad_input_is_422_and_names_its_field(
    desk: ApiDesk, path: str, query: dict[str, str], field: str
) -> None:
    answer = await desk.get(f"/v1/venue/{path}", params=query)
    assert answer.status_code == 422, answer.text
    assert answer.json()["fields"][0]["field"] == field


async def test_reads_need_the_right_to_read_and_the_accounts_own_figures_the_account(desk: ApiDesk) -> None:
    halter, other = await desk.key([HALT]), await desk.key([READ], ["other"])
    for path in READS:
        assert (await desk.get(f"/v1/venue/{path}", headers=halter)).status_code == 403
        expected = 403 if path in OWN else 200
        assert (await desk.get(f"/v1/venue/{path}", headers=other)).status_code == expected
    nobody = await desk.client.get("/v1/venue/balances", headers={"authorization": "Bearer no"})
    assert nobody.status_code == 401


async def test_a_venue_that_goes_away_leaves_what_is_known_with_a_warning_and_else_503(
    desk: ApiDesk, simulator: Simulator
) -> None:
    known = await body(desk, "balances")
    desk.app.state.desk.venue._kept["accounts"] = _older(desk.app.state.desk.venue._kept["accounts"], 30)
    with frozen(simulator):
        answer = await body(desk, "balances")
        assert answer["balances"] == known["balances"]
        assert answer["age_s"] > 30
        assert answer["warning"] is not None
        missing = await desk.get("/v1/venue/fees")
        assert (missing.status_code, missing.json()["code"]) == (503, "VENUE_UNAVAILABLE")
        assert "retry-after" in missing.headers
        assert simulator.host_port not in missing.text + answer["warning"]


async def test_looking_costs_the_budget_that_all_processes_share(desk: ApiDesk) -> None:
    async def due() -> Any:
        return await desk.ledger._direct("HGETALL", f"{DESK_BASE}:venue_budget")

    assert not await due()
    await body(desk, "fees")
    counted = await due()
    assert counted
    for _ in range(3):
        await body(desk, "fees")
    assert await due() == counted


async def test_without_a_key_file_the_desk_says_that_the_venue_is_not_configured(
    ledger_server: RedisSettings, ledger: Ledger, tmp_path: Path
) -> None:
    settings = Settings(state_dir=tmp_path, redis=ledger_server, venue=VenueSettings(host_port="127.0.0.1:1"))
    async with open_desk(settings, ledger) as desk:
        answer = await desk.get("/v1/venue/balances")
        assert (answer.status_code, answer.json()["code"]) == (503, "VENUE_NOT_CONFIGURED")
        assert str(tmp_path) not in answer.text


def _older(kept: Any, seconds: float) -> Any:
    return type(kept)(kept.value, kept.as_of_ns, kept.read_at_s - seconds)
