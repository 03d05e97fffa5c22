"""What goes wrong in a user's strategy file, as one sentence at a line of that file instead of the compiler's trace."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from numba.core.errors import NumbaError, UnsupportedBytecodeError

from strategies.base import SpecError


class StrategyFileError(SpecError):
    """A user's strategy file breaks a rule at a line; ``line`` 0 is the file as a whole, ``text`` the line's own."""

    def __init__(self, file: str, line: int, text: str, rule: str) -> None:
        super().__init__("strategy", text or file, rule)
        self.file, self.line, self.text = file, line, text
        place = f"{file}, line {line}" if line else file
        self.args = (f"{place}: {rule}" + (f"\n    {text}" if text else ""),)

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, int, str, str]]:  # type: ignore[override]
        return StrategyFileError, (self.file, self.line, self.text, self.rule)


@dataclass(frozen=True)
class SourceText:
    """A file's text as errors speak of it: ``shown`` is its name for people, ``path`` the one it is compiled under."""

    shown: str
    path: Path
    lines: tuple[str, ...]

    def error(self, line: int, rule: str) -> StrategyFileError:
        """The error at ``line``, with its text; a line that is not the user's counts as the whole file."""
        known = 1 <= line <= len(self.lines)
        text = self.lines[line - 1].strip()[:200] if known else ""
        return StrategyFileError(self.shown, line if known else 0, text, rule)

    def line_of(self, pattern: str) -> int:
        """The first line that matches, 0 where none does."""
        found = re.compile(pattern)
        return next((number for number, text in enumerate(self.lines, 1) if found.match(text)), 0)


def told(source: SourceText, error: BaseException, where: str, line: int = 0) -> StrategyFileError:
    """``error``, raised by the compiler or by the user's code, at the deepest of the user's lines it names.

    ``where`` says what was being done ("on_bar at bar 12"); ``line`` is where to point if the error names no line.
    """
    if isinstance(error, StrategyFileError):
        return error
    if isinstance(error, NumbaError | UnsupportedBytecodeError | NotImplementedError):
        return source.error(compiler_line(source, error) or line, f"{where} cannot be compiled: {sentence(str(error))}")
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return source.error(frame_line(source, error) or line, f"{where} needs more memory than there is")
    text = " ".join(str(error).split())[:300]
    return source.error(frame_line(source, error) or line, f"{where}: {kind}{f': {text}' if text else ''}")


def frame_line(source: SourceText, error: BaseException) -> int:
    """The deepest line of the user's file in the trace of ``error``, 0 where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno or 0 for frame in frames if frame.filename == str(source.path)]
    return next((line for line in reversed(lines) if line <= len(source.lines)), 0)


def compiler_line(source: SourceText, error: BaseException) -> int:
    """The line a compiler's error is about, 0 where it names none of the file's own."""
    where = getattr(error, "loc", None)
    if where is not None and str(getattr(where, "filename", "")) == str(source.path):
        return int(where.line)
    # The message shows paths relative to the current folder; its last two parts are the content's hash and the name.
    name = re.escape("/".join(source.path.parts[-2:]))
    numbers = re.findall(rf"{name}(?:\"?, line | \()(\d+)", str(error))
    return next((int(number) for number in reversed(numbers) if int(number) <= len(source.lines)), 0)


# The compiler's words -> plain ones; the first that fits counts. What is in brackets goes into {0}, {1} …
_SENTENCES: Final = tuple(
    (re.compile(pattern, re.DOTALL), plain)
    for pattern, plain in (
        (r"NameError: name '([^']+)' is not defined", "there is nothing called {0}"),
        (
            r"Untyped global name '([^']+)'.*<class '(?:\w+\.)*(dict|list|set)'>",
            "{0} is a {1}, which compiled code cannot read; numbers and tuples of numbers it can",
        ),
        (
            r"Untyped global name '([^']+)'.*<class 'function'>",
            "the function {0} is not compiled; only functions of this file, of strategies.* and of numpy and math are",
        ),
        (
            r"Untyped global name '([^']+)'[^:]*: (?:Cannot determine Numba type of )?<class '([^']+)'>",
            "{0} is a {1}, which compiled code cannot use",
        ),
        (r"Unknown attribute '([^']+)' of type Module\(<module '([^']+)'", "compiled code has no {1}.{0}"),
        (r"Unknown attribute '([^']+)' of type ([\w.]+)", "a {1} has no {0} (or none that compiled code knows)"),
        (
            r"Cannot unify (.+?) and (.+?) for '([^'.]+)[^']*'",
            "{2} is of one kind ({0}) on one path and of another ({1}) on another; it must always be the same kind",
        ),
        (
            r"Exception matching is limited",
            "try/except works in compiled code for `except Exception` only; better ask before than catch after",
        ),
        (
            r"No implementation of function Function\("
            r"<(?:built-in function|class|function|ufunc|intrinsic) '?([\w.]+)'?.*?>\).*?>>> \S+?\((.*?)\)\n",
            "{0} does not work in compiled code with ({1})",
        ),
        (
            r"Cannot infer the type of variable '([^'.]+)[^']*'.*list\(undefined\)",
            "the list {0} is empty: of what kind?",
        ),
        (r"failed to unpack (\S+)", "a {0} cannot be taken apart into several values"),
        (r"opcode \(LOAD_BUILD_CLASS\)", "a class cannot be made inside a compiled function"),
        (r"opcode \(IMPORT_NAME\)", "imports stand at the top of the file, not inside a function"),
        (r"opcode \(STORE_GLOBAL\)", "a compiled function cannot change a global; what changes belongs into the state"),
        (r"opcode \((\w+)\)", "this kind of statement ({0}) does not work in compiled code"),
        (r"f-strings not supported", "text formatting does not work in compiled code"),
        (r"context manager", "`with` does not work in compiled code"),
        (
            r"No definition for lowering (\w+).*?\.(\w+) = ",
            "a {0} is not changed in place (.{1} = …); make a new one from the old one's values",
        ),
        (r"getitem.*array\((\w+), (\d)d", "an array of {1} dimension(s) cannot be indexed like this"),
    )
)
_NOISE: Final = re.compile(
    r"Failed in nopython mode pipeline.*?\n|\s*File \".*|\s*During: .*|\s*Raised from .*|https?://\S+", re.DOTALL
)


def sentence(message: str) -> str:
    """One plain sentence for a message of the compiler; its own first line where no better one is known."""
    for pattern, plain in _SENTENCES:
        found = pattern.search(message)
        if found:
            parts = [" ".join(part.split())[:120] for part in found.groups()]
            return plain.format(*parts)
    rest = _NOISE.sub("", message.removeprefix("Failed in nopython mode pipeline (step: nopython frontend)\n"))
    first = next((line.strip() for line in rest.splitlines() if line.strip()), "")
    return first[:300] or " ".join(message.split())[:300] or "the compiler gives no reason"
