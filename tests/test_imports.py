"""No circles: no module imports itself by way of others, inside a package or between two of them."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "graph_store", "distributed", "jobs")


def modules_of(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """The file of every module, by its name within `promptmm`."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    names = [file.relative_to(root).with_suffix("").parts for file in files]
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): file for parts, file in zip(names, files)}


def imported(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """Every import statement of a file, also in functions and under TYPE_CHECKING: a module or package, and a name in it or ""."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix("promptmm."), ""
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield (source.removeprefix("promptmm.") if not node.level else source), alias.name


def imports_of(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, set[str]]:
    """The modules that every module imports; importing from a module is importing it, and not the packages that it lies in."""
    modules = modules_of(root, packages)
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        pairs = [(source, f"{source}.{name}".strip(".")) for source, name in imported(module, file)]
        targets = {inner if inner in modules else source for source, inner in pairs}
        found[module] = {target for target in targets if target in modules} - {module}
    return found


def circle_of(imports: dict[str, set[str]]) -> list[str]:
    """A circle, each of its modules imported by the next one; empty without one."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_inside_a_package(package):
    imports = imports_of(ROOT, (package,))
    assert len(imports) > 10
    assert sum(map(len, imports.values())) > len(imports)
    assert circle_of(imports) == []


def test_no_circle_at_all():
    assert circle_of(imports_of(ROOT)) == []


def test_packages_import_one_way():
    between: dict[str, set[str]] = {package: set() for package in PACKAGES}
    for module, targets in imports_of(ROOT).items():
        between[module.partition(".")[0]] |= {target.partition(".")[0] for target in targets}
    for number, package in enumerate(PACKAGES):
        assert between[package] <= set(PACKAGES[: number + 1]), package
    assert between["jobs"] == set(PACKAGES)


@pytest.mark.parametrize(
    "statement",
    [
        "from .b import thing",
        "from . import b",
        "from ..core import b",
        "from ..core.b import thing",
        "import promptmm.core.b",
        "from promptmm.core.b import thing",
        "from promptmm.core import b",
        "def f():\n    from .b import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import thing",
    ],
)
def test_every_kind_of_statement_is_seen(tmp_path, statement):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("")
    (tmp_path / "core" / "a.py").write_text(statement)
    (tmp_path / "core" / "b.py").write_text("from . import a\n")
    imports = imports_of(tmp_path, ("core",))
    assert imports["core.a"] == {"core.b"}
    assert set(circle_of(imports)) == {"core.a", "core.b"}


def test_a_package_that_imports_its_modules(tmp_path):
    (tmp_path / "core" / "kinds").mkdir(parents=True)
    (tmp_path / "core" / "__init__.py").write_text("")
    (tmp_path / "core" / "kinds" / "__init__.py").write_text("from .one import One\n")
    (tmp_path / "core" / "kinds" / "one.py").write_text("from ..base import Base\n")
    (tmp_path / "core" / "base.py").write_text("")
    assert circle_of(imports_of(tmp_path, ("core",))) == []
    (tmp_path / "core" / "base.py").write_text("from .kinds import One\n")
    assert set(circle_of(imports_of(tmp_path, ("core",)))) == {"core.base", "core.kinds", "core.kinds.one"}
