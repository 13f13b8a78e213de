"""Imports go one way: each package has a level, and imports only what is below it."""

import ast
from pathlib import Path

import pytest

import unlearn_pl

ROOT = Path(unlearn_pl.__file__).parent
LEVELS = [
    {"", "errors", "console", "stopping"},
    {"files", "provenance", "config_file"},
    {"parser_messages"},
    {"data", "models", "parsing", "hashing"},
    {"objectives", "merging", "metrics"},
    {"checkpoints", "tasks", "analysis", "inference", "report"},
    {"evaluation"},
    {"balance", "training", "testing"},
    {"callbacks"},
    {"commands", "cli"},
    {"recipe"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, also those inside functions; none for the package's own
    ``__init__.py``, which names its public classes for type checkers alone (tests/test_public.py)."""
    names: set[str] = set()
    if path == ROOT / "__init__.py":
        return names
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unlearn_pl"):
            names |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("unlearn_pl")}
    return names


def package(module: str) -> str:
    """``data`` of ``unlearn_pl.data.readers``; the empty name for ``unlearn_pl`` itself."""
    return ([*module.split("."), ""])[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for name in imported(MODULES[module]):
        own, other = package(module), package(name)
        assert own == other or LEVEL[own] > LEVEL[other] or (other == "" and own != ""), f"{module} imports {name}"


def test_no_module_reaches_itself() -> None:
    graph = {module: imported(path) for module, path in MODULES.items()}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in finished:
            for name in graph.get(module, ()):
                visit(name, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_every_package_has_a_level() -> None:
    assert {package(module) for module in MODULES} == set(LEVEL)


def test_no_room_without_a_noun() -> None:
    assert not [m for m in MODULES if m.rsplit(".", 1)[-1] in ("utils", "helpers", "common", "misc")]
