"""Imports point down: a module may use its own row and the rows above it, and nothing goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import paceline.errors

ROWS = [
    "errors types acceptance available",
    "config generation shapes roofline control draft_weights",
    "kernels",
    "weights models cache",
    "processors verification rejection structure sampling drafters",
    "speculate",
    "steering",
    "text hub resolve flags",
    "engine recorder",
    "calibration",
    "device",
    "llm __init__",
    "advisor bench train terminal",
    "cli __main__",
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row.split()}
PACKAGE = Path(paceline.errors.__file__).parent
MODULES = {".".join(("paceline", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in PACKAGE.rglob("*.py")}


def known(name: str) -> str:
    """The module file that a dotted name means: a package means its __init__."""
    return f"{name}.__init__" if f"{name}.__init__" in MODULES else name


def nodes_of(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if into_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from nodes_of(node, into_functions)


def imports_of(module: str, into_functions: bool) -> Iterator[str]:
    """Every first-party module that `module` imports, as dotted names."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in nodes_of(ast.parse(path.read_text(encoding="utf-8")), into_functions):
        if isinstance(node, ast.Import):
            yield from (known(alias.name) for alias in node.names if alias.name.split(".")[0] == "paceline")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: write 'from paceline...', not a relative import"
            yield from names_from(node) if str(node.module).split(".")[0] == "paceline" else ()


def names_from(node: ast.ImportFrom) -> Iterator[str]:
    """`from paceline import hub` means paceline.hub; `from paceline.hub import Found` means it too."""
    for alias in node.names:
        full = known(f"{node.module}.{alias.name}")
        yield full if full in MODULES else known(str(node.module))


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_module_has_its_row() -> None:
    unknown = sorted({top(module) for module in MODULES} - RANK.keys())
    assert not unknown, f"{', '.join(unknown)}: name each new top-level module in a row of ROWS in this file"


def test_imports_point_down() -> None:
    wrong = [
        f"{module} must not import {used}: {top(used)} stands in a later row"
        for module in sorted(MODULES)
        for used in imports_of(module, into_functions=True)
        if RANK.get(top(used), 0) > RANK.get(top(module), 0)
    ]
    assert not wrong, "; ".join(wrong)


def test_imports_make_no_circle() -> None:
    # An import inside a function runs late enough to close a circle safely (a factory picking its product).
    graph = {module: set(imports_of(module, into_functions=False)) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"these modules import each other: {' -> '.join(error.args[1])}") from None
