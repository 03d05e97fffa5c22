"""Nothing in a journal is there twice or half, and a strategy's state comes back as the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.session_journal import Journal, JournalError, decode_state, encode_state, read_journal, read_page
from strategies.base import BarStep
from strategies.compiled import plain
from strategies.registry import STRATEGIES
from tests.run_samples import wavy_bars


def line(number: int) -> dict[str, Any]:
    return {"kind": "note", "number": number}


def numbers(path: Path, length: int | None = None) -> list[int]:
    return [found["number"] for found in read_journal(path, length)]


def test_what_no_checkpoint_counts_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    counted = Journal(path, 0).append([line(1), line(2)])
    Journal(path, counted).append([line(3)])
    with path.open("ab") as file:
        file.write(b'{"kind":"no')
    assert numbers(path) == [1, 2, 3]
    again = Journal(path, counted)
    assert numbers(path, counted) == [1, 2]
    assert numbers(path, again.append([line(4)])) == [1, 2, 4]


def test_a_write_that_failed_leaves_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def fail(_: int) -> None:
        raise OSError(28, "no space left on device")

    journal = Journal(path, 0)
    journal.append([line(1)])
    journal._sync = fail
    with pytest.raises(OSError, match="no space"):
        journal.append([line(2), line(3)])
    journal._sync = lambda _: None
    assert numbers(path, journal.append([line(4)])) == [1, 4]


@pytest.mark.parametrize(
    ("content", "length", "named"),
    [
        (b"", 10, "10 bytes"),
        (b'{"kind":"note"}\n', 40, "40 bytes"),
        (b'{"kind":"note"}\n{"kind":"note"}\n', 20, "line 2"),
        (b'{"kind":"note"\n', 15, "JSON"),
        (b"[1]\n", 4, "kind"),
        (b"\xff\xfe\n", 3, "line 1"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, content: bytes, length: int, named: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=named):
        list(read_journal(path, length))


def test_a_journal_shorter_than_counted_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    length = Journal(path, 0).append([line(1)])
    with pytest.raises(JournalError, match="at least"):
        Journal(path, length + 1)


@pytest.mark.parametrize("count", [0, 1, 5, 3_000])
@pytest.mark.parametrize("limit", [1, 3, 1_000])
def test_a_journal_is_read_page_by_page_from_either_end(tmp_path: Path, count: int, limit: int) -> None:
    path = tmp_path / "journal.jsonl"
    length = Journal(path, 0).append([line(number) for number in range(count)])
    with path.open("ab") as file:
        file.write(b'{"kind":"note","number":-1}\n')
    newest, behind = read_page(path, length, None, limit)
    assert ([found["number"] for found in newest], behind) == (list(range(count))[-limit:], length)
    met: list[int] = []
    at = 0
    while True:
        page, at = read_page(path, length, at, limit)
        if not page:
            break
        assert len(page) <= limit
        met += [found["number"] for found in page]
    assert (met, at) == (list(range(count)), length)
    assert read_page(path, length, length + 5, limit) == ([], length)


def test_a_page_begins_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    length = Journal(path, 0).append([line(1), line(2)])
    with pytest.raises(JournalError, match="after"):
        read_page(path, length, 3, 10)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("met", [0, 1, 7, 150])
def test_every_strategy_goes_on_from_its_kept_state_bit_by_bit(name: str, met: int) -> None:
    strategy = STRATEGIES[name]
    vector = strategy.params().vector()
    bars = wavy_bars(met + 150)
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
    steps = [BarStep(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    start, on_bar = plain(strategy.start), plain(strategy.on_bar)
    state = start(vector)
    for step in steps[:met]:
        state, _ = on_bar(vector, state, step)
    kept = json.loads(json.dumps(encode_state(state), allow_nan=False))
    other = decode_state(kept, like=start(vector))
    assert encode_state(other) == kept
    for step in steps[met:]:
        state, target = on_bar(vector, state, step)
        other, again = on_bar(vector, other, step)
        assert (target == again) or (math.isnan(target) and math.isnan(again))
        assert encode_state(other) == encode_state(state)


def test_odd_numbers_come_back_as_what_they_were() -> None:
    state = (math.nan, -0.0, math.inf, np.float64(0.1), np.int64(3), 2**60, True, np.array([[math.nan, -0.0]]))
    kept = json.loads(json.dumps(encode_state(state), allow_nan=False))
    again = decode_state(kept, like=state)
    assert encode_state(again) == encode_state(state)
    assert [type(value) for value in again] == [type(value) for value in state]
    assert again[-1].tobytes() == state[-1].tobytes()
    assert again[-1].flags.writeable


@pytest.mark.parametrize(
    "leaves",
    [
        [],
        [["float", "0x1p+0"]],
        [["float", "0x1p+0"], ["int", 1], ["int", 2]],
        [["float", "one"], ["int", 1]],
        [["text", "a"], ["int", 1]],
    ],
)
def test_leaves_of_another_state_are_refused(leaves: list[list[Any]]) -> None:
    with pytest.raises(JournalError, match="strategy_state"):
        decode_state(leaves, like=(1.0, 2))


def test_a_state_that_cannot_be_kept_is_refused_when_it_is_kept() -> None:
    with pytest.raises(TypeError, match="dict"):
        encode_state((1.0, {}))
