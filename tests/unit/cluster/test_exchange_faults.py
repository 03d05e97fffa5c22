"""Faults on demand: which requests and messages a rule strikes, how often, and which rules are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.exchange_faults import FAULTS, RULES_MAX, FaultError, Faults, spoil

PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")


def rules(*given: dict[str, Any], seed: int = 7) -> Faults:
    faults = Faults(seed)
    faults.replace(list(given))
    return faults


def struck(faults: Faults, method: str = "POST", path: str = "/orders", body: bytes = b"{}") -> str | None:
    rule = faults.of_request(method, path, body).rule
    return rule.fault if rule else None


@pytest.mark.parametrize(
    ("match", "method", "path", "body", "strikes"),
    [
        ({}, "GET", "/accounts", b"", True),
        ({"method": "POST"}, "POST", "/orders", b"", True),
        ({"method": "POST"}, "GET", "/orders", b"", False),
        ({"path": "/orders"}, "POST", "/orders", b"", True),
        ({"path": "/orders"}, "POST", "/orders/batch_cancel", b"", False),
        ({"path": "/orders.*"}, "POST", "/orders/batch_cancel", b"", True),
        ({"path": "/orders/historical/[^/]+"}, "GET", "/orders/historical/1-2", b"", True),
        ({"method": "GET|POST", "path": "/accounts"}, "GET", "/accounts", b"", True),
        ({"body": '"side":"BUY"'}, "POST", "/orders", b'{"side":"BUY"}', True),
        ({"body": '"side":"BUY"'}, "POST", "/orders", b'{"side":"SELL"}', False),
        ({"body": "x"}, "POST", "/orders", b"\xff\xfe", False),
    ],
)
def test_what_a_rule_matches(match: dict[str, str], method: str, path: str, body: bytes, strikes: bool) -> None:
    assert (struck(rules({"match": match, "fault": "drop"}), method, path, body) == "drop") is strikes


def test_count_and_skip_bound_the_strikes() -> None:
    faults = rules({"fault": "drop", "count": 2, "skip": 3})
    assert [struck(faults) for _ in range(7)] == [None] * 3 + ["drop"] * 2 + [None] * 2
    assert faults.view()["rules"] == [{"fault": "drop", "count": 2, "skip": 3, "matched": 7, "struck": 2}]
    assert faults.view()["struck"] == {"drop": 2}


def test_a_share_is_drawn_from_the_seed_and_repeats() -> None:
    def story(seed: int) -> list[str | None]:
        faults = rules({"fault": "drop", "share": 0.5}, seed=seed)
        return [struck(faults) for _ in range(200)]

    assert story(1) == story(1) != story(2)
    assert 60 < story(1).count("drop") < 140


def test_setting_rules_again_begins_the_draws_anew() -> None:
    faults = rules({"fault": "drop", "share": 0.5})
    first = [struck(faults) for _ in range(50)]
    faults.replace([{"fault": "drop", "share": 0.5}])
    assert [struck(faults) for _ in range(50)] == first


def test_delays_add_up_and_the_first_other_fault_decides() -> None:
    faults = rules(
        {"fault": "latency", "ms": 100},
        {"fault": "latency", "ms": 50, "before": True},
        {"fault": "html"},
        {"fault": "drop"},
        {"fault": "latency", "ms": 400},
    )
    strikes = faults.of_request("GET", "/accounts", b"")
    assert (strikes.before_s, strikes.after_s, strikes.rule and strikes.rule.fault) == (0.05, 0.5, "html")


def test_a_range_of_delays_stays_within_it() -> None:
    faults = rules({"fault": "latency", "ms": 10, "ms_max": 20})
    delays = [faults.of_request("GET", "/accounts", b"").after_s for _ in range(100)]
    assert 0.010 <= min(delays) < max(delays) <= 0.020


def test_messages_have_rules_of_their_own() -> None:
    faults = rules({"match": {"channel": "level2"}, "fault": "ws_gap", "numbers": 3}, {"fault": "drop"})
    assert faults.of_message(["ticker"], "[]") is None
    rule = faults.of_message(["l2_data", "level2"], "[]")
    assert rule is not None
    assert (rule.fault, rule.fields["numbers"]) == ("ws_gap", 3)
    assert faults.of_connection() is None
    assert struck(faults) == "drop"


def test_a_refused_connection_is_no_message() -> None:
    faults = rules({"fault": "ws_refuse", "count": 1})
    assert faults.of_message(["ticker"], "[]") is None
    assert [faults.of_connection() is not None for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "rules: expected a list"),
        ([{"fault": "drop"}] * (RULES_MAX + 1), "rules: expected a list"),
        ([5], "rules[0]: expected an object"),
        ([{"fault": "drop"}, {"fault": "fire"}], "rules[1].fault: expected one of latency"),
        ([{"fault": ["drop"]}], "rules[0].fault"),
        ([{"fault": "drop", "ms": 5}], "rules[0].ms: not a field of drop"),
        ([{"fault": "drop", "share": 1.01}], "rules[0].share"),
        ([{"fault": "drop", "share": True}], "rules[0].share"),
        ([{"fault": "drop", "share": math.nan}], "rules[0].share"),
        ([{"fault": "drop", "count": -1}], "rules[0].count"),
        ([{"fault": "drop", "count": 1.5}], "rules[0].count"),
        ([{"fault": "drop", "match": "POST"}], "rules[0].match"),
        ([{"fault": "drop", "match": {"channel": "user"}}], "rules[0].match.channel"),
        ([{"fault": "ws_gap", "match": {"path": "/orders"}}], "rules[0].match.path"),
        ([{"fault": "drop", "match": {"path": "("}}], "not a regular expression"),
        ([{"fault": "drop", "match": {"path": 5}}], "rules[0].match.path"),
        ([{"fault": "latency", "ms": math.inf}], "rules[0].ms"),
        ([{"fault": "latency", "ms": 10**9}], "rules[0].ms"),
        ([{"fault": "hang", "s": "1"}], "rules[0].s"),
        ([{"fault": "error_5xx", "status": 600}], "rules[0].status"),
        ([{"fault": "ws_close", "code": 1006}], "rules[0].code: 1006 is never sent"),
        ([{"fault": "ws_close", "code": "now"}], "rules[0].code"),
        ([{"fault": "drop", "act": 1}], "rules[0].act"),
    ],
)
def test_a_bad_rule_is_refused_by_name_and_changes_nothing(given: Any, says: str) -> None:
    faults = rules({"fault": "drop"})
    with pytest.raises(FaultError) as error:
        faults.replace(given)
    assert says in str(error.value)
    assert struck(faults) == "drop"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({"match", "share", "count", "skip", *(name for known in FAULTS.values() for name in known)})


@given(
    st.lists(
        st.fixed_dictionaries({"fault": st.sampled_from([*FAULTS]) | JSON}, optional=dict.fromkeys(FIELDS, JSON))
        | JSON,
        max_size=3,
    )
    | JSON
)
def test_rules_are_taken_or_refused_and_never_break(given: Any) -> None:
    faults = Faults(1)
    try:
        faults.replace(given)
    except FaultError:
        assert faults.rules == []
    faults.of_request("GET", "/x", b"{}")
    faults.of_message(["user"], "[]")
    faults.view()


def test_spoilt_numbers_and_products() -> None:
    content = {
        "price": "61000.10",
        "id": "a1",
        "n": 5,
        "ok": True,
        "rows": [{"product_id": "SOL-USD", "size": "-3"}],
        "BTC-USD": ["BTC-USD"],
    }
    nan = rules({"fault": "nan_numbers", "value": "1e400"}).rules[0]
    assert spoil(content, nan, PRODUCTS) == content | {
        "price": "1e400",
        "n": math.inf,
        "rows": [{"product_id": "SOL-USD", "size": "1e400"}],
    }
    other = rules({"fault": "wrong_product"}).rules[0]
    wrong = spoil(content, other, PRODUCTS)
    assert (wrong["rows"][0]["product_id"], wrong["BTC-USD"]) == ("BTC-USD", ["ETH-USD"])
    fixed = rules({"fault": "wrong_product", "product_id": "DOGE-USD"}).rules[0]
    assert spoil(content, fixed, PRODUCTS)["rows"][0]["product_id"] == "DOGE-USD"
