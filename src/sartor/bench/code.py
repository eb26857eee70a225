"""Which code makes a row: a digest of the modules that a strategy is made of, so that figures of other code are not taken for today's."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import sartor
from sartor.bench.cases import LIMITS, parse_strategy
from sartor.searchers import SEARCHERS

_ROOT = Path(sartor.__file__).parent
_ALWAYS = ("sartor.run", "sartor.evaluators.tabular")  # who asks, and what is answered
_FORMS = "sartor.searchers.constraints"  # what limits cost, where a strategy keeps them in another form


def code_of(strategy: str) -> str:
    """Digest of a strategy's code, in twelve hex digits, of all its settings alike; empty for strategies that are not of this package."""
    name, settings = parse_strategy(strategy)
    module = getattr(SEARCHERS.get(name), "__module__", "")
    if _path(module) is None:
        return ""
    return _digest(module, _FORMS) if LIMITS in settings else _digest(module)


@cache
def _digest(*modules: str) -> str:
    reached: set[str] = set()
    todo = [*modules, *_ALWAYS]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += _imports(name)
    together = hashlib.sha256()
    for name in sorted(reached):
        together.update(f"{name} {_meaning(name)}\n".encode())
    return together.hexdigest()[:12]


def _path(module: str) -> Path | None:
    """The file of a module of this package; None for its packages, whose `__init__` gathers what others need, and for anything else."""
    parts = module.split(".")
    path = _ROOT.joinpath(*parts[1:]).with_suffix(".py")
    return path if parts[0] == "sartor" and len(parts) > 1 and path.is_file() else None


@cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    assert path is not None
    return ast.parse(path.read_bytes())


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Modules of this package that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return tuple(sorted(name for name in found if _path(name) is not None))


@cache
def _meaning(module: str) -> str:
    """Digest of a module without comments, layout and docstrings."""
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


__all__ = ["code_of"]
