"""Limits as the ledger keeps them: one record a scope, ``name=hard`` or ``name=hard:soft``, integers or words.

From limits.yaml to records and back. Everything is rounded to the stricter side: amounts down, costs and waits up.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError

from conf.limits import SCOPE_MODELS, UNLIMITED, AccountLimits, Level, LimitsFile, Unit
from conf.settings import SettingsError
from conf.trading_hours import ALWAYS, DAYS, MINUTES_PER_DAY, MINUTES_PER_WEEK, calendar, week_ranges
from strategies.model import EXACT, LEDGER_INTEGER_MAX, MICROS_PER_UNIT, Product, units

CALENDAR: Final = "calendar"
VERSION: Final = "version"
GLOBAL: Final = "global"
SOFT_PERCENT: Final = 80
"""The soft level where the file names none, of the hard one."""

# Records speak in the ledger's units, the file in people's.
_RECORD_NAMES: Final = {
    "order_rate_per_s": "order_interval_us",
    "message_rate_per_s": "message_interval_us",
    "max_order_quantity": "max_order_lots",
    "max_position": "max_position_lots",
    "max_strategy_position": "max_strategy_position_lots",
    "max_leverage": "max_leverage_ppm",
    "fat_finger_multiple": "fat_finger_ppm",
}
_PER_UNIT: Final = {
    Unit.MONEY: MICROS_PER_UNIT,
    Unit.PERCENT: 10_000,
    Unit.BPS: 100,
    Unit.MULTIPLE: 1_000_000,
    Unit.COUNT: 1,
    Unit.RATIO: 1,
    Unit.MILLISECONDS: 1,
}
# Of these more is stricter, of all others less.
_ROUNDED_UP: Final = frozenset({"order_interval_us", "message_interval_us", "taker_fee_ppm", "market_buffer_ppm"})


class LimitError(SettingsError):
    """A limit cannot be what it was said to be; ``field``, ``value`` and ``rule`` say which, what and why."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        """Keep the three for a machine-readable answer."""
        super().__init__(f"{field}: {rule}, was {value!r}")
        self.field = field
        self.value = str(value)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a record: an integer, "unlimited" or a word; ``soft`` None means it never warns."""

    hard: int | str
    soft: int | None = None

    def text(self) -> str:
        """As a record writes it."""
        return f"{self.hard}" if self.soft is None else f"{self.hard}:{self.soft}"


@dataclass(frozen=True, slots=True)
class LimitField:
    """A limit of limits.yaml (``name``) and of a record (``record_name``)."""

    name: str
    record_name: str
    unit: Unit
    adapter: TypeAdapter[Any]
    has_soft: bool


@dataclass(frozen=True, slots=True)
class ShownLimit:
    """A limit in people's words and units."""

    scope: str
    name: str
    hard: str
    soft: str | None
    unit: str


@dataclass(frozen=True, slots=True)
class ShownChange:
    """A limit before and after a change in people's words; None where there is none."""

    scope: str
    name: str
    before: str | None
    after: str | None
    unit: str


@cache
def fields_of(kind: str) -> dict[str, LimitField]:
    """The limits of ``global``, ``account``, ``strategy``, ``product``, ``key`` or ``group``, by the file's names."""
    found = {}
    for name, info in SCOPE_MODELS[kind].model_fields.items():
        unit = next((item for item in info.metadata if isinstance(item, Unit)), None)
        if unit is None:
            continue
        annotated = info.rebuild_annotation()
        leveled = isinstance(info.annotation, type) and issubclass(info.annotation, Level)
        record = _RECORD_NAMES.get(name) or name.replace("_percent", "_ppm").replace("_bps", "_ppm")
        found[name] = LimitField(name, record, unit, TypeAdapter(annotated), leveled)
    return found


@cache
def record_fields(kind: str) -> dict[str, LimitField]:
    """The same by the records' names."""
    return {field.record_name: field for field in fields_of(kind).values()}


def kind_of(scope: str) -> str:
    """``product`` of ``product|BTC-USD``; raises ``LimitError`` for what is no scope."""
    kind, _, name = scope.partition("|")
    if kind not in SCOPE_MODELS or bool(name) != (kind not in {GLOBAL, "account"}):
        known = "global, account, strategy|S, product|P, key|K or group|G"
        raise LimitError("scope", scope, f"expected {known}")
    return kind


def desk_records(file: LimitsFile, now: dt.datetime | None = None) -> dict[str, str]:
    """The records of the desk as a whole: {"global": …, "calendar": …}."""
    return {GLOBAL: _record(GLOBAL, file.global_, None), CALENDAR: calendar_record(file, now)}


def account_records(
    limits: AccountLimits, products: Mapping[str, Product], calendar_text: str | None = None
) -> dict[str, str]:
    """The records of an account by scope; with ``calendar_text`` also its calendar.

    Raises ``LimitError`` for a product the venue does not have and for a limit the ledger cannot count.
    """
    models: dict[str, tuple[BaseModel, Product | None]] = {"account": (limits, None)}
    for name, one in limits.products.items():
        if name not in products:
            raise LimitError(f"product|{name}", name, "not a product of the venue")
        models[f"product|{name}"] = (one, products[name])
    for kind, named in (("strategy", limits.strategies), ("key", limits.keys), ("group", limits.groups)):
        models |= {f"{kind}|{name}": (one, None) for name, one in named.items()}
    records = {scope: _record(scope, model, product) for scope, (model, product) in models.items()}
    return records | ({CALENDAR: calendar_text} if calendar_text is not None else {})


def calendar_record(file: LimitsFile, now: dt.datetime | None = None) -> str:
    """The desk's time zone with its UTC offsets for the years to come."""
    return calendar(file.calendar_zone, now or dt.datetime.now(dt.UTC))


def parse_record(scope: str, text: str) -> dict[str, Limit]:
    """A record's limits by their names there; raises ``LimitError`` for one that is no record of ``scope``.

    A limit that is missing is left out: the ledger denies for it, and showing the rest must still be possible.
    """
    known = record_fields(kind_of(scope))
    found: dict[str, Limit] = {}
    for part in text.split():
        name, separator, value = part.partition("=")
        if name not in known or not separator or name in found:
            raise LimitError(scope, part, "expected name=hard or name=hard:soft, each known and once")
        found[name] = _parsed(f"{scope}.{name}", value, known[name])
    return found


def write_record(scope: str, limits: Mapping[str, Limit]) -> str:
    """The text of a record; raises ``LimitError`` where a limit is missing, unknown or none the ledger can count."""
    known = record_fields(kind_of(scope))
    for name in sorted(known.keys() | limits.keys()):
        if name not in limits:
            raise LimitError(f"{scope}.{name}", "nothing", "every limit is written; none at all is unlimited")
        if name not in known:
            raise LimitError(f"{scope}.{name}", limits[name].text(), f"not a limit of a {kind_of(scope)}")
        _check(f"{scope}.{name}", limits[name])
    if {"cancel_reserve", "message_burst"} <= limits.keys():
        reserve, burst = limits["cancel_reserve"].hard, limits["message_burst"].hard
        if isinstance(reserve, int) and isinstance(burst, int) and reserve >= burst:
            raise LimitError(f"{scope}.cancel_reserve", reserve, f"below message_burst ({burst}), or no order passes")
    return " ".join(f"{name}={limits[name].text()}" for name in sorted(limits))


def read_limit(scope: str, name: str, value: Any, product: Product | None = None) -> tuple[str, Limit]:
    """A limit in the file's name and unit as (its name in a record, the limit there).

    ``value`` is what the file could say: a number or a text, or {"hard": …, "soft": …}. ``product`` is needed for
    quantities. Raises ``LimitError`` naming the limit, the value and the rule.
    """
    kind = kind_of(scope)
    field = fields_of(kind).get(name)
    if field is None:
        known = ", ".join(sorted(fields_of(kind)))
        raise LimitError(f"{scope}.{name}", name, f"expected a limit of a {kind}: {known}")
    try:
        read = field.adapter.validate_python(_as_in_the_file(value))
        return field.record_name, _limit(f"{scope}.{name}", field, read, product)
    except ValidationError as error:
        rule = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        raise LimitError(f"{scope}.{name}", value, rule) from None


def shown(scope: str, text: str, product: Product | None = None, currency: str = "USD") -> list[ShownLimit]:
    """A record in people's words, in the order of limits.yaml. Lots are shown as lots where ``product`` is None."""
    limits = parse_record(scope, text)
    rows = []
    for field in fields_of(kind_of(scope)).values():
        limit = limits.get(field.record_name)
        if limit is None:
            continue
        hard = _shown_value(field, limit.hard, product)
        soft = None if limit.soft is None else _shown_value(field, limit.soft, product)
        rows.append(ShownLimit(scope, field.name, hard, soft, _shown_unit(field, product, currency)))
    return rows


def shown_changes(
    before: Mapping[str, str], after: Mapping[str, str | None], products: Mapping[str, Product]
) -> list[ShownChange]:
    """What differs where ``after`` replaces the records it names; None (or "") removes one."""
    rows = []
    for scope in sorted(after, key=_scope_order):
        old, new = (_by_name(scope, records.get(scope) or "", products) for records in (before, after))
        rows += [
            ShownChange(scope, name, _levels(old.get(name)), _levels(new.get(name)), (new.get(name) or old[name]).unit)
            for name in dict.fromkeys([*old, *new])
            if _levels(old.get(name)) != _levels(new.get(name))
        ]
    return rows


def _by_name(scope: str, text: str, products: Mapping[str, Product]) -> dict[str, ShownLimit]:
    if scope == CALENDAR:
        return {CALENDAR: ShownLimit(scope, CALENDAR, text, None, "")} if text else {}
    return {row.name: row for row in shown(scope, text, products.get(scope.partition("|")[2]))}


def _levels(row: ShownLimit | None) -> str | None:
    return None if row is None else row.hard + (f", warns above {row.soft}" if row.soft is not None else "")


def scope_records(limits: Mapping[str, str]) -> dict[str, str]:
    """The records among the fields of a :limits hash, calendar included, in the order people read them."""
    scopes = [scope for scope in limits if scope == CALENDAR or scope.partition("|")[0] in SCOPE_MODELS]
    return {scope: limits[scope] for scope in sorted(scopes, key=_scope_order)}


def _scope_order(scope: str) -> tuple[int, str]:
    kind = scope.partition("|")[0]
    order = [*SCOPE_MODELS, CALENDAR]
    return (order.index(kind) if kind in order else len(order), scope)


def _as_in_the_file(value: Any) -> Any:
    """Digits that came as text are a number, as in the file."""
    if isinstance(value, Mapping):
        return {name: _as_in_the_file(level) for name, level in value.items()}
    return int(value) if isinstance(value, str) and _is_integer(value) else value


def _record(scope: str, model: BaseModel, product: Product | None) -> str:
    limits = {}
    for field in fields_of(kind_of(scope)).values():
        value = getattr(model, field.name)
        limits[field.record_name] = _limit(f"{scope}.{field.name}", field, value, product)
    return write_record(scope, limits)


def _limit(what: str, field: LimitField, value: Any, product: Product | None) -> Limit:
    if not isinstance(value, Level):
        return Limit(_ledger_value(what, field, value, product))
    hard = _ledger_value(what, field, value.hard, product)
    if value.soft is not None:
        soft = _ledger_value(f"{what} (soft)", field, value.soft, product)
    else:
        # Stricter is smaller for every limit that warns.
        soft = hard if isinstance(hard, str) else hard * SOFT_PERCENT // 100
    return Limit(hard, soft if isinstance(soft, int) and soft != hard else None)


def _ledger_value(what: str, field: LimitField, value: Any, product: Product | None) -> int | str:
    if field.unit is Unit.HOURS:
        return value if isinstance(value, str) else ",".join(f"{a}-{b}" for a, b in week_ranges(value))
    if field.unit is Unit.VERSIONS:
        return value if isinstance(value, str) else ",".join(sorted(set(value)))
    if isinstance(value, str):
        return value
    exact = Fraction(value)
    if field.unit is Unit.RATE:
        exact = 1 / exact * MICROS_PER_UNIT
    elif field.unit is Unit.QUANTITY:
        if product is None:
            raise LimitError(what, value, "a quantity needs a product the venue has")
        exact = exact / Fraction(product.base_increment)
    else:
        exact = exact * _PER_UNIT[field.unit]
    counted = math.ceil(exact) if field.record_name in _ROUNDED_UP else math.floor(exact)
    if counted > LEDGER_INTEGER_MAX:
        raise LimitError(what, str(value), "more than the ledger can count; write unlimited if that is meant")
    return counted


def _check(what: str, limit: Limit) -> None:
    for level in (limit.hard, limit.soft):
        if isinstance(level, int) and not 0 <= level <= LEDGER_INTEGER_MAX:
            raise LimitError(what, level, f"expected a number from 0 to {LEDGER_INTEGER_MAX}")
    if isinstance(limit.hard, str) and (not limit.hard or any(sign in limit.hard for sign in " =:")):
        raise LimitError(what, limit.hard, "expected one word")
    if isinstance(limit.hard, int) and limit.soft is not None and limit.soft > limit.hard:
        raise LimitError(what, limit.text(), "soft must not be looser than hard")


def _parsed(what: str, text: str, field: LimitField) -> Limit:
    hard, separator, soft = text.partition(":")
    worded = field.unit in {Unit.WORD, Unit.HOURS, Unit.VERSIONS} or hard == UNLIMITED
    if separator and not (field.has_soft and _is_integer(soft)):
        raise LimitError(what, text, "expected a whole number as soft level, of a limit that has one")
    if not worded and not _is_integer(hard):
        raise LimitError(what, text, "expected a whole number or unlimited")
    limit = Limit(hard if worded else int(hard), int(soft) if separator else None)
    _check(what, limit)
    return limit


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(LEDGER_INTEGER_MAX))


def _shown_value(field: LimitField, level: int | str, product: Product | None) -> str:
    if field.unit is Unit.HOURS and level != ALWAYS:
        return _shown_hours(str(level))
    if isinstance(level, str):
        return level
    match field.unit:
        case Unit.MONEY:
            return f"{units(level):f}"
        case Unit.QUANTITY:
            return _plain(product.quantity(level)) if product else str(level)
        case Unit.RATE:
            rate = EXACT.divide(Decimal(MICROS_PER_UNIT), Decimal(level)) if level else Decimal(MICROS_PER_UNIT)
            return _plain(rate.quantize(Decimal("0.000001")))
        case Unit.PERCENT | Unit.BPS | Unit.MULTIPLE:
            return _plain(EXACT.divide(Decimal(level), Decimal(_PER_UNIT[field.unit])))
        case _:
            return str(level)


def _plain(value: Decimal) -> str:
    return f"{value.normalize(EXACT):f}"


def _shown_unit(field: LimitField, product: Product | None, currency: str) -> str:
    match field.unit:
        case Unit.MONEY:
            return currency
        case Unit.QUANTITY:
            return product.base_currency if product else "lots"
        case Unit.COUNT | Unit.RATIO | Unit.WORD | Unit.HOURS | Unit.VERSIONS:
            return ""
        case _:
            return field.unit.value


def _shown_hours(text: str) -> str:
    """Minutes of the week as ``mon 09:00-17:00, tue …``."""
    rows = []
    for one in text.split(","):
        start, _, end = one.partition("-")
        if not (_is_integer(start) and _is_integer(end) and int(start) < int(end) <= MINUTES_PER_WEEK):
            return text
        rows += _by_day(int(start), int(end))
    return ", ".join(rows)


def _by_day(start: int, end: int) -> list[str]:
    rows = []
    while start < end:
        day, minute = divmod(start, MINUTES_PER_DAY)
        closes = min(end - day * MINUTES_PER_DAY, MINUTES_PER_DAY)
        rows.append(f"{DAYS[day]} {minute // 60:02d}:{minute % 60:02d}-{closes // 60:02d}:{closes % 60:02d}")
        start = day * MINUTES_PER_DAY + closes
    return rows
