"""What can be seen in a user's strategy file without running it: which statements have no place there, and why.

This is no fence against malice: a strategy file is code, and it runs with the rights of whoever starts it. It finds
what would make results wrong or impossible to repeat, and says so at its line before anything is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

IMPORTS: Final = frozenset(
    {"__future__", "collections", "dataclasses", "enum", "math", "numba", "numpy", "pydantic", "strategies", "typing"}
)
NUMBERS_MAX: Final = 512
TEXT_MAX: Final = 1_000
_BUILTINS: Final = {
    "print": "a strategy prints nothing: it runs for every bar of every parameter set",
    "open": "a strategy reads and writes no files: it knows the bars it is given, nothing else",
    "input": "a strategy asks nobody",
    "breakpoint": "a strategy does not stop for a debugger",
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), "a strategy makes no code while it runs"),
    **dict.fromkeys(("globals", "vars", "setattr", "delattr"), "a strategy changes no names while it runs"),
}
_NUMPY: Final = {
    "random": "targets cannot depend on chance: two runs of one specification must be equal",
    **dict.fromkeys(
        ("load", "loadtxt", "genfromtxt", "fromfile", "memmap", "save", "savez", "savetxt", "fromregex"),
        "a strategy reads and writes no files: it knows the bars it is given, nothing else",
    ),
    "empty": "np.empty holds whatever lay in memory before, another time something else: use np.zeros",
    "empty_like": "np.empty_like holds whatever lay in memory before, another time something else: use np.zeros_like",
}
# Whatever module it is taken from.
_BEYOND: Final = {"as_strided": "a strategy does not reach beyond the arrays it is given: other bars lie there"}
_NUMBA: Final = {
    "objmode": "objmode leaves the compiled code: what happens there cannot be repeated",
    **dict.fromkeys(("carray", "farray"), "a strategy does not reach into memory by address"),
}
_STATEMENTS: Final[dict[type[ast.AST], str]] = {
    ast.Global: "a function cannot change a global; what changes from bar to bar belongs into the state",
    ast.Nonlocal: "a function cannot change a name outside itself; what changes belongs into the state",
    ast.ClassDef: "a class cannot be made inside a compiled function; put it at the top level of the file",
    ast.Import: "imports stand at the top of the file, not inside a function",
    ast.ImportFrom: "imports stand at the top of the file, not inside a function",
    ast.With: "`with` does not work in compiled code",
    ast.Yield: "a function here returns its result; it cannot yield",
    ast.YieldFrom: "a function here returns its result; it cannot yield",
    ast.Await: "compiled code does not wait for anything",
}


def findings(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, rule) for each statement that has no place in a strategy file, in the order of lines."""
    return sorted({*_imports(tree), *_names(tree), *_definitions(tree), *_inside_functions(tree), *_data(tree)})


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a strategy is one file: an import relative to it finds nothing where it runs"
                continue
            module = node.module or ""
            modules = [module]
            yield from _imported_names(node, module)
        else:
            continue
        for module in modules:
            if module.partition(".")[0] not in IMPORTS:
                allowed = ", ".join(sorted(IMPORTS - {"__future__"}))
                yield node.lineno, f"imports only from {allowed}; {module} is none of them"
            elif module in {"numpy.random"}:
                yield node.lineno, _NUMPY["random"]


def _imported_names(node: ast.ImportFrom, module: str) -> Iterator[tuple[int, str]]:
    refused = {"numpy": _NUMPY, "numba": _NUMBA}.get(module.partition(".")[0], {})
    for alias in node.names:
        if alias.name in refused or alias.name in _BEYOND:
            yield node.lineno, refused.get(alias.name) or _BEYOND[alias.name]
        if alias.name == "*":
            yield node.lineno, "import names one by one: what * brings in cannot be told from this file"


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _BUILTINS:
            yield node.lineno, _BUILTINS[node.id]
        if isinstance(node, ast.Attribute) and node.attr in _BEYOND:
            yield node.lineno, _BEYOND[node.attr]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            refused = {"numpy": _NUMPY, "numba": _NUMBA}.get(module, {})
            if node.attr in refused:
                yield node.lineno, refused[node.attr]


def _definitions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    several = any(isinstance(node, ast.FunctionDef) and node.name == "on_bars" for node in tree.body)
    made = {"targets": "on_bar", **({"decide": "on_bars"} if several else {})}
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef):
            yield node.lineno, f"{node.name} is asynchronous; compiled code does not wait for anything"
        if isinstance(node, ast.FunctionDef) and node.name in made:
            step = made[node.name]
            rule = f"{node.name} is made for the file of {step}; one that sees all bars at once could look ahead"
            yield node.lineno, rule
        if isinstance(node, ast.ClassDef) and node.name == "Params":
            yield from _fields(node)


def _fields(params: ast.ClassDef) -> Iterator[tuple[int, str]]:
    for node in params.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation)
        if "ClassVar" in kind:
            continue
        given = {word.arg for word in node.value.keywords} if isinstance(node.value, ast.Call) else set()
        has_default = isinstance(node.value, ast.Call) and (node.value.args or "default" in given)
        if kind.strip("'\"") not in {"int", "float"}:
            yield node.lineno, f"the parameter {node.target.id} is a number: int or float, not {kind}"
        elif not {"ge", "le"} <= given or not has_default:
            rule = f"the parameter {node.target.id} needs a default and a range: Field(10, ge=1, le=100, description=…)"
            yield node.lineno, rule


def _data(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Prices written into a file are the one way to know the future that changed bars cannot show."""
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    numbers = [node for node in constants if isinstance(node.value, int | float | complex)]
    if len(numbers) > NUMBERS_MAX:
        rule = f"more than {NUMBERS_MAX} numbers are written into the file: that is data, not a rule"
        yield numbers[NUMBERS_MAX].lineno, rule
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in constants:
        if isinstance(node.value, str | bytes) and len(node.value) > TEXT_MAX and id(node) not in documentation:
            yield node.lineno, f"a text of more than {TEXT_MAX} characters: that is data, not a rule"


def _inside_functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.stmt | ast.expr) and type(node) in _STATEMENTS:
                yield node.lineno, _STATEMENTS[type(node)]
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                rule = f"a state is not changed in place (.{node.attr} = …): make a new one of the old values"
                yield node.lineno, rule
