"""What importing the library brings along, what it says where an extra is missing, and what it exports."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe
import pytest
from tests.imported import Imported
from tests.support import unmeasured

import durable_batches

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"

OPTIONAL = set(
    "aiosqlite anyio asyncpg click dask fastapi httpx hypothesis logfire openai opentelemetry orjson psycopg "
    "packaging pydantic_ai pytest rapidfuzz ray requests rich sqlalchemy sqlite3 starlette typer uvicorn".split()
)
"""What nobody shall have to wait for, or to install, who does not use it."""


@pytest.fixture(scope="module")
def imported() -> Iterator[Imported]:
    """A process that has imported the package, and nothing else."""
    with Imported(ROOT / "src", "-W", "error") as process:
        yield process


def run(program: str, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in an interpreter of its own, in which nothing has been imported."""
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=folder,
        env={**unmeasured(), "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- what is imported, and when -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "brings"),
    [
        ("import durable_batches", set[str]()),
        ("from durable_batches import *", {"aiosqlite", "asyncpg", "sqlite3"}),
        ("from durable_batches import BatchOrchestrator, MemoryStore, Worker", set[str]()),
        ("from durable_batches import SQLiteStore", {"aiosqlite", "sqlite3"}),
        ("from durable_batches import PostgresStore", {"asyncpg"}),
        ("import durable_batches.stores", set[str]()),
        ("from durable_batches.stores import SQLiteStore", {"aiosqlite", "sqlite3"}),
        ("import durable_batches.testing", set[str]()),
        ("from durable_batches.testing import ManualClock", set[str]()),
        ("import durable_batches.extraction", {"packaging", "rapidfuzz"}),
        ("import durable_batches.cli", set[str]()),
        ("import durable_batches.telemetry", set[str]()),
        ("from durable_batches.telemetry import OpenTelemetry", {"opentelemetry"}),
        ("import durable_batches.web", {"anyio", "starlette"}),
    ],
)
@pytest.mark.processes
def test_only_what_is_used_is_imported(statement: str, brings: set[str], imported: Imported, tmp_path: Path) -> None:
    ran = imported.run(f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))", tmp_path)
    assert ran.returncode == 0, ran.stderr
    names = {name.partition(".")[0] for name in json.loads(ran.stdout)}
    assert "durable_batches" in names
    assert names & OPTIONAL == brings


@pytest.mark.processes
def test_what_scripts_need_is_imported_for_scripts_only(imported: Imported, tmp_path: Path) -> None:
    program = (
        "import sys, durable_batches\n"
        "print([name for name in sys.modules if name.startswith(('durable_batches.script', 'durable_batches.ter'))])\n"
        "print(durable_batches.run_batch.__module__)"
    )
    ran = imported.run(program, tmp_path)
    assert ran.stdout.splitlines() == ["[]", "durable_batches.script.runner"], ran.stderr


@pytest.mark.parametrize(
    "module", ["durable_batches", *(f"durable_batches.{name}" for name in ("stores", "telemetry", "testing"))]
)
def test_there_is_no_other_name_to_import(module: str) -> None:
    name = "PaperStore"
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'PaperStore'"):
        getattr(importlib.import_module(module), name)


TIMED = """
from time import perf_counter
from pydantic import BaseModel, Field, TypeAdapter
began = perf_counter()
import durable_batches
print(perf_counter() - began)
"""


@pytest.mark.soak  # four interpreters, one of which compiles everything, for a number that nothing is asserted of
def test_the_time_that_it_adds_to_importing_pydantic_is_shown(tmp_path: Path) -> None:
    # Shown (pytest -rP) and not asserted: it is the machine's as much as the library's.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times = [float(run(TIMED, tmp_path, **compiled).stdout) for _ in range(4)]
    print(f"import durable_batches: {min(times) * 1000:.0f} ms more than pydantic")
    assert all(time > 0 for time in times)


# ---- missing extras -----------------------------------------------------------------------------------------------

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
"""As if these packages were not installed. Importing the package imports none of them, so it may have been imported."""


@pytest.mark.parametrize(
    ("statement", "extra", "package"),
    [
        ("import durable_batches.extraction", "extraction", "rapidfuzz"),
        ("import durable_batches.extraction", "extraction", "packaging"),
        ("from durable_batches import PostgresStore", "postgres", "asyncpg"),
        ("import durable_batches.web", "web", "starlette"),
    ],
)
@pytest.mark.processes
def test_what_lacks_its_extra_names_it(
    statement: str, extra: str, package: str, imported: Imported, tmp_path: Path
) -> None:
    program = f"""
try:
    {statement}
except ImportError as error:
    from durable_batches import MissingExtraError
    assert isinstance(error, MissingExtraError)
    print(error.code, error.extra, error.package)
    print(error)
"""
    ran = imported.run(WITHOUT.format(absent={package}) + program, tmp_path)
    assert ran.stdout.splitlines() == [
        f"missing-extra {extra} {package}",
        f"{package!r} is not installed; it comes with the extra {extra!r}: pip install 'durable-batches[{extra}]'",
    ], ran.stderr


STAR = """
from {module} import *
import inspect, {module} as module
print([name for name in ("MemoryStore", "PostgresStore", "SQLiteStore") if name in globals()])
assert set(module.__all__) <= set(dir(module)) == {{name for name, _ in inspect.getmembers(module)}}
print("PostgresStore" in module.__all__, "PostgresStore" in dir(module))
"""


@pytest.mark.parametrize("module", ["durable_batches", "durable_batches.stores"])
@pytest.mark.processes
def test_everything_else_needs_no_extra(module: str, tmp_path: Path) -> None:
    ran = run(WITHOUT.format(absent=OPTIONAL - {"aiosqlite", "sqlite3"}) + STAR.format(module=module), tmp_path)
    assert ran.stdout.splitlines() == ["['MemoryStore', 'SQLiteStore']", "False False"], ran.stderr


@pytest.mark.parametrize("module", ["durable_batches", "durable_batches.stores"])
@pytest.mark.processes
def test_with_its_extra_every_store_is_exported(module: str, imported: Imported, tmp_path: Path) -> None:
    ran = imported.run(STAR.format(module=module), tmp_path)
    assert ran.stdout.splitlines() == ["['MemoryStore', 'PostgresStore', 'SQLiteStore']", "True True"], ran.stderr


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ({"typer"}, ["--version"], "cli"),
        ({"rich"}, ["--version"], "cli"),
        ({"rich", "typer"}, [], "cli"),
        ({"rich", "typer"}, ["demo"], "cli"),
        ({"rapidfuzz"}, ["demo"], "extraction"),
        ({"packaging"}, ["demo"], "extraction"),
    ],
)
@pytest.mark.processes
def test_the_command_without_its_extra_says_so_in_a_line(
    absent: set[str], arguments: list[str], extra: str, imported: Imported, tmp_path: Path
) -> None:
    program = f"sys.argv = {['durable-batches', *arguments]!r}\nfrom durable_batches.cli import main\nmain()"
    ran = imported.run(WITHOUT.format(absent=absent) + program, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert re.fullmatch(
        rf"durable-batches: '({'|'.join(absent)})' is not installed; .* pip install 'durable-batches\[{extra}\]'", line
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
def test_what_an_extra_brings_is_not_asked_for_by_others(imported: Imported, tmp_path: Path) -> None:
    program = "sys.argv = ['durable-batches', '--version']\nfrom durable_batches.cli import main\nmain()"
    ran = imported.run(WITHOUT.format(absent={"rapidfuzz"}) + program, tmp_path)
    assert (ran.returncode, ran.stdout.strip()) == (0, durable_batches.__version__), ran.stderr


@pytest.mark.parametrize("absent", ["pytest", "pytest_asyncio"])
@pytest.mark.processes
def test_the_conformance_suite_without_pytest_says_so(absent: str, imported: Imported, tmp_path: Path) -> None:
    program = "import durable_batches.testing\ntry:\n    from durable_batches.testing import StoreConformance\n"
    program += "except ImportError as error:\n    print(type(error).__bases__[0].__name__, error)\n"
    ran = imported.run(WITHOUT.format(absent={absent}) + program, tmp_path)
    assert ran.stdout.startswith(f"DurableBatchesError {absent!r} is not installed; "), ran.stderr
    assert ran.stdout.strip().endswith("pip install 'durable-batches[testing]'")


# ---- what is exported ---------------------------------------------------------------------------------------------

PUBLIC = [
    "durable_batches",
    *(f"durable_batches.{name}" for name in ("errors", "extraction", "stores", "telemetry", "testing")),
]


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_there_and_sorted(module: str) -> None:
    names: list[str] = importlib.import_module(module).__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in names:
        assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("name", durable_batches.__all__)
def test_exported_classes_and_functions_say_what_they_are(name: str) -> None:
    exported: object = getattr(durable_batches, name)
    if inspect.isclass(exported) or inspect.isfunction(exported):
        documentation = vars(exported).get("__doc__") or exported.__doc__
        assert documentation
        # What `dataclass` writes of itself.
        assert not documentation.startswith(f"{name}(")


@pytest.mark.docs
def test_every_exported_name_is_in_the_reference() -> None:
    """With a description; `tests/docs/test_site.py` looks at the site itself."""
    shown = {name for page in REFERENCE.glob("*.md") for name in names_on(page)}
    assert [name for name in durable_batches.__all__ if name not in shown] == []


@cache
def package() -> griffe.ModulesCollection:
    """The package, as the documentation is made from it."""
    loader = griffe.GriffeLoader(search_paths=[ROOT / "src"])
    loader.load("durable_batches")
    loader.resolve_aliases(implicit=False)
    return loader.modules_collection


def names_on(page: Path) -> list[str]:
    """The names that a page of the reference shows, one by one or as a module's, and that have a description."""
    described = package()
    paths: list[str] = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    modules = [path for path in paths if described[path].is_module]
    paths += [f"{module}.{name}" for module in modules for name in importlib.import_module(module).__all__]
    return [path.rpartition(".")[2] for path in paths if described[path].has_docstring]
