"""Requests to the exchange simulator as its paths see them: who asks for what when, and how their fields are read."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from cluster import exchange_shapes as shapes
from cluster.exchange_book import Exchange
from cluster.exchange_history import DAY_S, MARKETS, Candles
from cluster.exchange_keys import ApiKey
from strategies.model import NS_PER_S, Granularity

_DECIMAL: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,16})?")


class Floor:
    """What every path works on: the exchange, and where candle history begins (UNIX seconds)."""

    def __init__(self, exchange: Exchange, first_s: int) -> None:
        self.exchange = exchange
        self.first_s = first_s
        self._days: dict[str, tuple[int, Candles, Candles]] = {}

    def product(self, name: str, now_ns: int) -> shapes.Json:
        """The product with its flags and the figures of two days, which are looked at once a minute."""
        hour, minute = Granularity.ONE_HOUR, now_ns // (60 * NS_PER_S)
        days = self._days.get(name)
        if days is None or days[0] != minute:
            now_s, candles = now_ns // NS_PER_S, self.exchange.history.candles
            today = candles(name, hour, now_s - DAY_S, now_s + 1, now_ns, self.first_s)
            before = candles(name, hour, now_s - 2 * DAY_S, now_s - DAY_S, now_ns, self.first_s)
            days = self._days[name] = (minute, today, before)
        return shapes.product(self.exchange.market(name), self.exchange.book(name, now_ns), days[1], days[2])


@dataclass(frozen=True, slots=True)
class Request:
    """A request after its token was checked. ``query`` has every value of every key, ``body`` the parsed JSON.

    ``key`` is who asks, None on public paths and on the control surface (which acts for the default portfolio).
    """

    method: str
    path: str
    query: dict[str, list[str]]
    body: dict[str, Any]
    now_ns: int
    floor: Floor
    key: ApiKey | None = None

    @property
    def exchange(self) -> Exchange:
        """The exchange it is about."""
        return self.floor.exchange

    @property
    def portfolio(self) -> str:
        """The id of the portfolio it is about: the key's own."""
        wanted = self.key.portfolio if self.key else ""
        if not wanted:
            return self.exchange.portfolio_id
        found = [p.portfolio_id for p in self.exchange.portfolios.values() if p.name == wanted]
        return found[0] if found else self.exchange.portfolio_id


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: JSON (an object), or text of the given kind."""

    status: int
    content: shapes.Json | str
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "text/plain; charset=utf-8"


class RequestError(Exception):
    """The request cannot be answered; carries the answer to send instead."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, shapes.error(code, message))


def bad(message: str) -> RequestError:
    """A 400 that says which field broke which rule."""
    return RequestError(400, "INVALID_ARGUMENT", message)


def one(request: Request, name: str, default: str = "") -> str:
    """The first value of a key of the query."""
    return request.query.get(name, [default])[0]


def integer(request: Request, name: str, default: int | None, low: int, high: int) -> int:
    """A whole number of the query; ``default`` None makes it required."""
    text = one(request, name)
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise bad(f"{name} argument is invalid - expected {low} to {high}")
    return int(text)


def cursor(request: Request, highest: int, default: int | None = None) -> int:
    """A place in a list of ``highest`` entries; without one, its end (or ``default``)."""
    text = one(request, "cursor")
    if not text:
        return highest if default is None else default
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) > highest:
        raise bad("cursor argument is invalid")
    return int(text)


def moment(request: Request, name: str, default: int) -> int:
    """An RFC 3339 time of the query in nanoseconds UTC."""
    text = one(request, name)
    if not text:
        return default
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None or found.year < 1970:
        raise bad(f"{name}: expected an RFC 3339 time with its zone")
    return int(found.replace(microsecond=0).timestamp()) * NS_PER_S + found.microsecond * 1_000


def known(product_id: Any) -> str:
    """The name of a product there is; 404 for another."""
    if not isinstance(product_id, str) or product_id not in MARKETS:
        raise RequestError(404, "NOT_FOUND", f"product {str(product_id)[:40]}: not found")
    return product_id


def text_of(request: Request, name: str, length_max: int) -> str:
    """A text of the body, neither empty nor long."""
    given = request.body.get(name)
    if not isinstance(given, str) or not 0 < len(given) <= length_max:
        raise bad(f"{name}: expected 1 to {length_max} characters")
    return given


def decimal_of(request: Request, name: str) -> Decimal:
    """A decimal string of the body, with or without a minus."""
    given = request.body.get(name)
    if not isinstance(given, str) or not _DECIMAL.fullmatch(given):
        raise bad(f"{name}: expected a decimal string")
    return Decimal(given)
