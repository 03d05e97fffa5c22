"""What is compiled once is found again: by a new process, from another folder, but never by other sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strategies.compiled import FOLDER_PREFIX, compiled, forget_stale, plain, read_only
from strategies.sma_cross import on_bar

ROOT = Path(__file__).resolve().parents[3]

RUN_EVERYTHING = """
import json, sys
import numpy as np
from strategies.backtest import BacktestSpec, Costs, run, run_block, warm
from strategies.compiled import cache_statistics
from strategies.model import Bars, Granularity
from strategies.registry import STRATEGIES

if sys.argv[1] == "warm":
    warm()
else:
    price = np.linspace(100.0, 120.0, 300)
    ts_ns = np.arange(300, dtype=np.int64) * Granularity.ONE_DAY.ns
    for writeable in (True, False):
        arrays = [array.copy() for array in (ts_ns, price, price, price, price, price)]
        for array in arrays:
            array.flags.writeable = writeable
        bars = Bars("BTC-USD", Granularity.ONE_DAY, *arrays)
        for name in STRATEGIES:
            for fill in ("next_open", "same_close"):
                matrix = STRATEGIES[name].params().vector()[np.newaxis]
                matrix.flags.writeable = writeable
                run_block(name, matrix, bars, Costs(fill=fill))
                spec = BacktestSpec(product_id="BTC-USD", granularity=Granularity.ONE_DAY, strategy=name)
                run(spec, bars)
functions = {
    id(value): value
    for name, module in list(sys.modules.items()) if name.split(".")[0] == "strategies"
    for value in vars(module).values() if hasattr(value, "stats")
}
counts = [cache_statistics(function) for function in functions.values()]
import strategies
print(json.dumps({"from": strategies.__file__, "hits": sum(c[0] for c in counts), "misses": sum(c[1] for c in counts)}))
"""


def run_everything(root: Path, cache: Path, what: str) -> dict[str, int]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", RUN_EVERYTHING, what]
    answer = subprocess.run(
        command, env=environment, cwd=cache, capture_output=True, text=True, check=True, timeout=280
    )
    counts: dict[str, int] = json.loads(answer.stdout)
    assert Path(str(counts["from"])).parent.parent == root
    return counts


def copy_of_the_floor(to: Path) -> Path:
    shutil.copytree(ROOT / "strategies", to / "strategies", ignore=shutil.ignore_patterns("__pycache__"))
    return to


def test_after_warm_a_new_process_compiles_nothing_wherever_it_runs(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    here = copy_of_the_floor(tmp_path / "here")
    assert run_everything(here, cache, "warm")["misses"] > 0
    again = run_everything(here, cache, "run")
    assert again["misses"] == 0
    assert again["hits"] > 0
    # A Ray worker unpacks the same sources into a folder of its own.
    elsewhere = copy_of_the_floor(tmp_path / "elsewhere")
    assert run_everything(elsewhere, cache, "run")["misses"] == 0
    # Numba's own cache would have served the old indicator here: only the file of `targets` itself counts for it.
    changed = elsewhere / "strategies" / "indicators.py"
    changed.write_text(changed.read_text() + "\n# another state of the sources\n")
    assert run_everything(elsewhere, cache, "run")["misses"] > 0


def test_without_any_folder_to_write_everything_still_runs(tmp_path: Path) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(blocked / "x"), "XDG_CACHE_HOME": str(blocked / "y")}
    code = "from strategies.metrics import total_return; print(total_return(100.0, 150.0))"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout == "0.5\n"


ONE_FUNCTION = """
from strategies.compiled import cache_statistics
from strategies.metrics import total_return
assert total_return(100.0, 150.0) == 0.5
print(cache_statistics(total_return))
"""


@pytest.mark.parametrize("kept", [0, 40])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, ending: str, kept: int) -> None:
    def answer() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", ONE_FUNCTION]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.strip()

    assert answer() == "(0, 1)"
    [file] = tmp_path.rglob(f"metrics.total_return*.{ending}")
    file.write_bytes(file.read_bytes()[:kept])
    assert answer() == "(0, 1)"
    assert answer() == "(1, 0)"


def test_a_function_of_another_file_is_stamped_with_that_file(tmp_path: Path) -> None:
    # The two differ in a constant only, which numba's own key does not see.
    cache = tmp_path / "cache"
    for divisor in ("2.0", "3.0"):
        module = tmp_path / "other.py"
        module.write_text(
            f"from strategies.compiled import compiled\n@compiled\ndef part(x):\n    return x / {divisor}\n"
        )
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-B", "-c", "from other import part; print(part(6.0))"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        assert float(done.stdout) == 6.0 / float(divisor)


def test_only_stale_folders_beside_the_sources_are_forgotten() -> None:
    beside = ROOT / "strategies" / "__pycache__"
    stale = beside / f"{FOLDER_PREFIX}of-another-state"
    stale.mkdir(parents=True, exist_ok=True)
    (stale / "index").write_text("old")
    other = set(beside.iterdir()) - {folder for folder in beside.iterdir() if folder.name.startswith(FOLDER_PREFIX)}
    forget_stale()
    assert not stale.exists()
    assert other <= set(beside.iterdir())


@compiled
def _half(value: float) -> float:
    return value / 2.0


@compiled
def _quarter(value: float) -> float:
    return _half(_half(value))


def test_plain_unwraps_what_a_function_calls() -> None:
    unwrapped = plain(_quarter)
    assert unwrapped(8.0) == 2.0
    assert not hasattr(unwrapped, "py_func")
    assert not hasattr(unwrapped.__globals__["_half"], "py_func")
    assert not hasattr(plain(on_bar), "py_func")


def test_plain_of_a_plain_function_is_itself_again() -> None:
    assert plain(plain(_quarter))(8.0) == 2.0


@pytest.mark.parametrize("array", [np.arange(6.0), np.arange(12.0)[::2], np.arange(6.0)[::-1]])
def test_read_only_makes_one_type_of_all_arrays(array: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    view = read_only(array)
    assert view.flags.c_contiguous
    assert not view.flags.writeable
    assert array.flags.writeable
    np.testing.assert_array_equal(view, array)
