"""The exchange simulator's rate limits: a bucket of requests for each key, and for each address without one."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_BUCKETS_MAX: Final = 10_000
# What no request may be refused for is not limited at all: the rate 0.
UNLIMITED: Final = 0.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one request was told: whether it may pass, and what is left of how many until when (seconds)."""

    passes: bool
    limit: int
    remaining: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The headers every answer of a limited venue carries."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(self.reset_s),
        }


class RateLimits:
    """Token buckets that hold a second's worth of requests; a rate of 0 limits nothing.

    Coinbase names no number for its REST paths; 30 a second for a key and 10 for an address come from secondary
    sources, so they are choices here.
    """

    def __init__(self, private_per_s: float = UNLIMITED, public_per_s: float = UNLIMITED) -> None:
        self.private_per_s = private_per_s
        self.public_per_s = public_per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, private: bool, now_s: float) -> Allowance | None:
        """Take one request from the bucket of ``who``; None where nothing is limited. ``now_s`` never goes back."""
        rate = self.private_per_s if private else self.public_per_s
        if rate <= 0:
            return None
        size = max(1.0, rate)
        tokens, seen_s = self._buckets.pop(who, (size, now_s))
        tokens = min(size, tokens + (now_s - seen_s) * rate)
        passes = tokens >= 1.0
        tokens -= passes
        self._buckets[who] = (tokens, now_s)
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return Allowance(passes, int(size), int(tokens), max(1, math.ceil((size - tokens) / rate)))
