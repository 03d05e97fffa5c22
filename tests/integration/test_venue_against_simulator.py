"""The venue, and the bare SDK, over verified TLS against the simulator as a process of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from coinbase.rest import RESTClient
from pydantic import SecretStr

from cluster.exchange_history import MARKETS
from cluster.venue import (
    Venue,
    VenueEndpoint,
    VenueGarbage,
    VenueNotFound,
    VenueOrder,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    check_key,
    simulator_endpoint,
)
from cluster.venue_endpoint import SIMULATED_KEY
from strategies.model import NS_PER_S, Granularity, Order, OrderStatus, OrderType, Side, TimeInForce
from tests.simulator import Simulator, running_simulator, start_simulator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "1200") as running:
        yield running


@pytest.fixture
def venue(simulator: Simulator) -> Iterator[Venue]:
    made = simulator.venue()
    yield made
    made.close()
    for product_id in MARKETS:
        simulator.push_price(product_id, None)


_counter = iter(range(10**9))


def order(**changes: Any) -> Order:
    given: dict[str, Any] = {
        "client_order_id": f"test-{time.time_ns()}-{next(_counter)}",
        "account": "main",
        "strategy": "manual",
        "product_id": "ETH-USD",
        "side": Side.BUY,
        "type": OrderType.MARKET,
        "time_in_force": TimeInForce.IOC,
        "quantity": Decimal("0.5"),
        "limit_price": None,
    }
    return Order(**(given | changes))


def limit(price: str, **changes: Any) -> Order:
    given = {"type": OrderType.LIMIT, "time_in_force": TimeInForce.GTC, "limit_price": Decimal(price)}
    return order(**(given | changes))


def balances(venue: Venue) -> dict[str, tuple[Decimal, Decimal]]:
    return {balance.currency: (balance.available, balance.hold) for balance in venue.accounts()}


# --- market data ---


def test_the_servers_clock_is_ours(venue: Venue) -> None:
    assert abs(venue.server_time_ns() - time.time_ns()) < 5 * NS_PER_S


def test_products_have_their_increments(venue: Venue) -> None:
    found = {product.product_id: product for product in venue.products()}
    assert found == {name: market.product for name, market in MARKETS.items()}
    assert venue.product("BTC-USD") == found["BTC-USD"]
    with pytest.raises(VenueNotFound):
        venue.product("NONE-USD")


@pytest.mark.parametrize("granularity", list(Granularity))
def test_a_page_of_candles_is_350_bars_oldest_first(venue: Venue, granularity: Granularity) -> None:
    end_s = int(time.time()) // 86_400 * 86_400
    bars = venue.candles("BTC-USD", granularity, end_s - 350 * granularity.seconds, end_s)
    assert len(bars) == 350
    assert bars.ts_ns[0] == (end_s - 350 * granularity.seconds) * NS_PER_S
    assert set((bars.ts_ns[1:] - bars.ts_ns[:-1]).tolist()) == {granularity.ns}
    assert ((bars.low > 0) & (bars.low <= bars.open) & (bars.high >= bars.close)).all()


def test_pages_join_without_gap_or_overlap(venue: Venue) -> None:
    end_s = int(time.time()) // 3_600 * 3_600
    pages = [
        venue.candles("SOL-USD", Granularity.ONE_HOUR, end_s - (i + 1) * 7_200, end_s - i * 7_200) for i in range(3)
    ]
    assert [len(page) for page in pages] == [2, 2, 2]
    whole = venue.candles("SOL-USD", Granularity.ONE_HOUR, end_s - 3 * 7_200, end_s)
    joined = [start for page in pages[::-1] for start in page.ts_ns.tolist()]
    assert whole.ts_ns.tolist() == joined


def test_a_span_is_rounded_inwards_and_too_long_a_one_is_refused(venue: Venue) -> None:
    start_s = int(time.time()) // 86_400 * 86_400 - 86_400
    assert venue.candles("BTC-USD", Granularity.ONE_HOUR, start_s + 1, start_s + 3_601).ts_ns.tolist() == [
        (start_s + 3_600) * NS_PER_S
    ]
    assert len(venue.candles("BTC-USD", Granularity.ONE_HOUR, start_s, start_s)) == 0
    assert len(venue.candles("BTC-USD", Granularity.ONE_HOUR, start_s, start_s - 5)) == 0
    with pytest.raises(ValueError, match="at most 350 bars"):
        venue.candles("BTC-USD", Granularity.ONE_MINUTE, start_s, start_s + 350 * 60 + 1)
    with pytest.raises(VenueNotFound):
        venue.candles("NONE-USD", Granularity.ONE_HOUR, start_s, start_s + 3_600)


def test_market_data_needs_no_key(simulator: Simulator) -> None:
    endpoint = VenueEndpoint(simulator.host_port, ca_file=simulator.state_dir / "ca.pem", simulated=True)
    venue = Venue(endpoint)
    now_s = int(time.time())
    assert len(venue.candles("BTC-USD", Granularity.ONE_HOUR, now_s - 36_000, now_s)) in {9, 10}
    assert len(venue.products()) == len(MARKETS)
    for call in (
        venue.accounts,
        venue.orders,
        venue.fills,
        lambda: venue.cancel(["x"]),
        lambda: venue.create_order(order()),
    ):
        with pytest.raises(VenueUnauthorised, match="needs a key"):
            call()
    venue.close()


def test_quotes_come_in_the_order_asked_for(venue: Venue, simulator: Simulator) -> None:
    simulator.push_price("BTC-USD", "50000.00")
    quotes = venue.best_bid_ask(["SOL-USD", "BTC-USD"])
    assert [quote.product_id for quote in quotes] == ["SOL-USD", "BTC-USD"]
    assert (quotes[1].bid, quotes[1].ask) == (Decimal("49999.99"), Decimal("50000.01"))
    assert abs(quotes[0].ts_ns - time.time_ns()) < 5 * NS_PER_S
    assert venue.best_bid_ask([]) == []


# --- orders ---


def test_a_market_order_is_filled_and_paid_for(venue: Venue) -> None:
    before = balances(venue)
    sent = order(quantity=Decimal("3.5"))
    venue_order_id = venue.create_order(sent)
    seen = venue.order(venue_order_id)
    assert (seen.status, seen.filled_quantity, seen.side) == (OrderStatus.FILLED, Decimal("3.5"), Side.BUY)
    fills = venue.fills([venue_order_id])
    assert sum(fill.quantity for fill in fills) == Decimal("3.5")
    assert {(fill.client_order_id, fill.liquidity) for fill in fills} == {(sent.client_order_id, "TAKER")}
    assert len({fill.trade_id for fill in fills}) == len(fills)
    cost = sum(fill.price * fill.quantity + fill.fee for fill in fills)
    after = balances(venue)
    assert before["USD"][0] - after["USD"][0] == cost
    assert after["ETH"][0] - before["ETH"][0] == Decimal("3.5")
    assert seen.total_fees == sum(fill.fee for fill in fills)


def test_a_limit_order_rests_with_its_hold_and_is_filled_when_the_market_crosses(
    venue: Venue, simulator: Simulator
) -> None:
    simulator.push_price("ETH-USD", "3000.00")
    before = balances(venue)
    sent = limit("2900.00", quantity=Decimal("0.25"), post_only=True)
    venue_order_id = venue.create_order(sent)
    assert venue.order(venue_order_id).status is OrderStatus.OPEN
    held = Decimal("0.25") * 2_900 * Decimal("1.006")
    assert balances(venue)["USD"] == (before["USD"][0] - held, before["USD"][1] + held)
    assert simulator.push_price("ETH-USD", "2890.00")["fills"] == 1
    seen = venue.order(venue_order_id)
    assert (seen.status, seen.average_price) == (OrderStatus.FILLED, Decimal(2_900))
    (fill,) = venue.fills([venue_order_id])
    assert (fill.price, fill.liquidity, fill.fee) == (
        Decimal(2_900),
        "MAKER",
        Decimal("0.25") * 2_900 * Decimal("0.004"),
    )
    assert balances(venue)["USD"] == (before["USD"][0] - 725 - fill.fee, before["USD"][1])


def test_a_large_order_is_filled_in_parts(venue: Venue, simulator: Simulator) -> None:
    simulator.push_price("SOL-USD", "150.00")
    venue_order_id = venue.create_order(
        limit("150.02", product_id="SOL-USD", side=Side.SELL, quantity=Decimal(900), post_only=True)
    )
    simulator.push_price("SOL-USD", "150.04")
    seen = venue.order(venue_order_id)
    assert seen.status is OrderStatus.PARTIALLY_FILLED
    assert 0 < seen.filled_quantity < 900
    # The market's own trades go on filling it between two readings, so that these cannot be equal in all fields.
    (listed,) = venue.orders(["SOL-USD"], [OrderStatus.PARTIALLY_FILLED])
    assert listed.venue_order_id == venue_order_id
    assert listed.filled_quantity >= seen.filled_quantity
    assert venue.cancel([venue_order_id]) == {venue_order_id: True}
    assert venue.order(venue_order_id).status is OrderStatus.CANCELLED
    assert balances(venue)["SOL"][1] == 0


@pytest.mark.parametrize("time_in_force", [TimeInForce.IOC, TimeInForce.FOK])
def test_orders_that_must_not_rest_do_not(venue: Venue, simulator: Simulator, time_in_force: TimeInForce) -> None:
    simulator.push_price("ETH-USD", "3000.00")
    missed = venue.create_order(limit("2999.00", time_in_force=time_in_force))
    assert venue.order(missed).status is OrderStatus.CANCELLED
    taken = venue.create_order(limit("3001.00", quantity=Decimal("0.01"), time_in_force=time_in_force))
    assert venue.order(taken).status is OrderStatus.FILLED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"quantity": Decimal(1_000_000)}, "PREVIEW_INVALID_BASE_SIZE_TOO_LARGE"),
        ({"quantity": Decimal("0.000000001")}, "INVALID_SIZE_PRECISION"),
        ({"quantity": Decimal(40_000), "side": Side.SELL}, "INSUFFICIENT_FUND"),
        ({"product_id": "DOGE-USD"}, "INVALID_PRODUCT_ID"),
    ],
)
def test_a_refusal_has_coinbases_code(venue: Venue, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(VenueRejected) as error:
        venue.create_order(order(**changes))
    assert error.value.code == code


def test_a_refused_limit_order_has_coinbases_code(venue: Venue, simulator: Simulator) -> None:
    simulator.push_price("ETH-USD", "3000.00")
    for sent, code in (
        (limit("3000.01", post_only=True), "INVALID_LIMIT_PRICE_POST_ONLY"),
        (limit("2900.001"), "INVALID_PRICE_PRECISION"),
        (limit("2999.00", quantity=Decimal(1_000)), "INSUFFICIENT_FUND"),
    ):
        with pytest.raises(VenueRejected) as error:
            venue.create_order(sent)
        assert error.value.code == code
        assert venue.order_by_client_id(sent.client_order_id) is None


def test_the_same_client_order_id_is_one_order(venue: Venue) -> None:
    sent = order()
    first = venue.create_order(sent)
    fills = venue.fills([first])
    assert venue.create_order(sent) == first
    assert venue.fills([first]) == fills


def test_an_order_is_found_by_our_own_id(venue: Venue) -> None:
    sent = order()
    venue_order_id = venue.create_order(sent)
    found = venue.order_by_client_id(sent.client_order_id)
    assert found == venue.order(venue_order_id)
    assert venue.order_by_client_id("never-sent") is None
    assert venue.order_by_client_id(sent.client_order_id, since_ns=time.time_ns() + 60 * NS_PER_S) is None


def test_another_process_finds_the_client_order_ids_of_fills(venue: Venue, simulator: Simulator) -> None:
    since_ns = time.time_ns() - NS_PER_S
    sent = [order(), order()]
    ids = [venue.create_order(each) for each in sent]
    stranger = simulator.venue()
    fills = [fill for fill in stranger.fills(since_ns=since_ns) if fill.venue_order_id in ids]
    assert {fill.client_order_id for fill in fills} == {each.client_order_id for each in sent}
    assert [fill.ts_ns for fill in fills] == sorted(fill.ts_ns for fill in fills)
    assert stranger.fills(since_ns=time.time_ns() + 60 * NS_PER_S) == []
    stranger.close()


def test_lists_longer_than_a_page_are_whole(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.venue._PAGE_SIZE", 3)
    monkeypatch.setattr("cluster.venue._FILLS_PAGE_SIZE", 2)
    start_ns = time.time_ns()
    ids = [venue.create_order(limit("100.00", quantity=Decimal("0.01"))) for _ in range(8)]
    assert [each.venue_order_id for each in venue.orders(start_ns=start_ns)] == ids[::-1]
    assert len(venue.accounts()) == 4
    assert {each.venue_order_id for each in venue.orders(["ETH-USD"], [OrderStatus.OPEN])} >= set(ids)
    monkeypatch.setattr("cluster.venue._CANCELS_PER_CALL", 3)
    assert venue.cancel(ids) == dict.fromkeys(ids, True)
    assert venue.cancel([ids[0], "nobody"]) == {ids[0]: "DUPLICATE_CANCEL_REQUEST", "nobody": "UNKNOWN_CANCEL_ORDER"}
    assert venue.cancel([]) == {}
    filled = [venue.create_order(order(quantity=Decimal("0.001"))) for _ in range(5)]
    assert {fill.venue_order_id for fill in venue.fills(since_ns=start_ns)} == set(filled)


def test_orders_are_listed_by_status_product_and_time(venue: Venue) -> None:
    start_ns = time.time_ns()
    resting = venue.create_order(limit("100.00", quantity=Decimal("0.01")))
    filled = venue.create_order(order(product_id="SOL-USD"))

    def listed(product_ids: list[str] | None, statuses: list[OrderStatus] | None) -> list[str]:
        return [each.venue_order_id for each in venue.orders(product_ids, statuses, start_ns)]

    assert listed(None, None) == [filled, resting]
    assert listed(["SOL-USD"], None) == [filled]
    assert listed(None, [OrderStatus.FILLED]) == [filled]
    assert listed(None, [OrderStatus.OPEN]) == [resting]
    assert listed(None, [OrderStatus.OPEN, OrderStatus.FILLED]) == [resting, filled]
    assert listed(None, [OrderStatus.REJECTED]) == []
    venue.cancel([resting])


def test_what_cannot_be_an_order_is_not_found(venue: Venue) -> None:
    for given in ("nobody", "../accounts", ""):
        with pytest.raises(VenueNotFound):
            venue.order(given)


def test_many_threads_share_one_venue(venue: Venue) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(venue.create_order(order()))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(ids)) == 16


# --- keys ---


def test_both_kinds_of_key_work_and_a_wrong_one_does_not(simulator: Simulator, tmp_path: Path) -> None:
    import json

    content = json.loads((simulator.state_dir / "cdp_key_ed25519.json").read_text())
    other = simulator.endpoint
    endpoint = VenueEndpoint(
        simulator.host_port,
        content["name"],
        SecretStr(content["privateKey"]),
        simulator.state_dir / "ca.pem",
        simulated=True,
    )
    assert balances(Venue(endpoint)) == balances(Venue(other))
    crossed = VenueEndpoint(
        simulator.host_port, content["name"], other.key_secret, simulator.state_dir / "ca.pem", simulated=True
    )
    for call in (Venue(crossed).accounts, lambda: Venue(crossed).create_order(order())):
        with pytest.raises(VenueUnauthorised, match="401"):
            call()


def test_no_secret_and_no_token_in_logs_or_errors(simulator: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    venue = simulator.venue()
    assert simulator.endpoint.key_secret is not None
    secret = simulator.endpoint.key_secret.get_secret_value()
    texts = [repr(venue.endpoint), repr(simulator.endpoint)]
    venue.accounts()
    for call in (
        lambda: venue.order("nobody"),
        lambda: venue.create_order(order(quantity=Decimal(10**6))),
        Venue(
            VenueEndpoint(
                simulator.host_port,
                f"{SIMULATED_KEY}/nobody",
                SecretStr(secret),
                simulator.state_dir / "ca.pem",
                simulated=True,
            )
        ).accounts,
    ):
        with pytest.raises((VenueNotFound, VenueRejected, VenueUnauthorised)) as error:
            call()
        texts += [str(error.value), repr(error.value), repr(error.value.__cause__)]
    texts += [record.getMessage() for record in caplog.records]
    assert any("401" in text for text in texts)
    for line in [*secret.strip().splitlines()[1:-1], "PRIVATE KEY", "Bearer ", "eyJ"]:
        assert not [text for text in texts if line in text]


# --- TLS and the wrong place ---


def test_a_certificate_that_is_not_trusted_is_not_talked_to(simulator: Simulator) -> None:
    venue = Venue(VenueEndpoint(simulator.host_port, simulated=True))
    with pytest.raises(VenueUnavailable, match="SSLCertVerificationError"):
        venue.server_time_ns()
    sent = order()
    endpoint = simulator.endpoint
    keyed = Venue(VenueEndpoint(simulator.host_port, endpoint.key_name, endpoint.key_secret, simulated=True))
    with pytest.raises(VenueUnavailable):
        keyed.create_order(sent)
    assert simulator.venue().order_by_client_id(sent.client_order_id) is None


def test_the_environments_bundle_and_proxy_do_not_matter(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert simulator.venue().accounts()


def test_simulated_answers_are_refused_where_real_ones_are_expected(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VenueEndpoint("api.coinbase.com", ca_file=simulator.state_dir / "ca.pem")
    # What the fence on hosts prevents, done behind its back: the second fence is the answer itself.
    object.__setattr__(real, "host_port", simulator.host_port)
    with pytest.raises(VenueGarbage, match="expected a real venue"):
        Venue(real).server_time_ns()


def test_nobody_there_is_unavailable_and_nothing_was_sent(simulator: Simulator) -> None:
    endpoint = simulator.endpoint
    nowhere = VenueEndpoint("127.0.0.1:1", endpoint.key_name, endpoint.key_secret, endpoint.ca_file, simulated=True)
    venue = Venue(nowhere)
    for call in (
        venue.server_time_ns,
        venue.accounts,
        lambda: venue.create_order(order()),
        lambda: venue.cancel(["x"]),
    ):
        with pytest.raises(VenueUnavailable):
            call()
    unknown = VenueEndpoint("no-such-host.invalid", endpoint.key_name, endpoint.key_secret, simulated=True)
    with pytest.raises(VenueUnavailable):
        Venue(unknown).create_order(order())


def test_our_own_budget_is_kept_before_the_venue_has_to_say_so(simulator: Simulator) -> None:
    endpoint = VenueEndpoint(
        simulator.host_port,
        simulator.endpoint.key_name,
        simulator.endpoint.key_secret,
        simulator.endpoint.ca_file,
        timeout_s=0.5,
        simulated=True,
        requests_per_s=1.0,
        public_requests_per_s=1.0,
    )
    venue = Venue(endpoint)
    venue.accounts()
    sent = order()
    with pytest.raises(VenueThrottled, match="own budget"):
        venue.create_order(sent)
    venue.server_time_ns()
    assert simulator.venue().order_by_client_id(sent.client_order_id) is None


# --- the SDK itself ---


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[Any]:
    endpoint = simulator.endpoint
    assert endpoint.key_secret is not None
    client = RESTClient(
        endpoint.key_name, endpoint.key_secret.get_secret_value(), base_url=simulator.host_port, timeout=5
    )
    client.session.trust_env = False
    client.session.verify = str(endpoint.ca_file)
    yield client
    client.session.close()


def test_the_sdks_own_order_calls_work_unchanged(sdk: Any, simulator: Simulator) -> None:
    simulator.push_price("ETH-USD", "3000.00")
    bought = sdk.market_order_buy(f"sdk-{time.time_ns()}", "ETH-USD", quote_size="100")
    assert bought.success
    seen = sdk.get_order(bought.success_response["order_id"]).order
    assert (seen.status, seen.size_in_quote, seen.size_inclusive_of_fees) == ("FILLED", True, True)
    assert Decimal("99.99") < Decimal(seen.total_value_after_fees) <= 100
    sold = sdk.market_order_sell(f"sdk-{time.time_ns()}", "ETH-USD", base_size="0.01")
    assert sold.success
    end_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3_600))
    calls: list[Callable[[str], Any]] = [
        lambda i: sdk.limit_order_gtc_buy(i, "ETH-USD", base_size="0.01", limit_price="2000.00", post_only=True),
        lambda i: sdk.limit_order_gtd_sell(i, "ETH-USD", "0.01", "4000.00", end_time),
        lambda i: sdk.limit_order_ioc_buy(i, "ETH-USD", "0.01", "2000.00"),
        lambda i: sdk.limit_order_fok_sell(i, "ETH-USD", "0.01", "4000.00"),
    ]
    placed = [call(f"sdk-{time.time_ns()}") for call in calls]
    assert [answer.success for answer in placed] == [True] * 4
    ids = [answer.success_response["order_id"] for answer in placed]
    states = [sdk.get_order(each).order.status for each in ids]
    assert states == ["OPEN", "OPEN", "CANCELLED", "CANCELLED"]
    assert [result.success for result in sdk.cancel_orders(order_ids=ids).results] == [True, True, False, False]
    # Its limit is below its stop: once triggered it could never execute.
    refused = sdk.stop_limit_order_gtc_buy(f"sdk-{time.time_ns()}", "ETH-USD", "1", "2", "3", "STOP_DIRECTION_STOP_UP")
    assert (refused.success, refused.error_response["preview_failure_reason"]) == (
        False,
        "PREVIEW_STOP_PRICE_ABOVE_LIMIT_PRICE",
    )


def test_the_sdks_other_calls_work_unchanged(sdk: Any) -> None:
    assert sdk.get_products(product_ids=["BTC-USD"]).products[0].product_id == "BTC-USD"
    assert sdk.get_products(product_type="FUTURE").products == []
    assert sdk.get_product("BTC-USD", get_tradability_status=True).status == "online"
    assert len(sdk.get_product_book("BTC-USD", limit=5).pricebook.bids) == 5
    assert len(sdk.get_best_bid_ask().pricebooks) == len(MARKETS)
    assert sdk.get_market_trades("BTC-USD", limit=3).trades[0].exchange == "simulated"
    assert sdk.get_public_market_trades("BTC-USD", limit=3).trades[0].product_id == "BTC-USD"
    assert sdk.get_public_product_book("BTC-USD").pricebook.product_id == "BTC-USD"
    account = sdk.get_accounts(limit=1).accounts[0]
    assert sdk.get_account(account.uuid).account.currency == account.currency
    assert sdk.get_transaction_summary().fee_tier["taker_fee_rate"] == "0.006"
    assert sdk.get_api_key_permissions().can_trade is True
    now_s = int(time.time())
    candles = sdk.get_candles("BTC-USD", str(now_s - 3_600), str(now_s), "FIVE_MINUTE").candles
    starts = [int(candle.start) for candle in candles]
    assert starts == sorted(starts, reverse=True)
    with pytest.raises(requests.HTTPError, match=r"400 Client Error.*less than 350"):
        sdk.get_candles("BTC-USD", str(now_s - 351 * 60), str(now_s), "ONE_MINUTE")
    assert [(p.type, p.name) for p in sdk.get_portfolios().portfolios] == [("DEFAULT", "Default")]
    with pytest.raises(requests.HTTPError, match="404 Client Error"):
        sdk.list_payment_methods()


# --- restarts ---


def picture(venue: Venue) -> tuple[Any, ...]:
    since_ns = time.time_ns() - 3_600 * NS_PER_S
    return sorted(venue.accounts(), key=lambda b: b.currency), venue.orders(), venue.fills(since_ns=since_ns)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_restarted_exchange_has_the_same_orders_balances_and_candles(tmp_path: Path, how: str) -> None:
    first = start_simulator(tmp_path, "--history-days", "30")
    try:
        venue = first.venue()
        placed = [venue.create_order(order()), venue.create_order(limit("100.00"))]
        before = picture(venue)
        end_s = int(time.time()) // 60 * 60
        span = ("BTC-USD", Granularity.ONE_MINUTE, end_s - 300 * 60, end_s)
        candles = venue.candles(*span)
    finally:
        first.process.terminate() if how == "SIGTERM" else first.process.kill()
        first.process.communicate(timeout=10)
    with running_simulator(tmp_path, "--history-days", "400") as second:
        again = second.venue()
        assert picture(again) == before
        repeated = again.candles(*span)
        assert repeated.close.tolist() == candles.close.tolist()
        assert repeated.volume.tolist() == candles.volume.tolist()
        assert again.cancel(placed) == {placed[0]: "ORDER_IS_FULLY_FILLED", placed[1]: True}
        assert isinstance(again.order(placed[1]), VenueOrder)
        assert simulator_endpoint(second.host_port, tmp_path).key_name == first.endpoint.key_name


# --- every order type, edits, previews and what the venue says about us ---

END_NS = 4_000_000_000 * NS_PER_S
ALL_TYPES: dict[str, dict[str, Any]] = {
    "limit": {},
    "post-only": {"post_only": True},
    "until a date": {"time_in_force": TimeInForce.GTD, "end_ns": END_NS},
    "post-only until a date": {"time_in_force": TimeInForce.GTD, "end_ns": END_NS, "post_only": True},
    "stop": {"type": OrderType.STOP_LIMIT, "limit_price": Decimal(9_100), "stop_price": Decimal(9_000)},
    "stop until a date": {
        "type": OrderType.STOP_LIMIT,
        "side": Side.SELL,
        "limit_price": Decimal(90),
        "stop_price": Decimal(100),
        "time_in_force": TimeInForce.GTD,
        "end_ns": END_NS,
    },
    "bracket": {
        "type": OrderType.BRACKET,
        "side": Side.SELL,
        "limit_price": Decimal(9_000),
        "stop_price": Decimal(100),
    },
    "bracket until a date": {
        "type": OrderType.BRACKET,
        "side": Side.SELL,
        "limit_price": Decimal(9_000),
        "stop_price": Decimal(100),
        "time_in_force": TimeInForce.GTD,
        "end_ns": END_NS,
    },
}


@pytest.fixture
def holding(venue: Venue) -> Venue:
    """A venue where something can be sold."""
    venue.create_order(order(quantity=Decimal(2)))
    return venue


@pytest.mark.parametrize("name", ALL_TYPES)
def test_an_order_that_rests_comes_back_as_it_was_sent(holding: Venue, name: str) -> None:
    sent = limit("100", **ALL_TYPES[name])
    venue_order_id = holding.create_order(sent)
    found = holding.order(venue_order_id)
    for field in ("client_order_id", "product_id", "side", "type", "time_in_force", "quantity", "limit_price"):
        assert getattr(found, field) == getattr(sent, field), field
    assert (found.stop_price, found.post_only, found.end_ns) == (sent.stop_price, sent.post_only, sent.end_ns)
    assert (found.status, found.filled_quantity, found.raw_status) == (OrderStatus.OPEN, Decimal(0), "OPEN")
    assert venue_order_id in {each.venue_order_id for each in holding.open_orders()}
    assert holding.cancel([venue_order_id]) == {venue_order_id: True}
    assert venue_order_id not in {each.venue_order_id for each in holding.open_orders()}


@pytest.mark.parametrize("name", ALL_TYPES)
def test_a_preview_of_every_type_places_nothing(holding: Venue, name: str) -> None:
    before = len(holding.orders())
    found = holding.preview(limit("100", **ALL_TYPES[name]))
    assert found.errors == ()
    assert found.quantity == Decimal("0.5")
    assert found.best_bid < found.best_ask
    assert found.notional > 0
    assert len(holding.orders()) == before
    assert holding.preview(limit("100", quantity=Decimal(10**7))).errors != ()


def test_an_edit_changes_the_order_and_repeated_is_harmless(venue: Venue) -> None:
    venue_order_id = venue.create_order(limit("100"))
    for _ in range(2):
        venue.edit(venue_order_id, Decimal("0.75"), Decimal("110.5"))
        found = venue.order(venue_order_id)
        assert (found.quantity, found.limit_price, found.status) == (
            Decimal("0.75"),
            Decimal("110.5"),
            OrderStatus.OPEN,
        )
    venue.cancel([venue_order_id])
    with pytest.raises(VenueRejected) as refused:
        venue.edit(venue_order_id, Decimal("0.5"), Decimal(100))
    assert refused.value.code
    with pytest.raises(VenueRejected):
        venue.edit("nobody", Decimal("0.5"), Decimal(100))


def test_what_the_venue_says_about_us(venue: Venue, simulator: Simulator) -> None:
    permissions = venue.key_permissions()
    assert (permissions.can_view, permissions.can_trade) == (True, True)
    assert check_key(venue, allow_transfer=False) == permissions
    own = [each for each in venue.portfolios() if each.uuid == permissions.portfolio_uuid]
    assert [each.deleted for each in own] == [False]
    tier = venue.fee_tier()
    assert 0 <= tier.maker_rate <= tier.taker_rate < Decimal("0.05")
    assert tier.volume >= 0
    assert venue.endpoint.environment == "paper"


def test_a_book_is_read_without_a_key(simulator: Simulator) -> None:
    endpoint = VenueEndpoint(simulator.host_port, ca_file=simulator.state_dir / "ca.pem", simulated=True)
    venue = Venue(endpoint)
    book = venue.product_book("ETH-USD", 3)
    assert [len(book.bids), len(book.asks)] == [3, 3]
    assert book.bids[0][0] < book.asks[0][0]
    assert venue.stream_token() == ""
    for levels in (0, -1, 501):
        with pytest.raises(ValueError, match="levels"):
            venue.product_book("ETH-USD", levels)
    with pytest.raises(VenueNotFound):
        venue.product_book("NO-SUCH", 3)
    venue.close()


def test_fills_of_some_orders_are_exactly_theirs(venue: Venue) -> None:
    ids = [venue.create_order(order(quantity=Decimal("0.1"))) for _ in range(4)]
    found = venue.fills(ids[1:3])
    assert {fill.venue_order_id for fill in found} == set(ids[1:3])
    assert venue.fills([]) == []
