"""Verdicts and orders as they are shown: units, words that stay words, and the answers that mean "not now"."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ledger import Verdict
from serve_apps.order_views import _money, answer_of, check_of, order_view
from serve_apps.problem import Problem
from strategies.model import LEDGER_INTEGER_MAX, Product, units

BTC = Product(
    product_id="BTC-EUR",
    base_currency="BTC",
    quote_currency="EUR",
    base_increment=Decimal("0.001"),
    quote_increment=Decimal("0.01"),
    base_min_size=Decimal("0.001"),
    base_max_size=Decimal(1000),
    quote_min_size=Decimal(0),
    quote_max_size=Decimal(1_000_000),
)


def denial(code: str = "MAX_GROSS", value: str = "", limit: str = "", unit: str = "") -> dict[str, str]:
    return {"code": code, "scope": "account", "value": value, "limit": limit, "unit": unit, "message": "why"}


def denied(*denials: dict[str, str]) -> Verdict:
    return Verdict("DENIED", {"client_order_id": "o", "verdict": "DENIED", "denials": list(denials)})


def refusal(*denials: dict[str, str]) -> Problem:
    with pytest.raises(Problem) as caught:
        answer_of(denied(*denials), "main", BTC)
    return caught.value


UNITS: list[tuple[str, str, str, tuple[str, str, str]]] = [
    # value, limit, unit in the ledger -> value, limit, unit as shown
    ("1500000", "1000001", "micros", ("1.5", "1.000001", "EUR")),
    ("-5", "0", "micros", ("-0.000005", "0", "EUR")),
    ("2500", "1000", "lots", ("2.500", "1.000", "BTC")),
    ("200000", "10001", "ppm", ("20", "1.0001", "%")),
    ("9000150", "9000000", "ticks", ("90001.50", "90000.00", "EUR")),
    ("MARKET", "9000000", "ticks", ("MARKET", "90000.00", "EUR")),
    ("", "2251799813685247", "micros", ("", "2251799813.685247", "EUR")),
    ("250", "200", "ms", ("250", "200", "ms")),
    ("600", "540-1020", "minutes", ("600", "540-1020", "minutes")),
    ("7", "5", "ratio", ("7", "5", "ratio")),
    ("3", "2", "orders", ("3", "2", "orders")),
    ("HALTED", "ACTIVE", "", ("HALTED", "ACTIVE", "")),
    ("0.0025", "0.001", "", ("0.0025", "0.001", "")),
    ("4.99", "5", "EUR", ("4.99", "5", "EUR")),
]


@pytest.mark.parametrize(("value", "limit", "unit", "shown"), UNITS)
def test_figures_are_shown_in_the_units_of_people(
    value: str, limit: str, unit: str, shown: tuple[str, str, str]
) -> None:
    raw = denial("A_RULE", value, limit, unit)
    (found,) = refusal(raw).extra["denials"]
    assert (found["value"], found["limit"], found["unit"]) == shown
    assert (found["code"], found["scope"], found["message"]) == ("A_RULE", "account", "why")
    assert raw == denial("A_RULE", value, limit, unit)


def test_of_a_product_nobody_knows_lots_stay_lots() -> None:
    shown = check_of(denied(denial(value="5", limit="3", unit="lots")), "main", None)["denials"]
    assert (shown[0]["value"], shown[0]["unit"]) == ("5", "lots")


@given(st.integers(0, LEDGER_INTEGER_MAX))
def test_money_is_written_as_its_units_are(micros: int) -> None:
    assert _money(str(micros)) == f"{units(micros):f}"


LATER: list[tuple[list[dict[str, str]], int, str, str | None]] = [
    # denials -> status, code, retry-after
    ([denial("RATE_LIMIT", "1001", "0", "ms")], 429, "RATE_LIMIT", "2"),
    ([denial("RATE_LIMIT", "1", "0", "ms"), denial("MSG_RATE", "5000", "0", "ms")], 429, "RATE_LIMIT", "5"),
    ([denial("MSG_RATE", "0", "0", "ms")], 429, "MSG_RATE", "1"),
    ([denial("MSG_RATE", "", "", "")], 429, "MSG_RATE", "1"),
    ([denial("CLOCK_SKEW", "90000", "1000", "ms")], 503, "CLOCK_SKEW", "1"),
    ([denial("STALE_REFERENCE", "90000", "1000", "ms")], 422, "STALE_REFERENCE", None),
    ([denial("MAX_GROSS"), denial("MAX_NET")], 422, "MAX_GROSS", None),
]


@pytest.mark.parametrize(("denials", "status", "code", "retry_after"), LATER)
def test_what_may_come_again_says_when(
    denials: list[dict[str, str]], status: int, code: str, retry_after: str | None
) -> None:
    problem = refusal(*denials)
    assert (problem.status, problem.code, problem.headers.get("retry-after")) == (status, code, retry_after)
    assert len(problem.extra["denials"]) == len(denials)


ACCEPTED: dict[str, Any] = {
    "client_order_id": "o",
    "verdict": "ACCEPTED",
    "product_id": "BTC-EUR",
    "reserved_notional_micros": "1500000",
    "reserved_cash_micros": "1509000",
}


def test_an_acceptance_has_its_warnings_only_where_there_are_some() -> None:
    assert answer_of(Verdict("ACCEPTED", ACCEPTED), "main", BTC) == (
        201,
        {
            "client_order_id": "o",
            "account": "main",
            "verdict": "ACCEPTED",
            "status": "RESERVED",
            "reserved_notional": "1.5",
            "reserved_cash": "1.509",
        },
        {},
    )
    warned = Verdict("REPEATED", ACCEPTED | {"warnings": [denial(value="2000000", limit="1000000", unit="micros")]})
    _, body, headers = answer_of(warned, "main", BTC)
    assert isinstance(body, dict)
    assert (body["warnings"][0]["value"], headers) == ("2", {"idempotent-replayed": "true"})


def test_a_check_tells_warnings_beside_denials() -> None:
    verdict = denied(denial(value="2", limit="1", unit="orders"))
    verdict.answer["warnings"] = [denial("LEVERAGE", "600000", "500000", "ppm")]
    shown = check_of(verdict, "main", BTC)
    assert (shown["verdict"], shown["denials"][0]["value"], shown["warnings"][0]["value"]) == ("DENIED", "2", "60")
    assert "reserved_notional" not in shown
    assert check_of(Verdict("CHECKED", ACCEPTED), "main", BTC)["warnings"] == []


def test_an_order_kept_by_an_earlier_version_is_shown_too() -> None:
    fields = {
        "client_order_id": "o", "status": "FILLED", "strategy": "manual", "product": "BTC-EUR", "side": "BUY",
        "type": "LIMIT", "tif": "GTC", "quantity": "0.002", "limit_price": "1", "created_us": "5", "fees": "10",
        "reserved_notional": "0", "filled_value": "2000", "filled_lots": "2",
    }  # fmt: skip
    shown = order_view(fields, {"BTC-EUR": BTC})
    assert (shown["post_only"], shown["reduce_only"], shown["average_price"]) == (False, False, "1")
    assert "warnings" not in shown
