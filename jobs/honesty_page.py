"""The content of honesty.json, name by name: what jobs/honesty.py writes and a report may rely on.

Sharpe ratios are yearly; returns, drawdowns, shares and probabilities are fractions; None stands for what is undefined.
"""

from __future__ import annotations

from typing import TypedDict


class Distribution(TypedDict):
    """Figures of a sample; None where it has none."""

    count: int
    mean: float | None
    deviation: float | None
    low_5: float | None
    quarter: float | None
    median: float | None
    three_quarters: float | None
    high_95: float | None
    below_zero: float | None  # share of the sample


class Interval(TypedDict):
    """A figure of the best set, and the middle and the ends of the 90 % interval of its resampled values."""

    observed: float | None
    low_5: float | None
    median: float | None
    high_95: float | None


class Fold(TypedDict):
    """A fold of the plan: its bars [first_bar, stop_bar), their times, and its side of the held-out border."""

    first_bar: int
    stop_bar: int
    first_ts_ns: int
    last_ts_ns: int
    held_out: bool


class Plan(TypedDict):
    """How the bars were cut. ``gap_bars`` lie between two folds and are left out where a split separates them."""

    bars: int
    folds: list[Fold]
    gap_bars: int
    held_out_from_bar: int | None
    held_out_from_ts_ns: int | None
    periods_per_year: float | None


class ChosenSet(TypedDict):
    """A parameter set that some split chose, and in how many splits."""

    set_id: int
    strategy: str
    params: dict[str, float]
    splits: int


class WalkStep(TypedDict):
    """One step: chosen on folds [train_from, train_to], tested on fold ``test``. Sharpes are yearly."""

    train_from: int
    train_to: int
    test: int
    set_id: int | None
    strategy: str | None
    params: dict[str, float] | None
    is_sharpe: float | None
    oos_sharpe: float | None
    oos_return: float | None


class Curve(TypedDict):
    """Equity, 1 at the start, at the closes of some bars; some thousand points at most."""

    ts_ns: list[int]
    equity: list[float]


class WalkForward(TypedDict):
    """The steps and the out-of-sample result stitched from them. ``efficiency`` is OOS Sharpe over mean IS Sharpe."""

    kind: str  # "rolling" or "anchored"
    steps: list[WalkStep]
    is_sharpe: float | None
    oos_sharpe: float | None
    oos_return: float | None
    oos_cagr: float | None
    efficiency: float | None
    winning_steps: float | None
    distinct_sets: int
    curve: Curve


class CrossValidation(TypedDict):
    """Purged (combinatorial) cross-validation: per split the best set in-sample and its Sharpe out-of-sample."""

    folds: int
    test_folds: int
    splits: int
    is_sharpe: Distribution
    oos_sharpe: Distribution
    path_sharpe: Distribution
    path_return: Distribution
    paths_sharpe: list[float | None]
    paths_return: list[float | None]
    chosen: list[ChosenSet]  # the most often chosen first, at most ten


class Histogram(TypedDict):
    """``counts[i]`` values lie in [edges[i], edges[i + 1])."""

    edges: list[float]
    counts: list[int]


class Degradation(TypedDict):
    """OOS Sharpe = intercept + slope * IS Sharpe of the chosen set over the splits, and a sample of those points."""

    intercept: float | None
    slope: float | None
    r_squared: float | None
    is_sharpe: list[float]
    oos_sharpe: list[float]


class Overfitting(TypedDict):
    """Probability of backtest overfitting by CSCV (Bailey, Borwein, Lopez de Prado, Zhu 2015)."""

    pbo: float | None
    splits: int
    all_splits: int
    sets: int
    logits: Histogram
    logit: Distribution
    probability_of_loss: float | None
    degradation: Degradation


class SharpeTests(TypedDict):
    """Whether the best set's Sharpe is more than luck. Sharpes are yearly, probabilities in 0 … 1.

    ``dsr`` is the paper's: it takes the whole spread of the trials' Sharpes for luck. Where sets differ truly (one
    follows trends, another bets against them) that spread is far more than luck gives, and ``dsr`` says too little;
    ``dsr_sampling`` takes for luck what sampling error alone gives. Between the two lies the answer.
    """

    set_id: int
    sharpe: float | None
    skew: float | None
    kurtosis: float | None
    returns: int
    trials: int  # every set that was tried: the conservative number
    independent_trials: float | None  # estimated from the correlation of the sets
    trials_sharpe_deviation: float | None
    expected_max_sharpe: float | None  # of that many sets without any skill
    expected_max_sharpe_independent: float | None
    psr: float | None  # that the true Sharpe is above 0
    dsr: float | None  # that it is above expected_max_sharpe
    dsr_independent: float | None
    sampling_deviation: float | None  # of the Sharpe of a set without skill over as many returns
    expected_max_sharpe_sampling: float | None  # of all trials, if their Sharpes deviated by that and no more
    dsr_sampling: float | None  # that the true Sharpe is above expected_max_sharpe_sampling
    min_track_record_years: float | None  # for 95 % confidence that the Sharpe is above 0; None: no length is enough
    min_track_record_years_deflated: float | None  # that it is above expected_max_sharpe
    track_record_years: float | None


class HeldOut(TypedDict):
    """The best set before and after the border, and the best set in-sample: what one would have taken there."""

    set_id: int
    is_sharpe: float | None
    oos_sharpe: float | None
    oos_return: float | None
    leads_held_out: bool  # it has the best held-out Sharpe of all sets: those bars have chosen it
    best_is_set_id: int | None
    best_is_sharpe: float | None
    best_is_oos_sharpe: float | None
    best_is_oos_return: float | None
    rank_correlation: float | None  # of IS and OOS Sharpe over all sets (Spearman)


class Bootstrap(TypedDict):
    """Stationary bootstrap of the best set's returns (Politis and Romano 1994)."""

    draws: int
    block_bars: float
    period_bars: int
    sharpe: Interval
    cagr: Interval
    max_drawdown: Interval
    probability_of_loss: float | None


class TradeOrder(TypedDict):
    """The best set's trades in another order (``shuffled``) or drawn anew with replacement (``drawn``)."""

    trades: int
    draws: int
    shuffled_max_drawdown: Interval
    drawn_max_drawdown: Interval
    drawn_return: Interval
    probability_of_loss: float | None


class Stability(TypedDict):
    """The best set among its neighbours in the grid, and how all sets fare. Sharpes are yearly."""

    neighbours: int
    share_of_neighbours: float | None  # neighbours' mean over its own, at most 1
    neighbours_sharpe: float | None
    neighbours_median_sharpe: float | None
    worst_neighbour_sharpe: float | None
    method: str  # "grid" or "nearest"
    all_sets: Distribution


class Verdict(TypedDict):
    """A plain sentence. ``level`` is good, doubtful, bad or unknown; ``about`` the part of the page it is made from."""

    about: str
    level: str
    sentence: str


class Honesty(TypedDict):
    """The page. A part is None where it cannot be said, and ``verdicts`` says why."""

    version: int
    sets: int
    complete_sets: int
    plan: Plan
    held_out: HeldOut | None
    sharpe_tests: SharpeTests | None
    walk_forward: list[WalkForward]
    k_fold: CrossValidation | None
    cross_validation: CrossValidation | None
    overfitting: Overfitting | None
    bootstrap: Bootstrap | None
    trade_order: TradeOrder | None
    stability: Stability | None
    verdicts: list[Verdict]
