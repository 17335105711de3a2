"""Faults of the server and of the network, under load: nothing is lost, recorded twice, or stuck."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from tests.postgres.databases import execute
from tests.postgres.proxy import CommitFinder, Fate, Proxy
from tests.postgres.server import Server
from tests.processes.children import check_calls, checker_of
from tests.processes.workload import PATIENT, Batches, Page, document_ids, extract, here, tally_of
from tests.support import PATIENCE, STAGES, eventually, everything, moving, opened, turns, within

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchOrchestrator,
    Completed,
    DocumentReleased,
    PostgresStore,
    StoreUnavailableError,
    Worker,
    WorkerFencedError,
    durable_activity,
    workflow,
)
from durable_batches.errors import CommitUnknownError
from durable_batches.lifecycle.commands import Cancel
from durable_batches.stores import BatchQuery, ClaimRequest, WorkerId
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene
from durable_batches.testing.virtual.effects import EffectsLog

LEASE = timedelta(seconds=20)
"""Longer than any trouble here, however slow the machine: nobody is taken for dead, and nothing runs twice."""
SHORT_LEASE = timedelta(seconds=2)
DOCUMENTS = 60
SOAK_ROUNDS = int(os.environ.get("DURABLE_BATCHES_SOAK_ROUNDS", "100"))

pytestmark = pytest.mark.real_time("servers and networks that fail take their time to do so, and to come back")

Trouble: TypeAlias = Callable[[], Awaitable[object]]


@pytest.fixture(autouse=True)
def _effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    here.effects = EffectsLog(tmp_path / "effects.log", "process")
    here.pace, here.poison = 0.01, frozenset()
    # The tests that come after these do not expect it.
    monkeypatch.setattr(here, "stumbles", 0.1)
    yield
    here.effects.close()


@asynccontextmanager
async def workers(
    count: int, store: Callable[[], PostgresStore], lease: timedelta = LEASE
) -> AsyncGenerator[list[Batches]]:
    """Several workers, each with connections of its own, as so many processes have them."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                BatchOrchestrator(extract, worker=Worker(store(), lease=lease, max_in_flight=8, drain=timedelta(0)))
            )
            for _ in range(count)
        ]


async def run_in_trouble(batches: list[Batches], batch_id: str, trouble: Trouble, *, most: int) -> int:
    """Run a batch while there is trouble, until it ends; how often there was."""
    await submit(batches, batch_id)
    ended = asyncio.create_task(succeeds(batches, batch_id))
    troubled = 0
    while troubled < most and not (await asyncio.wait([ended], timeout=random.uniform(0.02, 0.3)))[0]:
        await trouble()
        troubled += 1
    await ended
    return troubled


async def submit(batches: list[Batches], batch_id: str) -> None:
    await batches[0].submit(
        [Page(number) for number in range(DOCUMENTS)],
        batch_id=batch_id,
        document_id=lambda page: f"page-{page.number}",
        config=BatchConfig(concurrency=12, max_crashes=1_000_000, failure_policy=PATIENT),
    )


async def succeeds(batches: list[Batches], batch_id: str) -> None:
    """Wait for the batch's end, as another worker than its submitter sees it; all of it has succeeded."""
    result = await within(batches[-1].result(batch_id))
    assert result.counts.succeeded == DOCUMENTS
    assert result.resolution == tally_of(range(DOCUMENTS))


async def check(store: PostgresStore, batch_ids: list[str], *, fenced: Sequence[str] = ()) -> None:
    """The history of all batches, and what their activities did; who was `fenced` may have done some of it twice."""
    effects = here.effects
    checker = checker_of(effects)
    for batch_id in batch_ids:
        checker.acknowledged(batch_id, document_ids(DOCUMENTS))
        check_calls(effects, DOCUMENTS, batch_id)
    await store.open()
    try:
        await checker.verify(store, finished=True, everyone_left=True, fenced=fenced)
    finally:
        await store.close()


# ---- sessions that are ended -----------------------------------------------------------------------------------------


async def _end_some_sessions(dsn: str, share: float) -> int:
    """Any of them: those that commit, that read, that keep a lease, that listen."""
    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'durable_batches' "
            "AND datname = current_database() ORDER BY backend_start, pid"
        )
        # Chosen here, because the server's chance has no seed.
        chosen = [pid for (pid,) in found if random.random() < share]
        ended: int = await connection.fetchval(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM unnest($1::integer[]) AS chosen (pid)",
            chosen,
        )
        return ended
    finally:
        await connection.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(SOAK_ROUNDS, marks=pytest.mark.soak)])
async def test_sessions_that_are_ended_at_random(postgres_dsn: str, migrated_schema: str, rounds: int) -> None:
    def store() -> PostgresStore:
        return PostgresStore(postgres_dsn, schema=migrated_schema)

    ended = 0

    async def trouble() -> None:
        nonlocal ended
        ended += await _end_some_sessions(postgres_dsn, 0.3)

    names = [f"batch-{number}" for number in range(rounds)]
    async with workers(2, store) as batches:
        for name in names:
            await run_in_trouble(batches, name, trouble, most=12)
    assert ended > rounds
    await check(store(), names)


@pytest.mark.parametrize("way", ["dsn", "engine"])
@pytest.mark.parametrize("rounds", [1, pytest.param(SOAK_ROUNDS, marks=pytest.mark.soak)])
async def test_a_server_that_crashes_under_load(rounds: int, way: str) -> None:
    with Server() as server:

        def store() -> PostgresStore:
            if way == "dsn":
                return PostgresStore(server.dsn())
            return PostgresStore(create_async_engine(server.dsn().replace("postgresql://", "postgresql+asyncpg://")))

        async def trouble() -> None:
            await asyncio.to_thread(server.restart_immediately)
            await asyncio.sleep(0.5)

        names = [f"batch-{number}" for number in range(rounds)]
        async with workers(2, store) as batches:
            for name in names:
                assert await run_in_trouble(batches, name, trouble, most=min(rounds, 3)) > 0
        await check(store(), names)


async def test_a_failover_that_leads_to_a_replica_for_some_time(caplog: pytest.LogCaptureFixture) -> None:
    """As where a name takes its time to lead to the new primary, and the old one is back as a replica by then."""
    with Server() as server, Proxy(server.port) as proxy:
        replica: Server | None = None
        try:
            async with workers(2, lambda: PostgresStore(server.dsn(port=proxy.port))) as batches:
                await submit(batches, "batch")
                assert not isinstance(await batches[0].state("batch"), Completed)
                replica = await asyncio.to_thread(server.replica)
                proxy.target = replica.port
                proxy.cut()
                await eventually(lambda: "is a replica" in caplog.text)
                proxy.target = server.port
                # Asked for now only: who reads from a replica is told so, and does not wait.
                await succeeds(batches, "batch")
        finally:
            if replica is not None:
                replica.__exit__(None, None, None)
        await check(PostgresStore(server.dsn()), ["batch"])


# ---- the network -----------------------------------------------------------------------------------------------------


class Network:
    """What a proxy does to its connections, one thing after the other."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._commits = CommitFinder()
        self._next: Fate | None = None
        self._deck: list[Trouble] = []
        self.commits_seen = 0
        self.commits_hit = 0
        proxy.fate = self._decide

    def _decide(self, data: bytes) -> Fate:
        # All that is said is looked at, since it tells which statements are commits.
        if not self._commits.is_in(data):
            return "pass"
        self.commits_seen += 1
        if self._next is None:
            return "pass"
        fate, self._next = self._next, None
        self.commits_hit += 1
        return fate

    async def trouble(self) -> None:
        if not self._deck:
            # Each kind comes up, whatever the chance; a commit first, since a batch may end before the deck does.
            others = [self._cut, self._stall, self._half_open, self._hit_some_commit]
            self._deck = [self._hit_some_commit, *random.sample(others, len(others))]
        await self._deck.pop(0)()

    async def each_once(self, given_up: Callable[[], Awaitable[object]]) -> None:
        """Bring each kind of trouble once, in a fixed order, always while there are commits.

        Args:
            given_up: Waits until a commit was waited for in vain: what was sent arrives all the same, later.
        """
        fates: list[Fate] = ["cut before", "cut after", "lose"]
        for number, fate in enumerate(fates, 1):
            await self._hit_a_commit(fate)
            assert self.commits_hit == number
        for trouble in (self._cut, partial(self._stall_until, given_up), self._half_open):
            seen = self.commits_seen
            await eventually(lambda seen=seen: self.commits_seen > seen)  # type: ignore[misc]  # of a default mypy infers no type
            await trouble()

    async def _cut(self) -> None:
        self._proxy.cut()

    async def _stall(self) -> None:
        # Longer than some of the timeouts, so that what was given up arrives all the same, later.
        await self._stall_until(partial(asyncio.sleep, random.choice([0.1, 1.5])))

    async def _stall_until(self, enough: Callable[[], Awaitable[object]]) -> None:
        self._proxy.stall()
        try:
            await enough()
        finally:
            self._proxy.resume()

    async def _half_open(self) -> None:
        self._proxy.half_open()

    async def _hit_some_commit(self) -> None:
        with suppress(TimeoutError):
            # None comes if the batch has ended meanwhile.
            await self._hit_a_commit(random.choice(["cut before", "cut after", "lose"]), seconds=2)
        self._next = None

    async def _hit_a_commit(self, fate: Fate, *, seconds: float = PATIENCE) -> None:
        """Within a commit: before the server has it, or when it has, and the reply is lost."""
        self._next = fate
        await eventually(lambda: self._next is None, seconds=seconds)


async def test_a_network_that_fails_in_every_way(
    postgres_dsn: str, migrated_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each; nobody is away for as long as its lease."""
    monkeypatch.setattr("durable_batches.stores.postgres.connection.database._MARGIN_SECONDS", 0.0)
    # How long a worker that leaves waits for the store is no matter of this test, and must not decide it.
    monkeypatch.setattr("durable_batches.worker.session._STORE_PATIENCE_SECONDS", PATIENCE)
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        network = Network(proxy)
        dsn, limit = proxy.through(postgres_dsn), timedelta(seconds=3)

        def store() -> PostgresStore:
            return PostgresStore(dsn, schema=migrated_schema, statement_timeout=limit, lock_timeout=limit)

        async with workers(2, store, timedelta(hours=1)) as batches:
            await submit(batches, "batch")

            async def given_up() -> None:
                """One of the two commits, if only to claim; which of them, and when, depends on what was under way."""
                async with AsyncExitStack() as stack:
                    pausing = [stack.enter_context(each.worker.signals.journal.pausing.listen()) for each in batches]
                    await eventually(lambda: any(each.heard for each in pausing))

            await network.each_once(given_up)
            await succeeds(batches, "batch")
    await check(PostgresStore(postgres_dsn, schema=migrated_schema), ["batch"])


@pytest.mark.soak
async def test_a_network_that_fails_again_and_again(postgres_dsn: str, migrated_schema: str) -> None:
    port = urlsplit(postgres_dsn).port or 0
    names = [f"batch-{number}" for number in range(SOAK_ROUNDS)]
    with Proxy(port) as proxy:
        network = Network(proxy)

        def store() -> PostgresStore:
            dsn = proxy.through(postgres_dsn)
            quick = timedelta(seconds=0.5)
            return PostgresStore(dsn, schema=migrated_schema, statement_timeout=quick, lock_timeout=quick)

        async with workers(2, store, SHORT_LEASE) as batches:
            for name in names:
                await run_in_trouble(batches, name, network.trouble, most=6)
    assert network.commits_hit > 0
    # Out of reach for most of its lease, a worker counts itself dead.
    await check(PostgresStore(postgres_dsn, schema=migrated_schema), names, fenced=["process"])


@pytest.mark.parametrize("fate", ["cut before", "cut after"])
async def test_a_commit_whose_reply_is_lost_is_made_once(
    postgres_dsn: str, migrated_schema: str, fate: Fate, caplog: pytest.LogCaptureFixture
) -> None:
    """One commit in sixteen: whether the server had it or not, its number tells when it is repeated."""
    caplog.set_level(logging.WARNING)
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        dsn = proxy.through(postgres_dsn)
        async with workers(1, lambda: PostgresStore(dsn, schema=migrated_schema)) as batches:
            commits, finder = 0, CommitFinder()

            def decide(data: bytes) -> Fate:
                nonlocal commits
                if not finder.is_in(data):
                    return "pass"
                commits += 1
                return fate if commits % 16 == 0 else "pass"

            proxy.fate = decide
            await run_in_trouble(batches, "batch", lambda: asyncio.sleep(0), most=0)
            proxy.fate = lambda _: "pass"
    assert commits > 32
    assert any("lost in the middle of a commit" in record.message for record in caplog.records)
    checker = checker_of(here.effects)
    await check(PostgresStore(postgres_dsn, schema=migrated_schema), ["batch"])
    # Not one activity ran again for it.
    assert checker.stats.repeated == 0


async def test_an_outage_is_nobodys_crash(caplog: pytest.LogCaptureFixture) -> None:
    """Longer than the leases: all workers keep them, and what they run; what ends meanwhile is not paid for again."""
    begun: Counter[int] = Counter()
    go_on = asyncio.Event()

    @durable_activity
    async def act(number: int) -> int:
        begun[number] += 1
        await go_on.wait()
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await act(number)

    with Server() as server:
        async with AsyncExitStack() as stack:
            first, other = [
                await stack.enter_async_context(
                    BatchOrchestrator(run, worker=Worker(PostgresStore(server.dsn()), lease=SHORT_LEASE))
                )
                for _ in range(2)
            ]
            workers = [batches.worker for batches in (first, other)]
            ids = [worker.worker_id for worker in workers]
            batch_id = await first.submit(range(4), config=BatchConfig(concurrency=4, max_crashes=1))
            await eventually(lambda: begun.total() == 4)
            await asyncio.to_thread(server.stop)
            stopped = first.worker.clock.boot()
            await eventually(lambda: first.worker.clock.boot() > stopped + SHORT_LEASE.total_seconds())
            # What ends while the server is away is recorded when it is back.
            go_on.set()
            await asyncio.to_thread(server.start)
            result = await within(other.result(batch_id))
            assert result.counts.succeeded == 4
            events = await within(everything(other.progress(batch_id)))
            assert not [event for event in events if isinstance(event, DocumentReleased)]
            assert begun.total() == 4
            assert [worker.worker_id for worker in workers] == ids
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(record.exc_info for record in told)
    assert len(told) < 50


async def test_who_is_cut_off_begins_nothing_when_its_lease_may_be_over(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """Others may begin with the same documents from then on; what runs goes on, also while a commit hangs."""
    port = urlsplit(postgres_dsn).port or 0
    lease = 4.0
    clock = ManualClock()
    begun: list[int] = []
    gate = asyncio.Event()
    stopped = asyncio.Event()

    @durable_activity
    async def hold(number: int) -> int:
        begun.append(number)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return number

    @durable_activity
    async def tick(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        if number == 1:
            while True:
                await tick(number)
        if number == 2:
            await gate.wait()
        return await hold(number)

    with Proxy(port) as proxy:
        dsn = proxy.through(postgres_dsn)
        # The commit waits for an hour, if nothing ends it.
        store = PostgresStore(dsn, schema=migrated_schema, statement_timeout=timedelta(hours=1))
        worker = Worker(store, clock=clock, lease=timedelta(seconds=lease), drain=timedelta(0))
        signals = worker.signals
        async with BatchOrchestrator(run, worker=worker) as batches:
            await batches.submit([0, 1, 2])
            await eventually(lambda: begun == [0])
            with (
                signals.journal.beginning.listen() as committing,
                signals.journal.committed.listen() as committed,
                signals.lease.renewed.listen() as renewed,
                signals.lease.failed.listen() as failed,
            ):
                await eventually(lambda: clock.waiting_threads == 1)
                clock.advance(lease / 3)
                worker_id = await renewed.next()
                await eventually(lambda: bool(committed.heard))
                proxy.stall()
                await eventually(lambda: clock.waiting_threads == 1)
                clock.advance(lease / 3)
                await failed.next()
                await eventually(lambda: committing.heard[-1] > committed.heard[-1])
                await eventually(lambda: clock.waiting_threads == 1)
                clock.advance(lease * 3 / 4 - lease / 3)
                gate.set()
                await turns(100)
                assert begun == [0]
                assert not stopped.is_set()
                assert committing.heard[-1] > committed.heard[-1], "no commit hangs"
                assert not renewed.heard
                proxy.resume()
                async with moving(clock, lease / 100):
                    await renewed.next()
                await eventually(lambda: begun == [0, 2])
                assert not stopped.is_set()
                assert worker.worker_id == worker_id
            # What is left of the lease is enough for a renewal that began before, and was waited for.
            assert lease * 3 / 4 + store._timeouts.longest_renewal_seconds(worker_id) <= lease


async def test_connections_that_all_went_deaf_are_given_up_together(
    postgres_dsn: str, migrated_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be waited for otherwise, one after the other."""
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        dsn = proxy.through(postgres_dsn)
        async with opened(
            PostgresStore(dsn, schema=migrated_schema, statement_timeout=timedelta(milliseconds=500))
        ) as store:
            await asyncio.gather(*(store.batches(BatchQuery(), limit=1) for _ in range(20)))
            readers = store._open_store().readers
            deaf = list(readers._idle)
            assert len(deaf) > 2
            tried: list[Connection] = []
            work = readers._work

            async def noted(connection: Connection, *args: Any, **kwargs: Any) -> Any:
                tried.append(connection)
                return await work(connection, *args, **kwargs)

            monkeypatch.setattr(readers, "_work", noted)
            proxy.half_open()
            await store.batches(BatchQuery(), limit=1)
            # The first was waited for, and no other; the answer came by a new one.
            assert tried == [deaf[-1], *readers._idle]
            assert len(readers._idle) == 1
            assert all(connection.is_closed() for connection in deaf)


async def test_a_write_that_is_not_answered_gives_up_all_deaf_connections(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """It is not repeated by the store: whether it was made is not known. The next one has a new connection."""
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        dsn = proxy.through(postgres_dsn)
        async with opened(
            PostgresStore(dsn, schema=migrated_schema, statement_timeout=timedelta(milliseconds=500))
        ) as store:
            scene = Scene(store, asyncio.sleep)
            batch_ids = [await scene.batch(1) for _ in range(8)]
            hand = await scene.worker(lease=3600)
            claim = await hand.take()
            writers = store._open_store().writers
            # So many at once need several connections.
            await asyncio.gather(*(store.control(batch_id, Cancel(batch_id, "")) for batch_id in batch_ids[1:]))
            deaf = list(writers._idle)
            assert len(deaf) > 2
            proxy.half_open()
            with pytest.raises(CommitUnknownError):
                await hand.report(hand.recorded(claim, "key"))
            assert writers._idle == []
            assert all(connection.is_closed() for connection in deaf)


async def test_listening_is_not_waited_for_for_ever(postgres_dsn: str, migrated_schema: str) -> None:
    """The driver would: it sets no limit to that."""
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        asked = 0

        def decide(data: bytes) -> Fate:
            nonlocal asked
            if b"LISTEN" not in data:
                return "pass"
            asked += 1
            return "lose" if asked == 1 else "pass"

        proxy.fate = decide
        quick = timedelta(milliseconds=100)
        async with opened(
            PostgresStore(proxy.through(postgres_dsn), schema=migrated_schema, statement_timeout=quick)
        ) as store:
            waiting = asyncio.create_task(store.wait({}, work=[("letters", "1")], timeout=3_600_000_000))
            await eventually(lambda: asked == 2)
            # It is woken by what another process does, some time or other.
            async with opened(PostgresStore(postgres_dsn, schema=migrated_schema)) as elsewhere:
                await Scene(elsewhere, asyncio.sleep).batch(1)
                await within(waiting)


@pytest.mark.parametrize("statement", ["fetch", "row", "value", "run", "listen"])
async def test_whatever_the_driver_waits_for_is_bounded(statement: str) -> None:
    """As the end of a statement that it has prepared once, to which it sets no limit of its own."""

    class Deaf:
        def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
            async def wait(*_: object, **__: object) -> None:
                await asyncio.Event().wait()

            return wait

    session = Session(Database("postgresql://nowhere/", "public", 1.0, 1.0), cast("Connection", Deaf()), 0.01)
    arguments = ["", print] if statement == "listen" else ["SELECT 1"]
    with pytest.raises(TimeoutError):
        await getattr(session, statement)(*arguments)


# ---- workers that stop in the middle of it ---------------------------------------------------------------------------


async def test_a_session_that_is_stuck_in_a_commit_is_ended(postgres_dsn: str, migrated_schema: str) -> None:
    """Of a worker past its lease; however it is stuck, so that no timeout of the server's own ends it."""
    store = PostgresStore(postgres_dsn, schema=migrated_schema)
    await store.open()
    try:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.batch(2)
        hand = await scene.worker(lease=0.3)
        assert len(await hand.claim()) == 2
        stuck = await asyncpg.connect(postgres_dsn)
        await stuck.execute("BEGIN")
        await stuck.execute(f"UPDATE {migrated_schema}.worker SET commits = commits + 1")
        await stuck.execute(f"SELECT 1 FROM {migrated_schema}.batch FOR UPDATE")
        await asyncio.sleep(0.4)

        async def expired() -> bool:
            return hand.worker_id in (await store.expire()).workers

        await eventually(expired)
        assert (await scene.look(batch_id)).counts.pending == 2
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await stuck.execute("COMMIT")
        with pytest.raises(WorkerFencedError):
            await hand.commit()
    finally:
        await store.close()


async def test_a_session_whose_connection_was_lost_within_a_statement_holds_up_nobody(
    postgres_dsn: str, migrated_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No limit of the server's ends it then. Its worker does, long before its lease is over."""
    quick = timedelta(seconds=0.3)
    port = urlsplit(postgres_dsn).port or 0
    with Proxy(port) as proxy:
        dsn = proxy.through(postgres_dsn)
        async with opened(
            PostgresStore(dsn, schema=migrated_schema, statement_timeout=quick, lock_timeout=quick)
        ) as store:
            scene = Scene(store, asyncio.sleep)
            batch_id = await scene.batch(1)
            hand = await scene.worker(lease=3600)
            claim = await hand.take()

            async def get_stuck() -> None:
                lost = await store._database.connect(by_key=True)
                await lost.execute("BEGIN")
                await lost.execute(f"UPDATE {migrated_schema}.worker SET commits = commits + 1")
                await lost.execute(f"SELECT 1 FROM {migrated_schema}.batch FOR UPDATE")
                # The driver says nothing after this that would have the server end the statement.
                await lost.prepare("SELECT 1")
                proxy.half_open()
                # Before the connection is closed, which the server would hear of.
                await eventually(lambda: all(pair.deaf for pair in proxy._pairs))
                lost.terminate()

            await store._open_store().thread.run(get_stuck())

            async def committed() -> bool:
                try:
                    await store.commit(hand.worker_id, 2, [hand.succeeded(claim)])
                except StoreUnavailableError:
                    return False
                return True

            await eventually(committed)
            assert (await scene.look(batch_id)).state == "completed"
    assert any("ended 1 sessions of lost connections" in message for message in caplog.messages)


async def test_the_locks_of_others_are_left_to_them(postgres_dsn: str, migrated_schema: str) -> None:
    """Who looks after a worker that is past its lease ends no session of a transaction that has just begun."""
    store = PostgresStore(postgres_dsn, schema=migrated_schema)
    await store.open()
    try:
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker(lease=3600)
        execute(postgres_dsn, f"UPDATE {migrated_schema}.worker SET lease_until = 0")
        busy = await asyncpg.connect(postgres_dsn)
        await busy.execute("BEGIN")
        await busy.execute(f"UPDATE {migrated_schema}.worker SET lease_until = 1")
        assert not (await store.expire()).workers
        await busy.execute("COMMIT")
        await busy.close()
        assert (await store.expire()).workers == [hand.worker_id]
    finally:
        await store.close()


async def test_commits_of_many_workers_do_not_wait_for_each_other_for_ever(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """Each holds documents of every batch, and claims from every batch: in whatever order, they are not locked out."""
    store = PostgresStore(postgres_dsn, schema=migrated_schema)
    await store.open()
    try:
        scene = Scene(store, asyncio.sleep)
        batch_ids = [await scene.batch(40, concurrency=20) for _ in range(4)]
        request = ClaimRequest(frozenset({("letters", "1")}), 3, 0, 100, 100, 10)
        done = 0

        async def work(name: str) -> None:
            nonlocal done
            hand = await scene.worker(name)
            claims: list[object] = []
            number, idle = 0, 0
            while idle < 20:
                number += 1
                facts = [hand.succeeded(claim) for claim in claims]  # type: ignore[arg-type]
                committed = await store.commit(WorkerId(name), number, facts, request)
                assert not committed.refused
                done += len(facts)
                claims = list(committed.claims)
                idle = 0 if claims else idle + 1

        await within(asyncio.gather(*(work(f"worker-{number}") for number in range(6))), seconds=60)
        assert done == 160
        for batch_id in batch_ids:
            assert (await scene.look(batch_id)).state == "completed"
        await scene.check()
    finally:
        await store.close()


# ---- the host's loop ends ------------------------------------------------------------------------------------------


async def test_a_loop_that_ends_at_any_moment_leaves_no_connection_open(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """`asyncio.run` cancels every task when its own fails: the host's, and all that the orchestrator has."""

    async def host(after: float) -> None:
        async def replica() -> None:
            store = PostgresStore(postgres_dsn, schema=migrated_schema)
            async with BatchOrchestrator(extract, worker=Worker(store, drain=timedelta(0))) as batches:
                await batches.submit([Page(number) for number in range(20)])
                await asyncio.sleep(60)

        async def fail() -> None:
            await asyncio.sleep(after)
            raise ZeroDivisionError

        await asyncio.gather(replica(), replica(), fail())

    for _ in range(12):
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(asyncio.run, host(random.uniform(0.0, 0.3)))
    # One that is left open says so when it is forgotten, and that fails the test.
    gc.collect()


async def test_a_client_follows_a_batch_over_a_server_that_is_away(
    postgres_dsn: str, migrated_schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def held(document: str) -> str:
        await gate.wait()
        return document

    port = urlsplit(postgres_dsn).port
    assert port is not None
    with Proxy(port) as proxy:
        async with BatchOrchestrator(held, store=PostgresStore(postgres_dsn, schema=migrated_schema)) as batches:
            batch_id = await batches.submit(["x", "y"])
            store = PostgresStore(proxy.through(postgres_dsn), schema=migrated_schema)
            async with BatchClient(store, read_only=True) as client:
                with client.signals.waiting.listen() as waiting:
                    following = asyncio.create_task(everything(client.progress(batch_id)))
                    watching = asyncio.create_task(everything(client.watch(batch_id, interval=timedelta(0))))
                    await waiting.next()
                proxy.target = 1  # where nobody listens
                proxy.cut()
                late = asyncio.create_task(everything(client.documents(batch_id)))
                await eventually(lambda: any("store unavailable" in line for line in caplog.messages))
                with pytest.raises(StoreUnavailableError):
                    await client.snapshot(batch_id)
                gate.set()
                await batches.result(batch_id)
                assert not following.done()
                assert not late.done()
                proxy.target = port
                assert (await following)[-1].tag == "batch_completed"
                assert (await watching)[-1].counts.succeeded == 2
                assert len(await late) == 2
                await eventually(lambda: any("after" in line and "store" in line for line in caplog.messages))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
