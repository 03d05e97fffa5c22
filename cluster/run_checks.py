"""Whether runs are of the same thing: what their records and specifications differ in, and what that means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cluster.run_folder import RunRecord

Identity = tuple[RunRecord, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Check:
    """``level``: good (the same), note (nothing to worry about), doubtful, or bad (figures are not comparable).

    ``values`` are the runs' own, in their order.
    """

    about: str
    level: str
    values: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of the specifications by its dotted name; a run that has no such field is not among ``values``."""

    field: str
    values: dict[str, Any]


# How much more sets one run may have than another before that is worth a word.
MANY_MORE: Final = 2


def differences_of(specs: Mapping[str, Mapping[str, Any]]) -> tuple[Difference, ...]:
    """The fields in which specifications (by run id) differ; ``grids[sma_cross].grid.fast`` is an axis."""
    flat = {run_id: dict(_flat("", spec)) for run_id, spec in specs.items()}
    names = dict.fromkeys(name for fields in flat.values() for name in fields)
    found = []
    for name in names:
        values = {run_id: fields[name] for run_id, fields in flat.items() if name in fields}
        if len(values) < len(flat) or any(value != next(iter(values.values())) for value in values.values()):
            found.append(Difference(name, values))
    return tuple(found)


def checks_of(runs: Sequence[Identity]) -> tuple[Check, ...]:
    """What must be the same for figures to be comparable, and what one should know where it is not."""
    records = [record for record, _ in runs]
    return (
        _check("bars", [f"{one.product_id} {one.granularity}" for one in records], "bad",
               "Other products or bars of another length."),
        _check("period", [_period(one) for one in records], "bad", "Another stretch of time.",
               [(one.first_ts_ns, one.last_ts_ns, one.bar_count) for one in records]),
        _check("data hash", [one.data_hash[:16] for one in records], "bad",
               "The bars are not the same numbers; where product and period are, they were corrected in between.",
               [one.data_hash for one in records]),
        _check("source of the bars", [one.data_source for one in records], "bad", "Other sources of bars."),
        _model("costs", runs),
        _model("sizing", runs),
        _check("decisions", [str(spec.get("decide_on") or one.granularity) for one, spec in runs], "bad",
               "The strategies decide on bars of another length."),
        _check("held-out bars", [held_out_of(one) for one in records], "doubtful",
               "In-sample and out-of-sample are other bars, so these figures are not comparable.",
               [one.cuts for one in records]),
        _check("engine", [one.code_hash[:16] for one in records], "doubtful",
               "Another version of the engine computed them; what it changed the sets in common show.",
               [one.code_hash for one in records]),
        _strategy_files(runs),
        _check("sorted by", [str(spec.get("sort_by")) for _, spec in runs], "note",
               "Best means something else; use --sort-by."),
        _sets(records),
    )  # fmt: skip


def _check(
    about: str, values: Sequence[str], level: str, sentence: str, compared: Sequence[object] | None = None
) -> Check:
    same = len(set(compared or values)) == 1
    return Check(about, "good" if same else level, tuple(values), "The same." if same else sentence)


def _model(part: str, runs: Sequence[Identity]) -> Check:
    """Costs or sizing; what a specification of an earlier version does not name was what its default means."""
    from strategies.spec import Costs, Sizing

    defaults = dict(_flat("", (Costs() if part == "costs" else Sizing()).model_dump(mode="json")))
    full = [defaults | dict(_flat("", spec.get(part) or {})) for _, spec in runs]
    names = [
        name
        for name in dict.fromkeys(name for one in full for name in one)
        if len({str(one.get(name)) for one in full}) > 1
    ]
    values = [", ".join(f"{name} {_text(one.get(name))}" for name in names) or "the same" for one in full]
    sentence = f"Other {part}: {', '.join(names)}."
    return _check(part, values, "bad", sentence)


def _strategy_files(runs: Sequence[Identity]) -> Check:
    """Users' own strategies by name: a name carries the hash of its file."""
    files = [dict(sorted(name.split("@", 1) for name in _strategies(spec) if "@" in name)) for _, spec in runs]
    changed = [name for name in files[0] if any(name in one and one[name] != files[0][name] for one in files[1:])]
    values = [", ".join(f"{name}@{tag[:8]}" for name, tag in one.items()) or "shipped ones" for one in files]
    sentence = f"The file of {', '.join(changed)} has changed; what that did the sets in common show."
    return _check("strategy files", values, "note", sentence, None if changed else ["same"] * len(files))


def _sets(records: Sequence[RunRecord]) -> Check:
    counts = [record.set_count for record in records]
    alike = max(counts) < MANY_MORE * min(counts)
    sentence = "The best of more sets is the luckier one: compare the deflated Sharpe ratios rather than the Sharpe."
    values = [f"{count:,} sets" for count in counts]
    return _check("sets tried", values, "note", sentence, ["alike"] * len(counts) if alike else None)


def _strategies(spec: Mapping[str, Any]) -> list[str]:
    grids = spec.get("grids")
    return [str(grid.get("strategy")) for grid in grids if isinstance(grid, dict)] if isinstance(grids, list) else []


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; a list is one, but grids, which are named by their strategies."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{path}.{key}".strip("."), part)
        return
    grids = [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
    if not grids or not all("strategy" in part for part in grids):
        yield path, value
        return
    seen: dict[str, int] = {}
    for part in grids:
        name = str(part["strategy"]).partition("@")[0]
        seen[name] = seen.get(name, 0) + 1
        yield from _flat(f"{path}[{name}{f'#{seen[name]}' if seen[name] > 1 else ''}]", part)


def held_out_of(record: RunRecord) -> str:
    """From which bar on they are held out; raises ``SpecError`` for cuts nobody plans."""
    import numpy as np

    from strategies.segments import Segments

    if not record.cuts:
        return "not known"
    segments = Segments(np.array(record.cuts, dtype=np.int64))
    return "none" if segments.too_short else f"from bar {record.cuts[2 * segments.first_held_out]:,}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(":".join(map(_text, one.values())) for one in value) or "none"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _period(record: RunRecord) -> str:
    return f"{_day(record.first_ts_ns)} to {_day(record.last_ts_ns)}, {record.bar_count} bars"


def _day(ts_ns: int) -> str:
    return f"{datetime.fromtimestamp(ts_ns // 10**9, UTC):%Y-%m-%d %H:%M}"
