"""ffn's and skfolio's overfit statistics: ``python -m tests.peers.engines.overfit_statistics FILE.npz`` prints JSON.

The file holds ``returns`` float64[m, n] of m sets, ``folds`` (an even number), and for the splits ``fold_bars``,
``gap_bars`` (even) and ``test_folds``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ffn
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skfolio import measures
from skfolio.model_selection import CombinatorialPurgedCV

Floats = NDArray[np.float64]


def main() -> None:
    """Answer everything that is asked in one process: importing these packages takes the time."""
    with np.load(sys.argv[1]) as asked:
        returns, folds = asked["returns"], int(asked["folds"])
        shape = [int(asked[name]) for name in ("fold_bars", "gap_bars", "test_folds")]
    answer = {"ffn": of_ffn(returns, folds), "skfolio": of_skfolio(returns), "splits": splits(folds, *shape)}
    print(json.dumps(answer))


def of_ffn(returns: Floats, folds: int) -> dict[str, Any]:
    """Deflated Sharpe of the best set and PBO with its logits."""
    frame = pd.DataFrame(returns.T, index=pd.date_range("2020-01-01", periods=returns.shape[1], freq="h"))
    sharpe = frame.mean() / frame.std(ddof=1)
    best = int(sharpe.argmax())
    found = ffn.core.calc_prob_backtest_overfitting(frame, n_blocks=folds, full_output=True)
    return {
        "best": best,
        "dsr": float(ffn.core.calc_deflated_sharpe_ratio(frame[best], sharpe, nperiods=1)),
        "expected_max": float(ffn.core.calc_expected_max_sharpe(len(sharpe), sharpe.std(ddof=1))),
        "pbo": found["pbo"],
        "logits": found["logits"].tolist(),
    }


def of_skfolio(returns: Floats) -> dict[str, Any]:
    """Probabilistic Sharpe against two benchmarks and deflated Sharpe, an entry a set."""
    sharpe = returns.mean(axis=1) / returns.std(axis=1, ddof=1)
    return {
        "psr": measures.probabilistic_sharpe_ratio(returns.T).tolist(),
        "psr_above": measures.probabilistic_sharpe_ratio(returns.T, benchmark_sharpe_ratio=0.02).tolist(),
        "dsr": measures.deflated_sharpe_ratio(returns.T, sharpe).tolist(),
    }


def splits(folds: int, fold_bars: int, gap_bars: int, test_folds: int) -> list[dict[str, Any]]:
    """Train and test bars of each split and the path of each test fold.

    Here a fold reaches half a gap beyond ours on both sides, and half a gap is purged: what is left to train on is
    the same. Bars are counted as ours, from the first fold's first bar.
    """
    half = gap_bars // 2
    bars = folds * (fold_bars + gap_bars)
    cv = CombinatorialPurgedCV(n_folds=folds, n_test_folds=test_folds, purged_size=half, embargo_size=0)
    found = cv.split(np.zeros((bars, 1)))
    return [
        {"train": (train - half).tolist(), "tests": [(test - half).tolist() for test in tests], "paths": ids.tolist()}
        for (train, tests), ids in zip(found, cv.get_path_ids(), strict=True)
    ]


if __name__ == "__main__":
    main()
