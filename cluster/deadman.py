"""When the desk counts as dead: the decision alone, without input or output. ``serve_apps.deadman`` acts on it.

Execution beats in the ledger. A dead man that has seen it beat trips once it is silent for too long, or the ledger is,
or a trader whose own heartbeat was asked for. One silence trips once; after that a person has to resume the account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

PART: Final = "deadman"
EXECUTION: Final = "execution"
TRADER_PREFIX: Final = "trader"


class Phase(StrEnum):
    """Where the dead man stands.

    WAITING: execution has not beaten since it began to look, so nothing can have died yet. WATCHING: a silence trips.
    CANCELLING: it has tripped, and orders are being cancelled. TRIPPED: all are, the account is halted, and a second
    person's approval of its resumption leads back to WAITING.
    """

    WAITING = "WAITING"
    WATCHING = "WATCHING"
    CANCELLING = "CANCELLING"
    TRIPPED = "TRIPPED"


@dataclass(frozen=True, slots=True)
class Trip:
    """Why it tripped: the part that is silent, and a sentence for the audit."""

    part: str
    reason: str


@dataclass(slots=True)
class _Life:
    """One part's heartbeat as this process has met it, on this process's own clock."""

    at_ms: int
    alive_s: float
    timeout_s: float
    # For how long since its last beat the ledger did not answer, so that it could not beat.
    away_s: float = 0.0

    def silence_s(self, now_s: float) -> float:
        return now_s - self.alive_s


def trader_part(account: str, name: str) -> str:
    """The name under which a trader's heartbeat is kept."""
    return f"{TRADER_PREFIX}|{account}|{name}"


def traders_of(account: str, beats: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Every trader's heartbeat of the account by the trader's name, ended ones too."""
    prefix = trader_part(account, "")
    return {part.removeprefix(prefix): beat for part, beat in beats.items() if part.startswith(prefix)}


def is_armed(beat: Mapping[str, Any]) -> bool:
    """Whether a trader's heartbeat still has to be answered for."""
    timeout_s = beat.get("timeout_s")
    return not beat.get("ended") and isinstance(timeout_s, (int, float)) and timeout_s > 0


class Watch:
    """Heartbeats in, trips out. Seconds are of one monotonic clock; the ledger's own only gives ages."""

    def __init__(self, account: str, deadman_s: float) -> None:
        """Watch over ``account``: at most ``deadman_s`` of silence."""
        self.phase = Phase.WAITING
        self._account = account
        self._deadman_s = deadman_s
        self._execution: _Life | None = None
        self._traders: dict[str, _Life] = {}
        self._answered_s: float | None = None
        self._looked_s: float | None = None
        self._answers = False

    def look(self, now_s: float, beats: Mapping[str, Mapping[str, Any]] | None) -> Trip | None:
        """Take in the ledger's heartbeats (None: it does not answer) and say whether to trip now."""
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if beats is None or not self._answers:
            # The time until the look at which it answers again counts too.
            for life in self._lives():
                life.away_s += passed_s
        self._answers = beats is not None
        if beats is not None:
            self._answered_s = now_s
            self._take_in(now_s, beats)
        if self.phase is not Phase.WATCHING or (trip := self._silent(now_s)) is None:
            return None
        self.phase = Phase.CANCELLING
        return trip

    def silence_s(self, now_s: float) -> float | None:
        """Seconds since execution's last beat; None where none was seen."""
        if self._execution is None or self.phase is Phase.WAITING:
            return None
        return max(0.0, self._execution.silence_s(now_s))

    def tripped(self) -> None:
        """All orders are cancelled and the account is halted."""
        self.phase = Phase.TRIPPED

    def resumed(self) -> None:
        """A person has let the account trade again: watch anew as soon as execution beats again."""
        self.phase = Phase.WAITING

    def overdue(self, now_s: float) -> list[str]:
        """Traders by name whose own heartbeat is late."""
        return sorted(name for name, life in self._traders.items() if self._late(life, now_s))

    def _take_in(self, now_s: float, beats: Mapping[str, Mapping[str, Any]]) -> None:
        beat = beats.get(EXECUTION)
        if beat is not None and beat.get("account", self._account) == self._account:
            known = self._execution
            self._execution = _followed(known, beat, now_s, self._deadman_s)
            if known is not None and self._execution is not known and self.phase is Phase.WAITING:
                self.phase = Phase.WATCHING
        armed = {name: beat for name, beat in traders_of(self._account, beats).items() if is_armed(beat)}
        self._traders = {
            name: _followed(self._traders.get(name), beat, now_s, float(beat["timeout_s"]))
            for name, beat in armed.items()
        }

    def _silent(self, now_s: float) -> Trip | None:
        if self._answered_s is not None and now_s - self._answered_s > self._deadman_s:
            return Trip("ledger", f"the ledger has not answered for {now_s - self._answered_s:.1f} s")
        if self._execution is not None and self._late(self._execution, now_s):
            return Trip(EXECUTION, f"execution has been silent for {self._execution.silence_s(now_s):.1f} s")
        for name in self.overdue(now_s):
            life = self._traders[name]
            said = (
                f"trader {name} has been silent for {life.silence_s(now_s):.1f} s (its own limit: {life.timeout_s:g})"
            )
            return Trip(trader_part(self._account, name), said)
        return None

    def _late(self, life: _Life, now_s: float) -> bool:
        # Who cannot beat because the ledger is away is not dead; but that excuse ends where the ledger itself trips.
        return life.silence_s(now_s) - min(life.away_s, self._deadman_s) > life.timeout_s

    def _lives(self) -> list[_Life]:
        return [*self._traders.values(), *([] if self._execution is None else [self._execution])]


def _followed(known: _Life | None, beat: Mapping[str, Any], now_s: float, timeout_s: float) -> _Life:
    """The part's life after this sight of its heartbeat; a new object where it has beaten since the last one.

    Only another beat counts as one: what the server's clock, once it was set, makes of the age of an old one does not.
    """
    at_ms = int(beat["at_ms"])
    alive_s = now_s - max(0.0, int(beat["age_ms"]) / 1000)
    if known is None or (at_ms != known.at_ms and alive_s > known.alive_s):
        return _Life(at_ms, alive_s, timeout_s)
    known.at_ms, known.timeout_s = at_ms, timeout_s
    return known
