"""From nothing to a first result: a fresh process, and a fresh worker of Ray, with what set-up has compiled; as JSON.

    python -m tests.bench.bench_cold [--quick]

Processor seconds say what a quiet machine would take; ``process_age_s`` is the wall time since the worker's process
began, Ray's own start in it. ``imports`` lists the costliest packages a worker imports.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from strategies.backtest import warm
from tests.ray_head import ray_head

ROOT: Final = Path(__file__).resolve().parents[2]
SHOWN: Final = ("numpy", "numba", "pyarrow.lib", "pyarrow.compute", "pyarrow.parquet", "pydantic", "strategies.spec")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    quick = "--quick" in (sys.argv[1:] if arguments is None else arguments)
    warm()
    alone = [looked(os.environ) for _ in range(1 if quick else 5)]
    with ray_head(num_cpus=1) as head:
        in_ray = [looked(head.environment, "--ray") for _ in range(1 if quick else 3)]
    report = {
        "bench": "cold",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "process": medians(alone),
        "ray_worker": medians(in_ray),
        "imports_s": imports(),
    }
    print(json.dumps(report, indent=2))


def looked(environment: Mapping[str, str], *words: str) -> dict[str, Any]:
    """What tests/cold_worker.py says."""
    argv = [sys.executable, "-m", "tests.cold_worker", *words]
    done = subprocess.run(argv, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
