"""Is a strategy file fit to run: compiled like plain, twice the same, in range, and without a look ahead?

``check`` does it in this process; ``check_apart`` in one of its own (``python -m strategies.user_check FILE``), which
may loop for ever, use up its memory or crash without harm. What is found is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import math
import numbers
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from strategies.base import BarStep, Strategy, parameters_of
from strategies.causality import made_up_bars, target_leaks
from strategies.compiled import plain, read_only
from strategies.model import Bars, Float64Array, Granularity
from strategies.user_errors import SourceText, StrategyFileError, told
from strategies.user_file import check_text, load, read, source_text

# Of CPU: what else the machine does must not make a strategy unfit. The wall's clock is for what waits and works not.
CPU_MAX_S: Final = 60.0
WALL_PER_CPU: Final = 20.0
BARS: Final = 1_500
BARS_MAX: Final = 20_000
MEMORY_MAX: Final = 4 * 1024**3
QUICK_SETS: Final = 3
SETS: Final = 12
SETS_WITH_CAUSALITY: Final = 4
# Windows are drawn up to here, so that most fill within the bars.
DRAWN_MAX: Final = 130
# Compiled and plain may differ by so much where a library's logarithm or power rounds another way.
ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Finding:
    """What is wrong, or worth knowing, at a line (0: the file as a whole)."""

    severity: Literal["error", "warning"]
    line: int
    text: str
    rule: str


@dataclass(frozen=True)
class Report:
    """The outcome: ``ok`` where nothing found is an error. ``warm_up_bars`` with the default parameters."""

    file: str
    strategy: str = ""
    sha256: str = ""
    title: str = ""
    parameters: list[dict[str, Any]] = field(default_factory=list)
    bars: int = 0
    parameter_sets: int = 0
    warm_up_bars: int | None = None
    cuts_tried: int = 0
    evaluations_per_s: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the file may be used."""
        return all(finding.severity != "error" for finding in self.findings)

    def first_error(self) -> StrategyFileError:
        """The first error found, as an error."""
        first = next(finding for finding in self.findings if finding.severity == "error")
        return StrategyFileError(self.file, first.line, first.text, first.rule)


def check_apart(path: Path, bars: Bars | None = None, *, quick: bool = False, cpu_max_s: float = CPU_MAX_S) -> Report:
    """``check`` of the file at ``path`` in a process of its own, ended after ``cpu_max_s`` of work."""
    with tempfile.TemporaryDirectory(prefix="desk-strategy-") as folder:
        words = [sys.executable, "-m", "strategies.user_check", str(path.absolute()), "--report", f"{folder}/report"]
        words += ["--cpu-max", str(cpu_max_s), *(["--quick"] if quick else [])]
        if bars is not None:
            _write_bars(Path(folder) / "bars.npz", bars)
            words += ["--bars", f"{folder}/bars.npz"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "PYTHONSAFEPATH": "1"}
        try:
            # The process ends itself, saying where it was; this end is for one that does not even work.
            done = subprocess.run(
                words, env=environment, cwd=folder, capture_output=True, text=True, errors="replace",
                timeout=cpu_max_s * WALL_PER_CPU, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            ended, said = done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            ended, said = -signal.SIGALRM, f"{error.timeout:g} s passed"
        try:
            return _report(json.loads((Path(folder) / "report").read_text()))
        except (OSError, ValueError):
            return Report(path.name, findings=[_unfinished(path, ended, said, cpu_max_s)])


def check(path: Path, bars: Bars | None = None, *, quick: bool = False) -> Report:
    """Everything that can be found wrong with the file at ``path``, tried on ``bars`` (else made up ones)."""
    try:
        file = read(path)
        source = source_text(file)
    except StrategyFileError as error:
        return Report(path.name, findings=[_finding(error)])
    report = Report(file.shown, file.strategy_name, file.sha256)
    problems = check_text(file, source)
    if problems:
        return dataclasses.replace(report, findings=[_finding(problem) for problem in problems])
    try:
        strategy = load(file)
        return _tried(report, source, strategy, made_up_bars(BARS) if bars is None else bars, quick)
    except StrategyFileError as error:
        return dataclasses.replace(report, findings=[_finding(error)])


def _tried(report: Report, source: SourceText, strategy: Strategy, bars: Bars, quick: bool) -> Report:
    """Run it: plain first, because the interpreter names every line; then compiled, then against changed futures."""
    vectors = _vectors(strategy, QUICK_SETS if quick else SETS)
    first = _Trial(source, strategy, bars)
    plainly = [first.plain_targets(vector) for vector in vectors]
    first.start_at_the_highest()
    first.compile(vectors[0])
    compiled, spent_s = first.compiled_targets(vectors)
    findings = first.compare(vectors, plainly, compiled)
    leaks = [leak for vector in vectors[: 1 if quick else SETS_WITH_CAUSALITY] for leak in first.leaks(vector)]
    findings += [Finding("error", first.step_line, "def on_bar(…)", f"looks ahead: {leak}") for leak in leaks[:1]]
    findings += first.oddities(vectors, compiled)
    table = [dataclasses.asdict(info) for info in parameters_of(strategy.params)]
    return dataclasses.replace(
        report,
        title=strategy.title,
        parameters=table,
        bars=len(bars),
        parameter_sets=len(vectors),
        warm_up_bars=int(np.argmin(np.isnan(plainly[0]))) if not np.isnan(plainly[0]).all() else None,
        cuts_tried=first.cuts_tried,
        evaluations_per_s=round(len(vectors) * len(bars) / spent_s) if spent_s > 0 else None,
        findings=findings,
    )


class _Trial:
    """One strategy on one series, in the steps of a check; each raises ``StrategyFileError`` where it cannot go on."""

    def __init__(self, source: SourceText, strategy: Strategy, bars: Bars) -> None:
        self._source, self._strategy, self._bars = source, strategy, bars
        self._columns = [read_only(column) for column in (bars.open, bars.high, bars.low, bars.close, bars.volume)]
        self.step_line = source.line_of(r"def on_bar\b")
        self._start_line = source.line_of(r"def start\b")
        self.cuts_tried = 0

    def plain_targets(self, vector: Float64Array) -> Float64Array:
        """Bar by bar through the interpreter, every result looked at."""
        given = self._given(vector)
        start, step = plain(self._strategy.start), plain(self._strategy.on_bar)
        try:
            state = start(read_only(vector))
        except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
            raise told(self._source, error, f"start with {given}", self._start_line) from None
        target = np.empty(len(self._bars))
        vector = read_only(vector)
        for i, row in enumerate(zip(*(column.tolist() for column in self._columns), strict=True)):
            where = f"on_bar at bar {i} with {given}"
            try:
                result = step(vector, state, BarStep(*row))
            except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
                raise told(self._source, error, where, self.step_line) from None
            state, target[i] = self._taken_apart(result, where)
        return target

    def start_at_the_highest(self) -> None:
        """A grid may ask for every parameter's highest value; its state must fit into memory."""
        highest = np.array([info.high for info in parameters_of(self._strategy.params)])
        try:
            plain(self._strategy.start)(highest)
        except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
            where = f"start with every parameter at its highest ({self._given(highest)})"
            raise told(self._source, error, where, self._start_line) from None

    def compile(self, vector: Float64Array) -> None:
        """Compile each function by itself, so that an error is its own, and compare the kinds of the states."""
        functions: dict[str, Any] = {"start": self._strategy.start, "on_bar": self._strategy.on_bar}
        first = BarStep(*(float(column[0]) for column in self._columns))
        state: Any = None
        for name, line in (("start", self._start_line), ("on_bar", self.step_line)):
            try:
                arguments = (read_only(vector),) if name == "start" else (read_only(vector), state, first)
                result = functions[name](*arguments)
                state = result if name == "start" else result[0]
            except Exception as error:  # noqa: BLE001 -- the compiler raises many kinds
                raise told(self._source, error, name, line) from None
        begun, moved = (functions[name].nopython_signatures[-1].return_type for name in ("start", "on_bar"))
        parts = getattr(moved, "types", None)
        if parts is None or len(parts) != 2:
            raise self._source.error(
                self.step_line, f"on_bar returns (state, target) on every path; here it is {moved}"
            )
        if parts[0] != begun:
            rule = f"on_bar returns another kind of state than start: {_kinds_apart(begun, parts[0])}"
            raise self._source.error(self.step_line, rule)

    def compiled_targets(self, vectors: Sequence[Float64Array]) -> tuple[list[Float64Array], float]:
        """The loop over all ``vectors``, and the seconds of CPU it took once compiled."""
        loop = self._strategy.targets
        loop(read_only(vectors[0]), *(column[:2] for column in self._columns))
        began_s = time.process_time()
        found = [loop(read_only(vector), *self._columns) for vector in vectors]
        return found, time.process_time() - began_s

    def compare(
        self, vectors: Sequence[Float64Array], plainly: Sequence[Float64Array], compiled: Sequence[Float64Array]
    ) -> list[Finding]:
        """Plain against compiled, and each against itself run again."""
        for vector, one, two in zip(vectors, plainly, compiled, strict=True):
            for kind, before, again in (
                ("compiled code", two, self._strategy.targets(read_only(vector), *self._columns)),
                ("the interpreter", one, self.plain_targets(vector)),
            ):
                bar = _first_difference(before, again)
                if bar is not None:
                    rule = (
                        f"run twice by {kind} it gives different targets (bar {bar}: {before[bar]:g}, then "
                        f"{again[bar]:g}, with {self._given(vector)}): something in it is chance, a clock, or kept "
                        "outside the state"
                    )
                    return [self._at_step("error", rule)]
            bar = _first_difference(one, two)
            if bar is not None:
                apart = abs(one[bar] - two[bar])
                rule = (
                    f"compiled it gives another target than in plain Python at bar {bar} ({two[bar]!r} and "
                    f"{one[bar]!r}, with {self._given(vector)}); only + - * / and math.sqrt are the same everywhere"
                )
                return [self._at_step("warning" if apart <= ROUNDING else "error", rule)]
        return []

    def leaks(self, vector: Float64Array) -> list[Any]:
        """The causality check with these parameters."""
        from strategies.causality import CHANGES, cuts_of

        cuts = cuts_of(len(self._bars))
        self.cuts_tried += len(cuts) * len(CHANGES)
        return target_leaks(self._strategy.targets, vector, self._bars, cuts)

    def oddities(self, vectors: Sequence[Float64Array], compiled: Sequence[Float64Array]) -> list[Finding]:
        """What is allowed but hardly meant."""
        default = compiled[0]
        if np.isnan(default).all():
            rule = f"with its defaults it never leaves the warm-up in {len(default)} bars: no target but nan"
            return [self._at_step("warning", rule)]
        held = np.nan_to_num(default)
        if not np.any(held != held[-1]) and all(len(np.unique(np.nan_to_num(one))) == 1 for one in compiled):
            return [self._at_step("warning", f"its targets never change in {len(default)} bars")]
        other = made_up_bars(len(self._bars), seed=99)
        columns = (other.open, other.high, other.low, other.close, other.volume)
        elsewhere = self._strategy.targets(read_only(vectors[0]), *(read_only(column) for column in columns))
        settled = held[np.argmin(np.isnan(default)) :]
        if _first_difference(default, elsewhere) is None and np.any(settled != settled[0]):
            return [
                self._at_step("error", "its targets move but do not depend on the bars: what does it know them from?")
            ]
        return []

    def _taken_apart(self, result: object, where: str) -> tuple[Any, float]:
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._source.error(self.step_line, f"{where}: expected (state, target), was {_short(result)}")
        state, target = result
        if not isinstance(target, numbers.Real):
            raise self._source.error(self.step_line, f"{where}: the target is {_short(target)}, not a number")
        value = float(target)
        if not (math.isnan(value) or -1.0 <= value <= 1.0):
            rule = f"{where}: the target is {value:g}; a target lies in -1 … 1, or is nan while warming up"
            raise self._source.error(self.step_line, rule)
        return state, value

    def _at_step(self, severity: Literal["error", "warning"], rule: str) -> Finding:
        error = self._source.error(self.step_line, rule)
        return Finding(severity, error.line, error.text, error.rule)

    def _given(self, vector: Float64Array) -> str:
        names = self._strategy.params.names()
        given = ", ".join(f"{name}={value:g}" for name, value in zip(names, vector.tolist(), strict=True))
        return given or "no parameters"


def _vectors(strategy: Strategy, count: int) -> list[Float64Array]:
    """The defaults, the lowest values where the rules between them allow it, and random ones with short windows."""
    table = parameters_of(strategy.params)
    vectors = [strategy.params().vector()]
    lowest = np.array([info.low for info in table])
    if table and strategy.params.keeps_order(lowest[np.newaxis])[0]:
        vectors.append(lowest)
    random = np.random.default_rng(11)
    for _ in range(50 * count):
        if len(vectors) >= count or not table:
            break
        drawn = [
            float(random.integers(int(info.low), int(max(info.low, min(info.high, DRAWN_MAX))) + 1))
            if info.kind == "int"
            else random.uniform(info.low, info.high)
            for info in table
        ]
        vector = np.array(drawn)
        if strategy.params.keeps_order(vector[np.newaxis])[0]:
            vectors.append(vector)
    return vectors


def _first_difference(one: Float64Array, two: Float64Array) -> int | None:
    """The first bar on which they differ by a bit (which not-a-number it is does not count)."""
    unequal = (one.view(np.int64) != two.view(np.int64)) & ~(np.isnan(one) & np.isnan(two))
    return int(np.argmax(unequal)) if unequal.any() else None


def _kinds_apart(begun: Any, moved: Any) -> str:
    names = getattr(begun, "fields", None)
    if names is not None and getattr(moved, "instance_class", None) is getattr(begun, "instance_class", None):
        pairs = zip(names, begun.types, moved.types, strict=True)
        apart = [f"{name} is {two}, was {one}" for name, one, two in pairs if one != two]
        return ", ".join(apart) + " (0 and 0.0 are of different kinds)"
    return f"{moved}, was {begun}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _finding(error: StrategyFileError) -> Finding:
    return Finding("error", error.line, error.text, error.rule)


# -- the process of its own --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one file and write the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m strategies.user_check", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--bars", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-max", type=float, default=CPU_MAX_S)
    options = parser.parse_args(arguments)
    # Where it hangs is told by its own stack, in which each of the user's frames names a line; then the signal ends it.
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)
    signal.setitimer(signal.ITIMER_PROF, options.cpu_max)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX, MEMORY_MAX))
    bars = None if options.bars is None else _read_bars(options.bars)
    said = os.dup(1)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        report = check(options.file, bars, quick=options.quick)
        sys.stdout.flush()
        os.dup2(said, 1)
        printed.seek(0)
        text = " ".join(printed.read(200).decode(errors="replace").split())
    if text:
        rule = f"it prints ({text[:60]!r} …): it runs for every bar of every parameter set"
        report = dataclasses.replace(report, findings=[*report.findings, Finding("error", 0, "", rule)])
    options.report.write_text(json.dumps(dataclasses.asdict(report), allow_nan=False))
    return 0 if report.ok else 1


def _report(content: dict[str, Any]) -> Report:
    return Report(**{**content, "findings": [Finding(**finding) for finding in content["findings"]]})


def _unfinished(path: Path, ended: int, said: str, cpu_max_s: float) -> Finding:
    """Why the process left no report, and at which of the user's lines it was."""
    frames = re.findall(rf'File "[^"]*/users-[0-9a-f]+/{re.escape(path.name)}", line (\d+)', said)
    line = int(frames[0]) if frames else 0
    try:
        lines = read(path).text.splitlines()
    except StrategyFileError:
        lines = []
    line = line if line <= len(lines) else 0
    text = lines[line - 1].strip()[:200] if line else ""
    if ended in {-signal.SIGPROF, -signal.SIGALRM}:
        rule = f"no end after {cpu_max_s:g} s of work: an endless loop, or far too much to do for a bar?"
    elif ended < 0:
        rule = f"the process that tried it was ended by {signal.Signals(-ended).name}: too much memory, or a crash?"
    else:
        last = next((word for word in reversed(said.splitlines()) if word.strip()), f"exit status {ended}")
        rule = f"the process that tried it ended early: {last[:200]}"
    return Finding("error", line, text, rule)


def _write_bars(path: Path, bars: Bars) -> None:
    columns = {name: getattr(bars, name) for name in ("ts_ns", "open", "high", "low", "close", "volume")}
    np.savez(path, product_id=bars.product_id, granularity=str(bars.granularity), allow_pickle=False, **columns)


def _read_bars(path: Path) -> Bars:
    with np.load(path, allow_pickle=False) as held:
        columns = [held[name] for name in ("ts_ns", "open", "high", "low", "close", "volume")]
        return Bars(str(held["product_id"]), Granularity(str(held["granularity"])), *columns)


if __name__ == "__main__":
    sys.exit(main())
