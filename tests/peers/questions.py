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


# What each rule is with us, at vectorbt and at raptorbt. Orders at the same close: only there are the rules the same.
STOPS: Final[tuple[tuple[dict[str, float], dict[str, float], dict[str, float]], ...]] = (
    ({"stop_loss": 0.02}, {"sl_stop": 0.02}, {"fixed_stop": 0.02}),
    ({"take_profit": 0.04}, {"tp_stop": 0.04}, {"fixed_target": 0.04}),
    ({"trailing_stop": 0.03}, {"sl_stop": 0.03, "sl_trail": True}, {"trailing_stop": 0.03}),
    (
        {"stop_loss": 0.03, "take_profit": 0.05},
        {"sl_stop": 0.03, "tp_stop": 0.05},
        {"fixed_stop": 0.03, "fixed_target": 0.05},
    ),
)


def _with_stops(engine: int, names: Sequence[str], chosen: slice = slice(None)) -> list[Question]:
    """Long-only SMA crosses with each set of stops on each series; ``engine`` is the column of ``STOPS``.

    Not BTC-USD of 4 hours with the stop-loss alone: it sells at 0.06 in the real crash of 2017-04-15, and is ruined.
    """
    made = []
    for name in names:
        for rules in STOPS[chosen]:
            extra = (("vectorbt", "signals"), *rules[engine].items())
            made.append(Question(name, "sma_cross", {"fast": 20, "slow": 100} | rules[0], "same_close", None, extra))
    return made


ASKED: Final[Mapping[str, list[Question]]] = {
    "vectorbt": [
        *_questions(LONG_ONLY + SHORT_ONLY + LONG_AND_SHORT, vectorbt="signals"),
        *_questions(LONG_ONLY[:1], {"fee_bps": 60.0, "slippage_bps": 5.0}, vectorbt="signals"),
        *_questions(FRACTIONS, vectorbt="amount"),
        *_questions(FRACTIONS, FREE, vectorbt="percent"),
        *_with_stops(1, ("made-up", "with-gaps", "eth-1d")),
    ],
    "raptorbt": [
        *_questions(LONG_ONLY),
        *_with_stops(2, ("made-up", "with-gaps", "eth-1d"), slice(3)),
        *_with_stops(2, ("btc-4h",), slice(1, 4)),
        *_with_stops(2, ("made-up", "eth-1d"), slice(3, 4)),
        *_questions(LONG_ONLY[:1], {"fee_bps": 60.0, "slippage_bps": 5.0}),
    ],
    "backtrader": _questions(SOME, names=SHORT_SERIES),
    "backtesting": _questions(SOME, {"fee_bps": 10.0, "slippage_bps": 0.0}, SHORT_SERIES),
}

_PERCENT: Final = (("vectorbt", "percent"),)
DIFFERENT: Final[Mapping[str, list[Question]]] = {
    "vectorbt": [Question("made-up", "vol_target_momentum", {"target_volatility": 0.0005}, extra=_PERCENT)],
    "raptorbt": [
        Question("made-up", SHORTS_OF_SMA_CROSS, {"fast": 20, "slow": 100}),
        *_with_stops(2, ("with-gaps",), slice(3, 4)),
    ],
    "backtrader": [Question("made-up", "sma_cross", {"fast": 10, "slow": 60}, extra=(("slip_out", False),))],
    "backtesting": [Question("made-up", "sma_cross", {"fast": 10, "slow": 60}, costs=CHEAP)],
}
