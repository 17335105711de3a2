"""Workers: registration, numbering and fencing of their commits, leases, expiry and deregistration."""

from __future__ import annotations

import asyncio
import threading

import pytest

from durable_batches.errors import WorkerFencedError
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import WorkerId, WorkerRecord
from durable_batches.stores.protocol import NotedHeart, Store
from durable_batches.testing.conformance.base import Conformance, from_level_2
from durable_batches.testing.conformance.scene import LEASE, Hand, Scene

__all__ = ["OpeningConformance", "WorkersConformance"]


class OpeningConformance(Conformance):
    """`open` and `close`."""

    async def test_opening_nests(self, scene: Scene) -> None:
        """Each `open` needs its own `close`: the store works until the last one."""
        await scene.store.open()
        await scene.store.close()
        batch_id = await scene.batch(1)
        assert await scene.store.batch(batch_id) is not None

    async def test_a_closed_store_can_be_opened_again(self, scene: Scene) -> None:
        """The same object opens again after its last `close`."""
        await scene.store.close()
        await scene.store.open()
        await scene.batch(1)

    async def test_several_may_open_it_at_once(self, scene: Scene) -> None:
        """Two tasks that open the store at the same time both find it open."""
        await asyncio.gather(scene.store.open(), scene.store.open())
        await asyncio.gather(scene.store.close(), scene.store.close())
        await scene.batch(1)


class WorkersConformance(Conformance):
    """`register`, `workers`, `heart`, `expire`, `leave`, and the numbers of `commit`."""

    # ---- registration ----------------------------------------------------------------------------------------

    async def test_a_registered_worker_is_listed_as_it_is(self, scene: Scene) -> None:
        """`workers` returns the records that were registered, unchanged."""
        pairs = frozenset({("letters", "1"), ("letters", "2"), ("ÄÖ 文書", "β")})
        record = WorkerRecord(WorkerId("wörker"), "boot-id", "pid:[402]", 2**22, "123456789", pairs)
        other = WorkerRecord(WorkerId("other"), "", "", 1, "", frozenset())
        await scene.store.register(record, 1_000_000)
        await scene.store.register(other, 1_000_000)
        assert set(await scene.store.workers()) == {record, other}

    # ---- numbers ---------------------------------------------------------------------------------------------

    async def test_commits_are_numbered_from_1(self, scene: Scene) -> None:
        """A worker's first commit has number 1, and each further one its predecessor's + 1."""
        hand = await scene.worker()
        for number in (1, 2, 3):
            await scene.store.commit(hand.worker_id, number, [])

    @pytest.mark.parametrize("number", [1, 2, 5, 6])
    async def test_a_number_out_of_turn_is_refused(self, scene: Scene, number: int) -> None:
        """A number that is neither the last nor the one after it raises WorkerFencedError and writes nothing."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        claim, _ = await hand.claim(2)  # its commit number 1
        await hand.commit()
        await hand.commit()
        before = await scene.look(batch_id)
        with pytest.raises(WorkerFencedError):
            await scene.store.commit(hand.worker_id, number, [hand.succeeded(claim)])
        assert await scene.look(batch_id) == before, "a commit with a wrong number must write nothing"
        await hand.report(hand.succeeded(claim))

    async def test_an_unknown_worker_cannot_commit(self, scene: Scene) -> None:
        """A worker that never registered is fenced."""
        with pytest.raises(WorkerFencedError):
            await scene.store.commit(WorkerId("nobody"), 1, [])

    async def test_workers_number_their_commits_independently(self, scene: Scene) -> None:
        """The number belongs to the worker's own row."""
        one, other = await scene.worker(), await scene.worker()
        await one.commit()
        await one.commit()
        await other.commit()

    async def test_the_same_number_again_changes_nothing(self, scene: Scene) -> None:
        """A commit that is repeated because its reply was lost is not applied twice."""
        batch_id = await scene.batch(3, concurrency=2)
        hand = await scene.worker()
        await hand.claim(1)
        before, events = await scene.look(batch_id), await scene.tags(batch_id)
        for _ in range(2):
            await scene.store.commit(hand.worker_id, 1, [], hand.request(1))
        assert (await scene.look(batch_id), await scene.tags(batch_id)) == (before, events), (
            "repeating a commit's number must change nothing"
        )
        await hand.commit()

    async def test_the_same_number_again_returns_the_refusals(self, scene: Scene) -> None:
        """A repeated commit returns the refusals of the first time, until the next number."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        stale = hand.succeeded(one)._replace(attempt=7)
        facts: list[Fact] = [hand.entered(one, 0), stale, hand.succeeded(two)]
        first = await hand.commit(*facts)
        assert dict(first.refused) == {1: "superseded"}
        again = await scene.store.commit(hand.worker_id, hand.number, facts)
        assert dict(again.refused) == {1: "superseded"}, "keep a commit's refusals until the next one"
        await hand.report(hand.succeeded(one))
        again = await scene.store.commit(hand.worker_id, hand.number, [hand.succeeded(one)])
        assert not again.refused, "the refusals of an earlier commit are not this one's"
        assert (await scene.look(batch_id)).state == "completed"

    async def test_the_same_number_again_returns_the_claims(self, scene: Scene) -> None:
        """A repeated commit returns the claims of the first time, with inputs and checkpoints."""
        await scene.batch(5, concurrency=3)
        hand, other = await scene.worker(), await scene.worker()
        claim = (await hand.claim(1))[0]
        await hand.report(hand.recorded(claim, "paid", b"\x00\xff"), hand.released(claim))
        first = await hand.claim(2, checkpoints=10)
        await other.claim(1)
        again = await scene.store.commit(hand.worker_id, hand.number, [], hand.request(2, checkpoints=10))
        seen = {item.execution.position: item for item in again.claims}
        assert set(seen) == {item.execution.position for item in first}, (
            "repeating a commit must return the executions that it claimed"
        )
        for item in first:
            twin = seen[item.execution.position]
            assert (twin.execution, twin.input) == (item.execution, item.input)
            assert list(twin.checkpoints) == list(item.checkpoints)
            assert twin.more_checkpoints == item.more_checkpoints

    # ---- leases ----------------------------------------------------------------------------------------------

    async def test_a_worker_lives_as_long_as_its_lease(self, scene: Scene) -> None:
        """`expire` expires each worker past its lease, once, and no others."""
        short, long = await scene.worker(lease=LEASE), await scene.worker(lease=10 * LEASE)
        await scene.pass_time(LEASE / 2)
        assert not (await scene.store.expire()).workers, "a lease counts from the registration"
        await scene.pass_time(LEASE / 2 + 1)
        assert list((await scene.store.expire()).workers) == [short.worker_id]
        assert not (await scene.store.expire()).workers, "a dead worker is reported once"
        assert [worker.worker_id for worker in await scene.store.workers()] == [long.worker_id]

    async def test_a_beat_renews_the_lease(self, scene: Scene) -> None:
        """`heart(worker).beat()`, on a thread, renews the lease, and returns False for an expired worker."""
        hand = await scene.worker()
        threads: list[int] = []

        def beats(times: int) -> list[bool]:
            threads.append(threading.get_ident())
            heart = scene.store.heart(hand.worker_id)
            try:
                return [heart.beat() for _ in range(times)]
            finally:
                heart.close()

        await scene.pass_time(LEASE * 0.75)
        assert await asyncio.to_thread(beats, 2) == [True, True]
        await scene.pass_time(LEASE * 0.75)
        assert not (await scene.store.expire()).workers, "beat() must renew the lease"
        await scene.pass_time(LEASE)
        await scene.store.expire()
        assert await asyncio.to_thread(beats, 1) == [False], "beat() returns False once the worker was expired"
        assert threading.get_ident() not in threads

    async def test_a_beat_does_not_renew_the_leases_of_others(self, scene: Scene) -> None:
        """Each heart renews the lease of one worker."""
        kept, other = await scene.worker(), await scene.worker()
        await scene.pass_time(LEASE * 0.75)
        heart = scene.store.heart(kept.worker_id)
        try:
            assert heart.beat()
        finally:
            heart.close()
        await scene.pass_time(LEASE * 0.5)
        assert list((await scene.store.expire()).workers) == [other.worker_id]

    async def test_the_heart_of_nobody_does_not_beat(self, scene: Scene) -> None:
        """`beat()` of a worker that never registered returns False."""
        heart = scene.store.heart(WorkerId("nobody"))
        try:
            assert not heart.beat()
        finally:
            heart.close()

    async def test_what_a_worker_tells_is_in_its_row(self, scene: Scene) -> None:
        """`NotedHeart.tell` renews the lease, and writes the note and the workflows. Skipped for other hearts."""
        hand, other = await scene.worker(), await scene.worker(lease=10 * LEASE)
        before = {worker.worker_id: worker for worker in await scene.store.workers()}
        heart = scene.store.heart(hand.worker_id)
        try:
            if not isinstance(heart, NotedHeart):
                pytest.skip("the store's hearts are no NotedHeart")
            workflows = {("letters", "1"), ("ÄÖ 文書", "β")}
            await scene.pass_time(LEASE * 0.75)
            assert await asyncio.to_thread(heart.tell, '{"v":1}', workflows)
            await scene.pass_time(LEASE * 0.75)
            assert not (await scene.store.expire()).workers, "tell() must renew the lease"
            told = before[hand.worker_id]._replace(note='{"v":1}', workflows=frozenset(workflows))
            assert set(await scene.store.workers()) == {told, before[other.worker_id]}
            assert await asyncio.to_thread(heart.beat)
            assert told in await scene.store.workers(), "beat() must leave alone what was told"
            await hand.commit()
            assert told in await scene.store.workers(), "commit() must leave alone what was told"
            await scene.pass_time(LEASE + 1)
            await scene.store.expire()
            assert not await asyncio.to_thread(heart.tell, "", ()), "tell() returns False once the worker was expired"
        finally:
            heart.close()

    async def test_a_commit_renews_the_lease(self, scene: Scene) -> None:
        """Every commit renews the worker's lease."""
        hand = await scene.worker()
        await scene.pass_time(LEASE * 0.75)
        await hand.commit()
        await scene.pass_time(LEASE * 0.75)
        assert not (await scene.store.expire()).workers, "a commit must renew the lease"

    # ---- death -----------------------------------------------------------------------------------------------

    async def test_death_frees_what_the_worker_held(self, scene: Scene) -> None:
        """The executions of an expired worker can be claimed by others, with a crash counted and checkpoints kept."""
        batch_id = await scene.batch(2)
        dead, heir = await scene.worker(), await scene.worker(lease=10 * LEASE)
        claim, done = await dead.claim(2)
        await dead.report(dead.recorded(claim, "paid"), dead.entered(claim, 1), dead.succeeded(done))
        await scene.pass_time(LEASE + 1)
        expired = await scene.store.expire()
        await scene.check()
        assert [event.tag for event in expired.events] == ["document_released"]
        row = (await scene.document(batch_id, 0)).execution
        assert (row.status, row.owner, row.crashes, row.mark) == ("pending", None, 1, 1)
        again = await heir.take()
        assert again.execution.attempt == 2
        assert [checkpoint.key for checkpoint in again.checkpoints] == ["paid"]

    async def test_the_dead_cannot_write(self, scene: Scene) -> None:
        """A commit of an expired worker raises WorkerFencedError and writes nothing."""
        batch_id = await scene.batch(2)
        dead = await scene.worker()
        claim = (await dead.claim(1))[0]
        expired = await scene.store.expire(dead=[dead.worker_id, WorkerId("nobody")])
        assert list(expired.workers) == [dead.worker_id], "`dead` may name workers that are not there"
        before = await scene.look(batch_id)
        late: list[Fact] = [dead.recorded(claim, "late"), dead.succeeded(claim)]
        for facts in (late, []):
            with pytest.raises(WorkerFencedError):
                await dead.commit(*facts, claim=dead.request())
        assert await scene.look(batch_id) == before
        assert not await scene.checkpoints(batch_id), "a fenced worker's facts must not be written"
        with pytest.raises(WorkerFencedError):
            await scene.store.commit(dead.worker_id, dead.number, [])

    async def test_declaring_dead_twice_counts_one_crash(self, scene: Scene) -> None:
        """A worker is expired once."""
        batch_id = await scene.batch(1)
        dead = await scene.worker()
        await dead.take()
        for _ in range(2):
            await scene.store.expire(dead=[dead.worker_id])
        assert (await scene.document(batch_id, 0)).execution.crashes == 1

    async def test_only_the_dead_lose_what_they_hold(self, scene: Scene) -> None:
        """`expire` does not touch the executions of live workers."""
        await scene.batch(2)
        dead, alive = await scene.worker(), await scene.worker()
        await dead.claim(1)
        claim = await alive.take()
        await scene.store.expire(dead=[dead.worker_id])
        await alive.report(alive.succeeded(claim))

    async def test_death_frees_the_resolver(self, scene: Scene) -> None:
        """The resolver of an expired worker can be claimed again."""
        batch_id = await scene.batch(0, resolver=True)
        dead, heir = await scene.worker(), await scene.worker()
        await dead.take()
        await scene.store.expire(dead=[dead.worker_id])
        await scene.check()
        claim = await heir.take()
        assert claim.execution.attempt == 2
        await heir.report(heir.succeeded(claim))
        assert (await scene.look(batch_id)).state == "completed"

    async def test_death_after_the_end_only_frees(self, scene: Scene) -> None:
        """The executions that an expired worker held of an ended batch are released, and nothing else changes."""
        batch_id = await scene.batch(2)
        dead = await scene.worker()
        await dead.claim(1)
        await scene.cancel(batch_id)
        before = await scene.look(batch_id)
        expired = await scene.store.expire(dead=[dead.worker_id])
        assert not expired.events
        assert await scene.look(batch_id) == before, "an ended run absorbs"
        row = (await scene.document(batch_id, 0)).execution
        assert (row.owner, row.crashes) == (None, 0)

    async def test_crashes_narrow_the_search_and_end_in_failure(self, scene: Scene) -> None:
        """A possible poison document runs with ever less concurrency, and fails only after a crash in isolation."""
        batch_id = await scene.batch(2, max_crashes=2)
        for alone in (False, False, True):
            hand = await scene.worker()
            claims = await hand.claim(2)
            assert len(claims) == (1 if alone else 2), "plan_claims decides which candidates are taken"
            assert [claim.execution.alone for claim in claims] == [alone] * len(claims)
            await scene.store.expire(dead=[hand.worker_id])
            await scene.check()
        failed, other = [(await scene.document(batch_id, position)) for position in (0, 1)]
        assert (failed.execution.status, failed.execution.crashes) == ("failed", 3)
        assert failed.outcome is not None
        assert b"CrashLoopError" in failed.outcome
        assert (other.execution.status, other.execution.crashes) == ("pending", 2)

    async def test_progress_clears_the_crashes(self, scene: Scene) -> None:
        """A recorded activity clears them: `Writes.executions` is written with a commit of checkpoints, too."""
        batch_id = await scene.batch(1, max_crashes=2)
        for number in range(5):
            hand = await scene.worker()
            claim = await hand.take()
            assert claim.execution.crashes == min(number, 1)
            await hand.report(hand.recorded(claim, f"key-{number}"))
            assert (await scene.document(batch_id, 0)).execution.crashes == 0
            await scene.store.expire(dead=[hand.worker_id])
            await scene.check()

    # ---- a lease that ran out is no proof of a crash --------------------------------------------------------------

    async def test_a_session_seen_again_takes_its_crashes_back(self, scene: Scene) -> None:
        """A worker that names the session before it takes back what was counted for that, and for no other."""
        from_level_2(scene)
        batch_id = await scene.batch(3)
        frozen, dead = await scene.worker(), await scene.worker()
        await frozen.claim(2)
        await dead.claim(1)
        await scene.pass_time(LEASE + 1)
        await scene.store.expire()
        rows = [(await scene.document(batch_id, position)).execution for position in range(3)]
        assert [(row.crashes, row.taken_from) for row in rows] == [
            (1, frozen.worker_id),
            (1, frozen.worker_id),
            (1, dead.worker_id),
        ], "ExecutionRecord.taken_from must be stored"
        again = await scene.worker(before=frozen.worker_id)
        await scene.check()
        rows = [(await scene.document(batch_id, position)).execution for position in range(3)]
        assert [(row.crashes, row.taken_from) for row in rows] == [(0, None), (0, None), (1, dead.worker_id)]
        assert len(await again.claim(3)) == 3, "they can be claimed as before"

    async def test_a_session_seen_again_ends_isolation(self, scene: Scene) -> None:
        """What was isolated for crashes that were none can be claimed like anything else, and is found by a claim."""
        from_level_2(scene)
        await scene.batch(4, max_crashes=3)
        dead, frozen = await scene.worker(), await scene.worker()
        for hand in (dead, frozen):
            assert len(await hand.claim(4)) == 4
            await scene.store.expire(dead=[hand.worker_id])
        again = await scene.worker(before=frozen.worker_id)
        await scene.check()
        assert len(await again.claim(4, held=1)) == 4

    async def test_what_others_own_by_then_is_taken_back_with_its_release(self, scene: Scene) -> None:
        """An owned execution is changed by its owner's commits alone; its release takes the crash back."""
        from_level_2(scene)
        batch_id = await scene.batch(1)
        frozen, heir = await scene.worker(), await scene.worker()
        await frozen.take()
        await scene.store.expire(dead=[frozen.worker_id])
        claim = await heir.take()
        await scene.worker(before=frozen.worker_id)
        await scene.check()
        row = (await scene.document(batch_id, 0)).execution
        assert (row.owner, row.crashes) == (heir.worker_id, 1)
        await heir.report(heir.entered(claim, 1))
        await scene.store.expire(dead=[heir.worker_id])
        await scene.check()
        row = (await scene.document(batch_id, 0)).execution
        assert (row.crashes, row.taken_from, row.mark) == (1, heir.worker_id, 1)

    async def test_the_loss_of_a_machine_counts_no_crash(self, scene: Scene) -> None:
        """Several processes that are gone with their machine: `plan_release` is told so (`gone_with_machine`)."""
        from_level_2(scene)
        batch_id = await scene.batch(3)
        hands = [await scene.worker(machine="lost", process=number) for number in range(2)]
        dead = await scene.worker(machine="there", process=1)
        for hand in (*hands, dead):
            await hand.take()
        await scene.pass_time(LEASE + 1)
        await scene.worker(machine="there", process=2)
        expired = await scene.store.expire()
        await scene.check()
        assert len(expired.workers) == 3
        rows = [(await scene.document(batch_id, position)).execution for position in range(3)]
        assert [(row.owner, row.crashes) for row in rows] == [(None, 0), (None, 0), (None, 1)]

    # ---- deregistration --------------------------------------------------------------------------------------

    async def test_leaving_frees_and_counts_no_crash(self, scene: Scene) -> None:
        """A worker that leaves releases its executions at once, and no crash is counted."""
        batch_id = await scene.batch(2)
        leaver, heir = await scene.worker(), await scene.worker()
        await leaver.claim(2)
        events = await scene.store.leave(leaver.worker_id)
        await scene.check()
        assert [event.tag for event in events] == ["document_released"] * 2
        assert (await scene.document(batch_id, 0)).execution.crashes == 0
        assert len(await heir.claim(2)) == 2

    async def test_who_left_cannot_write(self, scene: Scene) -> None:
        """Leaving fences the id: commits and beats are refused, and `workers` does not list it."""
        leaver = await scene.worker()
        assert not await scene.store.leave(leaver.worker_id)
        with pytest.raises(WorkerFencedError):
            await leaver.commit()
        assert not await scene.store.workers()
        heart = scene.store.heart(leaver.worker_id)
        try:
            assert not heart.beat()
        finally:
            heart.close()
        assert not (await scene.store.expire()).workers

    async def test_leaving_twice_is_harmless(self, scene: Scene) -> None:
        """A repeated `leave`, or that of a worker that was expired meanwhile, does nothing."""
        await scene.batch(1)
        leaver = await scene.worker()
        await leaver.take()
        await scene.store.leave(leaver.worker_id)
        assert not await scene.store.leave(leaver.worker_id)
        heir = await scene.worker()
        await heir.take()
        assert not await scene.store.leave(leaver.worker_id), "what others own by now is not the leaver's"
        await scene.check()

    # ---- several processes -----------------------------------------------------------------------------------

    async def test_fencing_holds_across_processes(self, scene: Scene, second_store: Store) -> None:
        """A worker that another process expired cannot write."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        assert [worker.worker_id for worker in await second_store.workers()] == [hand.worker_id]
        await second_store.expire(dead=[hand.worker_id])
        with pytest.raises(WorkerFencedError):
            await hand.commit(hand.succeeded(claim))
        heir = await scene.worker(store=second_store)
        await heir.report(heir.succeeded(await heir.take()))
        assert (await scene.look(batch_id)).state == "completed"

    async def test_leases_hold_across_processes(self, scene: Scene, second_store: Store) -> None:
        """A lease that one process renews is not expired by another."""
        hand = await scene.worker()
        for _ in range(3):
            await scene.pass_time(LEASE * 0.75)
            await hand.commit()
            assert not (await second_store.expire()).workers

    async def test_nothing_is_remembered_that_another_store_may_have_changed(
        self, scene: Scene, second_store: Store
    ) -> None:
        """A store object verifies what it keeps in memory between two commits of a worker against the numbers."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        claim = (await hand.claim(1))[0]
        there = Hand(scene, second_store, hand.worker_id)
        there.number = hand.number
        await there.report(there.entered(claim, 1), there.released(claim))
        hand.number = there.number
        await hand.claim(1, workflows=[])
        committed = await hand.commit(hand.succeeded(claim))
        assert dict(committed.refused) == {0: "superseded"}, "a row from before another store's commit was used"
        assert (await scene.document(batch_id, 0)).execution.mark == 1

    async def test_processes_share_the_work_without_overlap(self, scene: Scene, second_store: Store) -> None:
        """Workers of two processes that claim at the same time own different executions, within the concurrency."""
        batch_id = await scene.batch(40, concurrency=20)
        hands = [await scene.worker(store=store) for store in (scene.store, second_store) * 3]
        rounds = [await asyncio.gather(*[_claim(hand) for hand in hands]) for _ in range(2)]
        positions = [position for claimed in rounds for found in claimed for position in found]
        assert len(positions) == len(set(positions)), "no execution may be owned by two workers"
        assert len(positions) == 20, "the batch's concurrency counts over all workers"
        record = await scene.look(batch_id)
        assert (record.counts.running, record.free) == (20, 0)
        await scene.check()


async def _claim(hand: Hand, limit: int = 4) -> list[int]:
    # Not through the hand's own commit: its check would look while the others are at it.
    committed = await hand.store.commit(hand.worker_id, hand.number + 1, [], hand.request(limit))
    hand.number += 1
    return [claim.execution.position for claim in committed.claims]
