"""A strategy from a user's file: what is taken, what is refused at which line with which words, and how it is found."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strategies.backtest import AccountingError, Costs, run_block, targets_of
from strategies.base import SpecError
from strategies.causality import made_up_bars
from strategies.registry import UnknownStrategy, get
from strategies.spec import parse_spec
from strategies.user_check import check
from strategies.user_errors import StrategyFileError, sentence
from strategies.user_file import BYTES_MAX, load_folder, read, write_into
from tests.strategy_files import GOOD, TARGET, single, written, wrong

ROOT = Path(__file__).resolve().parents[3]
BARS = made_up_bars(300)


def problem(tmp_path: Path, text: str) -> tuple[int, str]:
    """Line and rule of the first error found in ``text``."""
    report = check(written(tmp_path, text), BARS, quick=True)
    assert not report.ok
    error = report.first_error()
    line = text.splitlines()[error.line - 1].strip() if error.line else ""
    # A line of thousands of characters is shown as far as it tells something.
    assert error.text == line or (len(error.text) > 100 and line.startswith(error.text))
    return error.line, error.rule


def test_a_right_file_is_fit_to_run(tmp_path: Path) -> None:
    report = check(written(tmp_path), BARS, quick=True)
    assert report.findings == []
    assert (report.ok, report.warm_up_bars, report.title) == (True, 19, "A cross of two averages, written by a user.")
    assert [info["name"] for info in report.parameters] == ["fast", "slow"]
    assert report.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert report.strategy == f"my_strategy@{report.sha256[:16]}"


def test_it_computes_what_the_shipped_one_does(tmp_path: Path) -> None:
    own = single(written(tmp_path))
    theirs = get("sma_cross")
    for fast, slow in ((2.0, 5.0), (5.0, 20.0), (40.0, 100.0)):
        mine = targets_of(own, np.array([fast, slow]), BARS)
        np.testing.assert_array_equal(mine, targets_of(theirs, np.array([fast, slow, 0.0]), BARS))


# What is replaced -> by what, and words of the rule that is said at that line.
SEEN_WITHOUT_RUNNING = [
    ("import math\n", "import math, os\n", "imports only from"),
    ("import math\n", "import random\n", "random is none of them"),
    ("import math\n", "import time\n", "time is none of them"),
    ("import math\n", "from .mine import x\n", "a strategy is one file"),
    ("import math\n", "from math import *\n", "import names one by one"),
    ("import math\n", "from numba import objmode\n", "objmode leaves the compiled code"),
    ("import math\n", "from numpy.random import default_rng\n", "cannot depend on chance"),
    ("import math\n", "import math; FUTURE = np.load('x.npy')\n", "reads and writes no files"),
    ("import math\n", "import math; x = open('x').read()\n", "reads and writes no files"),
    ("import math\n", "import math; eval('1')\n", "makes no code"),
    (TARGET, "    target = np.random.random()\n", "cannot depend on chance"),
    (TARGET, "    print(bar.close); target = 1.0\n", "prints nothing"),
    (TARGET, "    import math; target = 1.0\n", "imports stand at the top"),
    (TARGET, "    global COUNT; COUNT = 1; target = 1.0\n", "cannot change a global"),
    (TARGET, "    state.bars = 3; target = 1.0\n", "not changed in place"),
    (TARGET, "    target = np.empty(3)[0]\n", "np.empty holds whatever"),
    (TARGET, "    yield 1.0; target = 1.0\n", "cannot yield"),
    (TARGET, f"    target = {[0.5] * 600}[state.bars]\n", "that is data"),
    (TARGET, f"    target = 1.0 if {'ab' * 600!r}[state.bars] == 'a' else 0.0\n", "that is data"),
    ("    fast: int = Field(5, ge=2, le=500", "    fast: int = Field(5, ge=2", "needs a default and a range"),
    ("    fast: int = Field(5, ge=2, le=500, description=\"bars\")", "    fast: int = 5", "needs a default"),
    ("    fast: int = Field(5, ge=2, le=500", "    fast: str = Field(5, ge=2, le=500", "int or float, not str"),
    ("def start(vector):", "def start(vector:", "not Python"),
    ("def start(vector):", "def targets(vector):\n    return 1\n\n\ndef start(vector):", "targets is made for"),
]  # fmt: skip

FOUND_BY_LOADING = [
    ("import math\n", "import math; raise SystemExit(3)\n", "SystemExit"),
    ("import math\n", "import math; 1 / 0\n", "ZeroDivisionError"),
    ("from strategies import base\n", "from strategies import nothing_there\n", "ImportError"),
    ("class Params(base.Params):", "class Params:", "class Params(base.Params)"),
    ("class Params(base.Params):", "class Parameters(base.Params):", "class Params(base.Params)"),
    ("    fast: int = Field(5, ge=2, le=500", "    fast: int = Field(1, ge=2, le=500", "the default is out of range"),
    ("def start(vector):", "def begin(vector):", "needs a function start(vector)"),
    ("def start(vector):", "def start(vector, more):", "start takes 1 argument: start(vector); here it takes 2"),
    ("def on_bar(vector, state, bar):", "def on_bar(vector, state, bar, n=1):", "plain arguments without defaults"),
    ("def on_bar(vector, state, bar):", "def on_bar(vector, *rest):", "plain arguments without defaults"),
    ("def above(quick, slow):", "SEEN = np.ones(3)\n\ndef above(quick, slow):\n    quick += SEEN[0]", "global ndarray"),
    ("def above(quick, slow):", "SEEN = [1.0]\n\n\ndef above(quick, slow):\n    quick += SEEN[0]", "global list"),
    ("def above(quick, slow):", "SEEN = (1.0,) * 999\n\n\ndef above(quick, slow):\n    quick += SEEN[0]", "256 const"),
]  # fmt: skip

FOUND_BY_RUNNING = [
    (TARGET, "    target = 1.5\n", "on_bar at bar 0 with fast=5, slow=20: the target is 1.5"),
    (TARGET, "    target = 2.0 if state.bars == 77 else 0.0\n", "on_bar at bar 77"),
    (TARGET, "    target = math.inf\n", "the target is inf"),
    (TARGET, "    target = 'long'\n", "the target is 'long', not a number"),
    (TARGET, "    return 1.0\n    target = 0.0\n", "expected (state, target), was 1.0"),
    (TARGET, "    target = slow.ring[10_000]\n", "IndexError"),
    (TARGET, "    target = 1.0 / (state.bars - 12)\n", "ZeroDivisionError"),
    (TARGET, "    if state.bars == 5: raise ValueError('enough')\n    target = 0.0\n", "ValueError: enough"),
    (TARGET, "    target = nothing_there\n", "nothing_there"),
    (TARGET, "    target = bar.typical\n", "typical"),
    ("    fast, quick = rolling_mean_step(state.fast", "    fast, quick = rolling_mean_step(state.bars", "TypeError"),
    (
        "    return State(rolling_mean_start(int(vector[0])), ",
        "    return State(rolling_mean_start(10**9 * int(vector[0])), ",
        "start with",
    ),
]  # fmt: skip

FOUND_BY_COMPILING = [
    (TARGET, "    target = float(f'{1.0:.2f}')\n", "text formatting does not work"),
    (TARGET, "    x = np.zeros(2) if bar.close > 0 else 1.0\n    target = 1.0\n", "of one kind"),
    (TARGET, "    target = float(sorted('ab', key=lambda s: s) == [])\n", "cannot be compiled"),
    (TARGET, "    try:\n        target = 0.0\n    except KeyError:\n        target = 1.0\n", "except Exception"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "words"), SEEN_WITHOUT_RUNNING)
def test_what_can_be_seen_is_refused_at_its_line_without_running(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    text, line = wrong(before, after)
    # A file that would leave a trace, were it run.
    trace = tmp_path / "ran"
    found, rule = problem(tmp_path, text + f"\n\nnp.ones(1).tofile({str(trace)!r})\n")
    assert words in rule
    assert found - line in {0, 1}
    assert not trace.exists()


@pytest.mark.parametrize(("before", "after", "words"), FOUND_BY_LOADING)
def test_what_loading_finds_is_told_with_its_line(tmp_path: Path, before: str, after: str, words: str) -> None:
    text, line = wrong(before, after)
    found, rule = problem(tmp_path, text)
    assert words in rule
    assert found in ({0} if "begin" in after or "Parameters" in after else {line})


@pytest.mark.parametrize(("before", "after", "words"), [*FOUND_BY_RUNNING, *FOUND_BY_COMPILING])
def test_what_running_or_compiling_finds_is_told_with_its_line(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    text, line = wrong(before, after)
    found, rule = problem(tmp_path, text)
    assert words in rule, rule
    step = text[: text.index("def on_bar")].count("\n") + 1
    assert found == step or line <= found <= line + after.count("\n")
    assert "\n" not in rule
    assert len(rule) < 500


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("my_strategy.txt", b"x", "ends in .py"),
        ("My_Strategy.py", b"x", "the file's name becomes the strategy's"),
        ("a b.py", b"x", "the file's name becomes the strategy's"),
        ("straße.py", b"x", "the file's name becomes the strategy's"),
        ("-x.py", b"x", "the file's name becomes the strategy's"),
        ("x\n.py", b"x", "the file's name becomes the strategy's"),
        ("class.py", b"x", "no keyword"),
        (f"{'x' * 41}.py", b"x", "up to 40"),
        ("empty.py", b"", "empty"),
        ("blank.py", b" \n\t\n", "empty"),
        ("long.py", b"#" * (BYTES_MAX + 1), "longer than 256 KiB"),
        ("latin.py", "# caf\xe9\n".encode("latin-1"), "not UTF-8 text at byte 5"),
        ("wide.py", "x = 1\n".encode("utf-16"), "not UTF-8 text at byte 0"),
        ("zero.py", b"x = 1\n\0", "a zero byte"),
        ("deep.py", b"x = " + b"(" * 5_000 + b")" * 5_000, "not Python"),
        ("deeper.py", b"x = " + b"-" * 100_000 + b"1", "not Python"),
    ],
)  # fmt: skip
def test_a_file_no_strategy_could_be_in_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    report = check(path)
    assert not report.ok
    assert words in report.first_error().rule


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "link.py").symlink_to("/dev/zero")
    for name, words in (
        ("folder.py", "this is a folder"),
        ("pipe.py", "no regular file"),
        ("link.py", "no regular file"),
        ("absent.py", "No such file"),
        ("../absent.py", "No such file"),
    ):
        with pytest.raises(StrategyFileError, match=words):
            read(tmp_path / name)


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "windows.py"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert check(path, BARS, quick=True).findings == []


def test_a_number_of_another_kind_in_the_state_is_named(tmp_path: Path) -> None:
    text, _ = wrong("    return State(fast, slow, state.bars + 1), target", "    return State(fast, slow, 1.5), target")
    _, rule = problem(tmp_path, text)
    assert "another kind of state than start: bars is float64, was int64" in rule


def test_a_parameter_called_like_a_rule_is_refused(tmp_path: Path) -> None:
    found, rule = problem(tmp_path, GOOD.replace("slow: int", "stop_loss: int").replace('"slow"', '"stop_loss"'))
    assert "every strategy takes already" in rule
    assert found == 16


def test_functions_keep_no_compiler_settings_of_their_own(tmp_path: Path) -> None:
    text = GOOD.replace("def above", "@njit(fastmath=True, parallel=True)\ndef above")
    text = text.replace("import numpy as np", "import numpy as np\nfrom numba import njit")
    own = single(written(tmp_path, text))
    assert own.on_bar.targetoptions["inline"] == "always"  # type: ignore[attr-defined]
    above = sys.modules[own.on_bar.__module__].__dict__["above"]
    assert "fastmath" not in above.targetoptions
    assert not above.targetoptions.get("parallel", False)


def test_an_index_outside_is_an_error_in_compiled_code_and_told_with_bar_and_line(tmp_path: Path) -> None:
    # Right for the defaults, wrong for others: the check cannot know all sets, so the sweep must tell.
    text, line = wrong(TARGET, "    target = slow.ring[300] if vector[1] == 250.0 else 0.0\n")
    own = single(written(tmp_path, text))
    assert targets_of(own, np.array([5.0, 20.0]), BARS).sum() == 0
    with pytest.raises(StrategyFileError) as caught:
        run_block(own, np.array([[5.0, 20.0], [5.0, 250.0]]), BARS, Costs())
    assert caught.value.line == line
    assert "on_bar at bar 0 with fast=5, slow=250: IndexError" in caught.value.rule


def test_a_target_out_of_range_in_a_sweep_names_the_bar(tmp_path: Path) -> None:
    text, _ = wrong(TARGET, "    target = 3.0 if vector[1] == 250.0 and state.bars == 41 else 0.0\n")
    own = single(written(tmp_path, text))
    with pytest.raises(AccountingError, match="at bar 41: a target lies outside"):
        run_block(own, np.array([[5.0, 250.0]]), BARS, Costs())


def test_errors_cross_process_borders() -> None:
    error = StrategyFileError("x.py", 3, "x = 1", "not so")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own
    assert (str(again), again.line, again.text) == (str(error), 3, "x = 1")
    assert str(error) == "x.py, line 3: not so\n    x = 1"


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("NameError: name 'helper' is not defined\nDuring: Pass", "there is nothing called helper"),
        ("Unknown attribute 'isnan' of type float64\n\nFile \"x.py\", line 3:", "a float64 has no isnan"),
        ("Use of unsupported opcode (STORE_GLOBAL) found. Raised from x.py (4)", "cannot change a global"),
        ('something new\n\nFile "x.py", line 3:\n^\n\nDuring: Pass nopython_type_inference', "something new"),
        ("", "no reason"),
    ],
)
def test_the_compilers_words_become_one_sentence(message: str, plain: str) -> None:
    assert plain in sentence(message)
    assert "\n" not in sentence(message)


# -- names, folders, processes -----------------------------------------------------------------------------------------


def test_a_name_alone_loads_nothing(tmp_path: Path) -> None:
    file = read(written(tmp_path, GOOD + "\n# never loaded here\n"))
    with pytest.raises(UnknownStrategy):
        get(file.strategy_name)
    with pytest.raises(SpecError, match="one of sma_cross"):
        parse_spec(specification(file.strategy_name))
    for name in ("my_strategy", "my_strategy.py", str(written(tmp_path)), "../my_strategy.py", "my_strategy@"):
        with pytest.raises(UnknownStrategy):
            get(name)


def specification(strategy: str) -> dict[str, object]:
    grid = {"strategy": strategy, "grid": {"fast": [3, 5], "slow": [8, 13]}}
    return {"product_id": "BTC-USD", "granularity": "ONE_HOUR", "grids": [grid]}


def test_an_edited_file_is_another_strategy_beside_the_first(tmp_path: Path) -> None:
    first = single(written(tmp_path))
    second = single(written(tmp_path, GOOD.replace("1.0 if quick > slow", "-1.0 if quick > slow")))
    assert first.name != second.name
    assert get(first.name) is first
    assert np.nanmax(targets_of(first, np.array([5.0, 20.0]), BARS)) == 1.0
    assert np.nanmin(targets_of(second, np.array([5.0, 20.0]), BARS)) == -1.0
    assert single(written(tmp_path)) is first


def test_a_run_keeps_its_copy_and_refuses_one_that_was_changed(tmp_path: Path) -> None:
    own = single(written(tmp_path, GOOD + "\n# kept\n"))
    folder = tmp_path / "strategies"
    write_into(folder, ["sma_cross", own.name, own.name])
    [copy] = folder.iterdir()
    assert copy.name == f"{own.name}.py"
    assert copy.read_text() == GOOD + "\n# kept\n"
    assert load_folder(folder) == [own]
    other = folder / f"{own.name[:-1]}{'0' if own.name[-1] != '0' else '1'}.py"
    copy.rename(other)
    with pytest.raises(StrategyFileError, match="was changed after"):
        load_folder(folder)
    other.rename(folder / "x.py")
    with pytest.raises(StrategyFileError, match="not a strategy the run was laid out with"):
        load_folder(folder)
    assert load_folder(tmp_path / "absent") == []


WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from strategies.backtest import Costs, run_block
from strategies.causality import made_up_bars
from strategies.compiled import cache_statistics
from strategies.user_file import load_folder

[own] = load_folder(Path(sys.argv[1]))
metrics = run_block(own, np.array([[5.0, 20.0]]), made_up_bars(300), Costs())
print(json.dumps({"misses": cache_statistics(own.targets.loop)[1], "sharpe": metrics[0, 3], "name": own.name}))
"""


def test_a_second_worker_compiles_nothing_and_needs_only_the_runs_folder(tmp_path: Path) -> None:
    own = single(written(tmp_path))
    folder = tmp_path / "run" / "strategies"
    folder.parent.mkdir()
    write_into(folder, [own.name])
    (tmp_path / "my_strategy.py").unlink()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def worker() -> dict[str, object]:
        command = [sys.executable, "-c", WORKER, str(folder)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=280
        )
        said: dict[str, object] = json.loads(done.stdout)
        return said

    first, second = worker(), worker()
    assert (first["misses"], second["misses"]) == (1, 0)
    assert first["name"] == own.name
    assert first["sharpe"] == second["sharpe"] == run_block(own, np.array([[5.0, 20.0]]), BARS, Costs())[0, 3]
