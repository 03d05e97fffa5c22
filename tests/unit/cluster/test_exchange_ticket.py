"""What POST /orders may say, and the code each mistake is refused with."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from cluster.exchange_ticket import Kind, Refusal, read_ticket
from strategies.model import Side

NOW_NS = 1_741_613_841_500_000_000


def body(**changes: Any) -> dict[str, Any]:
    whole = {
        "client_order_id": "a",
        "product_id": "BTC-USD",
        "side": "BUY",
        "order_configuration": {"limit_limit_gtc": {"base_size": "0.5", "limit_price": "60000.01"}},
    }
    return whole | changes


NO_CONFIGURATIONS: tuple[Any, ...] = (
    None,
    {},
    [],
    "limit_limit_gtc",
    {"twap_limit_gtd": {}},
    {"scaled_limit_gtc": {}},
    {"limit_limit_gtc": None},
)


def limit(kind: str = "limit_limit_gtc", **changes: Any) -> dict[str, Any]:
    return {kind: {"base_size": "0.5", "limit_price": "60000.01"} | changes}


def test_an_order_is_read_in_ticks_and_lots() -> None:
    configuration = limit(post_only=True)
    ticket = read_ticket(body(order_configuration=configuration), NOW_NS)
    assert (ticket.lots, ticket.ticks, ticket.post_only) == (50_000_000, 6_000_001, True)
    assert (ticket.side, ticket.kind, ticket.configuration) == (Side.BUY, Kind.LIMIT_GTC, configuration)


@pytest.mark.parametrize(
    ("configuration", "rests"),
    [
        ({"market_market_ioc": {"base_size": "1"}}, False),
        ({"market_market_ioc": {"quote_size": "10.50"}}, False),
        (limit("sor_limit_ioc"), False),
        (limit("limit_limit_fok"), False),
        (limit("limit_limit_gtc"), True),
        (limit("limit_limit_gtd", end_time="2025-03-10T13:38:00Z"), True),
    ],
)
def test_every_simulated_configuration_is_understood(configuration: dict[str, Any], rests: bool) -> None:
    ticket = read_ticket(body(order_configuration=configuration), NOW_NS)
    assert ticket.kind.rests is rests
    assert (ticket.lots is None) is (ticket.quote_size is not None)


@pytest.mark.parametrize(
    ("changes", "code", "preview"),
    [
        ({"product_id": "DOGE-USD"}, "INVALID_PRODUCT_ID", "PREVIEW_INVALID_PRODUCT_ID"),
        ({"product_id": None}, "INVALID_PRODUCT_ID", "PREVIEW_INVALID_PRODUCT_ID"),
        ({"side": "buy"}, "INVALID_SIDE", "PREVIEW_INVALID_SIDE"),
        ({"side": None}, "INVALID_SIDE", "PREVIEW_INVALID_SIDE"),
        ({"side": ["BUY"]}, "INVALID_SIDE", "PREVIEW_INVALID_SIDE"),
        *(
            ({"order_configuration": given}, "UNSUPPORTED_ORDER_CONFIGURATION", "PREVIEW_INVALID_ORDER_CONFIG")
            for given in (
                *NO_CONFIGURATIONS,
                limit() | limit("sor_limit_ioc"),
                limit(post_only="yes"),
                limit(post_only=1),
                limit("sor_limit_ioc", post_only=True),
                limit(quote_size="10"),
                {"market_market_ioc": {"base_size": "1", "quote_size": "10"}},
            )
        ),
        *(
            ({"order_configuration": limit(base_size=size)}, "INVALID_SIZE_PRECISION", "PREVIEW_INVALID_SIZE_PRECISION")
            for size in (None, "", "abc", "NaN", "inf", "-1", "+1", "1e3", " 1", "0x1", 1, 1.5, "0.000000001", "1" * 40)
        ),
        *(
            (
                {"order_configuration": limit(limit_price=price)},
                "INVALID_PRICE_PRECISION",
                "PREVIEW_INVALID_PRICE_PRECISION",
            )
            for price in (None, "", "NaN", "-1", "60000.001", 60_000, "٦٠٠٠٠")
        ),
        ({"order_configuration": limit(limit_price="0")}, "INVALID_LIMIT_PRICE", "PREVIEW_INVALID_LIMIT_PRICE"),
        ({"order_configuration": limit(limit_price="9" * 12)}, "INVALID_LIMIT_PRICE", "PREVIEW_INVALID_LIMIT_PRICE"),
        (
            {"order_configuration": limit(base_size="0")},
            "UNKNOWN_FAILURE_REASON",
            "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL",
        ),
        (
            {"order_configuration": limit(base_size="3400.1")},
            "UNKNOWN_FAILURE_REASON",
            "PREVIEW_INVALID_BASE_SIZE_TOO_LARGE",
        ),
        (
            {"order_configuration": {"market_market_ioc": {"quote_size": "0.99"}}},
            "UNKNOWN_FAILURE_REASON",
            "PREVIEW_INVALID_QUOTE_SIZE_TOO_SMALL",
        ),
        (
            {"order_configuration": {"market_market_ioc": {"quote_size": "150000001"}}},
            "UNKNOWN_FAILURE_REASON",
            "PREVIEW_INVALID_QUOTE_SIZE_TOO_LARGE",
        ),
        (
            {"order_configuration": {"market_market_ioc": {"quote_size": "1.001"}}},
            "INVALID_SIZE_PRECISION",
            "PREVIEW_INVALID_QUOTE_SIZE_PRECISION",
        ),
        (
            {"side": "SELL", "order_configuration": {"market_market_ioc": {"quote_size": "10"}}},
            "UNSUPPORTED_ORDER_CONFIGURATION",
            "PREVIEW_INVALID_ORDER_CONFIG",
        ),
        *(
            (
                {"order_configuration": limit("limit_limit_gtd", end_time=end_time)},
                "INVALID_REQUEST",
                "PREVIEW_INVALID_END_TIME",
            )
            for end_time in (None, "", "tomorrow", "2025-03-10T13:37:21Z", "2030-01-01T00:00:00", 1_900_000_000)
        ),
    ],
)
def test_each_mistake_has_its_code(changes: dict[str, Any], code: str, preview: str) -> None:
    with pytest.raises(Refusal) as refusal:
        read_ticket(body(**changes), NOW_NS)
    assert (refusal.value.code, refusal.value.preview) == (code, preview)


def test_amounts_of_any_length_are_exact() -> None:
    ticket = read_ticket(body(order_configuration=limit(base_size="3399.99999999")), NOW_NS)
    assert Decimal(ticket.lots or 0) / 10**8 == Decimal("3399.99999999")
