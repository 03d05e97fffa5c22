"""How functions of this floor are compiled: numba, cached by the content of the whole floor.

Numba's own cache asks only whether the *one* file of a function changed, and looks under that file's path. Both are
wrong here: a strategy's machine code contains the indicators it calls, and Ray workers import this package from a
folder of their own. So the cache key is a hash of every source file of this floor, and the place is ``NUMBA_CACHE_DIR``
(where set) whatever folder the source was imported from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numba
import numpy as np
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.misc.appdirs import AppDirs
from numpy.typing import NDArray

FLOOR = Path(__file__).resolve().parent
FOLDER_PREFIX = "compiled-"

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile ``function`` on its first call, or load it from the cache; it runs without the interpreter lock.

    Division follows IEEE 754 as in numpy. The result keeps its plain source as ``.py_func``; with
    ``NUMBA_DISABLE_JIT=1`` it *is* the plain function.
    """
    return _compiled(function, "never")


def compiled_step(function: Function) -> Function:
    """``compiled``, and written out in full inside every compiled caller.

    Steps hand arrays in and out inside their state, and numba counts the references of each on every bar unless it
    sees the whole loop as one function: measured on Donchian breakout, 4 against 80 million bars a second.
    """
    return _compiled(function, "always")


def compiled_sums(function: Function) -> Function:
    """``compiled``, with sums taken in whatever order is fastest: for statistics, never for money."""
    return _compiled(function, "never", reordered=True)


def compiled_guarded(function: Function, *, step: bool = False) -> Function:
    """``compiled`` (or ``compiled_step``) for code of users: an index outside an array is an ``IndexError``.

    Without the guard it reads or overwrites whatever lies there. Measured on an SMA: an eighth of the speed.
    """
    return _compiled(function, "always" if step else "never", guarded=True)


def _compiled(
    function: Function, inline: Literal["never", "always"], guarded: bool = False, reordered: bool = False
) -> Function:
    options: dict[str, Any] = {"fastmath": {"reassoc"}} if reordered else {}
    dispatcher = numba.njit(nogil=True, error_model="numpy", inline=inline, boundscheck=guarded or None, **options)(
        function
    )
    if hasattr(dispatcher, "py_func"):
        # What numba's own enable_caching() does, with our key and place.
        cast(Any, dispatcher)._cache = cast(Any, _FloorCache)(function)
    return cast(Function, dispatcher)


def plain(function: Function) -> Function:
    """The same source run by the interpreter, and so is every compiled function it calls.

    This is the live path: no compiler starts in a process that trades.
    """
    source = getattr(function, "py_func", function)
    names = source.__code__.co_names
    bound = {name: source.__globals__[name] for name in names if name in source.__globals__}
    unwrapped = {name: plain(value) for name, value in bound.items() if hasattr(value, "py_func")}
    copy = types.FunctionType(source.__code__, {**source.__globals__, **unwrapped}, source.__name__)
    return cast(Function, copy)


def cache_statistics(function: Callable[..., Any]) -> tuple[int, int]:
    """How often ``function`` came from the cache and how often it had to be compiled, in this process."""
    statistics = cast(Any, function).stats
    return sum(statistics.cache_hits.values()), sum(statistics.cache_misses.values())


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous read-only view of ``array`` (a copy only where it has gaps).

    Arrays from Ray's object store are read-only, which is a type of its own to numba: with every array passed like
    this one compiled signature serves all callers.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def forget_stale() -> None:
    """Remove what earlier states of this floor left beside its sources.

    A folder that others share (``NUMBA_CACHE_DIR``) is not touched: an older version may still run from there.
    """
    for folder in (FLOOR / "__pycache__").glob(f"{FOLDER_PREFIX}*"):
        if folder.name != f"{FOLDER_PREFIX}{_floor_hash()[:16]}":
            shutil.rmtree(folder, ignore_errors=True)  # two processes may clean up at the same time


@functools.cache
def _floor_hash() -> str:
    """Of names and contents of all source files; line ends and all, as the interpreter read them."""
    digest = hashlib.sha256()
    for path in sorted(FLOOR.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _FloorCacheLocator(_CacheLocator):
    """Tells numba where the cache of one function lies and which state of the sources it belongs to."""

    def __init__(self, line: int, stamp: str, folder: Path) -> None:
        self._line = line
        self._stamp = stamp
        self._folder = folder

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: types.FunctionType, py_file: str) -> _FloorCacheLocator:
        source = Path(py_file).resolve()
        stamp = _floor_hash()
        if source.parent != FLOOR:  # a test's function, say: its own file counts as well
            stamp = hashlib.sha256(stamp.encode() + source.read_bytes()).hexdigest()
        return cls(py_func.__code__.co_firstlineno, stamp, cache_folder(source, f"{FOLDER_PREFIX}{stamp[:16]}"))


def cache_folder(source: Path, name: str) -> Path:
    """The first folder that is there or can be made; an image's may be there to read only.

    It is called ``name`` and lies in ``NUMBA_CACHE_DIR`` (without one: beside ``source``), or in the user's own cache.
    """
    chosen = cast(Any, config).CACHE_DIR  # NUMBA_CACHE_DIR
    users_own = Path(cast(Any, AppDirs)(appname="numba", appauthor=False).user_cache_dir)
    folders = [(Path(chosen) if chosen else source.parent / "__pycache__") / name, users_own / name]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a read-only install: the next one may do
        return folder
    return folders[0]


# What reading a truncated or overwritten pickle raises, as its documentation lists.
_DAMAGED = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, ValueError, TypeError)


class _FloorCacheImpl(CompileResultCacheImpl):
    _locator_classes = cast(Any, [_FloorCacheLocator])


class _FloorCache(FunctionCache):
    """As numba's, but a cache that cannot be read or written costs the time to compile and nothing else."""

    _impl_class = _FloorCacheImpl

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return cast(Any, super()).load_overload(sig, target_context)
        except OSError:
            return None
        except _DAMAGED:
            with contextlib.suppress(OSError):
                cast(Any, self).flush()  # an empty index, so that what is compiled now can be saved
            return None

    def save_overload(self, sig: object, data: object) -> None:
        with contextlib.suppress(OSError):
            cast(Any, super()).save_overload(sig, data)
