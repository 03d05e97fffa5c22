"""The archive job's command line: what it refuses before it would look for a ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.archive import main


@pytest.mark.parametrize(
    "words",
    [
        ["--keep-hours", "nan"],
        ["--keep-hours", "inf"],
        ["--keep-hours", "-1"],
        ["--keep-hours", "soon"],
        ["--keep-hours", "1e400"],
        ["--rows-per-file", "0"],
        ["--rows-per-file", "-5"],
        ["--rows-per-file", "1.5"],
        ["--rows-per-file", "1000000000"],
        ["--unknown"],
    ],
)
def test_what_is_no_number_of_hours_or_rows_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_without_a_desk_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state-dir", str(tmp_path), "--json"]) == 1
    captured = capsys.readouterr()
    assert "LedgerUnavailable" in captured.err
    assert '"accounts": []' in captured.out
