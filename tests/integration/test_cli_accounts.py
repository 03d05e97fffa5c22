"""``desk accounts`` against a desk whose venue is the real simulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from conf.settings import VenueSettings
from strategies.model import Order, OrderType, Side, TimeInForce
from tests.integration.test_cli_override import Applications
from tests.integration.test_cli_risk import Shell, shell
from tests.simulator import running_simulator

__all__ = ["shell"]

pytestmark = pytest.mark.slow

BOUGHT = 120


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """More fills than one page holds, and one order that rests."""
    folder = tmp_path_factory.mktemp("exchange")
    with running_simulator(folder, "--seed", "5", "--btc", "0") as simulator:
        venue = simulator.venue()
        market = Order(
            "", "main", "manual", "BTC-USD", Side.BUY, OrderType.MARKET, TimeInForce.IOC, quantity=Decimal("0.0001")
        )
        for number in range(BOUGHT):
            venue.create_order(replace(market, client_order_id=f"bought-{number}"))
        limit = Order(
            "resting", "main", "manual", "BTC-USD", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, Decimal("0.01"),
            limit_price=Decimal("1000.00"),
        )  # fmt: skip
        venue.create_order(limit)
        venue.close()
        yield simulator.host_port, folder


@pytest.fixture
def desk(shell: Shell, exchange: tuple[str, Path]) -> Iterator[Shell]:
    """The API on this exchange, whose key and certificate stand in the desk's folder as the desk puts them there."""
    host_port, folder = exchange
    (shell.folder / "exchange").symlink_to(folder, target_is_directory=True)
    shell.settings = shell.settings.model_copy(update={"venue": VenueSettings(host_port=host_port)})
    applications = Applications(shell)
    redis = shell.settings.redis.model_dump(mode="json")
    settings = {"redis": redis, "serve": {"http_port": applications.port}, "venue": {"host_port": host_port}}
    (shell.folder / "desk.json").write_text(json.dumps({"settings": settings}))
    applications.start()
    yield shell
    applications.stop()


def test_balances_fees_portfolios_and_products(desk: Shell) -> None:
    balances = {row["currency"]: row for row in desk.json("accounts", "balances")["balances"]}
    assert Decimal(balances["BTC"]["total"]) == Decimal("0.0001") * BOUGHT
    every = desk.json("accounts", "balances", "--all")["accounts"]
    assert {row["currency"] for row in every} >= set(balances)
    assert Decimal(desk.json("accounts", "fees")["taker_rate"]) > 0
    assert desk.json("accounts", "portfolios")["portfolios"][0]["deleted"] is False
    assert desk.json("accounts", "products", "-p", "btc-usd")["product"]["product_id"] == "BTC-USD"
    assert {row["quote_currency"] for row in desk.json("accounts", "products", "-q", "usd")["products"]} == {"USD"}


@pytest.mark.parametrize(("limit", "count"), [("7", 7), ("100", 100), ("110", 110), ("1000", BOUGHT)])
def test_as_many_fills_as_asked_for_whatever_a_page_holds(desk: Shell, limit: str, count: int) -> None:
    answer = desk.json("accounts", "fills", "--limit", limit)
    assert len({row["trade_id"] for row in answer["fills"]}) == len(answer["fills"]) == count
    assert answer["data_source"] == "SIMULATED"


def test_orders_are_filtered(desk: Shell) -> None:
    (resting,) = desk.json("accounts", "orders", "--status", "open")["orders"]
    assert resting["client_order_id"] == "resting"
    assert len(desk.json("accounts", "orders", "--status", "filled", "--limit", "1000")["orders"]) == BOUGHT
    assert desk.json("accounts", "orders", "--until", "2020-01-01")["orders"] == []
    assert desk.json("accounts", "orders", "--since", "2999-01-01T10:00")["orders"] == []
    (fill,) = desk.json("accounts", "fills", "--limit", "1")["fills"]
    of_order = desk.json("accounts", "fills", "--order", fill["venue_order_id"])["fills"]
    assert {row["venue_order_id"] for row in of_order} == {fill["venue_order_id"]}


@pytest.mark.parametrize(
    "words",
    [
        "balances",
        "balances --all",
        "portfolios",
        "products",
        "fees",
        "fills --limit 3",
        "orders --limit 3",
        "book btc-usd",
    ],
)
def test_every_table_says_where_its_figures_are_from_and_how_old_they_are(desk: Shell, words: str) -> None:
    code, text = desk.run("accounts", *words.split())
    assert code == 0, text
    assert "SIMULATED" in text
    assert "s old" in " ".join(text.split())


def test_a_book_is_as_deep_as_asked(desk: Shell) -> None:
    book = desk.json("accounts", "book", "BTC-USD", "-n", "3")
    assert (len(book["bids"]), len(book["asks"])) == (3, 3)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("book BTCUSD", "BASE-QUOTE"),
        ("book ../../v1", "BASE-QUOTE"),
        ("book NO-USD", "NO-USD"),
        ("products -p NO-USD", "NO-USD"),
        ("orders --status lost", "status"),
        ("fills --order a/b", "venue_order_id"),
    ],
)
def test_bad_input_is_one_clear_line(desk: Shell, words: str, named: str) -> None:
    error = desk.error("accounts", *words.split())
    assert named in error["message"]
