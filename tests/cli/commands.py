"""Commands of the command line, run in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

import pytest

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchStateMachine,
    PostgresStore,
    RetryPolicy,
    SQLiteStore,
    Stage,
    Store,
    durable_activity,
    workflow,
)
from durable_batches.cli import run

MODULE: Final = "store_of_a_test"
"""The module that has the test's own store."""


class Translating(Stage):
    tag: Literal["translating"] = "translating"


@durable_activity(stage=Translating, retry=RetryPolicy(max_attempts=1))
async def to_upper(text: str) -> str:
    if text.startswith("bad"):
        raise ValueError(f"cannot translate {text}")
    return text.upper()


@workflow(BatchStateMachine(Translating), name="translate")
async def translate(text: str) -> str:
    return await to_upper(text)


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        """The objects that it printed; it said nothing else."""
        assert self.err == ""
        return [json.loads(line) for line in self.out.splitlines()]


class Commands:
    """Runs commands on one store.

    Args:
        make: Makes the store, as another process would open it.
        target: What --store calls it.
        capsys: Has what is printed.
    """

    def __init__(self, make: Callable[[], Store], target: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.make = make
        self.target = target
        self._capsys = capsys

    def __call__(self, command: str, *arguments: str) -> Ran:
        """Run a command on the store."""
        return self.bare(command, *self.target, *arguments)

    def bare(self, *arguments: str) -> Ran:
        """Run a command with nothing but these arguments."""
        self._capsys.readouterr()
        code = run(arguments)
        printed = self._capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    def submit(self, batch_id: str, *texts: str, runs: bool = True, **labels: str) -> None:
        """Leave a batch behind, run to its end or not at all."""

        async def leave() -> None:
            config = BatchConfig(metadata=labels)
            async with BatchOrchestrator(translate, store=self.make(), max_in_flight=4 if runs else 0) as batches:
                await batches.submit(texts, batch_id=batch_id, config=config, document_id=str)
                if runs:
                    await batches.result(batch_id)

        asyncio.run(leave())


def target_of(store: Store, request: pytest.FixtureRequest) -> Sequence[str]:
    """Name a store on the command line, if need be as an object of a module."""
    match store:
        case SQLiteStore():
            return ["--store", str(store.path)]
        case PostgresStore():
            dsn: str = request.getfixturevalue("postgres_dsn")
            schema: str = request.getfixturevalue("migrated_schema")
            return ["--store", dsn, "--schema", schema]
        case _:
            return own_store(store, request)


def own_store(store: object, request: pytest.FixtureRequest) -> Sequence[str]:
    """Make a store the `store` of a module; return what names it on the command line."""
    module = ModuleType(MODULE)
    module.store = store  # type: ignore[attr-defined]  # as a user's module has it
    sys.modules[MODULE] = module
    request.addfinalizer(lambda: sys.modules.pop(MODULE, None))
    return ["--store", f"{MODULE}:store"]
