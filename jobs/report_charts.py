"""The report's plain charts as Plotly figures in JSON; the page's script adds axes' style and the reader's colours.

A colour is written ``$name`` and is that of the style sheet's variable, light or dark; ``$name/0.2`` is it with that
opacity. What has nothing to show is None, and the caller says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cluster.run_folder import LOWER_IS_BETTER
from jobs.honesty_page import CrossValidation, Overfitting, WalkForward
from jobs.report_words import WORDS, iso, label, set_text, title_of

Chart = dict[str, Any]
PERCENT: Final = ".1%"


def walk_forward_bars(walk: WalkForward, folds: Sequence[Mapping[str, Any]]) -> Chart | None:
    """In-sample and out-of-sample Sharpe of each window's choice."""
    steps = walk["steps"]
    if not steps:
        return None
    windows = [f"{iso(folds[step['test']]['first_ts_ns'])[:10]}" for step in steps]
    chosen = [
        f"{title_of(step['strategy'] or '')} {set_text(step['params'])}" if step["params"] else "no set"
        for step in steps
    ]
    bars = [("In-sample, chosen by it", "is_sharpe", "$grey"), ("Out-of-sample, next window", "oos_sharpe", "$accent")]
    data = [
        _bar(name, windows, [step[key] for step in steps], colour)  # type: ignore[literal-required]
        | {"customdata": [plain(text) for text in chosen], "hovertemplate": "%{y:.2f}<br>%{customdata}"}
        for name, key, colour in bars
    ]
    layout = {"barmode": "group", "hovermode": "x", "xaxis": {"type": "category", "title": {"text": "Window from"}}}
    return _chart(data, layout | {"yaxis": {"title": {"text": "Sharpe, yearly"}}})


def walk_forward_curve(walks: Sequence[WalkForward]) -> Chart | None:
    """Equity stitched from the out-of-sample windows."""
    data = [
        _line(f"{walk['kind'].capitalize()} windows", [iso(ts) for ts in walk["curve"]["ts_ns"]],
              [_figures(value) for value in walk["curve"]["equity"]], colour)
        | {"hovertemplate": "%{y:.3f}"}
        for walk, colour in zip(walks, ("$accent", "$second"), strict=False)
        if walk["curve"]["ts_ns"]
    ]  # fmt: skip
    layout = {"hovermode": "x unified", "xaxis": {"type": "date"}, "yaxis": {"title": {"text": "Equity, start 1"}}}
    return _chart(data, layout) if data else None


def histogram(found: Mapping[str, Any], what: str, tick: str = PERCENT) -> Chart:
    """A histogram, with its normal distribution where ``found`` has one."""
    edges = found["edges"]
    middle = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    digits = f"%{{x:{tick}}}"
    bars = _bar("Observed", [_figures(value) for value in middle], found["counts"], "$accent/0.75")
    bars |= {"hovertemplate": f"about {digits}: %{{y:,}}<extra></extra>", "width": edges[1] - edges[0]}
    data = [bars]
    if "normal" in found:
        curve = _line(
            "Normal, same mean and deviation", middle, [_figures(each) for each in found["normal"]], "$second"
        )
        data.append(curve | {"hovertemplate": "%{y:,.1f}<extra></extra>"})
    layout = {"bargap": 0.06, "xaxis": {"tickformat": tick, "title": {"text": what}}, "yaxis": {"tickformat": ",d"}}
    return _chart(data, layout | {"shapes": [_upright(0.0)]})


def cost_lines(points: Sequence[Mapping[str, Any]], what: str, own: float, zero: float | None) -> Chart | None:
    """Total return over a multiple of costs or a fee, with the run's own place and the break-even."""
    known = [point for point in points if point["total_return"] is not None]
    if len(known) < 2:
        return None
    x = [point["at"] for point in known]
    line = _line("Total return", x, [_figures(point["total_return"]) for point in known], "$accent")
    texts = [_cost_text(point) for point in known]
    line |= {"mode": "lines+markers", "customdata": texts, "hovertemplate": "%{x}: %{customdata}<extra></extra>"}
    shapes = [_upright(own, "$grey")]
    notes = [_note(own, "this run")]
    if zero is not None and zero <= max(x):
        shapes.append(_upright(zero, "$down"))
        notes.append(_note(zero, "break-even", 0.08))
    layout = {"xaxis": {"title": {"text": what}}, "yaxis": {"tickformat": "~%", "title": {"text": "Total return"}}}
    zero_line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 0,
        "y1": 0,
        "line": {"color": "$faint", "width": 1},
    }
    return _chart([line], layout | {"shapes": [*shapes, zero_line], "annotations": notes})


def logits(found: Overfitting) -> Chart | None:
    """The histogram of the splits' logits: left of 0 the winner inside was below the median outside."""
    edges, counts = found["logits"]["edges"], found["logits"]["counts"]
    if not any(counts):
        return None
    middle = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    bars = _bar("Splits", middle, counts, "$accent/0.75")
    bars["marker"]["color"] = ["$down/0.75" if each < 0 else "$accent/0.75" for each in middle]
    bars |= {"hovertemplate": "logit %{x:.2f}: %{y} splits<extra></extra>", "width": edges[1] - edges[0]}
    layout = {"bargap": 0.06, "xaxis": {"title": {"text": "Logit of the winner's rank out-of-sample"}}}
    return _chart([bars], layout | {"yaxis": {"title": {"text": "Splits"}}, "shapes": [_upright(0.0)]})


def degradation(found: Overfitting) -> Chart | None:
    """Out-of-sample over in-sample Sharpe of the splits' winners, with the fitted line."""
    points = found["degradation"]
    x, y = points["is_sharpe"], points["oos_sharpe"]
    if len(x) < 2:
        return None
    dots = {"type": "scatter", "mode": "markers", "name": "A split's winner", "x": [_figures(v) for v in x],
            "y": [_figures(v) for v in y], "marker": {"size": 6, "color": "$accent/0.55"},
            "hovertemplate": "in %{x:.2f}, out %{y:.2f}<extra></extra>"}  # fmt: skip
    data = [dots]
    if points["slope"] is not None and points["intercept"] is not None:
        ends = [min(x), max(x)]
        fit = [points["intercept"] + points["slope"] * each for each in ends]
        data.append(_line(f"Fit, slope {points['slope']:.2f}", ends, fit, "$second") | {"hoverinfo": "skip"})
    layout = {"xaxis": {"title": {"text": "Sharpe in-sample"}}, "yaxis": {"title": {"text": "Sharpe out-of-sample"}}}
    return _chart(data, layout)


def path_sharpes(found: CrossValidation) -> Chart | None:
    """The Sharpe ratio of each path through the combinatorial cross-validation, in rising order."""
    known = sorted(value for value in found["paths_sharpe"] if value is not None)
    if len(known) < 2:
        return None
    bars = _bar("Path", list(range(1, len(known) + 1)), [_figures(value) for value in known], "$accent")
    bars["marker"]["color"] = ["$down/0.8" if each < 0 else "$accent/0.8" for each in known]
    bars["hovertemplate"] = "Sharpe %{y:.2f}<extra></extra>"
    layout = {"xaxis": {"title": {"text": "Paths, from worst to best"}}, "yaxis": {"title": {"text": "Sharpe, yearly"}}}
    return _chart([bars], layout)


def best_so_far(generations: Sequence[Mapping[str, Any]], objective: str) -> Chart | None:
    """The first objective of the best set known after each generation."""
    metric = objective.lstrip("-+")
    known = [(each["generation"] + 1, each["best"][metric]) for each in generations if each["best"]]
    if not known:
        return None
    x, y = [each for each, _ in known], [_figures(value) for _, value in known]
    line = _line("Best so far", x, y, "$accent")
    line |= {"mode": "lines+markers", "line": {"color": "$accent", "width": 2, "shape": "hv"}}
    line["hovertemplate"] = "generation %{x}: %{y:.4~g}<extra></extra>"
    axis = {"title": {"text": label(metric)}, "tickformat": _tick(metric)}
    return _chart([line], {"xaxis": {"title": {"text": "Generation"}, "tickformat": "d"}, "yaxis": axis})


def pareto(
    points: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]], objectives: Sequence[str]
) -> Chart | None:
    """All sets and the Pareto front in the plane of the first two objectives."""
    if len(objectives) < 2 or not front:
        return None
    x, y = (each.lstrip("-+") for each in objectives[:2])
    others = {"type": "scatter", "mode": "markers", "name": "Sets", "x": [_figures(p[x]) for p in points],
              "y": [_figures(p[y]) for p in points], "marker": {"size": 5, "color": "$grey/0.6"},
              "text": [plain(p["text"]) for p in points], "hovertemplate": "%{text}<extra></extra>"}  # fmt: skip
    ordered = sorted(front, key=lambda one: (one["values"][x], one["values"][y]))
    edge = _line("Pareto front", [_figures(one["values"][x]) for one in ordered],
                 [_figures(one["values"][y]) for one in ordered], "$second")  # fmt: skip
    edge |= {
        "mode": "lines+markers",
        "marker": {"size": 9, "symbol": "diamond"},
        "line": {"color": "$second", "dash": "dot"},
    }
    edge |= {
        "text": [f"set {one['set_id']}" for one in ordered],
        "hovertemplate": "%{text}: %{x:.4~g}, %{y:.4~g}<extra></extra>",
    }
    less = " ↓"
    axes = {
        f"{key}axis": {
            "title": {"text": label(name) + (less if name in LOWER_IS_BETTER else "")},
            "tickformat": _tick(name),
        }
        for key, name in (("x", x), ("y", y))
    }
    return _chart([others, edge], axes)


def _chart(data: list[Chart], layout: Chart) -> Chart:
    if len(data) == 1 and "showlegend" not in layout:
        layout = layout | {"showlegend": False}
    return {"data": data, "layout": layout}


def _line(name: str, x: Sequence[Any], y: Sequence[Any], colour: str) -> Chart:
    line = {"color": colour, "width": 1.8}
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": line}


def _bar(name: str, x: Sequence[Any], y: Sequence[Any], colour: str) -> Chart:
    return {"type": "bar", "name": name, "x": list(x), "y": list(y), "marker": {"color": colour}}


def _upright(x: float, colour: str = "$faint") -> Chart:
    line = {"color": colour, "width": 1, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def _note(x: float, text: str, below: float = 0.0) -> Chart:
    return {"x": x, "yref": "paper", "y": 1 - below, "text": text, "showarrow": False, "xanchor": "left", "xshift": 4}


def _cost_text(point: Mapping[str, Any]) -> str:
    parts = [f"return {point['total_return']:+.1%}"]
    parts += [f"Sharpe {point['sharpe']:.2f}"] if point["sharpe"] is not None else []
    return (
        ", ".join([*parts, f"drawdown {point['max_drawdown']:.1%}"]) if point["max_drawdown"] is not None else parts[0]
    )


def _tick(metric: str) -> str:
    return "~%" if metric in WORDS and WORDS[metric].unit in {"percent", "signed"} else ",~g"


def _figures(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def plain(text: str) -> str:
    """Plotly reads a few HTML tags in texts; names from outside are shown as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
