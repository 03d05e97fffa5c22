"""The SMA-cross sweep side by side in one run: our engine, a loop written by hand, vectorbt and raptorbt.

    python -m tests.bench.bench_sweep [--quick] [--workload NAME …] [--runs N]      (after `make peers`)

Every run is a process of its own, the engines take turns, the figures are medians over the runs. Bars are in memory and
the engine is warm when the clock starts; moving averages, signals, accounts, and the outputs final equity, largest
drawdown, Sharpe ratio and number of round trips are timed, and the outputs are compared. Processor seconds are those of
all threads: on a machine that others use too they say more than wall seconds.

Workloads, with windows fast 5 … 101 by 4 and slow 110 … 500 by 10 (1,000 sets):
  long      1,000,000 minutes of one product, all sets
  products  100,000 minutes of 100 products, all sets
  small     2,148 days of one product, all sets
Engines that pay per bar are given every so many-th set (and the first products), because they would take minutes to
hours for all; what they need per set does not depend on the others, so nothing but ``all_s`` is extrapolated, and that
is marked. ``ours, same sets`` is our engine on exactly the sets that raptorbt got. ``round_trips`` is the mean per set.
Costs are a basis point a side and half of one of slippage: at the usual ones every set loses everything, on which
engines with absolute tolerances differ. What is traded, and so the work, is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from strategies.model import Float64Array, Granularity
from tests.peers.engine_runs import INTERPRETER, MADE, ROOT, peer_environment
from tests.peers.engines.sweep_work import OUTPUTS, SweepWork, save_work

SEED: Final = 42
SIGMA: Final = 0.8
"""A year's volatility of the made-up prices."""
FEE: Final = 1e-4
SLIPPAGE: Final = 0.5e-4
RUN_TIMEOUT_S: Final = 3_600.0
CLOSE_TO: Final = 1e-9
AGREEING_MIN: Final = 0.9
GOALS: Final = {"raptorbt": 10.0, "vectorbt": 70.0}
OURS: Final = ("ours", "ours, same sets", "general", "loop")


@dataclass(frozen=True)
class Share:
    """The part of a workload that an engine is given: every ``stride``-th set on the first ``products``."""

    stride: int
    products: int


@dataclass(frozen=True)
class Workload:
    """So many bars of so many products, and what each engine is given of it."""

    name: str
    bars: int
    products: int
    granularity: Granularity
    shares: dict[str, Share]


def _shares(products: int, raptorbt: int, vectorbt: int, given: int = 1) -> dict[str, Share]:
    """Strides by engine; ours gets everything, who pays per bar gets ``given`` products."""
    return {
        "ours": Share(1, products),
        "ours, same sets": Share(raptorbt, given),
        "general": Share(raptorbt, given),
        "loop": Share(raptorbt, given),
        "raptorbt": Share(raptorbt, given),
        "vectorbt": Share(vectorbt, given),
    }


FULL: Final = (
    Workload("long", 1_000_000, 1, Granularity.ONE_MINUTE, _shares(1, 25, 50)),
    Workload("products", 100_000, 100, Granularity.ONE_MINUTE, _shares(100, 25, 50, given=5)),
    Workload("small", 2_148, 1, Granularity.ONE_DAY, _shares(1, 1, 1)),
)
QUICK: Final = (
    Workload("long", 20_000, 1, Granularity.ONE_MINUTE, _shares(1, 250, 250)),
    Workload("products", 5_000, 4, Granularity.ONE_MINUTE, _shares(4, 250, 250, given=2)),
    Workload("small", 600, 1, Granularity.ONE_DAY, _shares(1, 20, 100)),
)


def main() -> int:
    """Measure and print; 1 where the engines' outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each engine on each workload, in turn")
    parser.add_argument("--workload", action="append", choices=[one.name for one in FULL], help="only this one")
    parser.add_argument("--quick", action="store_true", help="small and once; only shows that it works")
    options = parser.parse_args()
    workloads = [one for one in (QUICK if options.quick else FULL) if one.name in (options.workload or one.name)]
    runs = 1 if options.quick else options.runs
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
        measured = {one.name: measure(one, runs, Path(folder)) for one in workloads}
    report = {
        "benchmark": "SMA-cross sweep beside other engines",
        "machine": {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
        "peers": "installed" if MADE.is_file() else "absent: make peers",
        "seed": SEED,
        "runs": runs,
        "goals_processor": GOALS,
        "workloads": measured,
    }
    print(json.dumps(report, indent=1))
    for name, rows in measured.items():
        print(f"\n{name}\n{table_of(rows)}", file=sys.stderr)
    return 0 if all(row["agrees"] for rows in measured.values() for row in rows) else 1


def measure(workload: Workload, runs: int, folder: Path) -> list[dict[str, Any]]:
    """A row an engine, medians over ``runs``."""
    whole = made_up(workload)
    engines = [name for name in workload.shares if name in OURS or MADE.is_file()]
    files: dict[str, Path] = {}
    tables: dict[str, Float64Array] = {}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for name in engines:
        files[name] = folder / f"{workload.name}-{len(files)}.npz"
        save_work(str(files[name]), part_of(whole, workload.shares[name]))
    for _ in range(runs):
        for name in engines:
            result = folder / "result.npy"
            times[name].append(_timed(name, files[name], result))
            tables[name] = np.load(result)
    rows = []
    for name in engines:
        row = _row(name, part_of(whole, workload.shares[name]), whole, times[name])
        rows.append(row | _compared(whole, workload.shares[name], tables[name], tables["ours"]))
    ours = next(row for row in rows if row["engine"] == "ours")
    for row in rows:
        row["ours_faster_processor"] = round(ours["mev_per_processor_s"] / row["mev_per_processor_s"], 1)
        row["ours_faster_wall"] = round(ours["mev_per_s"] / row["mev_per_s"], 1)
    for path in files.values():
        path.unlink()
    return rows


def made_up(workload: Workload) -> SweepWork:
    """Seeded geometric random walks without drift, gaps or spread: a bar opens where the one before closed."""
    draw = np.random.default_rng(SEED)
    step = SIGMA * np.sqrt(workload.granularity.seconds / (365.25 * 86_400))
    shape = (workload.products, workload.bars)
    close = 100.0 * np.exp(np.cumsum(step * draw.standard_normal(shape), axis=1))
    open_ = np.concatenate([np.full((workload.products, 1), 100.0), close[:, :-1]], axis=1)
    fast, slow = np.meshgrid(np.arange(5, 102, 4), np.arange(110, 501, 10), indexing="ij")
    return SweepWork(
        1_704_067_200_000_000_000 + np.arange(workload.bars, dtype=np.int64) * workload.granularity.ns,
        open_,
        np.maximum(open_, close),
        np.minimum(open_, close),
        close,
        fast.ravel(),
        slow.ravel(),
        FEE,
        SLIPPAGE,
        10_000.0,
    )


def part_of(whole: SweepWork, share: Share) -> SweepWork:
    """What one engine is given."""
    prices = {name: getattr(whole, name)[: share.products] for name in ("open", "high", "low", "close")}
    return replace(whole, **prices, fast=whole.fast[_chosen(share)], slow=whole.slow[_chosen(share)])


def _chosen(share: Share) -> slice:
    return slice(share.stride // 2, None, share.stride)


def _timed(name: str, work: Path, result: Path) -> dict[str, float]:
    """One run of one engine in a process of its own."""
    if name in OURS:
        command = [sys.executable, "-m", "tests.bench.sweep_ours", name.split(",")[0]]
        environment = dict(os.environ)
    else:
        command = [str(INTERPRETER), "-m", f"tests.peers.engines.sweep_{name}"]
        environment = peer_environment()
    done = subprocess.run(
        [*command, str(work), str(result)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-4_000:]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def _row(name: str, part: SweepWork, whole: SweepWork, times: list[dict[str, float]]) -> dict[str, Any]:
    middle = {key: statistics.median(run[key] for run in times) for key in times[0]}
    return {
        "engine": name,
        "products": len(part.close),
        "sets": len(part.fast),
        "evaluations": part.evaluations,
        "wall_s": round(middle["wall_s"], 4),
        "processor_s": round(middle["processor_s"], 4),
        "mev_per_s": round(part.evaluations / middle["wall_s"] / 1e6, 3),
        "mev_per_processor_s": round(part.evaluations / middle["processor_s"] / 1e6, 3),
        "peak_rss_mb": round(max(run["peak_rss_mb"] for run in times)),
        "all_s": round(middle["wall_s"] * whole.evaluations / part.evaluations, 2),
        "all_s_is_extrapolated": part.evaluations != whole.evaluations,
        "load": round(middle["load"], 1),
        "wall_s_by_run": [round(run["wall_s"], 4) for run in times],
        "processor_s_by_run": [round(run["processor_s"], 4) for run in times],
    }


def _compared(whole: SweepWork, share: Share, table: Float64Array, ours: Float64Array) -> dict[str, Any]:
    """Which share of an engine's sets has our outputs on the same set and product, and the largest differences.

    Sharpe: both peers count a first return of 0 that ours has not, one among all bars. A mean that differs from another
    in its last digits crosses a bar earlier or later once in some ten million bars, so not quite every set agrees.
    """
    mine = ours[: share.products, _chosen(share)]
    bars = whole.close.shape[1]
    allowed = np.array([CLOSE_TO, CLOSE_TO, 2.0 / bars, 0.0])
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = np.abs(table - mine) / np.abs(mine)
    # Without a fill there is no drawdown, and no Sharpe ratio: not a number with us, 0 or infinite with others.
    idle = (mine[:, :, -1:] == 0) & (table[:, :, -1:] == 0) & ~np.isfinite(differences)
    differences[(table == mine) | idle] = 0.0
    agreeing = np.all(differences <= allowed, axis=2)
    largest = differences[agreeing].max(axis=0, initial=0.0).tolist()
    share_agreeing = float(agreeing.mean())
    return {
        "round_trips": round(float(table[:, :, OUTPUTS.index("round_trips")].mean()), 1),
        "sets_agreeing": round(share_agreeing, 4),
        "largest_difference_of_those": {name: float(f"{x:.2g}") for name, x in zip(OUTPUTS, largest, strict=True)},
        "agrees": share_agreeing >= AGREEING_MIN,
    }


def table_of(rows: list[dict[str, Any]]) -> str:
    """The figures as columns of text; * marks what is extrapolated."""
    heads = ("engine", "sets", "wall s", "CPU s", "Mev/s", "Mev/CPU-s", "RSS MB", "all sets s", "ours x CPU", "x wall")
    lines = [[*heads, "round trips", "agree"]]
    for row in rows:
        mark = "*" if row["all_s_is_extrapolated"] else ""
        figures = [row[key] for key in ("wall_s", "processor_s", "mev_per_s", "mev_per_processor_s", "peak_rss_mb")]
        ratios = [row["ours_faster_processor"], row["ours_faster_wall"], row["round_trips"], row["sets_agreeing"]]
        sets = f"{row['products']} x {row['sets']}"
        lines.append([str(cell) for cell in (row["engine"], sets, *figures, f"{row['all_s']}{mark}", *ratios)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
