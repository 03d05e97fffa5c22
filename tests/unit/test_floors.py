"""The floors hold: nothing imports upward or in a circle, and each outside library stays with the files that own it.

Read from the syntax tree, so nothing is imported and an import inside a function is seen too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FLOORS: Final = {"conf": 0, "strategies": 1, "cluster": 2, "jobs": 3, "serve_apps": 4}
NOWHERE_BELOW: Final = "tests"

OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ray": ("jobs/*", "serve_apps/*", "cluster/ray_jobs.py", "cluster/local.py"),
    "redis": ("cluster/ledger_wire.py", "cluster/local.py"),
    "kubernetes": ("cluster/kube.py",),
    "coinbase": ("cluster/venue.py",),
    "websockets": ("cluster/venue_stream.py", "cluster/exchange_*.py"),
}
# Ray takes seconds to import but is met on several floors; inside a function it costs only whoever needs it.
LATE_ALLOWED: Final = frozenset({"ray"})


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, and whether importing the file executes it."""

    module: str
    line: int
    at_import: bool


def test_no_file_imports_a_floor_above_its_own() -> None:
    assert _upward(_sources()) == []


def test_each_outside_library_is_imported_only_by_the_files_that_own_it() -> None:
    assert _trespassing(_sources()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert _circle(_sources()) == []


def test_every_room_is_walked() -> None:
    assert {path.split("/")[0] for path in _sources()} == set(FLOORS)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("conf/a.py", "import cluster.ledger", ["conf/a.py:1 imports cluster.ledger, a floor above conf"]),
        (
            "strategies/a.py",
            "from jobs import sweep",
            ["strategies/a.py:1 imports jobs.sweep, a floor above strategies"],
        ),
        ("cluster/a.py", "import json, serve_apps", ["cluster/a.py:1 imports serve_apps, a floor above cluster"]),
        (
            "jobs/a.py",
            "def f():\n    import serve_apps.api",
            ["jobs/a.py:2 imports serve_apps.api, a floor above jobs"],
        ),
        (
            "cluster/sub/a.py",
            "import jobs.sweep as s",
            ["cluster/sub/a.py:1 imports jobs.sweep, a floor above cluster"],
        ),
        ("conf/a.py", "from ..jobs import sweep", ["conf/a.py:1 imports jobs.sweep, a floor above conf"]),
        (
            "cluster/a.py",
            "if TYPE_CHECKING:\n    from jobs.sweep import Sweep",
            ["cluster/a.py:2 imports jobs.sweep.Sweep, a floor above cluster"],
        ),
        (
            "cluster/a.py",
            "import importlib\nimportlib.import_module('jobs.sweep')",
            ["cluster/a.py:2 imports jobs.sweep, a floor above cluster"],
        ),
        ("cluster/a.py", "__import__('jobs')", ["cluster/a.py:1 imports jobs, a floor above cluster"]),
        ("serve_apps/a.py", "import tests.unit", ["serve_apps/a.py:1 imports tests.unit, a floor above serve_apps"]),
        ("serve_apps/a.py", "import jobs, cluster, strategies, conf", []),
        ("cluster/a.py", "from . import b\nfrom .c import d\nfrom cluster import e", []),
        ("cluster/a.py", "import jobs_of_another_house\nSTARTED = 'jobs.sweep'", []),
    ],
)
def test_an_upward_import_is_caught_wherever_it_hides(path: str, text: str, expected: list[str]) -> None:
    assert _upward({path: text}) == expected


@pytest.mark.parametrize(
    ("path", "text", "caught"),
    [
        ("strategies/a.py", "import ray", True),
        ("strategies/a.py", "from ray import serve", True),
        ("strategies/a.py", "try:\n    import ray.serve\nexcept ImportError:\n    pass", True),
        ("cluster/a.py", "class A:\n    import ray", True),
        ("cluster/a.py", "def f():\n    import ray", False),
        ("cluster/a.py", "async def f():\n    from ray import serve", False),
        ("cluster/a.py", "if TYPE_CHECKING:\n    import ray", False),
        ("cluster/a.py", "import raytracer", False),
        ("cluster/ray_jobs.py", "import ray", False),
        ("cluster/local.py", "import ray", False),
        ("jobs/sweep.py", "import ray", False),
        ("serve_apps/orders.py", "from ray import serve", False),
        ("serve_apps/orders.py", "import redis", True),
        ("serve_apps/orders.py", "def f():\n    import redis.asyncio", True),
        ("serve_apps/orders.py", "if TYPE_CHECKING:\n    import redis", True),
        ("cluster/ledger_wire.py", "import redis.asyncio", False),
        ("cluster/local.py", "def f():\n    import redis", False),
        ("cluster/cli.py", "def f():\n    from kubernetes import client", True),
        ("cluster/kube.py", "def f():\n    from kubernetes import client", False),
        ("jobs/ingest.py", "def f():\n    from coinbase.rest import RESTClient", True),
        ("jobs/ingest.py", "import importlib\nimportlib.import_module('coinbase.rest')", True),
        ("cluster/venue.py", "from coinbase.rest import RESTClient", False),
    ],
)
def test_a_library_outside_its_owners_is_caught(path: str, text: str, caught: bool) -> None:
    assert bool(_trespassing({path: text})) is caught


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"conf/a.py": "import conf.b", "conf/b.py": "from conf import a"}, ["conf.a", "conf.b"]),
        (
            {"conf/a.py": "from conf.b import x", "conf/b.py": "from . import c", "conf/c.py": "import conf.a"},
            ["conf.a", "conf.b", "conf.c"],
        ),
        ({"conf/a.py": "import conf.b", "conf/b.py": "def f():\n    import conf.a"}, []),
        ({"conf/__init__.py": "", "conf/a.py": "from conf import b", "conf/b.py": "import json"}, []),
    ],
)
def test_a_circle_is_caught(sources: dict[str, str], circle: list[str]) -> None:
    assert sorted(set(_circle(sources))) == circle


def _upward(sources: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in sources.items():
        room = path.split("/")[0]
        for imported in _imports(path, text):
            top = imported.module.split(".")[0]
            if top == NOWHERE_BELOW or FLOORS.get(top, -1) > FLOORS[room]:
                found.append(f"{path}:{imported.line} imports {imported.module}, a floor above {room}")
    return found


def _trespassing(sources: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in sources.items():
        for imported in _imports(path, text):
            library = imported.module.split(".")[0]
            owned = any(fnmatchcase(path, owner) for owner in OWNERS.get(library, ("*",)))
            late = library in LATE_ALLOWED and not imported.at_import
            if not owned and not late:
                owners = ", ".join(OWNERS[library])
                found.append(f"{path}:{imported.line} imports {imported.module}, which belongs to {owners}")
    return found


def _circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of one circle among the imports executed when a file is imported; empty where there is none."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {imported.module for imported in _imports(path, sources[path]) if imported.at_import}
        graph[module] = {target for target in (_existing(name, modules) for name in names) if target} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def _existing(name: str, modules: Mapping[str, str]) -> str | None:
    """``from conf.settings import ROOT`` is seen as conf.settings.ROOT: the longest prefix that is a module."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def _imports(path: str, text: str) -> list[Import]:
    return list(_walk(ast.parse(text, path), path.split("/")[:-1], at_import=True))


def _walk(node: ast.AST, package: list[str], *, at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, at_import) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = [*above, *([node.module] if node.module else [])]
        yield from (Import(".".join([*base, alias.name]), node.lineno, at_import) for alias in node.names)
    elif isinstance(node, ast.Call) and (name := _imported_by_name(node)):
        yield Import(name, node.lineno, at_import)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, at_import=at_import and not _runs_later(node, child))


def _imported_by_name(call: ast.Call) -> str | None:
    """The module in ``import_module("…")`` and ``__import__("…")``; starting a process by name is not an import."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in {"import_module", "__import__"} or not call.args:
        return None
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _runs_later(node: ast.AST, child: ast.AST) -> bool:
    """Whether ``child`` is not executed when the file is imported: a function's body, or for the type checker only."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return child in (node.body if isinstance(node.body, list) else [node.body])
    if isinstance(node, ast.If):
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        return name == "TYPE_CHECKING" and child in node.body
    return False


def _sources() -> dict[str, str]:
    paths = sorted(path for room in FLOORS for path in (ROOT / room).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
