"""The named marks of a child: places at which it stops itself, to be killed there, or to be sent on.

A mark is one of these, and its name says which:

- `commit: INSERT event`: before the statement of this store operation that writes this. `commit: COMMIT applied`: after
  one that made changes durable, which nobody in the process has heard of yet.
- `store.commit: called`, `store.commit: answered`: on the worker's side of the store.
- `journal: handed` and `journal: taken`: a fact, encoded, before and after the journal has it.
- `split: begun`, `split: returned`: in an activity.
- `journal.committed` and the like: a signal of the worker's loops (`durable_batches.signals`).
- what the child notes itself: `opening`, `entered`, `submitted`, `leaving`, `left`, ...

All of that is observed from outside of the library's code: drivers, the store's methods, the signals. A stopped child
stands still as a whole, with all of its threads, and does nothing about it: to its peers it is as one that hangs.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import signal
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from durable_batches import Worker
from durable_batches.clock import SystemClock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import Refusal
from durable_batches.signals import Signal
from durable_batches.testing.virtual.effects import EffectsLog
from durable_batches.worker.journal import Journal

# ---- statements ----------------------------------------------------------------------------------------------------

_CHANGE: Final = re.compile(
    r'(INSERT INTO|(?<!FOR )(?<!DO )UPDATE|DELETE FROM)\s+(?:"[^"]*"\.|\{s\}\.)?([\w{}]+)'
    r"(?:(?: \w+)?( SET (?:commits|lease_until|refused|dead|mark)\b))?"
)
"""What tells updates of the same table apart is said, too."""
_SCHEMA_CHANGE: Final = re.compile(
    r"^\s*((?:CREATE|ALTER|DROP) (?:UNIQUE )?(?:TABLE|INDEX|SCHEMA|TRIGGER|VIEW|FUNCTION|TYPE))\s+(?:IF NOT EXISTS\s+)?"
    r'(?:"[^"]*"\.|\{s\}\.)?("[^"]*"|[\w{}]+)',
    re.MULTILINE,
)
_WHOLE: Final = re.compile(r"^\s*(BEGIN EXCLUSIVE|BEGIN|COMMIT|ROLLBACK|PRAGMA journal_mode(?==| =))")

_BEGINNINGS: Final = ("BEGIN", "BEGIN EXCLUSIVE")
_ENDS: Final = ("COMMIT", "ROLLBACK")

_PATIENCE: Final = 10.0
"""Seconds until a child stops although a transaction is open: its connection may be gone."""

_OPERATIONS: Final = {
    **{name: name for name in ("register", "expire", "leave", "create", "add", "commit", "control", "take")},
    **dict.fromkeys(("beat", "renew"), "renew"),
    **dict.fromkeys(("open", "connect", "migrate"), "open"),
}


@cache
def changes_of(statement: str) -> tuple[str, ...]:
    """What a statement writes: `INSERT event`, `UPDATE worker SET dead`, `COMMIT`; empty for one that only reads.

    Of a script that changes the schema, only the first change: it is one message to the server, in one transaction.
    """
    whole = _WHOLE.match(statement)
    if whole is not None:
        return (whole[1],)
    schema = _SCHEMA_CHANGE.search(statement)
    if schema is not None:
        name = "" if "SCHEMA" in schema[1] else schema[2]
        return (f"{schema[1]} {name}".strip(),)
    changes = (f"{verb.split()[0]} {table}{first}" for verb, table, first in _CHANGE.findall(statement))
    return tuple(dict.fromkeys(changes))


def operation_of(frame: FrameType | None) -> str:
    """The store's operation that a statement belongs to: the outermost one on the stack."""
    found = ""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("durable_batches.stores."):
            for part in frame.f_code.co_qualname.split("."):
                found = _OPERATIONS.get(part.strip("_"), found)
        frame = frame.f_back
    return found


# ---- the marks of a process ----------------------------------------------------------------------------------------


class Marks:
    """Notes how far a child gets, and stops it where it is told to.

    Args:
        folder: Where it notes it.
        process: The child's name.
        stops: The marks to stop at, one after the other; `split: begun#3` is the third time that it is reached, since
            the stop before it.
        recording: Whether every mark is noted, and not only those that something is noted with.
    """

    def __init__(self, folder: Path, process: str, stops: Iterable[str] = (), *, recording: bool = False) -> None:
        self._log = EffectsLog(folder / f"{process}.marks", process)
        self._clock = SystemClock()
        self._stops = deque(stops)
        self._reached = 0
        self._recording = recording
        self._lock = threading.Condition(threading.RLock())
        self._transactions: dict[int, int] = {}
        """Those that are open: the thread, by the connection."""
        self._listeners: dict[str, Callable[[], object]] = {}

    def on(self, mark: str, callback: Callable[[], object]) -> None:
        """Call back when it is reached, on whatever thread that is."""
        self._listeners[mark] = callback

    def note(self, mark: str, **data: object) -> None:
        """Note that it is reached, with what belongs to it; and stop there."""
        self._write(mark=mark, **data)
        self.reach(mark)

    def reach(self, mark: str, **data: object) -> None:
        """It is reached: stop there, if that is wanted."""
        if self._recording:
            self._write(reached=mark, **data)
        if mark in self._listeners:
            self._listeners[mark]()
        with self._lock:
            name, _, number = self._stops[0].partition("#") if self._stops else ("", "", "")
            if mark != name:
                return
            self._reached += 1
            if self._reached == int(number or 1):
                self._stop()

    def _stop(self) -> None:
        # In no transaction but that of the mark itself: it would hold up all others.
        here = threading.get_ident()
        self._lock.wait_for(lambda: all(thread == here for thread in self._transactions.values()), _PATIENCE)
        self._reached = 0
        self._write(stopped=self._stops.popleft())
        # To this thread, so that it does not go on; with Python's lock held, so that no other does.
        signal.pthread_kill(here, signal.SIGSTOP)

    @contextmanager
    def around(self, statement: str, connection: object, *, within_transaction: bool) -> Generator[None]:
        """Around a statement: the marks before it, and after it, where it makes something durable."""
        changes = changes_of(statement)
        operation = operation_of(sys._getframe(1)) if changes else ""
        if not operation:
            # Nothing is written, or by somebody else than the store.
            yield
            return
        for change in changes:
            self.reach(f"{operation}: {change}", statement=statement)
        if changes[0] in _BEGINNINGS:
            with self._lock:
                self._transactions[id(connection)] = threading.get_ident()
        begun = False
        try:
            yield
            begun = changes[0] in _BEGINNINGS
        finally:
            if changes[0] in (*_BEGINNINGS, *_ENDS) and not begun:
                with self._lock:
                    self._transactions.pop(id(connection), None)
                    self._lock.notify_all()
        if changes[0] == "COMMIT" or not (within_transaction or changes[0] in _BEGINNINGS):
            self.reach(f"{operation}: {changes[0]} applied", statement=statement)

    def _write(self, **data: object) -> None:
        self._log.write(json.dumps({"at": self._clock.boot(), **data}))


def noted(folder: Path, process: str) -> list[dict[str, Any]]:
    """What a child has noted so far."""
    try:
        lines = (folder / f"{process}.marks").read_text().splitlines()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            # Empty, or what a killed process did not finish.
            continue
    return found


# ---- what is observed ----------------------------------------------------------------------------------------------


def observe_drivers(marks: Marks) -> None:
    """Have all statements of this process reach their marks; for the rest of its life."""
    _observe_sqlite(marks)
    _observe_postgres(marks)


def _observe_sqlite(marks: Marks) -> None:
    class MarkedConnection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            with marks.around(sql, self, within_transaction=self.in_transaction):
                return super().execute(sql, *args)

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            with marks.around(sql, self, within_transaction=self.in_transaction):
                return super().executemany(sql, *args)

    sqlite3.connect = partial(sqlite3.connect, factory=MarkedConnection)  # type: ignore[assignment]


def _observe_postgres(marks: Marks) -> None:
    import asyncpg

    for name in ("execute", "fetch", "fetchrow", "fetchval"):
        _observe_method(marks, asyncpg.Connection, name)


def _observe_method(marks: Marks, connection_class: Any, name: str) -> None:
    original = getattr(connection_class, name)

    async def marked(connection: Any, query: str, *args: Any, **options: Any) -> Any:
        with marks.around(query, connection, within_transaction=connection.is_in_transaction()):
            return await original(connection, query, *args, **options)

    setattr(connection_class, name, marked)


def observe_journal(marks: Marks) -> None:
    """Have each fact reach the marks before and after the journal has it; for the rest of the process' life."""
    record = Journal.record

    def marked(journal: Journal, fact: Fact) -> asyncio.Future[Refusal | None]:
        marks.reach("journal: handed")
        verdict = record(journal, fact)
        marks.reach("journal: taken")
        return verdict

    setattr(Journal, "record", marked)  # noqa: B010  (to checkers, a method is no variable)


@contextmanager
def signals_of(marks: Marks, worker: Worker) -> Generator[None]:
    """Within: each signal of the worker's loops reaches its mark."""
    with ExitStack() as stack:
        for name, heard in _signals(getattr(worker, "signals", None)):
            stack.enter_context(heard.heard_by(partial(_reached, marks, name)))
        yield


def _reached(marks: Marks, name: str, _: object) -> None:
    marks.reach(name)


def _signals(signals: Any) -> Iterator[tuple[str, Any]]:
    for group in getattr(signals, "__slots__", ()):
        found = getattr(signals, group)
        if isinstance(found, Signal):
            yield group, found
            continue
        for name in found.__slots__:
            yield f"{group}.{name}", getattr(found, name)


CALLS: Final = ("register", "expire", "leave", "create", "add", "commit", "control", "take")
"""Methods of a store that write."""


class MarkedStore:
    """A store of which each call reaches the marks before it, and after its answer; commits are noted."""

    def __init__(self, inner: Any, marks: Marks) -> None:
        self._inner = inner
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in CALLS or not inspect.iscoroutinefunction(method):
            return method

        async def marked(*args: Any, **options: Any) -> Any:
            self._marks.reach(f"store.{name}: called")
            answer = await method(*args, **options)
            self._marks.reach(f"store.{name}: answered")
            return answer

        return marked

    def heart(self, worker: str) -> Any:
        """Of which each beat reaches its marks."""
        return _MarkedHeart(self._inner.heart(worker), self._marks)

    async def batch(self, batch_id: Any) -> Any:
        """Noted when it was answered."""
        found = await self._inner.batch(batch_id)
        self._marks.note("store.batch: answered")
        return found

    async def commit(self, worker: str, number: int, facts: Collection[Fact], *args: Any) -> Any:
        """Noted with its number: what came of it, and when."""
        self._marks.note("store.commit: called", worker=worker, number=number)
        try:
            committed = await self._inner.commit(worker, number, facts, *args)
        except BaseException as error:
            self._marks.note("store.commit: refused", worker=worker, number=number, facts=len(facts), error=repr(error))
            raise
        self._marks.note("store.commit: answered", worker=worker, number=number)
        return committed


class _MarkedHeart:
    def __init__(self, inner: Any, marks: Marks) -> None:
        self._inner = inner
        self._marks = marks

    def beat(self) -> bool:
        return self._renewed(self._inner.beat)

    def tell(self, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        return self._renewed(partial(self._inner.tell, note, workflows))

    def _renewed(self, renew: Callable[[], bool]) -> bool:
        self._marks.reach("store.renew: called")
        renewed = renew()
        self._marks.reach("store.renew: answered")
        return renewed

    def close(self) -> None:
        self._inner.close()


class MarkedEffects(EffectsLog):
    """An effects log whose marks are marks to stop at, too."""

    def __init__(self, path: Path, process: str, marks: Marks) -> None:
        super().__init__(path, process)
        self._marks = marks

    def activity(self, name: str) -> AbstractContextManager[str]:
        """See `EffectsLog.activity`."""
        return self._reaching(name, super().activity(name))

    @contextmanager
    def _reaching(self, name: str, marked: AbstractContextManager[str]) -> Generator[str]:
        with marked as run:
            self._marks.reach(f"{name}: begun")
            yield run
        self._marks.reach(f"{name}: returned")
