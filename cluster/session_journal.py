"""What a live session keeps: a journal that only grows, and a checkpoint that says how much of it counts.

Both are written after each bar: first the journal's lines to the disk, then the checkpoint into place. A session killed
between the two leaves lines that no checkpoint counts; they are cut off when it goes on, so that nothing is ever there
twice. Floats travel as the shortest text that reads back as the same bits, a strategy's state as hexadecimal.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from cluster.run_folder import RunError

# The kinds of lines.
BAR: Final = "bar"
ORDER: Final = "order"
CORRECTION: Final = "correction"
NOTE: Final = "note"
_BLOCK_BYTES: Final = 65_536


class JournalError(RunError):
    """A journal or a state that cannot be read as one, or does not fit its checkpoint."""


class Journal:
    """One JSON object a line. One writer at a time: whoever drives the session."""

    def __init__(self, path: Path, length: int, sync: Callable[[int], None] = os.fsync) -> None:
        """Go on behind the first ``length`` bytes; what is behind them is cut off. Raises ``JournalError``."""
        self.path = path
        self.length = length
        self._sync = sync
        present = path.stat().st_size if path.exists() else 0
        if present < length:
            raise JournalError(path.name, present, f"at least the {length} bytes the checkpoint counts")
        if present > length:
            with path.open("r+b") as file:
                file.truncate(length)
                sync(file.fileno())

    def append(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Write lines to the disk; the length the next checkpoint must count."""
        data = b"".join(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n" for line in lines)
        if data:
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                # At the counted length and not at the end: a write that failed half-way leaves no torn line behind.
                file.seek(self.length)
                file.write(data)
                file.truncate()
                file.flush()
                self._sync(file.fileno())
            self.length += len(data)
        return self.length


def read_journal(path: Path, length: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a journal, its first ``length`` bytes (None: all whole lines there are); raises ``JournalError``."""
    if length == 0 or (length is None and not path.exists()):
        return
    left = length
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if left is not None:
                    left -= len(raw)
                    if left < 0:
                        raise JournalError(f"{path.name} line {number}", len(raw), "the end the checkpoint counts")
                elif not raw.endswith(b"\n"):
                    return  # a line that is being written
                yield _line(path, number, raw)
                if left == 0:
                    return
    except OSError as error:
        raise JournalError(path.name, str(path), f"a readable file ({error.strerror})") from error
    if left:
        raise JournalError(path.name, length - left if length else 0, f"the {length} bytes the checkpoint counts")


def read_page(path: Path, length: int, after: int | None, limit: int) -> tuple[list[dict[str, Any]], int]:
    """At most ``limit`` lines from byte ``after`` on (None: the newest), and the byte behind them.

    Only the first ``length`` bytes count, which must end with a line. Raises ``JournalError`` where ``after`` is not
    the beginning of one. However long a journal is, only the page is read.
    """
    if not length:
        return [], 0
    try:
        with path.open("rb") as file:
            start = _newest(file, length, limit) if after is None else min(after, length)
            if start:
                file.seek(start - 1)
                if file.read(1) != b"\n":
                    raise JournalError("after", start, "the `next` of an earlier answer")
            file.seek(start)
            lines: list[dict[str, Any]] = []
            while start < length and len(lines) < limit:
                raw = file.readline()
                lines.append(_line(path, len(lines) + 1, raw))
                start += len(raw)
            return lines, start
    except OSError as error:
        raise JournalError(path.name, str(path), f"a readable file ({error.strerror})") from error


def _newest(file: BinaryIO, length: int, limit: int) -> int:
    """Where the last ``limit`` lines of the first ``length`` bytes begin."""
    begin, found, tail = length, 0, b""
    while begin and found <= limit:
        size = min(_BLOCK_BYTES, begin)
        begin -= size
        file.seek(begin)
        tail = file.read(size) + tail
        found = tail.count(b"\n")
    ends = [place for place, byte in enumerate(tail) if byte == 0x0A]
    return begin + ends[-limit - 1] + 1 if len(ends) > limit else begin


def _line(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise JournalError(f"{path.name} line {number}", raw[:80], f"JSON ({error})") from error
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise JournalError(f"{path.name} line {number}", raw[:80], "an object with its kind")
    return line


# -- a strategy's state ------------------------------------------------------------------------------------------------

Leaf = list[Any]
"""One value of a state: its kind and its exact text."""


def encode_state(state: Any) -> list[Leaf]:
    """The values of a strategy's state, a tree of tuples, in order. Raises ``TypeError`` for any other kind."""
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in encode_state(part)]
    return [_encode(state)]


def decode_state(leaves: Iterable[Leaf], like: Any) -> Any:
    """The state the leaves were made of, in the shape of ``like`` (the strategy's start); raises ``JournalError``."""
    remaining = iter(leaves)
    try:
        state = _decode(remaining, like)
    except (StopIteration, KeyError, ValueError, TypeError, IndexError) as error:
        raise JournalError("strategy_state", repr(error), "the values of this strategy's state") from error
    if next(remaining, None) is not None:
        raise JournalError("strategy_state", "more values", "the values of this strategy's state")
    return state


def _encode(value: Any) -> Leaf:
    if isinstance(value, np.ndarray):
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return ["array", value.dtype.str, list(value.shape), text]
    # numpy's float is a float to Python but divides by zero in another way, so it comes back as what it was.
    if isinstance(value, np.float64):
        return ["float64", float(value).hex()]
    if isinstance(value, np.int64):
        return ["int64", int(value)]
    if isinstance(value, bool):
        return ["bool", value]
    if isinstance(value, int):
        return ["int", value]
    if isinstance(value, float):
        return ["float", value.hex()]
    raise TypeError(f"a strategy's state holds {type(value).__name__}, which cannot be kept")


def _decode(leaves: Iterator[Leaf], like: Any) -> Any:
    if isinstance(like, tuple):
        parts = [_decode(leaves, part) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    kind, *rest = next(leaves)
    if kind == "array":
        dtype, shape, text = rest
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=np.dtype(dtype)).reshape(shape).copy()
    return _SCALARS[kind](rest[0])


_SCALARS: Final[dict[str, Callable[[Any], Any]]] = {
    "float64": lambda text: np.float64(float.fromhex(text)),
    "int64": np.int64,
    "bool": bool,
    "int": int,
    "float": float.fromhex,
}
