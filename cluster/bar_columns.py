"""What the readers of bar files share: growing columns that parse numbers strictly, lines of bounded length."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np

from cluster.bar_checks import TIME_NS_MAX, VALUES, DataError
from strategies.model import NS_PER_S, Bars, Granularity, Int64Array

BARS_PER_FILE_MAX: Final = 5_000_000
LINE_BYTES_MAX: Final = 64 * 1024
CHUNK_BYTES: Final = 1024**2
UTF8_BOM: Final = b"\xef\xbb\xbf"
DIGITS: Final = re.compile(r"[0-9]+")
_NUMBER_CHARACTERS: Final = re.compile(r"[0-9+\-.eE]+")

# Quote currencies that a file's name is searched for; a product with another one has to be given.
QUOTES: Final = ("USDT", "USDC", "EURC", "USD", "EUR", "GBP", "BTC", "ETH", "DAI")


class Columns:
    """Growing columns of one file: times and five values, 48 bytes a bar; parsed in batches, errors by row."""

    def __init__(self, path: Path, first_row: int) -> None:
        self.path = path
        self.first_row = first_row
        self._ts_ns = array("q")
        self._values = {name: array("d") for name in VALUES}

    @property
    def row(self) -> int:
        """The row the next bar comes from."""
        return self.first_row + len(self._ts_ns)

    def add(self, ts_ns: Sequence[int], texts: dict[str, Sequence[str]]) -> None:
        """Append a batch: its times, and the decimal texts of each value by name; raises ``DataError``."""
        if len(self._ts_ns) + len(ts_ns) > BARS_PER_FILE_MAX:
            raise DataError(self.path, None, f"at most {BARS_PER_FILE_MAX} bars a file (split it)", "more")
        if not 0 <= min(ts_ns) <= max(ts_ns) < TIME_NS_MAX:
            index = next(index for index, value in enumerate(ts_ns) if not 0 <= value < TIME_NS_MAX)
            raise DataError(self.path, self.row + index, "a time from 1970 to 2261", ts_ns[index])
        for name in VALUES:
            self._values[name].extend(self._numbers(name, texts[name]))
        self._ts_ns.extend(ts_ns)

    def _numbers(self, name: str, texts: Sequence[str]) -> array[float]:
        # float() would also take "nan", "1_000" and digits of other scripts: look at the characters first.
        if _NUMBER_CHARACTERS.fullmatch("".join(texts)):
            try:
                return array("d", map(float, texts))
            except ValueError:
                pass
        for index, text in enumerate(texts):
            try:
                if _NUMBER_CHARACTERS.fullmatch(text):
                    float(text)
                    continue
            except ValueError:
                pass
            raise DataError(self.path, self.row + index, f"{name} as a decimal number", text)
        raise AssertionError("every number was fine after all")

    @property
    def ts_ns(self) -> Int64Array:
        """Times in the file's order; raises ``DataError`` where there is not one bar."""
        if not self._ts_ns:
            raise DataError(self.path, None, "at least one bar", "none")
        return np.frombuffer(self._ts_ns, dtype=np.int64)

    def sort(self, *, any_order: bool) -> Int64Array | int:
        """Put the oldest bar first and return the rows the bars come from, for ``require_valid``.

        A file in ``any_order`` is sorted; else one that mostly descends is turned round, and disorder stays to be
        refused.
        """
        steps = np.diff(self.ts_ns)
        if any_order and (steps < 0).any():
            order = np.argsort(self.ts_ns, kind="stable")
        elif np.count_nonzero(steps < 0) * 2 > steps.size:
            order = np.arange(self.ts_ns.size)[::-1]
        else:
            return self.first_row
        for column in (self.ts_ns, *(np.frombuffer(self._values[name]) for name in VALUES)):
            column[:] = column[order]
        return order + self.first_row

    def bars(self, product_id: str, granularity: Granularity) -> Bars:
        """The columns as bars, without a copy and without a check."""
        return Bars(product_id, granularity, self.ts_ns, *(np.frombuffer(self._values[name]) for name in VALUES))


def line_batches(path: Path, handle: IO[bytes]) -> Iterator[list[str]]:
    """The lines of a UTF-8 text (without byte order mark, without their ends), about a megabyte at a time.

    An empty line may only stand at the end, where it is left out. Raises ``DataError``.
    """
    number, pending, blank = 1, handle.read(len(UTF8_BOM)).removeprefix(UTF8_BOM), 0
    while True:
        chunk = handle.read(CHUNK_BYTES)
        cut = (pending + chunk).rfind(b"\n") + 1 if chunk else len(pending)
        text, pending = (pending + chunk)[:cut], (pending + chunk)[cut:]
        if len(pending) > LINE_BYTES_MAX:
            raise _too_long(path, number + text.count(b"\n"), pending)
        lines = _decoded(path, number, text)
        while lines and not lines[-1]:
            lines.pop()
        if "" in lines or (lines and blank):
            raise DataError(path, blank or number + lines.index(""), "no empty line between others", "an empty line")
        if text.count(b"\n") > len(lines):
            blank = blank or number + len(lines)
        number += text.count(b"\n")
        if lines:
            yield lines
        if not chunk:
            return


def _decoded(path: Path, number: int, text: bytes) -> list[str]:
    """The lines in ``text``, the first of which is line ``number``."""
    try:
        lines = text.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        row = number + text.count(b"\n", 0, error.start)
        raise DataError(path, row, "text in UTF-8", error) from error
    if max(map(len, lines)) > LINE_BYTES_MAX:
        index = next(index for index, line in enumerate(lines) if len(line) > LINE_BYTES_MAX)
        raise _too_long(path, number + index, lines[index].encode())
    return [line.removesuffix("\r") for line in lines] if b"\r" in text else lines


def _too_long(path: Path, number: int, line: bytes) -> DataError:
    return DataError(path, number, f"a line of at most {LINE_BYTES_MAX} bytes", line[:60])


def common_spacing(ts_ns: Int64Array, path: Path) -> Granularity:
    """The granularity that most neighbours are apart; raises ``DataError`` where that is none we know."""
    if ts_ns.size < 2:
        raise DataError(path, None, "a granularity given, as one bar has no spacing")
    spacings, counts = np.unique(np.diff(ts_ns), return_counts=True)
    spacing_ns = int(spacings[counts.argmax()])
    for granularity in Granularity:
        if granularity.ns == spacing_ns:
            return granularity
    raise DataError(path, None, "bars spaced by a known granularity", f"{spacing_ns / NS_PER_S} s")
