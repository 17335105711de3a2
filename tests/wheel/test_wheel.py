"""The built wheel, installed: the README's programs run, everything is in it, and an absent extra is named.

`make wheel` and `make matrix` make the environments first; a program runs in a process of its own there, in an empty
folder, with warnings as errors.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.docs.test_snippets import snippets
from tests.postgres.databases import without_schema
from tests.wheel.environments import (
    APART,
    EXTRAS,
    KEPT,
    PYTHONS,
    ROOT,
    Environment,
    lower_bounds,
    prepared,
    requirements,
)

from durable_batches.version import DOCS_URL, REPOSITORY_URL, VERSION

SOURCES = ROOT / "src"
PATIENCE = 60.0

ENVIRONMENTS = [
    pytest.param(each, id=each.name, marks=getattr(pytest.mark, lane))
    for lane in ("wheel", "matrix")
    for each in prepared(lane)
]
everywhere = pytest.mark.parametrize("environment", ENVIRONMENTS)


def environments_with(extra: str) -> pytest.MarkDecorator:
    """Where an extra is installed."""
    having = [each for each in ENVIRONMENTS if extra in with_extras(each)]
    return pytest.mark.parametrize("environment", having)


def without_an_extra() -> pytest.MarkDecorator:
    """Each environment with each of the extras that it lacks."""
    return pytest.mark.parametrize(
        ("environment", "extra"),
        [
            pytest.param(*each.values, extra, id=f"{each.id}-{extra}", marks=each.marks)
            for each in ENVIRONMENTS
            for extra in EXTRAS
            if extra not in with_extras(each)
        ],
    )


def with_extras(parameters: object) -> tuple[str, ...]:
    (environment,) = getattr(parameters, "values")  # noqa: B009
    assert isinstance(environment, Environment)
    return environment.extras


def run(
    environment: Environment, folder: Path, *arguments: str, exit_code: int = 0, dsn: str = ""
) -> subprocess.CompletedProcess[str]:
    """A program of the environment, without anything of the environment that the tests run in."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    ran = subprocess.run(
        arguments,
        cwd=folder,
        env={**inherited, "DSN": dsn, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return ran


def python(environment: Environment, folder: Path, program: str, dsn: str = "") -> str:
    """What a Python program prints."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    return run(environment, folder, str(environment.python), str(file), dsn=dsn).stdout


# ---- what is in the distributions ----------------------------------------------------------------------------------


def sources() -> set[str]:
    """The files that users get."""
    return {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }


@pytest.fixture
def wheel() -> Iterator[zipfile.ZipFile]:
    (file,) = (KEPT / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        yield archive


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    text = wheel.read(f"durable_batches-{VERSION}.dist-info/METADATA").decode("utf-8")
    return Parser().parsestr(text)


@pytest.mark.wheel
def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == sources()
    assert "durable_batches/py.typed" in found
    assert sum(name.endswith(".sql") for name in found) > 1
    licence = f"durable_batches-{VERSION}.dist-info/licenses/LICENSE"
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.wheel
def test_the_source_distribution_has_what_it_takes_to_work_on_it() -> None:
    (file,) = (KEPT / "dist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= found
    wanted = "Makefile pyproject.toml requirements-dev.txt constraints.txt mkdocs.yml conftest.py LICENSE".split()
    assert {*wanted, *(path.name for path in ROOT.glob("*.md"))} <= found
    for folder in ("tests", "docs", "examples", "benchmarks"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert files <= found
    assert [name for name in found if re.search(r"__pycache__|\.db$|^\.venv|^site/|^dist/", name)] == []


@pytest.mark.wheel
def test_the_metadata_says_what_users_need(metadata: Message) -> None:
    assert metadata["Name"] == "durable-batches"
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("Provides-Extra") == ["all", *sorted([*EXTRAS, *APART])]
    assert metadata.get_all("Project-URL") == [
        f"Documentation, {DOCS_URL}",
        f"Repository, {REPOSITORY_URL}",
        f"Changelog, {REPOSITORY_URL}CHANGELOG.md",
    ]
    classifiers = metadata.get_all("Classifier")
    assert classifiers is not None
    assert [each for each in classifiers if re.search(r"Python :: 3\.\d+$", each)] == [
        f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)
    ]
    assert "Typing :: Typed" in classifiers
    assert "Operating System :: OS Independent" not in classifiers


@pytest.mark.wheel
def test_an_index_shows_the_readme(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


# ---- requirements --------------------------------------------------------------------------------------------------


@pytest.mark.wheel
@pytest.mark.parametrize("python_version", PYTHONS)
def test_every_requirement_has_a_lower_bound_and_a_pin_within_it(python_version: str) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    pinned = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    needed = requirements(EXTRAS, python_version)
    assert set(lower_bounds(needed)) == {each.name for each in needed}
    assert [each for each in needed if pinned[canonicalize_name(each.name)] not in each.specifier] == []


def test_of_two_bounds_the_higher_one_is_the_lowest_version() -> None:
    needed = [Requirement("some>=1.2,<3"), Requirement("some>=2"), Requirement("other>=0.10")]
    assert {name: str(version) for name, version in lower_bounds(needed).items()} == {"some": "2", "other": "0.10"}
    with pytest.raises(SystemExit, match="loose<3 has no lower bound"):
        lower_bounds([Requirement("loose<3")])


# ---- installed -----------------------------------------------------------------------------------------------------


@pytest.mark.wheel
def test_the_environments_are_there() -> None:
    assert [each.name for each in prepared("wheel")] == ["oldest", "newest"], "run `make wheel`"


WHERE = """
import importlib.resources, json, sys
import durable_batches
from durable_batches.stores import migrations
files = importlib.resources.files
scripts = [each for dialect in files(migrations).iterdir() if dialect.is_dir() for each in dialect.iterdir()]
print(json.dumps([
    durable_batches.__file__,
    "{}.{}".format(*sys.version_info),
    durable_batches.__version__,
    (files("durable_batches") / "py.typed").is_file(),
    sorted(each.name for each in scripts if each.name.endswith(".sql")),
]))
"""


@everywhere
def test_what_is_imported_is_the_wheel(environment: Environment, tmp_path: Path) -> None:
    where, version, library, typed, migrations = json.loads(python(environment, tmp_path, WHERE))
    assert Path(where).is_relative_to(environment.folder)
    assert (version, library, typed) == (environment.python_version, VERSION, True)
    in_tree = SOURCES / "durable_batches" / "stores" / "migrations"
    assert migrations == sorted(path.name for path in in_tree.glob("*/*.sql"))
    assert migrations


INSTALLED = """
import json
from importlib.metadata import distributions
print(json.dumps({each.metadata["Name"].lower().replace("_", "-"): each.version for each in distributions()}))
"""


@everywhere
def test_versions_are_those_that_the_metadata_allows(environment: Environment, tmp_path: Path) -> None:
    installed: dict[str, str] = json.loads(python(environment, tmp_path, INSTALLED))
    needed = requirements(environment.extras, environment.python_version)
    for each in needed:
        assert each.specifier.contains(installed[each.name]), each
    if environment.lowest:
        for name, version in lower_bounds(needed).items():
            assert version.release == tuple(map(int, installed[name].split(".")))[: len(version.release)], name
    check = run(environment, tmp_path, str(environment.python), "-W", "default", "-m", "pip", "check")
    assert check.stdout.startswith("No broken requirements")


@everywhere
def test_the_programs_of_the_readme_run(environment: Environment, tmp_path: Path) -> None:
    said = python(environment, tmp_path, snippets(ROOT / "README.md"))
    assert "'Ada': 2" in said


STAR = """
from durable_batches import *
print("PostgresStore" in globals())
"""


@everywhere
def test_everything_that_is_exported_can_be_imported(environment: Environment, tmp_path: Path) -> None:
    assert python(environment, tmp_path, STAR).strip() == str("postgres" in environment.extras)


# ---- with an extra -------------------------------------------------------------------------------------------------


@environments_with("cli")
def test_the_command_is_there(environment: Environment, tmp_path: Path) -> None:
    command = str(environment.python.with_name("durable-batches"))
    assert run(environment, tmp_path, command, "--version").stdout.strip() == VERSION
    helped = run(environment, tmp_path, command, "--help").stdout
    assert {"list", "show", "watch", "documents", "errors", "events", "why", "cancel", "export"} <= set(helped.split())
    assert {"demo", "migrate"} <= set(helped.split())


EXTRACTED = """
import asyncio
from durable_batches import BatchOrchestrator, SQLiteStore
from durable_batches.extraction import *
import durable_batches.extraction as extraction
print(sorted(extraction.__all__)[0])
"""


@environments_with("extraction")
def test_the_extraction_is_there(environment: Environment, tmp_path: Path) -> None:
    assert python(environment, tmp_path, EXTRACTED)
    if "cli" in environment.extras:
        texts = tmp_path / "texts"
        texts.mkdir()
        (texts / "one.txt").write_text("Requires: rich. Written by Ada Lovelace <ada@example.org>.", encoding="utf-8")
        command = str(environment.python.with_name("durable-batches"))
        run(environment, tmp_path, command, "demo", "--path", "texts", "--pace", "0")
        assert (tmp_path / "graph.json").is_file()
        listed = run(environment, tmp_path, command, "list", "--store", "demo.db", "--state", "completed").stdout
        assert listed.splitlines()[1].startswith("demo-files-")


ON_POSTGRES = """
import asyncio, os
from sqlalchemy.ext.asyncio import create_async_engine
from durable_batches import EXTRACTION, BatchOrchestrator, PostgresStore, workflow

@workflow(EXTRACTION)
async def shout(text: str) -> str:
    return text.upper()

async def main() -> None:
    dsn = os.environ["DSN"]
    async with BatchOrchestrator(shout, store=PostgresStore(dsn, schema="wheel")) as batches:
        await batches.run(["a", "b"], batch_id="b")
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    async with BatchOrchestrator(shout, store=PostgresStore(engine, schema="wheel")) as batches:
        print([result.value async for result in batches.results("b")])
    await engine.dispose()

asyncio.run(main())
"""


@environments_with("postgres")
def test_a_batch_on_postgres(
    environment: Environment, postgres_dsn: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: without_schema(postgres_dsn, "wheel"))
    assert python(environment, tmp_path, ON_POSTGRES, dsn=postgres_dsn).strip() == "['A', 'B']"


SUITE = """
import pytest
from durable_batches import EXTRACTION, SQLiteStore, workflow
from durable_batches.testing import StoreConformance

@workflow(EXTRACTION)
async def shout(text: str) -> str:
    return text.upper()

async def test_a_batch(batch_environment) -> None:
    async with batch_environment(shout) as env:
        assert [each.value async for each in env.batches.results((await env.batches.run(["a"])).batch_id)] == ["A"]

class TestSQLite(StoreConformance):
    @pytest.fixture(autouse=True)
    def file(self, tmp_path):
        self.path = tmp_path / "batches.db"

    async def make_store(self, clock):
        return SQLiteStore(self.path, clock=clock)

    reopen_store = make_store
"""


@environments_with("testing")
def test_the_tests_of_a_user_run(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE, encoding="utf-8")
    settings = ["asyncio_mode = auto", "asyncio_default_fixture_loop_scope = function"]
    (tmp_path / "pytest.ini").write_text("\n".join(["[pytest]", *settings]), encoding="utf-8")
    arguments = ["-m", "pytest", "-q", *(["-k", "test_a_batch or payloads or claim"] if environment.lowest else [])]
    ran = run(environment, tmp_path, str(environment.python), *arguments)
    assert re.search(r"\d\d passed", ran.stdout), ran.stdout


# ---- without it ----------------------------------------------------------------------------------------------------

USES = {
    "extraction": ("import durable_batches.extraction", "packaging|rapidfuzz"),
    "fsspec": ("from durable_batches.blobs import BlobStorage; BlobStorage('.')", "fsspec"),
    "otel": ("from durable_batches.telemetry import OpenTelemetry", "opentelemetry-api"),
    "postgres": ("from durable_batches import PostgresStore", "asyncpg"),
    "testing": ("from durable_batches.testing import StoreConformance", "pytest"),
    "web": ("import durable_batches.web", "starlette"),
}

MISSING = """
from durable_batches import DurableBatchesError
try:
    {use}
except DurableBatchesError as error:
    assert isinstance(error, ImportError)
    print(error)
"""


@without_an_extra()
def test_an_extra_that_is_absent_is_named(environment: Environment, extra: str, tmp_path: Path) -> None:
    advice = f"pip install 'durable-batches[{extra}]'"
    if extra == "cli":
        command = str(environment.python.with_name("durable-batches"))
        (line,) = run(environment, tmp_path, command, "--help", exit_code=2).stderr.splitlines()
        assert line.startswith("durable-batches: '")
        assert line.endswith(advice)
    else:
        use, packages = USES[extra]
        said = python(environment, tmp_path, MISSING.format(use=use)).strip()
        assert re.match(f"'({packages})' is not installed; ", said)
        assert said.endswith(advice)
