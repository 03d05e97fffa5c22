"""A check in a process of its own: what loops, hogs or hides is ended and told; and the template passes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from strategies.causality import made_up_bars
from strategies.user_check import check, check_apart
from tests.strategy_files import GOOD, TARGET, written

BARS = made_up_bars(120)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD.replace(TARGET, "    while bar.close > 0.0:\n        pass\n    target = 1.0\n"), (36, 37), "no end"),
        (GOOD + "\n\nwhile True:\n    pass\n", (40, 41), "no end"),
        (GOOD + "\n\nP = [print]\nP[0]('hello')\n", (40,), "prints nothing"),
        (GOOD + "\n\nimport builtins\n", (40,), "imports only from"),
        (GOOD + "\n\nX = np.zeros(10**12)\nX[:] = 1.0\n", (40,), "more memory"),
    ],
)  # fmt: skip
def test_what_never_ends_or_takes_too_much_is_told_with_its_line(
    tmp_path: Path, text: str, line: tuple[int, ...], words: str
) -> None:
    report = check_apart(written(tmp_path, text), BARS, quick=True, cpu_max_s=8.0)
    error = report.first_error()
    assert words in error.rule
    assert error.line in line


def test_a_good_file_and_its_bars_get_through_the_process(tmp_path: Path) -> None:
    report = check_apart(written(tmp_path), BARS, quick=True)
    assert (report.ok, report.findings, report.bars) == (True, [], 120)
    assert report.strategy.startswith("my_strategy@")


def test_the_template_passes_at_once_and_is_never_written_over(tmp_path: Path) -> None:
    words = ["strategy", "new", "my_first", "--dir", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    path = tmp_path / "my_first.py"
    assert check(path, made_up_bars(400)).findings == []
    path.write_text("mine")
    assert CliRunner().invoke(app, words).exit_code == 2
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a b", "", "X", "x" * 41, "é", "class", "x\0y", ".py"])
def test_a_hostile_name_writes_nothing(tmp_path: Path, name: str) -> None:
    assert CliRunner().invoke(app, ["strategy", "new", "--dir", str(tmp_path), "--", name]).exit_code == 2
    assert list(tmp_path.iterdir()) == []
