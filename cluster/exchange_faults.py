"""Faults of the exchange simulator on demand: rules say which request or message is struck, by what and how often.

A rule is a JSON object: ``{"match": {"method": "POST", "path": "/orders"}, "fault": "throttle_429", "share": 0.5,
"count": 3, …}``. What is matched are regular expressions for the whole text: ``method``, ``path`` (after the API's
prefix), ``body`` (anywhere in it) for requests; ``channel`` and ``body`` for messages. ``share`` is the part of the
matches that is struck (drawn from the seed), ``count`` how many at most, ``skip`` how many are let pass first. Rules
are looked at in order: delays add up, and the first other fault decides. Each fault's own fields are in ``FAULTS``.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

RULES_MAX: Final = 100
_PATTERN_MAX: Final = 500
_COUNT_MAX: Final = 10**9

# What a rule may say beside match, fault, share, count and skip: the field's default. A number's bounds are in _BOUNDS.
# ``act``: whether the request is carried out although its answer says otherwise.
FAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Answer late by ms to ms_max; before=true also acts late, after whoever asked may have given up.
    "latency": {"ms": 100, "ms_max": None, "before": False},
    "throttle_429": {"retry_after_s": None, "act": False},
    "throttle_401": {"act": False},
    "error_5xx": {"status": 503, "act": False},
    # 200 with a page, as a proxy in front of the venue sends it.
    "html": {"status": 200, "act": False},
    "accept_then_drop": {"act": True},
    "drop": {"act": False},
    # 200 with the first half of the true answer.
    "garbage_json": {"act": True},
    # No answer for s seconds, then the connection is cut.
    "hang": {"s": 30, "act": False},
    "wrong_product": {"act": True, "product_id": None},
    # Every number of the answer is ``value``.
    "nan_numbers": {"act": True, "value": "NaN"},
    "ws_duplicate": {},
    # The message goes after the next one.
    "ws_reorder": {},
    # The message is lost, and ``numbers`` sequence numbers with it.
    "ws_gap": {"numbers": 1},
    # ``code`` 1000, 1001, 1011 …, or "abort": cut without a word.
    "ws_close": {"code": 1001},
    # Nothing is sent for s seconds, and what would have been is lost, its sequence numbers too.
    "ws_silence": {"s": 10},
    "ws_error": {"message": "simulated failure"},
    # A new connection is refused.
    "ws_refuse": {},
}
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "ms": (0, 600_000),
    "ms_max": (0, 600_000),
    "s": (0, 600),
    "retry_after_s": (0, 3_600),
    "status": (100, 599),
    "numbers": (1, 1_000_000),
    "code": (1000, 4999),
}
_WHOLE: Final = frozenset({"status", "numbers", "code"})
_OPTIONAL: Final = frozenset({"ms_max", "retry_after_s", "product_id"})
_FORBIDDEN_CODES: Final = frozenset({1004, 1005, 1006, 1015})
_COMMON: Final = frozenset({"match", "fault", "share", "count", "skip"})
_MATCHED: Final = {True: frozenset({"channel", "body"}), False: frozenset({"method", "path", "body"})}
# These spoil an answer and can spoil a message as well; the rest of those without "ws_" is for requests alone.
SPOILERS: Final = frozenset({"garbage_json", "wrong_product", "nan_numbers"})


class FaultError(ValueError):
    """A rule cannot be used; the text names the rule, the field and what was expected."""


@dataclass(slots=True)
class Rule:
    """One rule as it stands: what it was made from, and how often it matched and struck."""

    given: dict[str, Any]
    fault: str
    patterns: dict[str, re.Pattern[str]]
    share: float
    count: int | None
    skip: int
    fields: dict[str, Any]
    matched: int = 0
    struck: int = 0

    def view(self) -> dict[str, Any]:
        """The rule as ``GET /sim/faults`` shows it."""
        return self.given | {"matched": self.matched, "struck": self.struck}

    @property
    def streams(self) -> bool:
        """Whether it is about WebSocket messages."""
        return self.fault.startswith("ws_") or "channel" in self.patterns


@dataclass(slots=True)
class Strikes:
    """What happens to one request: delays before and after it is carried out (seconds), and the rule that decides."""

    before_s: float = 0.0
    after_s: float = 0.0
    rule: Rule | None = None


@dataclass
class Faults:
    """The rules in force; the same seed and the same traffic strike the same requests."""

    seed: int = 0
    rules: list[Rule] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the draws."""
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable on purpose

    def replace(self, given: Any) -> None:
        """Put these rules (a list of JSON objects) in the place of all others; raises ``FaultError`` with none changed.

        The draws begin anew, so that a test's faults do not depend on what was before.
        """
        if not isinstance(given, list) or len(given) > RULES_MAX:
            raise FaultError(f"rules: expected a list of at most {RULES_MAX}")
        self.rules = [_rule(each, number) for number, each in enumerate(given)]
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable on purpose

    def view(self) -> dict[str, Any]:
        """The rules with their counts, and how often each fault struck since the start."""
        return {"rules": [rule.view() for rule in self.rules], "struck": self.struck, "seed": self.seed}

    def of_request(self, method: str, path: str, body: bytes) -> Strikes:
        """What strikes a request; ``path`` is the one after the API's prefix."""
        strikes = Strikes()
        if not self.rules:
            return strikes
        what = {"method": method, "path": path, "body": body.decode("utf-8", "replace")}
        for rule in self.rules:
            if rule.streams or (rule.fault != "latency" and strikes.rule is not None) or not self._strikes(rule, what):
                continue
            if rule.fault != "latency":
                strikes.rule = rule
            elif rule.fields["before"]:
                strikes.before_s += self._delay_s(rule)
            else:
                strikes.after_s += self._delay_s(rule)
        return strikes

    def of_message(self, channels: Iterable[str], body: str) -> Rule | None:
        """The rule that strikes a WebSocket message; a channel may have two names (level2, l2_data)."""
        return self._of_stream(channels, body, refusals=False) if self.rules else None

    def of_connection(self) -> Rule | None:
        """The rule that refuses a new WebSocket connection."""
        return self._of_stream(["connect"], "", refusals=True) if self.rules else None

    def _of_stream(self, channels: Iterable[str], body: str, refusals: bool) -> Rule | None:
        names = list(channels)
        for rule in self.rules:
            if not rule.streams or (rule.fault == "ws_refuse") != refusals:
                continue
            pattern = rule.patterns.get("channel")
            named = pattern is None or refusals or any(pattern.fullmatch(name) for name in names)
            if named and self._strikes(rule, {"body": body}):
                return rule
        return None

    def _strikes(self, rule: Rule, what: Mapping[str, str]) -> bool:
        for name, text in what.items():
            pattern = rule.patterns.get(name)
            if pattern is not None and not (pattern.search(text) if name == "body" else pattern.fullmatch(text)):
                return False
        rule.matched += 1
        if rule.matched <= rule.skip or (rule.count is not None and rule.struck >= rule.count):
            return False
        if rule.share < 1 and self._random.random() >= rule.share:
            return False
        rule.struck += 1
        self.struck[rule.fault] = self.struck.get(rule.fault, 0) + 1
        return True

    def _delay_s(self, rule: Rule) -> float:
        low, high = rule.fields["ms"], rule.fields["ms_max"]
        return (low if high is None else self._random.uniform(low, max(low, high))) / 1_000


def spoil(content: Any, rule: Rule, products: Iterable[str]) -> Any:
    """JSON with every product replaced by another (``wrong_product``) or every number by the rule's ``value``."""
    if rule.fault == "wrong_product":
        names = list(products)
        following = dict(zip(names, itertools.islice(itertools.cycle(names), 1, None), strict=False))
        wanted = rule.fields["product_id"]
        return _map(content, lambda text: (wanted or following.get(text, text)) if text in following else text)
    value = rule.fields["value"]
    return _map(content, lambda text: value if _NUMBER.fullmatch(text) else text, number=value)


_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _map(content: Any, text: Any, number: str | None = None) -> Any:
    if isinstance(content, dict):
        return {key: _map(value, text, number) for key, value in content.items()}
    if isinstance(content, list):
        return [_map(value, text, number) for value in content]
    if isinstance(content, str):
        return text(content)
    if number is not None and isinstance(content, int | float) and not isinstance(content, bool):
        return _float(number)
    return content


def _float(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


# --- reading rules ----------------------------------------------------------------------------------------------------


def _rule(given: Any, number: int) -> Rule:
    where = f"rules[{number}]"
    if not isinstance(given, dict):
        raise FaultError(f"{where}: expected an object")
    fault = given.get("fault")
    if not isinstance(fault, str) or fault not in FAULTS:
        raise FaultError(f"{where}.fault: expected one of {', '.join(FAULTS)}, was {str(fault)[:40]!r}")
    known = FAULTS[fault]
    unknown = sorted(set(given) - _COMMON - set(known))
    if unknown:
        raise FaultError(f"{where}.{unknown[0][:40]}: not a field of {fault}; it has {', '.join(known) or 'none'}")
    return Rule(
        given=given,
        fault=fault,
        patterns=_patterns(given.get("match", {}), fault, where),
        share=_number(given.get("share", 1.0), 0, 1, f"{where}.share"),
        count=None if given.get("count") is None else _whole(given["count"], 0, _COUNT_MAX, f"{where}.count"),
        skip=_whole(given.get("skip", 0), 0, _COUNT_MAX, f"{where}.skip"),
        fields={name: _value(given.get(name, default), name, f"{where}.{name}") for name, default in known.items()},
    )


def _patterns(given: Any, fault: str, where: str) -> dict[str, re.Pattern[str]]:
    if not isinstance(given, dict):
        raise FaultError(f"{where}.match: expected an object")
    streams = fault.startswith("ws_") or (fault in SPOILERS and "channel" in given)
    found = {}
    for name, text in given.items():
        if name not in _MATCHED[streams]:
            raise FaultError(f"{where}.match.{name[:40]}: expected some of {', '.join(sorted(_MATCHED[streams]))}")
        if not isinstance(text, str) or len(text) > _PATTERN_MAX:
            raise FaultError(f"{where}.match.{name}: expected at most {_PATTERN_MAX} characters")
        try:
            found[name] = re.compile(text)
        except re.error as error:
            raise FaultError(f"{where}.match.{name}: not a regular expression: {error}") from None
    return found


def _value(given: Any, name: str, where: str) -> Any:
    if given is None and name in _OPTIONAL:
        return None
    if name == "code" and given == "abort":
        return given
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        value = _whole(given, int(low), int(high), where) if name in _WHOLE else _number(given, low, high, where)
        if name == "code" and value in _FORBIDDEN_CODES:
            raise FaultError(f"{where}: {given} is never sent; use abort to close without a code")
        return value
    if name in ("before", "act"):
        if not isinstance(given, bool):
            raise FaultError(f"{where}: expected true or false")
        return given
    if not isinstance(given, str) or len(given) > _PATTERN_MAX:
        raise FaultError(f"{where}: expected at most {_PATTERN_MAX} characters")
    return given


def _number(given: Any, low: float, high: float, where: str) -> float:
    good = isinstance(given, int | float) and not isinstance(given, bool)
    if not good or not math.isfinite(given) or not low <= given <= high:
        raise FaultError(f"{where}: expected a number from {low:g} to {high:g}, was {str(given)[:40]}")
    return float(given)


def _whole(given: Any, low: int, high: int, where: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise FaultError(f"{where}: expected a whole number from {low} to {high}, was {str(given)[:40]}")
    return given
