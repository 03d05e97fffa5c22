"""Live trading is armed by a person, for a reason and for a day at most: who may do it, for command and API alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cluster.api_keys import RESUME, ApiKey
from cluster.approvals import may_halt
from cluster.ledger import Arming, Ledger
from conf.settings import Settings

LIVE: Final = "live"
ARMED_S_MIN: Final = 60
ARMED_S_MAX: Final = 86_400


class NotLive(ValueError):
    """Nothing here has to be armed: orders of this desk are not real."""

    def __init__(self, environment: str) -> None:
        """Name the environment."""
        super().__init__(f"environment: this desk is {environment}; only a live one is armed (profile live)")
        self.code = "NOT_LIVE"


def may_arm(key: ApiKey) -> bool:
    """Whether the key may let real orders pass: whoever may resume trading everywhere."""
    return key.may_everywhere(RESUME)


def may_disarm(key: ApiKey, accounts: Sequence[str]) -> bool:
    """Whether the key may stop them again: whoever may halt the desk."""
    return may_halt(key, None, accounts)


async def arm(ledger: Ledger, settings: Settings, key: ApiKey, reason: str, for_s: int) -> Arming:
    """Let real orders pass for ``for_s`` seconds of the ledger's clock, from now on; an earlier arming is replaced.

    Raises ``NotLive`` where orders are not real, ``ValueError`` for a time out of range.
    """
    if settings.venue.environment != LIVE:
        raise NotLive(settings.venue.environment)
    if not ARMED_S_MIN <= for_s <= ARMED_S_MAX:
        raise ValueError(f"for_s: expected {ARMED_S_MIN} to {ARMED_S_MAX}, was {for_s}")
    until_ms = (await ledger.snapshot(None)).now_ms + for_s * 1000
    await ledger.arm(key.key_id, key.person, reason, until_ms)
    return Arming(until_ms, key.key_id, key.person, reason)
