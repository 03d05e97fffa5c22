"""A quant's own strategy from one file outside the repository: read, checked, compiled, and found by its content.

The file has a class ``Params``, ``start`` and ``on_bar``, as a file of this floor has, and needs nothing else: its
functions need no decorator, and the loop ``targets`` is made for it. It is code and runs with the rights of whoever
starts it; nothing here is a fence against malice.

Its strategy is called ``<file name>@<first 16 digits of the SHA-256 of its bytes>``. A name therefore means one text
for good, and what a process has loaded under it can be kept for good; ``registry.get`` finds it there. Nothing is ever
loaded because of a name alone: a process loads a file (``desk``) or what lies in a run's folder (driver and workers).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import keyword
import linecache
import os
import re
import stat
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from strategies.base import RULE_NAMES, BarStep, Params, Strategy
from strategies.compiled import cache_folder, compiled, compiled_guarded, plain
from strategies.model import Float64Array
from strategies.user_errors import SourceText, StrategyFileError, told
from strategies.user_rules import findings

__all__ = [
    "SUFFIX",
    "StrategyFile",
    "StrategyFileError",
    "UserTargets",
    "checked_name",
    "file_of",
    "load",
    "load_folder",
    "loaded",
    "read",
    "users_own",
    "write_into",
]

SUFFIX: Final = ".py"
BYTES_MAX: Final = 256 * 1024
NAME_MAX: Final = 40
TAG_LENGTH: Final = 16
# A constant this long is data, and data in a strategy file can be the future.
CONSTANTS_MAX: Final = 256
_NAME: Final = re.compile(rf"[a-z][a-z0-9_]{{0,{NAME_MAX - 1}}}")
_FULL_NAME: Final = re.compile(rf"([a-z][a-z0-9_]{{0,{NAME_MAX - 1}}})@([0-9a-f]{{{TAG_LENGTH}}})")

# What is made for the file, after its last line.
_LOOP: Final = """

# The rest is made by the desk: the loop over on_bar.
def targets(vector, open_, high, low, close, volume):
    target = __desk_array(close.size)
    state = start(vector)
    for i in range(close.size):
        bar = __desk_bar(open_[i], high[i], low[i], close[i], volume[i])
        state, target[i] = on_bar(vector, state, bar)
    return target
"""


@dataclass(frozen=True)
class StrategyFile:
    """A file's bytes under its name; ``shown`` is the name for people, ``data`` exactly what was read."""

    name: str
    data: bytes
    shown: str

    @property
    def sha256(self) -> str:
        """Of the bytes, 64 hexadecimal digits, as ``sha256sum`` prints it."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def strategy_name(self) -> str:
        """``my_strategy@0123456789abcdef``."""
        return f"{self.name}@{self.sha256[:TAG_LENGTH]}"

    @property
    def text(self) -> str:
        """Raises ``StrategyFileError`` where the bytes are no UTF-8 text."""
        try:
            text = self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise StrategyFileError(self.shown, line, "", f"not UTF-8 text at byte {error.start}") from None
        if "\0" in text:
            raise StrategyFileError(self.shown, text.count("\n", 0, text.index("\0")) + 1, "", "a zero byte, no text")
        return text


def read(path: Path) -> StrategyFile:
    """The file at ``path``; raises ``StrategyFileError`` where it is none a strategy could be in."""
    shown = path.name or str(path)

    def refuse(rule: str) -> StrategyFileError:
        return StrategyFileError(repr(shown)[1:-1], 0, "", rule)

    if not path.name.endswith(SUFFIX):
        raise refuse(f"a strategy file ends in {SUFFIX}")
    name = checked_name(path.name.removesuffix(SUFFIX), shown)
    try:
        # Not blocking: a named pipe nobody writes to would keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise refuse("a file is needed, this is a folder" if stat.S_ISDIR(kind) else "this is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise refuse(f"longer than {BYTES_MAX // 1024} KiB: a strategy is rules, data belongs into the bar store")
    if not data.strip():
        raise refuse("the file is empty; `desk strategy new NAME` writes one to begin with")
    return StrategyFile(name, data, shown)


def checked_name(name: str, shown: str) -> str:
    """``name`` if a strategy file can be called so; raises ``StrategyFileError``."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        rule = f"the file's name becomes the strategy's: up to {NAME_MAX} of a-z, 0-9 and _, a letter first, no keyword"
        raise StrategyFileError(repr(shown)[1:-1], 0, "", rule)
    return name


# -- what this process has loaded --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    file: StrategyFile
    strategy: Strategy


# Only ever added to, and a name says which bytes it stands for: no entry can be stale or mean something else.
_LOADED: Final[dict[str, _Loaded]] = {}
_LOADING: Final = threading.RLock()


def loaded(name: str) -> Strategy | None:
    """The strategy this process has loaded under ``name``."""
    found = _LOADED.get(name)
    return found.strategy if found else None


def file_of(name: str) -> StrategyFile | None:
    """The file it was loaded from."""
    found = _LOADED.get(name)
    return found.file if found else None


def users_own(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are users' strategies, each once."""
    return [name for name in dict.fromkeys(names) if _FULL_NAME.fullmatch(name)]


def load(file: StrategyFile) -> Strategy:
    """Run the file and make its strategy; once a process. Raises ``StrategyFileError`` with line and rule."""
    with _LOADING:
        name = file.strategy_name
        if name not in _LOADED:
            _LOADED[name] = _Loaded(file, _load(file))
        return _LOADED[name].strategy


def write_into(folder: Path, names: Iterable[str]) -> None:
    """Write the files of the users' strategies among ``names`` into ``folder``, each as ``<strategy name>.py``."""
    chosen = users_own(names)
    if chosen:
        folder.mkdir(exist_ok=True)
    for name in chosen:
        (folder / f"{name}{SUFFIX}").write_bytes(_LOADED[name].file.data)


def load_folder(folder: Path) -> list[Strategy]:
    """Load what ``write_into`` wrote (nothing where the folder is absent); a file that was changed since is refused."""
    strategies = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        name = path.name.removesuffix(SUFFIX)
        known = loaded(name)
        if known is None:
            known = load(_from_folder(path, name))
        strategies.append(known)
    return strategies


def _from_folder(path: Path, name: str) -> StrategyFile:
    parts = _FULL_NAME.fullmatch(name)
    if parts is None:
        raise StrategyFileError(path.name, 0, "", "not a strategy the run was laid out with")
    data = path.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(parts[2]):
        raise StrategyFileError(path.name, 0, "", "the run's copy of the strategy was changed after it was laid out")
    return StrategyFile(parts[1], data, f"{parts[1]}{SUFFIX}")


# -- from text to a strategy -------------------------------------------------------------------------------------------


class UserTargets:
    """The compiled loop; what goes wrong in it is told with the user's line, the bar and the parameters."""

    def __init__(self, source: SourceText, strategy_params: type[Params], module: types.ModuleType) -> None:
        self._source = source
        self._params = strategy_params
        self._module = module
        self.loop: Callable[..., Float64Array] = module.__dict__["targets"]

    def __call__(self, vector: Float64Array, *bars: Float64Array) -> Float64Array:
        """As ``Strategy.targets``."""
        try:
            return self.loop(vector, *bars)
        except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
            raise self._explained(error, vector, bars) from None

    def _explained(self, error: Exception, vector: Float64Array, bars: tuple[Float64Array, ...]) -> StrategyFileError:
        """The same once more in plain Python, which knows the bar and the line; else what the compiled code said."""
        given = ", ".join(
            f"{name}={value:g}" for name, value in zip(self._params.names(), vector.tolist(), strict=True)
        )
        where = "start"
        try:
            state = plain(self._module.__dict__["start"])(vector)
            step = plain(self._module.__dict__["on_bar"])
            for i, row in enumerate(zip(*(array.tolist() for array in bars), strict=True)):
                where = f"on_bar at bar {i}"
                state, target = step(vector, state, BarStep(*row))
                float(target)
        except Exception as found:  # noqa: BLE001 -- a user's code may raise anything
            return told(self._source, found, f"{where} with {given or 'no parameters'}")
        line = self._source.line_of(r"def on_bar\b")
        return told(self._source, error, f"the loop over on_bar with {given or 'no parameters'}", line)


def source_text(file: StrategyFile) -> SourceText:
    """The file's lines, and where they lie for the compiler and for traces: a folder named by the content's hash."""
    text = file.text
    name = f"users-{file.sha256[:TAG_LENGTH]}"
    folder = cache_folder(Path(__file__), name)
    path = folder / f"{file.name}{SUFFIX}"
    whole = (text + _LOOP).encode()
    try:
        _put(path, whole)
    except OSError:
        # No folder can be written: compiled anew in each process then, but compiled.
        folder = Path(tempfile.mkdtemp(prefix=name))
        path = folder / f"{file.name}{SUFFIX}"
        _put(path, whole)
    return SourceText(file.shown, path, tuple(text.splitlines()))


def _put(path: Path, whole: bytes) -> None:
    if path.is_file() and path.read_bytes() == whole:
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(whole)
    Path(name).replace(path)


def check_text(file: StrategyFile, source: SourceText) -> list[StrategyFileError]:
    """Everything that can be said without running the file, in the order of lines; a syntax error is all there is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(file.text, filename=file.shown)
            compile(tree, file.shown, "exec", dont_inherit=True)
    except SyntaxError as error:
        return [source.error(error.lineno or 0, f"not Python: {error.msg}")]
    except (ValueError, RecursionError, MemoryError) as error:
        return [source.error(0, f"not Python that can be read: {error or type(error).__name__}")]
    return [source.error(line, rule) for line, rule in findings(tree)]


def _load(file: StrategyFile) -> Strategy:
    source = source_text(file)
    for problem in check_text(file, source):
        raise problem
    module = _module(file, source)
    try:
        params = _params(source, module)
        for name, count in (("start", 1), ("on_bar", 3)):
            _check_signature(source, module, name, count)
        _check_constants(source, module)
    except StrategyFileError:
        sys.modules.pop(module.__name__, None)
        raise
    _compile(file, source, module)
    names = module.__dict__
    title = (module.__doc__ or "").strip().partition("\n")[0].strip()[:120] or file.name
    targets = UserTargets(source, params, module)
    return Strategy(file.strategy_name, title, params, names["start"], names["on_bar"], targets)


def _module(file: StrategyFile, source: SourceText) -> types.ModuleType:
    """The file, run as a module of a name that its content has alone; raises what it raised, with its line."""
    module = types.ModuleType(f"users_{file.name}_{file.sha256[:TAG_LENGTH]}")
    module.__file__ = str(source.path)
    linecache.checkcache(str(source.path))
    sys.modules[module.__name__] = module  # pydantic looks the annotations' names up there, a cache the state's class
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            exec(compile(file.text, str(source.path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- a user's code may raise anything
        sys.modules.pop(module.__name__, None)
        problem = told(source, error, "while the file was loaded")
        line = _field_line(source, error)
        raise source.error(line, problem.rule) if line else problem from None
    return module


def _field_line(source: SourceText, error: BaseException) -> int:
    """Where the field stands that an error of ``Params`` itself names: "Params.fast: expected …"."""
    named = re.match(r"Params\.(\w+):", str(error))
    return source.line_of(rf"\s+{named[1]}\s*:") if named else 0


def _params(source: SourceText, module: types.ModuleType) -> type[Params]:
    params = getattr(module, "Params", None)
    if params is Params or not (isinstance(params, type) and issubclass(params, Params)):
        rule = "the file needs a class Params(base.Params) with its parameters (from strategies import base)"
        raise source.error(source.line_of(r"class Params\b"), rule)
    for name in params.names():
        if name in RULE_NAMES:
            line = source.line_of(rf"\s+{name}\s*:")
            raise source.error(
                line, f"{name} is a rule that every strategy takes already; call the parameter otherwise"
            )
    return params


def _check_signature(source: SourceText, module: types.ModuleType, name: str, count: int) -> None:
    function = getattr(module, name, None)
    wanted = {"start": "start(vector)", "on_bar": "on_bar(vector, state, bar)"}[name]
    function = getattr(function, "py_func", function)
    if not isinstance(function, types.FunctionType):
        raise source.error(source.line_of(rf"{name}\b"), f"the file needs a function {wanted}")
    line = function.__code__.co_firstlineno if function.__code__.co_filename == str(source.path) else 0
    line = source.line_of(rf"def {name}\b") or line
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is not one.POSITIONAL_OR_KEYWORD or one.default is not one.empty for one in parameters):
        raise source.error(line, f"{name} takes plain arguments without defaults: {wanted}")
    if len(parameters) != count:
        raise source.error(
            line, f"{name} takes {count} argument{'s' * (count > 1)}: {wanted}; here it takes {len(parameters)}"
        )


def _check_constants(source: SourceText, module: types.ModuleType) -> None:
    """A global array is a constant in compiled code: it would know what no bar has told."""
    for function in _functions(source, module):
        for name in _names_used(function.__code__):
            value = module.__dict__.get(name)
            line = source.line_of(rf"{name}\b") or function.__code__.co_firstlineno
            if isinstance(value, np.ndarray | list | dict | set | bytearray | bytes | str):
                kind = type(value).__name__
                rule = (
                    f"{function.__name__} uses {name}, a global {kind}: constants are numbers and short tuples of them"
                )
                raise source.error(line, f"{rule}; what changes, and every array, belongs into the state")
            if isinstance(value, tuple) and _numbers_in(value) > CONSTANTS_MAX:
                rule = f"{function.__name__} uses {name}, more than {CONSTANTS_MAX} constants: that is data, not a rule"
                raise source.error(line, rule)


def _functions(source: SourceText, module: types.ModuleType) -> Iterator[types.FunctionType]:
    """The file's own functions, as they were written."""
    for value in list(module.__dict__.values()):
        function = getattr(value, "py_func", value)
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == str(source.path):
            yield function


def _names_used(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_used(constant)


def _numbers_in(value: object) -> int:
    return sum(_numbers_in(part) for part in value) if isinstance(value, tuple) else 1


def _compile(file: StrategyFile, source: SourceText, module: types.ModuleType) -> None:
    """Put compiled functions in the place of the file's own, and the loop over them beside them.

    All get the desk's own settings, whatever decorator they had: IEEE arithmetic, checked indices, the desk's cache.
    """
    names = module.__dict__
    for name, value in list(names.items()):
        function = getattr(value, "py_func", value)
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == str(source.path):
            names[name] = compiled_guarded(function, step=name != "start")
    for name in ("start", "on_bar"):
        if not hasattr(names[name], "py_func"):  # taken over from elsewhere, not compiled there
            names[name] = compiled(cast(Any, names[name]))
    names["__desk_array"] = np.empty
    names["__desk_bar"] = BarStep
    # The loop stands after the last line, so that traces and caches find it in the one file.
    offset = "\n" * file.text.count("\n")
    exec(compile(offset + _LOOP, str(source.path), "exec", dont_inherit=True), names)  # noqa: S102
    names["targets"] = compiled_guarded(names["targets"])
