"""What `import durable_batches` brings along: pydantic, and nothing that only some users need."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

import durable_batches

LOADED = "import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    printed = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)], capture_output=True, text=True, timeout=60, check=True
    )
    modules: list[str] = json.loads(printed.stdout)
    return set(modules)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return loaded_by("durable_batches")


def optional_packages() -> set[str]:
    """Everything that an extra brings, by the name that it is imported by."""
    named = {Requirement(line).name for line in requires("durable-batches") or () if "extra ==" in line}
    return {name.partition("-")[0].replace("pydantic", "pydantic_ai") for name in named} - {"durable"}


@pytest.mark.parametrize(
    "package",
    [
        "_pytest",
        "aiosqlite",
        "asyncpg",
        "distributed",
        "greenlet",
        "hypothesis",
        "opentelemetry",
        "pydantic_ai",
        "pytest",
        "rapidfuzz",
        "ray",
        "rich",
        "sqlalchemy",
        "sqlite3",
        "sse_starlette",
        "starlette",
        "typer",
    ],
)
def test_what_only_some_need_is_not_imported(package: str, loaded: set[str]) -> None:
    assert not {name for name in loaded if name == package or name.startswith(f"{package}.")}


def test_no_extra_is_imported(loaded: set[str]) -> None:
    optional = optional_packages()
    assert {"rich", "typer", "rapidfuzz"} <= optional
    assert not optional & {name.partition(".")[0] for name in loaded}


def test_of_the_library_itself_only_what_is_needed_is_imported(loaded: set[str]) -> None:
    own = {name for name in loaded if name.startswith("durable_batches.")}
    parts = {name.split(".")[1] for name in own}
    assert parts.isdisjoint({"cli", "extraction", "testing", "web", "executors"})
    assert "durable_batches.stores.memory" in own
    assert not {name for name in own if "sqlite" in name or "postgres" in name}


def test_a_store_brings_its_driver_when_it_is_used() -> None:
    assert "sqlite3" in loaded_by("durable_batches; durable_batches.SQLiteStore")


def test_every_public_name_is_there() -> None:
    assert len(set(durable_batches.__all__)) == len(durable_batches.__all__)
    for name in durable_batches.__all__:
        assert getattr(durable_batches, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = durable_batches.nonsense  # type: ignore[attr-defined]  # pyright: ignore
