"""`durable-batches migrate`: by itself, or by SQL that an administrator runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from tests.postgres.databases import execute

from durable_batches import PostgresStore
from durable_batches.cli import main
from durable_batches.testing.conformance.scene import Scene


@dataclass(frozen=True)
class Answer:
    """What the command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


async def migrate(*arguments: str, dsn: str | None = None) -> Answer:
    """Run the command in a thread of this process."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        monkeypatch.delenv("DURABLE_BATCHES_DSN", raising=False)
        if dsn is not None:
            monkeypatch.setenv("DURABLE_BATCHES_DSN", dsn)
        monkeypatch.setattr(sys, "argv", ["durable-batches", "migrate", *arguments])
        code = await asyncio.to_thread(_exit_code)
    return Answer(code, stdout.getvalue(), stderr.getvalue())


def _exit_code() -> int:
    with pytest.raises(SystemExit) as exit_:
        main()
    code = exit_.value.code
    return 0 if code is None else int(code)


async def works(dsn: str, schema: str) -> bool:
    """Whether the store works on it, without changing it."""
    store = PostgresStore(dsn, schema=schema)
    await store.open()
    try:
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker()
        batch_id = await scene.batch(1)
        await hand.report(hand.succeeded(await hand.take()))
        return (await scene.look(batch_id)).state == "completed"
    finally:
        await store.close()


async def test_it_makes_the_schema_and_then_has_nothing_to_do(postgres_dsn: str, postgres_schema: str) -> None:
    first = await migrate("--schema", postgres_schema, dsn=postgres_dsn)
    assert (first.returncode, first.stderr) == (0, "")
    assert f"schema '{postgres_schema}'" in first.stdout
    assert "was brought up to date" in first.stdout
    second = await migrate(postgres_dsn, "--schema", postgres_schema)
    assert "is up to date" in second.stdout
    assert await works(postgres_dsn, postgres_schema)


async def test_its_sql_can_be_run_by_another_role(postgres_dsn: str, postgres_schema: str) -> None:
    shown = await migrate("--sql", "--schema", postgres_schema)
    assert shown.returncode == 0
    execute(postgres_dsn, shown.stdout)
    nothing = await migrate(postgres_dsn, "--sql", "--schema", postgres_schema)
    assert nothing.stdout.startswith("-- ")
    assert await works(postgres_dsn, postgres_schema)


async def test_its_sql_is_what_the_database_lacks(postgres_dsn: str, postgres_schema: str) -> None:
    shown = await migrate(postgres_dsn, "--sql", "--schema", postgres_schema)
    assert shown.stdout == (await migrate("--sql", "--schema", postgres_schema)).stdout


@pytest.mark.processes
def test_a_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """By the command itself."""
    command = [str(Path(sys.executable).with_name("durable-batches")), "migrate", str(tmp_path / "batches.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'batches.db'} is up to date\n"
    assert (tmp_path / "batches.db").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say which store"),
        (["mysql://user:secret@host/database"], "needs a DSN"),
        (["postgresql://user:secret@127.0.0.1:1/database"], "cannot be reached"),
        (["host=127.0.0.1 dbname=database password=secret"], "named by a URL"),
        (["batches.db", "--sql"], "--sql is for Postgres"),
        (["--sql", "--schema", "pg_mine"], "is the server's own"),
    ],
    ids=["nothing", "another-database", "no-server", "words", "sql-of-a-file", "bad-schema"],
)
async def test_what_cannot_be_is_said_in_a_line(arguments: list[str], says: str) -> None:
    answer = await migrate(*arguments)
    assert answer.returncode != 0
    assert answer.stdout == ""
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "secret" not in answer.stderr
