"""What honesty costs beside a sweep: seconds of one core and memory for its columns and its page, as JSON.

    python -m tests.bench.bench_honesty [sets …]

Made-up moments of that many sets of a grid in 16 folds; the best set's curve has 20,000 bars. Times are those of the
thread, so what else runs on the machine does not count. The moments themselves are in the memory shown.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
import time
from typing import Any, Final

import numpy as np

from jobs.honesty import Group, Study, columns_of, page_of
from strategies.backtest import FILL_DTYPE, BacktestSpec, Result
from strategies.metrics import MOMENTS
from strategies.model import Granularity
from strategies.parameters import ParameterInfo
from strategies.segments import Segments, plan_segments

SEED: Final = 42
BARS: Final = 20_000
AXES: Final = 3
TABLE: Final = tuple(ParameterInfo(f"axis_{axis}", "int", 0, 0, 1e9, "") for axis in range(AXES))


def main(counts: list[int]) -> None:
    report = {
        "bench": "honesty",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "bars": BARS,
        "seed": SEED,
        "by_sets": [cost_of(count) for count in sorted(counts)],
    }
    print(json.dumps(report, indent=2))


def cost_of(sets: int) -> dict[str, Any]:
    study, result = made_up(sets)
    began_s = time.thread_time()
    columns = columns_of(study)
    columns_s = time.thread_time() - began_s
    page = page_of(study, columns, int(np.nanargmax(columns["oos_sharpe"])), result)
    return {
        "sets": study.set_count,
        "columns_s": round(columns_s, 3),
        "page_s": round(time.thread_time() - began_s - columns_s, 3),
        "page_bytes": len(json.dumps(page)),
        "moments_mb": round(study.moments.nbytes / 2**20),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
    }


def made_up(sets: int) -> tuple[Study, Result]:
    generator = np.random.default_rng(SEED)
    cuts = plan_segments(BARS)
    counts = np.diff(cuts).astype(np.float64)
    counts[0] -= 1
    side = math.ceil(sets ** (1 / AXES))
    matrix = np.stack(np.unravel_index(np.arange(sets), (side,) * AXES), axis=1).astype(np.float64)
    moments = np.zeros((sets, len(counts), len(MOMENTS)))
    moments[:, :, 0] = counts
    moments[:, :, 1] = 1e-2 * np.sqrt(counts) * generator.normal(size=moments.shape[:2])
    moments[:, :, 2] = 1e-4 * counts
    moments[:, :, 4] = 3e-8 * counts
    moments[:, :, 5] = moments[:, :, 1]
    study = Study((Group("made_up", TABLE, matrix),), moments, Segments(cuts), 8_766.0, SEED)
    units = (np.arange(BARS) // 50 % 2).astype(np.float64)
    equity = np.asarray(10_000.0 * np.cumprod(1.0 + units * generator.normal(1e-5, 1e-3, BARS)), dtype=np.float64)
    spec = BacktestSpec(product_id="BTC-USD", granularity=Granularity.ONE_HOUR, strategy="sma_cross")
    ts_ns = np.arange(BARS, dtype=np.int64) * Granularity.ONE_HOUR.ns
    return study, Result(spec, ts_ns, equity, units, units, np.empty(0, dtype=FILL_DTYPE), {})


if __name__ == "__main__":
    main([int(float(word)) for word in sys.argv[1:]] or [1_000, 100_000])
