"""Killed at every mark: whatever a process does when it dies, another one goes on; nothing is lost, nothing repeated.

Each child stops itself at one mark, is killed there, and another one sees its batch through. Nothing is left to chance:
`test_every_statement_has_a_mark` finds statements of the stores' source, and marks that are reached, that nobody is
killed at.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import pytest
from tests.postgres.databases import Session, without_schema
from tests.processes.children import Child, Start, check_bill, check_calls, checker_of, children
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase, reader_of
from tests.processes.marks import changes_of
from tests.processes.workload import MAX_ATTEMPTS, Job, document_ids, tally_of

from durable_batches import BatchId, stores
from durable_batches.testing.virtual.effects import EffectsLog

DOCUMENTS: Final = 2
FIRST: Final = 1
"""The number of the first: it is rejected, and the second fails once."""

Kind = Literal["sqlite", "postgres"]
KINDS: Final[Sequence[Kind]] = ("sqlite", "postgres")


def transaction(operation: str, *changes: str) -> list[str]:
    """The marks of an operation in a transaction."""
    return [f"{operation}: {change}" for change in ("BEGIN", *changes, "COMMIT", "COMMIT applied")]


def calls(*names: str) -> list[str]:
    """The marks round these calls of a store."""
    return [f"store.{name}: {side}" for name in names for side in ("called", "answered")]


RELEASE: Final = ("UPDATE execution", "INSERT event", "UPDATE batch", "DELETE worker", "DELETE shared_slot")
REMOVED: Final = (
    *("execution", "document", "outcome", "activity", "signal", "wait"),
    *("event", "request", "failure", "job", "batch"),
)


@dataclass(frozen=True)
class Scenario:
    """How a child comes to certain marks."""

    marks: Sequence[str] = ()
    only: Mapping[Kind, Sequence[str]] = field(default_factory=dict[Kind, Sequence[str]])
    """Marks that there are on this kind of database only."""
    kinds: Collection[Kind] = KINDS
    job: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the child that is killed."""
    before: Sequence[str] = ()
    """The marks at which other children are killed before: documents of the last are there to be taken over."""
    after: str = ""
    """The mark from which on the others count."""
    orphaned_at: str = ""
    """The mark at which documents are a dead worker's, until somebody looks for such again."""
    heir: str = "work"
    """The scenario of the child that goes on."""
    state: str = "completed"
    """How the batch ends, unless it has been cancelled."""
    failed: int = 0
    """Documents that fail."""
    documents: int = DOCUMENTS
    fresh: bool = False
    """On a database with nothing in it."""

    def on(self, kind: Kind) -> list[str]:
        """Its marks on this kind of database."""
        return [*self.marks, *self.only.get(kind, ())] if kind in self.kinds else []


SCENARIOS: Final = {
    "opening": Scenario(
        fresh=True,
        marks=["opening", "open: BEGIN", "open: COMMIT", "open: COMMIT applied"],
        only={
            "sqlite": [
                "open: PRAGMA journal_mode",
                "open: PRAGMA journal_mode applied",
                *(
                    f"open: CREATE TABLE {name}"
                    for name in (
                        *("schema_version", "worker", "batch", "execution", "document"),
                        *("outcome", "activity", "event", "signal"),
                    )
                ),
                *(
                    f"open: CREATE INDEX {name}"
                    for name in ("batch_workflow", "batch_free", "batch_wake", "execution_due", "execution_owner")
                ),
                *(f"open: {change} batch" for change in ("ALTER TABLE", "UPDATE")),
                *("open: DROP INDEX batch_free", "open: CREATE INDEX batch_claim", "open: CREATE TABLE wait"),
                *(f"open: {change} worker_of_0002" for change in ("CREATE TABLE", "INSERT", "ALTER TABLE")),
                "open: DROP TABLE worker",
                "open: DELETE schema_version",
                "open: INSERT schema_version",
            ],
            "postgres": ["open: CREATE SCHEMA"],
        },
    ),
    "hindered": Scenario(kinds=["sqlite"], fresh=True, job={"scenario": "hindered"}, marks=["open: BEGIN EXCLUSIVE"]),
    "work": Scenario(
        marks=[
            *calls("register", "expire", "create", "add", "control", "commit", "leave"),
            *transaction("register", "INSERT worker"),
            *transaction("create", "INSERT batch"),
            *transaction("add", "INSERT document", "INSERT execution"),
            *transaction("control", "INSERT event", "UPDATE batch"),
            *transaction(
                "commit",
                *(
                    "UPDATE worker SET commits",
                    "INSERT activity",
                    "UPDATE execution SET mark",
                    "UPDATE execution",
                ),
                *("INSERT outcome", "DELETE activity"),
                *("INSERT event", "UPDATE batch"),
            ),
            *transaction("leave", "DELETE worker", "DELETE shared_slot"),
            *("journal: handed", "journal: taken"),
            *("split: begun", "split: returned", "relate: begun", "relate: returned"),
            *("stumble: begun", "stumble: returned", "add_up: begun", "add_up: returned", "add_up: returned#2"),
            *("entered", "submitted", "ended", "leaving", "left"),
            *("journal.waiting", "journal.beginning", "journal.committed"),
            *("scheduler.claimed", "scheduler.started", "scheduler.finished", "scheduler.idle"),
            *("membership.registered", "membership.restarted", "membership.expired", "membership.deregistered"),
            "news.waiting",
        ],
        only={"postgres": ["commit: UPDATE worker SET commits applied"]},
    ),
    "taking-over": Scenario(before=["measure: begun"], marks=transaction("expire", *RELEASE)),
    "giving-up": Scenario(
        documents=1,
        state="failed",
        before=["split: begun", "split: begun"],
        job={"max_crashes": 1},
        failed=1,
        marks=transaction("expire", "INSERT outcome", "INSERT failure"),
    ),
    "obstructed": Scenario(
        kinds=["postgres"],
        before=["measure: begun"],
        job={"scenario": "obstructed", "lock_timeout": 0.05},
        orphaned_at="expire: COMMIT applied",
        marks=["expire: ROLLBACK", *transaction("expire", "UPDATE worker SET dead")],
    ),
    "limited": Scenario(
        job={"scenario": "limited"},
        heir="limited",
        marks=[
            *calls("take"),
            *transaction("take", "INSERT shared_limit", "INSERT shared_slot"),
        ],
        only={"postgres": ["take: UPDATE shared_limit", "take: UPDATE shared_slot"]},
    ),
    "repetitive": Scenario(
        job={"scenario": "repetitive"},
        marks=[
            *("add: ROLLBACK", "control: ROLLBACK"),
            *transaction("control", *(f"DELETE {table}" for table in REMOVED)),
        ],
    ),
    "overruled": Scenario(
        job={"scenario": "overruled", "clock": "still"},
        marks=["control: INSERT request", "commit: UPDATE worker SET refused", "news.looked"],
    ),
    "pausing": Scenario(
        job={"scenario": "pausing", "concurrency": 1},
        heir="resuming",
        after="pausing",
        marks=[*calls("control"), *transaction("control", "INSERT request", "INSERT event", "UPDATE batch")],
    ),
    "draining": Scenario(
        job={"scenario": "pausing", "concurrency": 1},
        heir="resuming",
        after="draining",
        marks=[
            *("split: returned", "commit: INSERT activity", "commit: UPDATE execution", "commit: INSERT event"),
            *("commit: UPDATE batch", "commit: COMMIT applied"),
        ],
    ),
    "paused": Scenario(
        job={"scenario": "pausing", "concurrency": 1}, heir="resuming", marks=["pausing", "draining", "resuming"]
    ),
    "resuming": Scenario(
        job={"scenario": "pausing", "concurrency": 1},
        heir="resuming",
        after="resuming",
        marks=[*calls("control"), *transaction("control", "INSERT request", "INSERT event", "UPDATE batch")],
    ),
    "leaving": Scenario(
        job={"scenario": "leaving", "drain": 0.0},
        after="leaving",
        marks=[
            *("scheduler.finished", "journal: handed", "journal: taken", *calls("commit")),
            *("commit: UPDATE execution", "commit: INSERT event", "commit: UPDATE batch"),
            *transaction("leave", "DELETE worker", "DELETE shared_slot"),
            "membership.deregistered",
        ],
    ),
    "following": Scenario(job={"scenario": "following", "max_in_flight": 0}, marks=["news.woken"]),
    "fenced": Scenario(
        job={"scenario": "fenced"},
        marks=[
            *("commit: ROLLBACK", "store.commit: refused", "membership.lease_lost"),
            # The successor takes back the crash that was counted.
            "register: UPDATE execution",
        ],
    ),
    "broken": Scenario(job={"scenario": "broken"}, marks=transaction("leave", *RELEASE)),
    "empty": Scenario(documents=0, job={"scenario": "empty"}, heir="empty", marks=["control: UPDATE execution"]),
    "renewing": Scenario(
        job={"scenario": "renewing", "clock": "hasty"},
        marks=[
            *("store.renew: called", "store.renew: answered", "lease.looked", "lease.renewed"),
            "renew: UPDATE worker SET lease_until",
        ],
        only={
            "sqlite": [
                *("renew: PRAGMA journal_mode", "renew: PRAGMA journal_mode applied"),
                *("renew: BEGIN", "renew: COMMIT", "renew: COMMIT applied"),
            ],
            "postgres": ["renew: UPDATE worker SET lease_until applied"],
        },
    ),
}


def _tried() -> Iterator[Any]:
    for kind in KINDS:
        for name, scenario in SCENARIOS.items():
            for mark in scenario.on(kind):
                yield pytest.param(kind, name, mark, id=f"{kind}-{name}-{mark}")


class Stage:
    """Children, one after the other, on one batch."""

    def __init__(self, folder: Path, database: Database, batch_id: str, scenario: Scenario, start: Start) -> None:
        self.batch_id = batch_id
        self.database = database
        self.effects = EffectsLog(folder / "effects.log")
        self.checker = checker_of(self.effects)
        self._folder = folder
        self._scenario = scenario
        self._state = scenario.state
        self._start = start
        self._killed: set[str] = set()

    def start(self, process: str, **job: Any) -> Child:
        """Start a child."""
        given: dict[str, Any] = {
            "documents": self._scenario.documents or 1,
            "first": FIRST,
            "pace": 0.0,
            "stumbles": 1.0,
            "max_crashes": self._max_crashes,
            **job,
        }
        return self._start(
            Job(
                process=process,
                folder=str(self._folder),
                store=self.database.place,
                batch_id=self.batch_id,
                **given,
            )
        )

    @property
    def _max_crashes(self) -> int:
        found: int = self._scenario.job.get("max_crashes", 1_000)
        return found

    def victim(self, **job: Any) -> Child:
        """Start the child that comes to the scenario's marks."""
        return self.start("victim", **self._scenario.job, **job)

    async def kill_at(self, mark: str, child: Child) -> None:
        """Kill a child where it stops, and check what it leaves behind."""
        await child.stopped(mark)
        assert child.kill()
        self._killed.add(child.job.process)
        self.note_submission(child)
        async with self.database.at_rest() as store:
            record = await store.batch(BatchId(self.batch_id))
            if record is not None and record.state == "cancelled":
                self._state = "cancelled"
                self.checker.cancel_answered(self.batch_id, True)
            violations = await self.checker.check(store, only=[self.batch_id], interrupted=[child.job.process])
        if mark == self._scenario.orphaned_at:
            assert {violation.partition(":")[0] for violation in violations} == {"14"}, violations
        else:
            assert not violations

    def note_submission(self, child: Child) -> None:
        """Note whether the batch was acknowledged."""
        if child.marks("submitted"):
            documents = self._scenario.documents
            self.checker.acknowledged(self.batch_id, document_ids(documents, FIRST))

    async def kill_those_before(self) -> None:
        """Have documents held by a process that is dead."""
        for number, mark in enumerate(self._scenario.before, start=1):
            await self.kill_at(mark, self.start(f"before-{number}", stops=[mark], concurrency=1))

    async def complete(self) -> None:
        """Have another child see the batch through, and check everything."""
        heir = self.start("heir", scenario=self._scenario.heir)
        result = await heir.result()
        documents = self._scenario.documents
        assert result["state"] == self._state
        assert result["counts"]["total"] == documents
        assert result["counts"]["failed"] == self._scenario.failed, result
        if (self._state, self._scenario.failed) == ("completed", 0):
            assert result["resolution"] == vars(tally_of(range(FIRST, FIRST + documents)))
            if documents:
                check_calls(self.effects, documents, self.batch_id, first=FIRST)
        self.note_submission(heir)
        async with self.database.reading() as store:
            await self.checker.verify(store, only=[self.batch_id], finished=True, everyone_left=True)
        check_bill(self.effects, self.batch_id, interrupted=self._killed)
        stats = self.checker.stats
        assert stats.repeated <= stats.in_flight


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """One database for many tests, with a batch of its own for each; a new one where that is wanted."""
    kind, name = request.node.callspec.params["kind"], request.node.callspec.params["name"]
    if SCENARIOS[name].fresh:
        return _fresh_database(request, kind, tmp_path)
    shared: Database = request.getfixturevalue(f"shared_{kind}")
    return shared


def _fresh_database(request: pytest.FixtureRequest, kind: Kind, folder: Path) -> Database:
    if kind == "sqlite":
        return SQLiteDatabase(folder / "batches.db")
    return PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))


@pytest.fixture(scope="module")
def shared_sqlite(tmp_path_factory: pytest.TempPathFactory) -> SQLiteDatabase:
    return SQLiteDatabase(tmp_path_factory.mktemp("shared") / "batches.db")


@pytest.fixture(scope="module")
def shared_postgres(postgres_dsn: str) -> Iterator[PostgresDatabase]:
    schema = f"test_{uuid4().hex}"
    with reader_of(postgres_dsn, schema) as reader, closing(Session(postgres_dsn)) as session:
        yield PostgresDatabase(postgres_dsn, schema, reader=reader, session=session)
    without_schema(postgres_dsn, schema)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Stage]:
    with children() as start:
        yield Stage(tmp_path, database, uuid4().hex, SCENARIOS[request.node.callspec.params["name"]], start)


@pytest.mark.parametrize(("kind", "name", "mark"), list(_tried()))
async def test_killed_at_a_mark(stage: Stage, kind: Kind, name: str, mark: str) -> None:
    await stage.kill_those_before()
    after = SCENARIOS[name].after
    victim = stage.victim(stops=[after, mark] if after else [mark])
    if after:
        await victim.stopped(after)
        victim.go_on()
    await stage.kill_at(mark, victim)
    await stage.complete()


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def reached(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Kind], Awaitable[Mapping[str, set[str]]]]:
    """Runs all scenarios on a kind of database without a kill; gives what was reached, and by which statements."""

    async def record(kind: Kind) -> dict[str, set[str]]:
        database = _fresh_database(request, kind, tmp_path)
        found: dict[str, set[str]] = defaultdict(set)
        for name, scenario in SCENARIOS.items():
            if kind not in scenario.kinds:
                continue
            folder = tmp_path / name
            folder.mkdir()
            if scenario.fresh:
                database = database.another()
            with children() as start:
                stage = Stage(folder, database, name, scenario, start)
                await stage.kill_those_before()
                victim = stage.victim(recording=True)
                await victim.result()
                for note in victim.reached():
                    found[note["reached"]].add(note.get("statement", ""))
        return found

    return record


@pytest.mark.parametrize("kind", KINDS)
async def test_every_statement_has_a_mark(
    reached: Callable[[Kind], Awaitable[Mapping[str, set[str]]]], kind: Kind
) -> None:
    found = await reached(kind)
    tried = {mark for scenario in SCENARIOS.values() for mark in scenario.on(kind)} | LIKE_ANOTHER
    statements = [statement for mark in found.keys() & tried for statement in found[mark] if statement]
    missing = [
        text
        for text in written_in(kind)
        if text not in OF_THE_APPLICATION
        and not any(_pattern(text).search(_spaced(statement)) for statement in statements)
    ]
    assert not missing, "no mark is before these statements"
    untried = {
        mark for mark in found.keys() - tried if mark not in NOTES and mark.partition(":")[0] not in MAX_ATTEMPTS
    }
    assert not untried, "nobody is killed at these marks: add them to a scenario"


_FILLED_IN: Final = re.compile(r"\{\w*\}|\b(?:TIME|LOCKING)\b")


LIKE_ANOTHER: Final = {
    *("open: ALTER TABLE execution", "open: ALTER TABLE activity"),
    *(f"open: CREATE TABLE {name}" for name in ("request", "failure", "job", "shared_limit", "shared_slot")),
    *(f"open: CREATE INDEX batch_{name}" for name in ("next_due", "ended", "unsealed")),
    *(f"open: CREATE INDEX execution_{name}" for name in ("isolated", "fingerprint")),
    *(f"open: CREATE INDEX {name}" for name in ("wait_open", "request_at", "shared_slot_worker")),
}
"""The second migration's marks in the same transaction as another of the same kind, which stands for them."""


OF_THE_APPLICATION: Final = {"DELETE FROM batch WHERE 0", "ROLLBACK TO {}", "ROLLBACK TO SAVEPOINT {}"}
"""What is said within a transaction of the application's, to take its lock or to undo a submission alone: nothing of it
is there for others before the application's own commit, and a kill undoes all of it."""


NOTES: Final = {"event", "store.batch: answered"}
"""What is noted often, for other tests. Of activities (`MAX_ATTEMPTS`), a few stand for all."""


def written_in(kind: Kind) -> list[str]:
    """All statements in a store's source that write, with `{}` for what is filled in."""
    folder = Path(stores.__file__).parent
    texts = [
        text
        for path in sorted((folder / kind).rglob("*.py"))
        for text in _texts(ast.parse(path.read_text(encoding="utf-8")))
    ]
    if kind == "sqlite":
        texts += [text for path in (folder / "migrations" / kind).glob("*.sql") for text in path.read_text().split(";")]
    return sorted({_spaced(text) for text in texts if changes_of(_spaced(text))})


def _texts(tree: ast.AST) -> Iterator[str]:
    """The string literals, but for docstrings; f-strings as one."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=values):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in values)
                for part in values:
                    yield from _texts(part)
            case _:
                yield from _texts(node)


def _pattern(text: str) -> re.Pattern[str]:
    """What a statement of this text looks like when it is executed."""
    return re.compile(".*?".join(re.escape(part) for part in _FILLED_IN.split(text)))


def _spaced(text: str) -> str:
    return " ".join(re.sub(r"--.*", "", text).split())
