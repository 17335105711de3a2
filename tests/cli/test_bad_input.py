"""What a command cannot do it says in a line on stderr, with an exit code, and changes nothing."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from tests.cli.commands import Commands, own_store
from tests.postgres.roles import READER, Role

from durable_batches import MemoryStore, PostgresStore, StoreUnavailableError
from durable_batches.cli.exits import Exit
from durable_batches.cli.options import Status
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.stores import migrations

READING: Final = ("show", "spent", "watch", "why", "errors", "documents", "events", "export")
CHANGING: Final = ("cancel", "pause", "resume", "update --concurrency 2")

ODD: Final = "\x1b]0;title\x07 \x9b31m [red]bold[/red] \u202e \r\n\t\x7f end"
"""An id that would set a terminal's title and colour, and is markup."""


def unprintable(text: str) -> list[str]:
    return [character for character in text if not character.isprintable() and character != "\n"]


# ---- what is not there ---------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_there(on_file: Commands) -> None:
    on_file.submit("monday", "one")
    for command, batch_id in product([*READING, *CHANGING], ["nobody's", "x" * 100_000, ODD]):
        ran = on_file(*command.split(), batch_id)
        assert (ran.code, ran.out) == (Exit.NO_BATCH, ""), command
        assert ran.err.startswith("durable-batches: there is no batch "), command
        assert len(ran.err.splitlines()) == 1, command
        assert not unprintable(ran.err), command


@pytest.mark.parametrize("command", ["list", *(f"{command} monday" for command in (*READING, *CHANGING))])
def test_a_file_that_is_not_there_is_not_made(on_file: Commands, command: str, tmp_path: Path) -> None:
    ran = on_file(*command.split())
    assert (ran.code, ran.out) == (Exit.NO_STORE, "")
    assert "there is no file" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store(on_file: Commands, tmp_path: Path) -> None:
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("no database " * 100)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE batch (a)")
    for path, says in ((text, "is not a SQLite database"), (other, "none of the store's"), (tmp_path, "is a folder")):
        ran = on_file.bare("list", "--store", str(path))
        assert (ran.code, ran.out) == (Exit.NO_STORE, "")
        assert says in ran.err
    assert sorted(tmp_path.iterdir()) == [other, text]


def test_a_schema_that_lacks_a_migration(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    on_file.submit("monday", "one")
    scripts = migrations.newer_scripts

    def one_more(dialect: str, where: str, version: int, readable_since: str) -> list[tuple[int, str]]:
        return [*scripts(dialect, where, version, readable_since), (900, "CREATE TABLE too_much (a integer)")]

    monkeypatch.setattr(migrations, "newer_scripts", one_more)
    ran = on_file("list")
    assert (ran.code, ran.out) == (Exit.NO_STORE, "")
    assert "reads version 900; start a worker or run `durable-batches migrate`" in ran.err


# ---- the command line ----------------------------------------------------------------------------------------------


def test_a_wrong_command_line(on_file: Commands) -> None:
    on_file.submit("monday", "one")
    for line, says in (
        ("list --state complted", "the states here are pending, translating, resolving, completed, failed, cancelled"),
        ("list --state completed --state translting", "no batch can be in the state 'translting'"),
        ("documents monday --status faild", "'pending', 'running', 'waiting', 'succeeded', 'failed', 'cancelled'"),
        ("documents monday --status pending --fingerprint fp1:0", "only failed documents have a fingerprint"),
        ("errors monday --examples -1", "--examples"),
        ("list --since yesterday", "'yesterday' is no moment; give 30m, 2h or 7d"),
        ("list --since 999999w", "is no moment"),
        ("list --label tenant", "'tenant' is no label; give name=value"),
        ("list --label =x", "'=x' is no label"),
        ("list --limit -1", "--limit"),
        ("events monday --after -1", "--after"),
        ("events monday --after two", "--after"),
        ("watch monday --interval 0", "--interval"),
        ("show", "BATCH"),
        ("lst", "lst"),
        ("list --nothing", "--nothing"),
    ):
        command, *options = line.split()
        ran = on_file(command, *options)
        assert (ran.code, ran.out) == (Exit.USAGE, ""), line
        assert says in ran.err, line
        assert "--help)" in ran.err, line
        assert len(ran.err.splitlines()) == 1, line


@pytest.mark.parametrize("line", ["list --workflow", "list --state", "documents monday --fingerprint"])
def test_a_text_that_no_store_could_be_asked_for(on_file: Commands, line: str) -> None:
    """As a shell gives it for what is no UTF-8."""
    on_file.submit("monday", "one")
    ran = on_file(*line.split(), "a\udcff")
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    assert len(ran.err.splitlines()) == 1
    assert not unprintable(ran.err)


def test_every_status_can_be_asked_for() -> None:
    assert [status.value for status in Status] == list(get_args(ExecutionStatus))


def test_no_command_is_answered_with_help(on_file: Commands) -> None:
    ran = on_file.bare()
    assert ran.code == Exit.USAGE
    assert "Usage: durable-batches" in ran.out + ran.err


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("", "say which store"),
        ("mysql://user:secret@host/database", "needs a DSN"),
        ("host=127.0.0.1 dbname=database password=secret", "named by a URL"),
        ("no_such_module_here:store", "there is no module 'no_such_module_here'"),
        ("json.no_such_part:store", "there is no module 'json.no_such_part'"),
        ("json:no_store", "the module 'json' has no 'no_store'"),
        ("json:__name__", "'str' is no store"),
        ("json:loads", "json:loads failed: TypeError"),
        ("broken_for_a_test:store", "the module 'broken_for_a_test' cannot be imported: RuntimeError: \\x1b]0;"),
        ("importing_for_a_test:store", "'importing_for_a_test' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_store_that_is_none(
    on_file: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_for_a_test.py").write_text("raise RuntimeError('\\x1b]0;title')")
    (tmp_path / "importing_for_a_test.py").write_text("import what_is_not_installed")
    ran = on_file.bare("list", "--store", store)
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    assert says in ran.err
    assert "secret" not in ran.err
    assert not unprintable(ran.err)


def test_a_store_may_be_made_by_a_function(on_file: Commands, request: pytest.FixtureRequest) -> None:
    on_file.submit("monday", "one")
    target = own_store(on_file.make, request)
    assert on_file.bare("list", *target).out.splitlines()[1].startswith("monday ")
    target = own_store(MemoryStore, request)
    assert on_file.bare("list", *target).err == "durable-batches: there are no such batches\n"


def test_a_file_may_have_a_name_like_an_object(
    on_file: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_file.submit("monday", "one")
    Path(on_file.target[1]).rename(tmp_path / "batches:db")
    monkeypatch.chdir(tmp_path)
    assert on_file.bare("list", "--store", "batches:db").code == Exit.DONE


def test_an_event_beyond_the_end(commands: Commands) -> None:
    commands.submit("monday", "one")
    last = commands("events", "monday", "--json").json[-1]["seq"]
    for options in ([], ["--follow"]):
        ran = commands("events", "monday", "--after", "1000000", *options)
        assert (ran.code, ran.out) == (Exit.DONE, "")
        assert ran.err == f"durable-batches: the last event of the batch has the number {last}\n"


# ---- rights --------------------------------------------------------------------------------------------------------


def test_a_role_that_may_only_select(
    postgres_dsn: str, migrated_schema: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands(lambda: PostgresStore(postgres_dsn, schema=migrated_schema), [], capsys)
    commands.submit("monday", "one", "bad")
    commands.submit("tuesday", "one", runs=False)
    role = Role(postgres_dsn, migrated_schema)
    request.addfinalizer(role.drop)
    reader = ["--store", role.dsn, "--schema", migrated_schema]
    ran = commands.bare("list", *reader)
    assert (ran.code, ran.out) == (Exit.STORE_UNAVAILABLE, "")
    assert "grant the role its rights" in ran.err
    role.grant(*READER)
    for command in READING:
        code = Exit.DOCUMENTS_FAILED if command == "watch" else Exit.DONE
        assert commands.bare(command, "monday", *reader).code == code
    for command in CHANGING:
        refused = commands.bare(*command.split(), "tuesday", *reader)
        assert (refused.code, refused.out) == (Exit.STORE_UNAVAILABLE, "")
        assert "permission denied" in refused.err
        assert "secret" not in refused.err


# ---- ids and messages that would drive a terminal ------------------------------------------------------------------


@pytest.fixture(params=["a pipe", "a terminal"])
def printed_on(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Prints on a pipe or on a terminal; returns what is left of an output without the styles of rich."""
    if request.param == "a pipe":
        return lambda text: text

    def isatty(_: object) -> bool:
        return True

    stdout: object = sys.stdout
    monkeypatch.setattr(type(stdout), "isatty", isatty, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    own = re.compile(r"\x1b\[(\d+;?)*m|\x1b\[\?25[lh]|\x1b\[\d*[AK]|\r")
    return lambda text: own.sub("", text)


def test_odd_ids_and_messages_are_harmless(on_file: Commands, printed_on: Callable[[str], str]) -> None:
    on_file.submit(ODD, "one", f"bad {ODD}", label=ODD)
    for command in ("list", *READING):
        arguments = [] if command == "list" else [ODD]
        ran = on_file(command, *arguments)
        assert ran.code in (Exit.DONE, Exit.DOCUMENTS_FAILED)
        assert not unprintable(printed_on(ran.out)), command
        assert not unprintable(printed_on(ran.err)), command
        if command in ("list", "show", "documents"):
            assert r"\x1b]0;title\x07 \x9b31m [red]bold[/red] \u202e \r\n\t\x7f end" in ran.out
    for command in ("show", "documents", "events", "list"):
        arguments = [] if command == "list" else [ODD]
        ran = on_file(command, "--json", *arguments)
        assert not unprintable(ran.out)
        assert [json.loads(line) for line in ran.out.splitlines()]
    assert on_file("show", "--json", ODD).json[0]["batch_id"] == ODD
    assert on_file("documents", "--json", ODD).json[1]["document_id"] == f"bad {ODD}"
    assert not unprintable(printed_on(on_file("cancel", ODD).out))


# ---- the output ----------------------------------------------------------------------------------------------------


class Stdout(io.StringIO):
    """A stdout that fails after some lines."""

    def __init__(self, error: OSError, lines: int) -> None:
        super().__init__()
        self._error = error
        self._lines = lines

    def write(self, text: str) -> int:
        if self._lines == 0:
            raise self._error
        self._lines -= 1
        return super().write(text)


# Of a batch that has spent nothing, `spent` prints nothing.
PRINTING: Final = [command for command in (*READING, *CHANGING) if command != "spent"]


@pytest.mark.parametrize("command", ["list", *(f"{command} monday" for command in PRINTING)])
def test_a_reader_that_leaves_ends_the_command(
    on_file: Commands, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_file.submit("monday", "one", "bad")
    monkeypatch.setattr(sys, "stdout", Stdout(BrokenPipeError(32, "Broken pipe"), 0))
    ran = on_file(*command.split())
    assert (ran.code, ran.err) == (Exit.READER_LEFT, "")


def test_a_full_disk_is_said(on_file: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_file.submit("monday", "one")
    monkeypatch.setattr(sys, "stdout", Stdout(OSError(28, "No space left on device"), 1))
    ran = on_file("documents", "monday")
    assert (ran.code, ran.err) == (
        Exit.ERROR,
        "durable-batches: the output cannot be written: No space left on device\n",
    )
    monkeypatch.undo()
    ran = on_file("export", "monday", "--out", str(tmp_path / "missing" / "file"))
    assert ran.code == Exit.ERROR
    assert "cannot be written: No such file or directory" in ran.err


# ---- outages -------------------------------------------------------------------------------------------------------


class Away:
    """A store that is away for some of its reads."""

    def __init__(self, store: Any, reads: int) -> None:
        self._store = store
        self.reads = reads

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("batch", "batches", "documents", "events", "wait"):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.reads:
                self.reads -= 1
                raise StoreUnavailableError("nobody answers")
            return await found(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    "command", ["list", "watch monday", "errors monday", "documents monday", "events monday", "export monday"]
)
def test_an_outage_is_waited_for_and_said_once(on_file: Commands, request: pytest.FixtureRequest, command: str) -> None:
    on_file.submit("monday", "one", "bad")
    name, *arguments = command.split()
    expected = on_file(*command.split())
    target = own_store(Away(on_file.make(), reads=3), request)
    ran = on_file.bare(name, *target, *arguments)
    assert (ran.code, ran.out) == (expected.code, expected.out)
    away, back, *notes = ran.err.splitlines()
    assert notes == expected.err.splitlines()
    assert away.startswith("durable-batches: store unavailable: nobody answers; waiting")
    assert back.startswith("durable-batches: store connection restored after ")


class Left(BaseException):
    """The process was ended."""


class Mute(Away):
    """A store that answers nothing any more, from the first read of a batch on; Ctrl-C comes then."""

    async def attach(self) -> None:
        """Open nothing, which nobody could close."""

    async def batch(self, batch_id: str) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    async def close(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("command", ["watch", "show", "events", "documents"])
def test_an_interrupted_reader_does_not_wait_for_a_store_that_does_not_answer(
    on_file: Commands, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr("durable_batches.cli.session._CLOSING_SECONDS", 0.05)
    on_file.submit("monday", "one")
    target = own_store(Mute(on_file.make(), reads=0), request)
    with pytest.raises(Left) as left:
        on_file.bare(command, *target, "monday")
    assert left.value.args == (Exit.INTERRUPTED,)


def test_a_store_that_is_away_to_begin_with(on_file: Commands, request: pytest.FixtureRequest) -> None:
    ran = on_file.bare("list", "--store", "postgresql://user:secret@127.0.0.1:1/database")
    assert (ran.code, ran.out) == (Exit.STORE_UNAVAILABLE, "")
    assert "cannot be reached" in ran.err
    assert "secret" not in ran.err
    on_file.submit("monday", "one")
    target = own_store(Away(on_file.make(), reads=1), request)
    ran = on_file.bare("show", *target, "monday")
    assert (ran.code, ran.err) == (Exit.STORE_UNAVAILABLE, "durable-batches: nobody answers\n")
