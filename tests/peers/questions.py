"""What each engine is asked: where it agrees with ours (``ASKED``) and where it is known not to (``DIFFERENT``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.peers.samples import CHEAP, FREE, REAL_FILES, SHORTS_OF_SMA_CROSS, Question

TIMINGS: Final = ("next_open", "same_close")
SERIES: Final = ("made-up", "with-gaps", *REAL_FILES)
# What runs in plain Python gets no series of 20,000 bars.
SHORT_SERIES: Final = ("made-up", "with-gaps", "eth-1d", "btc-1m")
Strategies = tuple[tuple[str, dict[str, float]], ...]
LONG_ONLY: Final[Strategies] = (
    ("sma_cross", {"fast": 20, "slow": 100}),
    ("sma_cross", {"fast": 5, "slow": 30}),
    ("rsi_reversion", {"window": 14}),
    ("bollinger_reversion", {"window": 20}),
    ("donchian_breakout", {"entry_window": 40}),
)
SHORT_ONLY: Final[Strategies] = ((SHORTS_OF_SMA_CROSS, {"fast": 20, "slow": 100}),)
LONG_AND_SHORT: Final[Strategies] = (
    ("sma_cross", {"fast": 20, "slow": 100, "allow_short": 1}),
    ("donchian_breakout", {"entry_window": 40, "allow_short": 1}),
)
SOME: Final[Strategies] = (LONG_ONLY[0], LONG_ONLY[3], *LONG_AND_SHORT, ("vol_target_momentum", {"allow_short": 1}))
FRACTIONS: Final[Strategies] = (("vol_target_momentum", {"allow_short": 1}),)


def _questions(
    strategies: Strategies, costs: dict[str, float] | None = None, names: Sequence[str] = SERIES, **extra: Any
) -> list[Question]:
    """Each strategy on each series with each timing."""
    return [
        Question(name, strategy, params, fill, costs, tuple(extra.items()))
        for name in names
        for strategy, params in strategies
        for fill in TIMINGS
    ]


ASKED: Final[Mapping[str, list[Question]]] = {
    "vectorbt": [
        *_questions(LONG_ONLY + SHORT_ONLY + LONG_AND_SHORT, vectorbt="signals"),
        *_questions(LONG_ONLY[:1], {"fee_bps": 60.0, "slippage_bps": 5.0}, vectorbt="signals"),
        *_questions(FRACTIONS, vectorbt="amount"),
        *_questions(FRACTIONS, FREE, vectorbt="percent"),
    ],
    "raptorbt": [
        *_questions(LONG_ONLY),
        *_questions(LONG_ONLY[:1], {"fee_bps": 60.0, "slippage_bps": 5.0}),
    ],
    "backtrader": _questions(SOME, names=SHORT_SERIES),
    "backtesting": _questions(SOME, {"fee_bps": 10.0, "slippage_bps": 0.0}, SHORT_SERIES),
}

_PERCENT: Final = (("vectorbt", "percent"),)
DIFFERENT: Final[Mapping[str, Question]] = {
    "vectorbt": Question("made-up", "vol_target_momentum", {"target_volatility": 0.0005}, extra=_PERCENT),
    "raptorbt": Question("made-up", SHORTS_OF_SMA_CROSS, {"fast": 20, "slow": 100}),
    "backtrader": Question("made-up", "sma_cross", {"fast": 10, "slow": 60}, extra=(("slip_out", False),)),
    "backtesting": Question("made-up", "sma_cross", {"fast": 10, "slow": 60}, costs=CHEAP),
}
