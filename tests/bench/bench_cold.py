"""From nothing to a first result: a fresh process, and a fresh worker of Ray, with what set-up has compiled; as JSON.

    python -m tests.bench.bench_cold [--quick]

Processor seconds say what a quiet machine would take; ``process_age_s`` is the wall time since the worker's process
began, Ray's own start in it. ``imports`` lists the costliest packages a worker imports. ``sweep_worker`` is a worker of
a real sweep with its first block: ``first_block_s`` is the wall time from its beginning to its rows on disk, of which
``loading_s`` went into kernels; the worker's process was ``age_at_first_block_s`` old by then. Wanted: 2 seconds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster.runs import prepare_run
from strategies.backtest import warm
from tests.ray_head import RayHead, ray_head
from tests.run_samples import make_spec, make_store, wavy_bars
from tests.sweep_workers import swept

ROOT: Final = Path(__file__).resolve().parents[2]
SHOWN: Final = ("numpy", "numba", "pyarrow.lib", "pyarrow.compute", "pyarrow.parquet", "pydantic", "strategies.spec")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    quick = "--quick" in (sys.argv[1:] if arguments is None else arguments)
    warm()
    alone = [looked(os.environ) for _ in range(1 if quick else 5)]
    with ray_head(num_cpus=1) as head:
        in_ray = [looked(head.environment, "--ray") for _ in range(1 if quick else 3)]
        books = [book for _ in range(1 if quick else 3) for book in of_a_sweep(head)]
    report = {
        "bench": "cold",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "process": medians(alone),
        "ray_worker": medians(in_ray),
        "sweep_worker": medians(books),
        "imports_s": imports(),
    }
    print(json.dumps(report, indent=2))


def looked(environment: Mapping[str, str], *words: str) -> dict[str, Any]:
    """What tests/cold_worker.py says."""
    argv = [sys.executable, "-m", "tests.cold_worker", *words]
    done = subprocess.run(argv, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of_a_sweep(head: RayHead) -> list[dict[str, Any]]:
    """The books of a small sweep's workers."""
    grid = {"fast": list(range(2, 50)), "slow": list(range(60, 120, 10)), "stop_loss": [0.0, 0.05]}
    spec = make_spec(grids=[{"strategy": "sma_cross", "grid": grid}])
    with tempfile.TemporaryDirectory(prefix="tt-bench-") as name:
        store = make_store(Path(name) / "bars", wavy_bars(5_000))
        return swept(prepare_run(Path(name) / "runs", store, spec, "cold"), store.root, head.environment)


def medians(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every figure; what was compiled is named."""
    figures = {name: round(statistics.median(f[name] for f in found), 3) for name in found[0] if name.endswith("_s")}
    return figures | {"compiled": found[0]["compiled"], "loaded": found[0]["loaded"]}


def imports() -> dict[str, float]:
    """Seconds of some packages, with what they import, as a worker imports them."""
    argv = [sys.executable, "-X", "importtime", "-c", "import jobs.blocks"]
    lines = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if "|" in line and "[us]" not in line]
    spent = {name.strip(): int(total) / 1e6 for _, total, name in rows}
    return {name: round(spent[name], 3) for name in (*SHOWN, "jobs.blocks") if name in spent}


if __name__ == "__main__":
    main()
