"""What a fresh process compiles and spends until its first results; run by tests and by bench_cold, also inside Ray.

``python -m tests.cold_worker`` prints one line of JSON; ``--ray`` looks at a worker of the cluster this process joins.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def look() -> dict[str, Any]:
    """The first results of this process: which functions were compiled for them, and processor and wall seconds.

    Every strategy is run by its changes, bar by bar (a stop is on) and with everything kept that a best set keeps.
    """
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    import jobs.blocks  # noqa: F401 -- what a worker imports with its trainable

    imported_s, imported_cpu_s = time.perf_counter(), time.process_time()
    first_s = first_cpu_s = 0.0
    for number, name in enumerate(_names()):
        _results(name)
        if not number:
            first_s, first_cpu_s = time.perf_counter(), time.process_time()
    loaded, compiled = statistics()
    return {
        "loaded": loaded,
        "compiled": compiled,
        "import_cpu_s": round(imported_cpu_s - began_cpu_s, 3),
        "import_wall_s": round(imported_s - began_s, 3),
        "first_result_cpu_s": round(first_cpu_s - imported_cpu_s, 3),
        "first_result_wall_s": round(first_s - imported_s, 3),
        "others_cpu_s": round(time.process_time() - first_cpu_s, 3),
        "process_cpu_s": round(time.process_time(), 3),
        "process_age_s": round(age_s(), 3),
    }


def _names() -> list[str]:
    from strategies.registry import STRATEGIES

    return list(STRATEGIES)


def _results(name: str) -> None:
    import numpy as np

    from strategies.backtest import BacktestSpec, Costs, evaluate, run
    from strategies.base import Rules, full_vector
    from strategies.model import Bars, Granularity
    from strategies.registry import get

    price = 100.0 + np.sin(np.arange(500) / 9.0)
    ts_ns = np.arange(500, dtype=np.int64) * Granularity.ONE_HOUR.ns
    bars = Bars("BTC-USD", Granularity.ONE_HOUR, ts_ns, price, price + 1, price - 1, price, price)
    strategy, cuts = get(name), np.array([0, 100, 500], dtype=np.int64)
    for rules in (Rules(), Rules(stop_loss=0.05, trailing_stop=0.1), Rules(size=0.5, leverage=2.0)):
        row = full_vector(strategy.params(), rules)[np.newaxis]
        evaluate(name, row, bars, Costs(), cuts=cuts)
    run(BacktestSpec(product_id="BTC-USD", granularity=Granularity.ONE_HOUR, strategy=name), bars)


def statistics() -> tuple[int, list[str]]:
    """How many functions came from the cache, and the names of those that were compiled; users' own among them."""
    from strategies.compiled import cache_statistics

    loaded, compiled = 0, []
    ours = ("strategies.", "users_")
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(ours)]
    functions = {id(f): f for module in modules for f in vars(module).values() if hasattr(f, "py_func")}
    for function in functions.values():
        hits, misses = cache_statistics(function)
        loaded += hits
        compiled += [f"{function.__module__}.{function.__name__}"] * misses
    return loaded, sorted(compiled)


def age_s() -> float:
    """Wall seconds since this process began."""
    import psutil

    return time.time() - psutil.Process().create_time()


def main() -> None:
    """Here, or in a worker that Ray starts for this alone."""
    if "--ray" not in sys.argv[1:]:
        print(json.dumps(look()))
        return
    import ray

    from jobs.blocks import connect

    connect()
    print(json.dumps(ray.get(ray.remote(num_cpus=1, max_calls=1)(look).remote())))


if __name__ == "__main__":
    main()
