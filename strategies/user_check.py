"""Is a strategy file fit to run: compiled like plain, twice the same, in range, and without a look ahead?

``check`` does it in this process; ``check_apart`` in one of its own (``python -m strategies.user_check FILE``), which
may loop for ever, use up its memory or crash without harm. What is found is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from strategies.base import AnyStrategy, parameters_of
from strategies.model import Bars, Granularity
from strategies.panel import Panel
from strategies.user_errors import SourceText, StrategyFileError
from strategies.user_file import check_text, load, read, source_text
from strategies.user_trial import Finding, trial_of, vectors_of, warm_up_of

# Of CPU: what else the machine does must not make a strategy unfit. The wall's clock is for what waits and works not.
CPU_MAX_S: Final = 60.0
WALL_PER_CPU: Final = 20.0
BARS: Final = 1_500
BARS_MAX: Final = 20_000
MEMORY_MAX: Final = 4 * 1024**3
QUICK_SETS: Final = 3
SETS: Final = 12
SETS_WITH_CAUSALITY: Final = 4


@dataclass(frozen=True)
class Report:
    """The outcome: ``ok`` where nothing found is an error. ``warm_up_bars`` with the default parameters."""

    file: str
    strategy: str = ""
    sha256: str = ""
    kind: str = ""
    title: str = ""
    parameters: list[dict[str, Any]] = field(default_factory=list)
    bars: int = 0
    products: int = 1
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


def check_apart(
    path: Path, bars: Bars | Panel | None = None, *, quick: bool = False, cpu_max_s: float = CPU_MAX_S
) -> Report:
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


def check(path: Path, bars: Bars | Panel | None = None, *, quick: bool = False) -> Report:
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
        return _tried(report, source, strategy, bars, quick)
    except StrategyFileError as error:
        return dataclasses.replace(report, findings=[_finding(error)])


def _tried(report: Report, source: SourceText, strategy: AnyStrategy, bars: Bars | Panel | None, quick: bool) -> Report:
    """Run it: plain first, because the interpreter names every line; then compiled, then against changed futures."""
    first = trial_of(source, strategy, bars, BARS)
    vectors = vectors_of(strategy, QUICK_SETS if quick else SETS, first.products)
    plainly = [first.plain_targets(vector) for vector in vectors]
    first.start_at_the_highest()
    first.compile(vectors[0])
    compiled, spent_s = first.compiled_targets(vectors)
    findings = first.compare(vectors, plainly, compiled)
    leaks = [leak for vector in vectors[: 1 if quick else SETS_WITH_CAUSALITY] for leak in first.leaks(vector)]
    findings += [
        Finding("error", first.step_line, f"def {first.step}(…)", f"looks ahead: {leak}") for leak in leaks[:1]
    ]
    findings += first.oddities(vectors, compiled)
    table = [dataclasses.asdict(info) for info in parameters_of(strategy.params)]
    length = len(plainly[0])
    return dataclasses.replace(
        report,
        kind=strategy.kind,
        title=strategy.title,
        parameters=table,
        bars=length,
        products=first.products,
        parameter_sets=len(vectors),
        warm_up_bars=warm_up_of(plainly[0]) if not np.isnan(plainly[0]).all() else None,
        cuts_tried=first.cuts_tried,
        evaluations_per_s=round(len(vectors) * length / spent_s) if spent_s > 0 else None,
        findings=findings,
    )


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


def _write_bars(path: Path, bars: Bars | Panel) -> None:
    names: tuple[str, ...] = ("ts_ns", "open", "high", "low", "close", "volume")
    ids = bars.product_ids if isinstance(bars, Panel) else (bars.product_id,)
    columns = {name: getattr(bars, name) for name in names}
    np.savez(path, product_ids=np.array(ids), granularity=str(bars.granularity), allow_pickle=False, **columns)


def _read_bars(path: Path) -> Bars | Panel:
    with np.load(path, allow_pickle=False) as held:
        ts_ns, *columns = [held[name] for name in ("ts_ns", "open", "high", "low", "close", "volume")]
        ids, granularity = tuple(held["product_ids"].tolist()), Granularity(str(held["granularity"]))
        if columns[0].ndim == 1:
            return Bars(ids[0], granularity, ts_ns, *columns)
        return Panel(ids, granularity, ts_ns, *(np.asfortranarray(column) for column in columns))


if __name__ == "__main__":
    sys.exit(main())
