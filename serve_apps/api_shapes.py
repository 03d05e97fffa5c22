"""What all answers of the API are made of: strict, frozen models; money and quantities as decimal text."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from strategies.model import Product, units

DECIMAL_TEXT: Final = r"^-?[0-9]+(\.[0-9]+)?$"

Decimals = Annotated[str, Field(pattern=DECIMAL_TEXT, examples=["1250.5"])]
"""A number of currency units as text, so that no reader rounds it."""
Nanoseconds = Annotated[int, Field(examples=[1_732_266_000_000_000_000])]
"""Nanoseconds since 1970 UTC."""
Milliseconds = Annotated[int, Field(ge=0, examples=[420])]
Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(description="why, for the audit", examples=["drill"]),
]


class Shape(BaseModel):
    """Base of every request and answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def money(micros: int) -> str:
    """Micros of a currency as units in text."""
    return f"{units(micros):f}"


def money_or_none(micros: int | None) -> str | None:
    """The same where there may be no figure."""
    return None if micros is None else money(micros)


def quantity(product: Product, lots: int) -> str:
    """Lots as base currency units in text."""
    return f"{product.quantity(lots):f}"


def middle(product: Product, bid_ticks: int, ask_ticks: int) -> Decimal:
    """The exact middle of a market in quote currency units."""
    return product.price(bid_ticks + ask_ticks) / 2
