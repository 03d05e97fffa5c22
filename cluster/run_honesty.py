"""What an ended run's honesty page says, in short: for whoever shows a leaderboard, and for scripts."""

from __future__ import annotations

import json
from typing import Any, Final

from cluster.run_folder import RunError, RunFolder, RunState

# The figures of a page by name: the part they are in, and their name there (jobs/honesty_page.py).
FIGURES: Final[dict[str, tuple[str, str]]] = {
    "trials": ("sharpe_tests", "trials"),
    "sharpe": ("sharpe_tests", "sharpe"),
    "psr": ("sharpe_tests", "psr"),
    "dsr": ("sharpe_tests", "dsr"),
    "dsr_sampling": ("sharpe_tests", "dsr_sampling"),
    "expected_max_sharpe": ("sharpe_tests", "expected_max_sharpe"),
    "track_record_years": ("sharpe_tests", "track_record_years"),
    "min_track_record_years": ("sharpe_tests", "min_track_record_years"),
    "pbo": ("overfitting", "pbo"),
    "pbo_splits": ("overfitting", "splits"),
    "stability": ("stability", "share_of_neighbours"),
    "neighbours": ("stability", "neighbours"),
    "best_is_sharpe": ("held_out", "best_is_sharpe"),
    "best_is_oos_sharpe": ("held_out", "best_is_oos_sharpe"),
    "rank_correlation": ("held_out", "rank_correlation"),
    "held_out_from_ts_ns": ("plan", "held_out_from_ts_ns"),
}


def honesty_page(folder: RunFolder) -> dict[str, Any] | None:
    """honesty.json as it is; None where the run has none (``why_no_honesty`` says why). Raises ``RunError``."""
    path = folder.honesty_file
    try:
        page = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(path.name, str(path), f"JSON ({error})") from error
    if not isinstance(page, dict) or not isinstance(page.get("verdicts"), list):
        raise RunError(path.name, str(path), "an honesty page with its verdicts")
    return page


def why_no_honesty(folder: RunFolder) -> str:
    """Why a run without a honesty page has none."""
    state = folder.progress().state
    if state is not RunState.SUCCEEDED:
        if folder.remote_file.exists():
            return f"it is computed elsewhere and {state} there; its results come with desk jobs fetch {folder.run_id}"
        return f"the run is {state}; the page is made of all its sets when it has succeeded"
    if not folder.record().cuts:
        return "an earlier version computed the run, which kept nothing that luck can be told by; sweep again"
    return f"{folder.honesty_file.name} has gone from its folder"


def honesty_of(folder: RunFolder) -> dict[str, Any]:
    """``FIGURES`` by name, ``verdicts``, walk-forward's ``walk_forward_sharpe``, and ``why_not``: None, or the reason
    why there is no page (all figures are None then). Raises ``RunError`` where the page is damaged."""
    page = honesty_page(folder)
    if page is None:
        none: dict[str, Any] = dict.fromkeys((*FIGURES, "walk_forward_sharpe"))
        return none | {"verdicts": [], "why_not": why_no_honesty(folder)}
    try:
        found = {name: (page.get(part) or {}).get(figure) for name, (part, figure) in FIGURES.items()}
        walks = [walk for walk in page.get("walk_forward") or [] if walk["kind"] == "rolling"]
        found["walk_forward_sharpe"] = walks[0]["oos_sharpe"] if walks else None
        found["verdicts"] = [{key: str(one[key]) for key in ("about", "level", "sentence")} for one in page["verdicts"]]
    except (AttributeError, KeyError, TypeError) as error:
        path = folder.honesty_file
        raise RunError(path.name, str(path), f"an honesty page with its parts ({error!r})") from error
    return found | {"why_not": None}
