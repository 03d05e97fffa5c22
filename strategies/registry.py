"""The strategies of the desk by name: an explicit list, and users' own that this process has loaded; no discovery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from strategies.base import AnyStrategy, SpecError, Strategy
from strategies.bollinger_reversion import BOLLINGER_REVERSION
from strategies.cross_section import CrossSection
from strategies.donchian_breakout import DONCHIAN_BREAKOUT
from strategies.momentum_rotation import MOMENTUM_ROTATION
from strategies.pairs import PAIRS
from strategies.rsi_reversion import RSI_REVERSION
from strategies.sma_cross import SMA_CROSS
from strategies.user_file import loaded
from strategies.vol_target_momentum import VOL_TARGET_MOMENTUM

STRATEGIES: Final[dict[str, Strategy]] = {
    strategy.name: strategy
    for strategy in (SMA_CROSS, RSI_REVERSION, BOLLINGER_REVERSION, DONCHIAN_BREAKOUT, VOL_TARGET_MOMENTUM)
}
# Strategies over several products, which share one cash.
CROSS_SECTIONS: Final[dict[str, CrossSection]] = {strategy.name: strategy for strategy in (MOMENTUM_ROTATION, PAIRS)}


class UnknownStrategy(SpecError):
    """No strategy has this name; the message lists those there are."""

    def __init__(self, name: object, known: Iterable[str] = STRATEGIES) -> None:
        super().__init__("strategy", name, f"one of {', '.join(known)}")
        self.known = tuple(known)

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, object, str]]:
        return UnknownStrategy, (self.value, self.known)  # type: ignore[return-value]


def get(name: str) -> Strategy:
    """The strategy called ``name``; raises ``UnknownStrategy``.

    A user's own (``my_strategy@0123456789abcdef``) is found where this process has loaded its file before, and only
    there: a name from outside loads nothing.
    """
    strategy = STRATEGIES.get(name) or loaded(name) if isinstance(name, str) else None
    if not isinstance(strategy, Strategy):
        raise UnknownStrategy(name)
    return strategy


def find(name: str) -> AnyStrategy:
    """The strategy called ``name``, for one product or over several; raises ``UnknownStrategy``."""
    section = CROSS_SECTIONS.get(name) or loaded(name) if isinstance(name, str) else None
    if isinstance(section, CrossSection):
        return section
    try:
        return get(name)
    except UnknownStrategy:
        raise UnknownStrategy(name, (*STRATEGIES, *CROSS_SECTIONS)) from None
