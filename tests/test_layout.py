"""The tree itself: which way imports run, and the folder consul/, which bears a library's name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import consul
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each package with the ones of ours that it may know.
MAY_IMPORT = {
    "discovery": set[str](),
    "manifest_cache": {"discovery"},
    "web": {"discovery", "manifest_cache"},
}
# The types of the standard library have no other place.
OURS_AND_TYPES = {*MAY_IMPORT, "_typeshed"}
# Its documentation names it, underscore and all.
PUBLIC = {"os._exit"}
CONSUL_CALLS = ROOT / "discovery" / "consul" / "api.py"


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_the_folder_consul_does_not_hide_the_library() -> None:
    assert not list((ROOT / "consul").rglob("*.py")), "an __init__.py there would hide python-consul2"
    assert consul.__file__ is not None, "the library is not installed: the folder was imported instead"
    assert (ROOT / "consul") not in Path(consul.__file__).parents


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imported(path)
        if name in forbidden or name == "tests"
    }
    assert not wrong


def test_the_consul_library_is_touched_in_one_file() -> None:
    files = [path for package in MAY_IMPORT for path in sources(package) if "consul" in imported(path)]
    assert files == [CONSUL_CALLS]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_file_begins_by_saying_what_it_is(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(package)
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(), path))
    ]
    assert not silent


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_file_is_longer_than_400_lines(package: str) -> None:
    long = [path for path in sources(package) if len(path.read_text().splitlines()) > 400]
    assert not long


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_private_name_of_a_library_is_used(package: str) -> None:
    private = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(package)
        for name in private_names(path)
        if name not in PUBLIC
    }
    assert not private


def private_names(path: Path) -> Iterator[str]:
    """What a file imports, or takes from a module that it imported, though it begins with an underscore."""
    tree = ast.parse(path.read_text(), path)
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            taken = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OURS_AND_TYPES:
            modules |= {alias.asname or alias.name for alias in node.names}
            taken = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in taken if "._" in f".{name}" and not name.startswith("__future__"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in modules and node.attr.startswith("_") and not node.attr.endswith("__"):
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_folder_holds_more_than_a_dozen_files(package: str) -> None:
    folders = {path.parent for path in sources(package)}
    crowded = [str(folder.relative_to(ROOT)) for folder in folders if len(list(folder.glob("*.py"))) > 12]
    assert not crowded


def test_the_web_server_starts_without_the_clients_of_others() -> None:
    code = "import sys, web.asgi; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"aiohttp", "httpx", "requests", "consul"} & set(done.stdout.split())
