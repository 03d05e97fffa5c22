"""What the honesty page says in plain sentences, and how bad it is."""

from __future__ import annotations

from typing import Final

from jobs.honesty_page import Honesty, Verdict

GOOD: Final = "good"
DOUBTFUL: Final = "doubtful"
BAD: Final = "bad"
UNKNOWN: Final = "unknown"

TRADES_FEW: Final = 30
CONFIDENT: Final = 0.95


def verdicts_of(page: Honesty, look_ahead: bool, portfolio: bool = False) -> list[Verdict]:
    """A sentence or two for each part of the page; a part that could not be computed gets the reason.

    A portfolio's round trips overlap, so nothing is said of their order.
    """
    found: list[Verdict] = []
    if look_ahead:
        sentence = "Fills use a close that was needed to decide them: none of these results can be had."
        found.append({"about": "look_ahead", "level": BAD, "sentence": sentence})
    if page["held_out"] is None:
        bars = page["plan"]["bars"]
        sentence = f"{_count(bars, 'bar')} are too few to hold any out: nothing here was tested on unseen data."
        found.append({"about": "plan", "level": UNKNOWN, "sentence": sentence})
    elif page["complete_sets"] < 2:
        sentence = "One parameter set was run to the end: nothing was chosen, so there is no choice to judge."
        found.append({"about": "plan", "level": UNKNOWN, "sentence": sentence})
    parts = (_luck, _record, _held_out, _picked, _walk_forward, _paths, _overfitting, _stability, _trades, _bootstrap)
    for part in parts:
        if portfolio and part is _trades:
            continue
        verdict = part(page)
        if verdict is not None:
            found.append(verdict)
    return found


def _luck(page: Honesty) -> Verdict | None:
    tests = page["sharpe_tests"]
    if tests is None:
        return {"about": "sharpe_tests", "level": UNKNOWN, "sentence": "The best set has no Sharpe ratio to test."}
    dsr, sharpe, luck = tests["dsr"], tests["sharpe"], tests["expected_max_sharpe"]
    if dsr is None or sharpe is None or luck is None:
        return None
    if tests["trials"] == 1:
        sentence = f"One set was tried: its Sharpe of {sharpe:.2f} is above 0 with a probability of {_percent(dsr)}."
        return {"about": "sharpe_tests", "level": _level(dsr, CONFIDENT, 0.5), "sentence": sentence}
    shown = f"{sharpe:.2f}"
    among = f"{_count(tests['trials'], 'set')} without any skill the best would show about {luck:.2f}"
    if dsr >= CONFIDENT:
        sentence = (
            f"The best set's Sharpe of {shown} is more than luck alone gives: among {among} (DSR {_percent(dsr)})."
        )
    elif tests["dsr_sampling"] is not None and tests["dsr_sampling"] >= CONFIDENT:
        sampling = tests["expected_max_sharpe_sampling"] or 0.0
        sentence = (
            f"The best set's Sharpe of {shown} is above the {sampling:.2f} that sampling error alone would give the "
            f"best of {_count(tests['trials'], 'set')}, but not safely above the {luck:.2f} that their own spread "
            f"suggests (DSR {_percent(dsr)}): they differ by more than chance explains."
        )
        return {"about": "sharpe_tests", "level": DOUBTFUL, "sentence": sentence}
    elif dsr >= 0.5:
        sentence = f"The best set's Sharpe of {shown} is not safely above luck: among {among} (DSR {_percent(dsr)})."
    else:
        sentence = (
            f"The best set's Sharpe of {shown} is no more than luck alone gives: among {among} (DSR {_percent(dsr)})."
        )
    return {"about": "sharpe_tests", "level": _level(dsr, CONFIDENT, 0.5), "sentence": sentence}


def _record(page: Honesty) -> Verdict | None:
    tests = page["sharpe_tests"]
    if tests is None or tests["track_record_years"] is None or tests["sharpe"] is None:
        return None
    length, needed = tests["track_record_years"], tests["min_track_record_years"]
    if needed is None:
        sentence = "No track record, however long, would show a Sharpe above 0: it is not."
        return {"about": "track_record", "level": BAD, "sentence": sentence}
    has = f"{_years(length)} of data"
    if length >= needed:
        sentence = f"{has} are enough to say that the Sharpe is above 0 with 95 % confidence ({_years(needed)} needed)."
        return {"about": "track_record", "level": GOOD, "sentence": sentence}
    sentence = f"{has} are not enough to say that the Sharpe is above 0 with 95 % confidence: {_years(needed)} are."
    return {"about": "track_record", "level": DOUBTFUL, "sentence": sentence}


def _held_out(page: Honesty) -> Verdict | None:
    held = page["held_out"]
    if held is None or page["complete_sets"] < 2:
        return None
    inside, outside = held["best_is_sharpe"], held["best_is_oos_sharpe"]
    if inside is None or outside is None:
        sentence = "The set that was best in-sample did nothing in the held-out bars, or lost everything before them."
        return {"about": "held_out", "level": UNKNOWN, "sentence": sentence}
    sentence = f"The set that was best in-sample (Sharpe {inside:.2f}) came to {outside:.2f} in the held-out bars."
    share = outside / inside if inside > 0.0 else -1.0
    return {"about": "held_out", "level": _level(share, 0.5, 0.0), "sentence": sentence}


def _picked(page: Honesty) -> Verdict | None:
    held = page["held_out"]
    if held is None or not held["leads_held_out"] or held["set_id"] == held["best_is_set_id"]:
        return None
    sentence = (
        f"The table's first set has the best held-out Sharpe of all {_count(page['sets'], 'set')}: "
        f"those bars have picked it, so they are no test of it any more."
    )
    return {"about": "picked", "level": DOUBTFUL, "sentence": sentence}


def _walk_forward(page: Honesty) -> Verdict | None:
    for walk in page["walk_forward"]:
        sharpe, gained, efficiency = walk["oos_sharpe"], walk["oos_return"], walk["efficiency"]
        if walk["kind"] != "rolling" or sharpe is None or gained is None:
            continue
        steps = _count(len(walk["steps"]), "step")
        way = f"Choosing the best set anew in each of {steps}"
        kept = "" if efficiency is None else f", {_percent(efficiency)} of the Sharpe it promised"
        if gained <= 0.0:
            sentence = f"{way} would have lost {_percent(-gained)} out-of-sample."
            return {"about": "walk_forward", "level": BAD, "sentence": sentence}
        sentence = f"{way} would have gained {_percent(gained)} out-of-sample at a Sharpe of {sharpe:.2f}{kept}."
        level = _level(-1.0 if efficiency is None else efficiency, 0.5, -1.0)
        return {"about": "walk_forward", "level": level, "sentence": sentence}
    return None


def _paths(page: Honesty) -> Verdict | None:
    found = page["cross_validation"]
    if found is None or found["path_sharpe"]["below_zero"] is None or found["path_sharpe"]["median"] is None:
        return None
    lost, middle = found["path_sharpe"]["below_zero"], found["path_sharpe"]["median"]
    sentence = (
        f"Of {_count(found['path_sharpe']['count'], 'path')} through the cross-validation {_percent(lost)} "
        f"have a Sharpe below 0; the median is {middle:.2f}."
    )
    return {"about": "cross_validation", "level": _level(1.0 - lost, 0.95, 0.5), "sentence": sentence}


def _overfitting(page: Honesty) -> Verdict | None:
    found = page["overfitting"]
    if found is None or found["pbo"] is None:
        return None
    sentence = (
        f"In {_percent(found['pbo'])} of {_count(found['splits'], 'split')} the set that was best in one half of the "
        f"data was among the worse half of the sets in the other (PBO)."
    )
    return {"about": "overfitting", "level": _level(1.0 - found["pbo"], 0.8, 0.5), "sentence": sentence}


def _stability(page: Honesty) -> Verdict | None:
    found = page["stability"]
    if found is None or found["share_of_neighbours"] is None:
        return None
    share = found["share_of_neighbours"]
    place = "stands on a plateau" if share >= 0.7 else "stands above its surroundings" if share >= 0.3 else "is a peak"
    sentence = (
        f"The best set {place}: its {_count(found['neighbours'], 'neighbour')} in the parameters keep "
        f"{_percent(share)} of its Sharpe."
    )
    if share <= 0.0:
        sentence = "The best set is a lone peak: its neighbours in the parameters lose."
    return {"about": "stability", "level": _level(share, 0.7, 0.3), "sentence": sentence}


def _trades(page: Honesty) -> Verdict | None:
    found = page["trade_order"]
    trades = 0 if found is None else found["trades"]
    if trades < TRADES_FEW:
        sentence = f"{_count(trades, 'trade')} of the best set are too few to judge it by."
        return {"about": "trade_order", "level": DOUBTFUL, "sentence": sentence}
    if found is None:
        return None
    deep = found["shuffled_max_drawdown"]["high_95"]
    if deep is None:
        return None
    sentence = (
        f"In another order the same {trades:,} trades would have fallen by more than {_percent(deep)} in 1 of 20 cases."
    )
    return {"about": "trade_order", "level": _level(1.0 - deep, 0.7, 0.5), "sentence": sentence}


def _bootstrap(page: Honesty) -> Verdict | None:
    found = page["bootstrap"]
    if found is None or found["sharpe"]["low_5"] is None or found["sharpe"]["high_95"] is None:
        return None
    low, high = found["sharpe"]["low_5"], found["sharpe"]["high_95"]
    sentence = f"Drawn anew from its own returns, the best set's Sharpe lies between {low:.2f} and {high:.2f} (90 %)."
    return {"about": "bootstrap", "level": GOOD if low > 0.0 else DOUBTFUL if high > 0.0 else BAD, "sentence": sentence}


def _level(value: float, good: float, doubtful: float) -> str:
    return GOOD if value >= good else DOUBTFUL if value > doubtful else BAD


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %" if abs(share) >= 0.1 or share == 0.0 else f"{100.0 * share:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _years(years: float) -> str:
    return f"{years:.1f} years" if years >= 1.0 else _count(round(365.25 * years), "day")
