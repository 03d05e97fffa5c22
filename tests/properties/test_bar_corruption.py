"""Whatever happens to a file of bars, the outcome is the same bars or a DataError; without a checksum, valid bars."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.bar_checks import DataError, require_valid
from cluster.bar_files import read_file
from cluster.market_data import BarStore
from strategies.model import Bars, Granularity
from tests.bar_samples import make_bars, same
from tests.unit.cluster.test_bar_files import csv_text, json_text, lean_zip

HOUR: Final = Granularity.ONE_HOUR
BARS: Final = make_bars(40)


@st.composite
def corruptions(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """Up to three changes: what is done, where (a fraction of the length), with which bytes."""
    kind = st.sampled_from(["flip", "overwrite", "insert", "delete", "truncate", "repeat"])
    where = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(kind, where, st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))


def corrupted(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, data in changes:
        at = int(where * len(content))
        if kind == "flip" and content:
            flipped = content[at] ^ (1 << data[0] % 8)
            content = content[:at] + bytes([flipped]) + content[at + 1 :]
        elif kind == "overwrite":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + data[0] :]
        elif kind == "truncate":
            content = content[:at]
        else:
            content = content[:at] + content[at : at + 100] + content[at:]
    return content


def outcome(path: Path, **named: Any) -> Bars | None:
    """The bars, or None for a DataError that names the file; anything else is the test's failure."""
    bars = tried(lambda: read_file(path, **named), path)
    if bars is not None:
        require_valid(bars, path)
    return bars


def tried(read: Callable[[], Bars], path: Path) -> Bars | None:
    refusal = None
    try:
        return read()
    except DataError as error:
        refusal = error
    assert refusal.file == str(path)
    assert refusal.rule
    return None


@settings(max_examples=400, deadline=None)
@given(corruptions())
def test_a_corrupt_lean_zip_gives_the_same_bars_or_a_data_error(changes: list[tuple[str, float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{60_000 * row},{20 + row},{30 + row},{10 + row},{25 + row},{row}.5" for row in range(50)]
        path = lean_zip(Path(folder) / "20240101_trade.zip", "\n".join(lines))
        whole = read_file(path)
        path.write_bytes(corrupted(path.read_bytes(), changes))
        bars = outcome(path, format="lean")
        assert bars is None or same(bars, whole)


@settings(max_examples=300, deadline=None)
@given(corruptions(), st.sampled_from(["json", "csv"]), st.booleans())
def test_a_corrupt_text_gives_valid_bars_or_a_data_error(
    changes: list[tuple[str, float, bytes]], kind: str, told: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"BTC-USD.{kind}"
        path.write_bytes(corrupted((json_text(BARS, 1) if kind == "json" else csv_text(BARS)).encode(), changes))
        outcome(path, **({"format": kind} if told else {}))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["json", "csv", "lean", None]))
def test_arbitrary_bytes_are_a_data_error(content: bytes, kind: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "BTC-USD"
        path.write_bytes(content)
        assert outcome(path, **({"format": kind} if kind else {})) is None


@settings(max_examples=200, deadline=None)
@given(corruptions(), st.sampled_from(["*.parquet", "manifest.json"]))
def test_a_corrupt_store_gives_the_same_bars_or_a_data_error(
    changes: list[tuple[str, float, bytes]], which: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = BarStore(Path(folder))
        store.write(BARS, source="coinbase")
        (path,) = store.root.rglob(which)
        path.write_bytes(corrupted(path.read_bytes(), changes))
        store.ls()
        store.check("BTC-USD", HOUR)
        bars = tried(lambda: store.read("BTC-USD", HOUR), path)
        assert bars is None or same(bars, BARS)
