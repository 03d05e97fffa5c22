"""A quant's own strategy from one file outside the repository: read, checked, compiled, and found by its content.

The file has a class ``Params``, ``start`` and ``on_bar``, as a file of this floor has, and needs nothing else: its
functions need no decorator, and the loop ``targets`` is made for it. With ``on_bars`` instead it is a strategy over
several products (cross_section.py), and the loop is called ``decide``. It is code and runs with the rights of whoever
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

from strategies.base import RULE_NAMES, AnyStrategy, BarStep, Params, Strategy
from strategies.compiled import cache_folder, compiled, compiled_guarded, plain
from strategies.cross_section import CrossSection, PanelStep
from strategies.model import Float64Array
from strategies.panel import PRODUCTS_MAX
from strategies.portfolio_kernel import decided, new_decisions
from strategies.user_errors import SourceText, StrategyFileError, told
from strategies.user_rules import findings

__all__ = [
    "SUFFIX",
    "StrategyFile",
    "StrategyFileError",
    "UserLoop",
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
_LOOPS: Final = {
    "on_bar": """

# The rest is made by the desk: the loop over on_bar.
def targets(vector, open_, high, low, close, volume):
    target = __desk_array(close.size)
    state = start(vector)
    for i in range(close.size):
        bar = __desk_bar(open_[i], high[i], low[i], close[i], volume[i])
        state, target[i] = on_bar(vector, state, bar)
    return target
""",
    "on_bars": """

# The rest is made by the desk: the loop over on_bars.
def decide(vector, open_, high, low, close, volume):
    decisions = __desk_none_yet(close.shape[1])
    state = start(vector, close.shape[1])
    for i in range(close.shape[0]):
        step = __desk_step(open_[i], high[i], low[i], close[i], volume[i])
        state, weights = on_bars(vector, state, step)
        decisions = __desk_decided(decisions, i, weights)
    return decisions
""",
}
# What each kind of strategy has: its functions with their arguments, and the loop that is made for it.
_FUNCTIONS: Final = {
    "on_bar": ({"start": ("vector",), "on_bar": ("vector", "state", "bar")}, "targets"),
    "on_bars": ({"start": ("vector", "products"), "on_bars": ("vector", "state", "step")}, "decide"),
}


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
    strategy: AnyStrategy


# Only ever added to, and a name says which bytes it stands for: no entry can be stale or mean something else.
_LOADED: Final[dict[str, _Loaded]] = {}
_LOADING: Final = threading.RLock()


def loaded(name: str) -> AnyStrategy | None:
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


def load(file: StrategyFile) -> AnyStrategy:
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


def load_folder(folder: Path) -> list[AnyStrategy]:
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


class UserLoop:
    """The compiled loop; what goes wrong in it is told with the user's line, the bar and the parameters."""

    def __init__(self, source: SourceText, strategy_params: type[Params], module: types.ModuleType, step: str) -> None:
        self._source = source
        self._params = strategy_params
        self._module = module
        self._step = step
        self.loop: Callable[..., Any] = module.__dict__[_FUNCTIONS[step][1]]

    def __call__(self, vector: Float64Array, *bars: Float64Array) -> Any:
        """As ``Strategy.targets``, or as ``CrossSection.decide``."""
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
        several = self._step == "on_bars"
        try:
            start, step = (plain(self._module.__dict__[name]) for name in ("start", self._step))
            state = start(vector, bars[0].shape[1]) if several else start(vector)
            for i, row in enumerate(steps_of(bars)):
                where = f"{self._step} at bar {i}"
                state, wanted = step(vector, state, row)
                _ = check_weights(wanted, bars[0].shape[1]) if several else float(wanted)
        except Exception as found:  # noqa: BLE001 -- a user's code may raise anything
            return told(self._source, found, f"{where} with {given or 'no parameters'}")
        line = self._source.line_of(rf"def {self._step}\b")
        return told(self._source, error, f"the loop over {self._step} with {given or 'no parameters'}", line)


def steps_of(bars: tuple[Float64Array, ...]) -> Iterator[BarStep | PanelStep]:
    """What a strategy is shown, bar by bar: of float64[n] each a ``BarStep``, of float64[n, p] a ``PanelStep``."""
    if bars[0].ndim == 1:
        yield from (BarStep(*row) for row in zip(*(array.tolist() for array in bars), strict=True))
    else:
        yield from (PanelStep(*rows) for rows in zip(*bars, strict=True))


def check_weights(weights: object, products: int) -> Float64Array:
    """``weights`` if they are what ``on_bars`` is to return; raises ``ValueError`` saying what they are."""
    wanted = f"an array of {products} floats, one weight a product"
    if not isinstance(weights, np.ndarray):
        raise ValueError(f"the weights are a {type(weights).__name__}, expected {wanted}")  # noqa: TRY004
    if weights.dtype != np.float64 or weights.shape != (products,):
        raise ValueError(f"the weights are {weights.dtype}{weights.shape}, expected {wanted}")
    unusable = ~(np.isnan(weights) | ((weights >= -1.0) & (weights <= 1.0)))
    if unusable.any():
        q = int(unusable.argmax())
        raise ValueError(f"the weight of product {q} is {weights[q]:g}; a weight lies in -1 … 1, or is nan: no order")
    return weights


def source_text(file: StrategyFile) -> SourceText:
    """The file's lines, and where they lie for the compiler and for traces: a folder named by the content's hash."""
    text = file.text
    name = f"users-{file.sha256[:TAG_LENGTH]}"
    folder = cache_folder(Path(__file__), name)
    path = folder / f"{file.name}{SUFFIX}"
    several = re.search(r"^def on_bars\b", text, re.MULTILINE)
    whole = (text + _LOOPS["on_bars" if several else "on_bar"]).encode()
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


def _load(file: StrategyFile) -> AnyStrategy:
    source = source_text(file)
    for problem in check_text(file, source):
        raise problem
    module = _module(file, source)
    try:
        params = _params(source, module)
        step = _step(source, module)
        for name, arguments in _FUNCTIONS[step][0].items():
            _check_signature(source, module, name, arguments)
        _check_constants(source, module)
        bounds = _bounds(source, module, params) if step == "on_bars" else {}
    except StrategyFileError:
        sys.modules.pop(module.__name__, None)
        raise
    _compile(file, source, module, step)
    names = module.__dict__
    title = (module.__doc__ or "").strip().partition("\n")[0].strip()[:120] or file.name
    loop = UserLoop(source, params, module, step)
    if step == "on_bars":
        return CrossSection(file.strategy_name, title, params, names["start"], names["on_bars"], loop, **bounds)
    return Strategy(file.strategy_name, title, params, names["start"], names["on_bar"], loop)


def _step(source: SourceText, module: types.ModuleType) -> str:
    """Which kind of strategy it is: the name of its step."""
    there = [name for name in _FUNCTIONS if hasattr(module, name)]
    if len(there) == 2:
        line = source.line_of(r"def on_bars\b")
        raise source.error(line, "one file is one strategy: on_bar for one product, or on_bars for several, not both")
    return there[0] if there else "on_bar"


def _bounds(source: SourceText, module: types.ModuleType, params: type[Params]) -> dict[str, Any]:
    """How many products it is for, and which parameters count them: PRODUCTS_MIN, PRODUCTS_MAX and COUNTS."""
    names = module.__dict__
    least, most = names.get("PRODUCTS_MIN", 1), names.get("PRODUCTS_MAX", PRODUCTS_MAX)
    for name, value in (("PRODUCTS_MIN", least), ("PRODUCTS_MAX", most)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= PRODUCTS_MAX:
            raise source.error(source.line_of(rf"{name}\b"), f"{name} is a whole number from 1 to {PRODUCTS_MAX}")
    if least > most:
        raise source.error(
            source.line_of(r"PRODUCTS_MIN\b"), f"PRODUCTS_MIN = {least} is more than PRODUCTS_MAX = {most}"
        )
    counts = names.get("COUNTS", ())
    if not isinstance(counts, tuple) or not all(name in params.names() for name in counts):
        rule = f"COUNTS is a tuple of parameters that count products, of {', '.join(params.names()) or 'none'}"
        raise source.error(source.line_of(r"COUNTS\b"), rule)
    return {"products_min": least, "products_max": most, "counts": counts}


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


def _check_signature(source: SourceText, module: types.ModuleType, name: str, arguments: tuple[str, ...]) -> None:
    function = getattr(module, name, None)
    wanted, count = f"{name}({', '.join(arguments)})", len(arguments)
    function = getattr(function, "py_func", function)
    if not isinstance(function, types.FunctionType):
        other = "; or on_bars(vector, state, step), for several products" if name == "on_bar" else ""
        raise source.error(source.line_of(rf"{name}\b"), f"the file needs a function {wanted}{other}")
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


def _compile(file: StrategyFile, source: SourceText, module: types.ModuleType, step: str) -> None:
    """Put compiled functions in the place of the file's own, and the loop over them beside them.

    All get the desk's own settings, whatever decorator they had: IEEE arithmetic, checked indices, the desk's cache.
    """
    names = module.__dict__
    for name, value in list(names.items()):
        function = getattr(value, "py_func", value)
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == str(source.path):
            names[name] = compiled_guarded(function, step=name != "start")
    for name in ("start", step):
        if not hasattr(names[name], "py_func"):  # taken over from elsewhere, not compiled there
            names[name] = compiled(cast(Any, names[name]))
    made = {"array": np.empty, "bar": BarStep, "step": PanelStep, "none_yet": new_decisions, "decided": decided}
    names.update({f"__desk_{name}": value for name, value in made.items()})
    # The loop stands after the last line, so that traces and caches find it in the one file.
    offset = "\n" * file.text.count("\n")
    exec(compile(offset + _LOOPS[step], str(source.path), "exec", dont_inherit=True), names)  # noqa: S102
    loop = _FUNCTIONS[step][1]
    names[loop] = compiled_guarded(names[loop])
