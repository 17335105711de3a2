"""Reads, paged by key; `wait`; and durability."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import pytest

from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, ExecutionStatus, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import BatchQuery, Store, WaitsForClaims
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene, all_events

__all__ = ["ReadingConformance", "WaitingConformance"]

HOUR: Final[Micros] = 3_600_000_000
NOWHERE: Final = BatchId("nowhere")


class ReadingConformance(Conformance):
    """Read batches, documents, checkpoints and events."""

    async def test_reading_what_is_not_there(self, scene: Scene) -> None:
        """Reads about an unknown batch find nothing, and raise nothing."""
        store = scene.store
        assert await store.batch(NOWHERE) is None
        assert not await store.documents(NOWHERE, limit=10)
        assert not await store.checkpoints(NOWHERE, 0, limit=10)
        assert await store.count_checkpoints(NOWHERE) == 0
        assert not await store.events(NOWHERE, after=0, limit=10)
        batch_id = await scene.batch(1)
        assert not await store.checkpoints(batch_id, 7, limit=10)

    # ---- events ------------------------------------------------------------------------------------------------

    async def test_events_are_paged_by_number(self, scene: Scene) -> None:
        """`events` returns those after a number, in order, at most `limit`."""
        batch_id = await scene.batch(5)
        hand = await scene.worker()
        await hand.report(*[hand.succeeded(claim) for claim in await hand.claim()])
        events = await all_events(scene.store, batch_id)
        assert len(events) > 10
        assert await all_events(scene.store, batch_id, page=3) == events
        assert [found.seq for found in await scene.store.events(batch_id, after=4, limit=2)] == [5, 6]
        assert not await scene.store.events(batch_id, after=len(events), limit=10)

    async def test_batches_have_their_own_events(self, scene: Scene) -> None:
        """Each batch numbers its events from 1."""
        batches = [await scene.batch(1) for _ in range(2)]
        hand = await scene.worker()
        await hand.claim()
        for batch_id in batches:
            assert [event.seq for event in await all_events(scene.store, batch_id)] == [1, 2, 3]
            assert {event.batch_id for event in await all_events(scene.store, batch_id)} == {batch_id}

    # ---- documents ---------------------------------------------------------------------------------------------

    async def test_documents_are_paged_by_position(self, scene: Scene) -> None:
        """`documents` returns those after a position, in submission order, at most `limit`, without the resolver."""
        batch_id = await scene.batch(7, resolver=True)
        await scene.batch(3)
        positions: list[int] = []
        while page := await scene.store.documents(
            batch_id, after=positions[-1] if positions else RESOLVER_POSITION, limit=3
        ):
            assert len(page) <= 3
            positions += [found.execution.position for found in page]
        assert positions == list(range(7))
        (resolver,) = await scene.store.documents(batch_id, after=RESOLVER_POSITION - 1, limit=1)
        assert (resolver.execution.position, resolver.execution.document_id) == (RESOLVER_POSITION, "")

    async def test_documents_are_filtered_by_status(self, scene: Scene) -> None:
        """`statuses` filters, and a page is filled from what matches."""
        batch_id = await scene.batch(6)
        hand = await scene.worker()
        claims = await hand.claim(5)
        await hand.report(hand.succeeded(claims[1]), hand.failed(claims[2]), hand.succeeded(claims[4]))

        async def positions(*statuses: ExecutionStatus, after: int = -1, limit: int = 10) -> list[int]:
            page = await scene.store.documents(batch_id, statuses=statuses, after=after, limit=limit)
            return [found.execution.position for found in page]

        assert await positions("succeeded") == [1, 4]
        assert await positions("succeeded", limit=1) == [1]
        assert await positions("succeeded", after=1, limit=1) == [4]
        assert await positions("failed", "pending") == [2, 5]
        assert await positions("running") == [0, 3]
        assert await positions("cancelled") == []
        assert await positions() == list(range(6))

    async def test_documents_come_without_their_inputs_where_asked(self, scene: Scene) -> None:
        """`inputs=False` leaves the inputs empty and everything else as it is."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        await hand.report(hand.succeeded((await hand.claim(1))[0], b"result"))
        whole = await scene.store.documents(batch_id, limit=10)
        light = await scene.store.documents(batch_id, limit=10, inputs=False)
        assert list(light) == [found._replace(input=b"") for found in whole]
        assert [(found.input, found.outcome) for found in whole] == [
            (b"input 0", b"result"),
            (b"input 1", None),
        ]

    # ---- checkpoints -------------------------------------------------------------------------------------------

    async def test_checkpoints_are_paged_by_key(self, scene: Scene) -> None:
        """`checkpoints` returns those after a key, in the order of their code points, at most `limit`."""
        keys = ["", "A", "B", "_", "a", "a/b", "aa", "b", "ä", "文", "\U0001f4c4"]
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        await hand.report(*[hand.recorded(claim, key, key.encode()) for key in reversed(keys[1:])])
        found: list[str] = []
        while page := await scene.store.checkpoints(batch_id, 0, after=found[-1] if found else "", limit=4):
            assert len(page) <= 4
            found += [item.key for item in page]
        assert found == keys[1:], "keys must be compared by code point, not by a locale's rules"

    # ---- batches -----------------------------------------------------------------------------------------------

    async def test_batches_are_listed_newest_first(self, scene: Scene) -> None:
        """`batches` returns the newest first, paged by the last id of the page before."""
        made = [await scene.batch(0) for _ in range(5)]
        await scene.load(scene.record("unsealed"), 1)
        listed = await scene.store.batches(BatchQuery(), limit=3)
        assert [found.batch_id for found in listed] == made[:1:-1]
        rest = await scene.store.batches(BatchQuery(), after=listed[-1].batch_id, limit=3)
        assert [found.batch_id for found in rest] == made[1::-1]
        assert not await scene.store.batches(BatchQuery(), after=made[0], limit=3)

    async def test_a_page_after_a_batch_that_is_gone_is_empty(self, scene: Scene) -> None:
        """`batches` after an unknown id does not start from the newest again."""
        await scene.batch(0)
        assert not await scene.store.batches(BatchQuery(), after=NOWHERE, limit=10)

    async def test_batches_are_filtered(self, scene: Scene) -> None:
        """Each part of a query filters, and all of them together."""
        await scene.sealed(scene.record("a", metadata={"customer": "1", "kind": "x"}, created_at=10), 1)
        await scene.sealed(scene.record("b", metadata={"customer": "2", "kind": "x"}, created_at=20), 0)
        await scene.sealed(scene.record("c", workflow=("letters", "2"), metadata={"kunde": "Ü"}, created_at=30), 1)
        await scene.sealed(scene.record("d", workflow=("others", "1"), created_at=40), 1)
        await scene.cancel(BatchId("d"))

        async def ids(query: BatchQuery, *, after: str | None = None, limit: int = 10) -> str:
            page = await scene.store.batches(query, after=None if after is None else BatchId(after), limit=limit)
            return "".join(found.batch_id for found in page)

        assert await ids(BatchQuery(workflow="letters")) == "cba"
        assert await ids(BatchQuery(workflow="nothing")) == ""
        assert await ids(BatchQuery(states=["completed", "cancelled"])) == "db"
        assert await ids(BatchQuery(metadata={"kind": "x"})) == "ba"
        assert await ids(BatchQuery(metadata={"kind": "x", "customer": "2"})) == "b"
        assert await ids(BatchQuery(metadata={"kunde": "Ü"})) == "c"
        assert await ids(BatchQuery(metadata={"kind": "y"})) == ""
        assert await ids(BatchQuery(metadata={"missing": ""})) == ""
        assert await ids(BatchQuery(created_before=30)) == "ba"
        assert await ids(BatchQuery(workflow="letters", states=["pending"]), limit=1) == "c"
        assert await ids(BatchQuery(workflow="letters", states=["pending"]), after="c", limit=1) == "a"

    # ---- what outlives the store object --------------------------------------------------------------------------

    async def test_everything_outlives_its_process(self, scene: Scene) -> None:
        """A durable store that is reopened has everything that was acknowledged."""
        if not scene.store.capabilities.durable:
            pytest.skip("the store does not declare durable")
        batch_id = await scene.batch(4, resolver=True)
        hand = await scene.worker("survivor")
        one, two, three = await hand.claim(3)
        await hand.report(
            hand.recorded(one, "key", b"\x00"), hand.entered(two, 1), hand.succeeded(two), hand.failed(three)
        )
        before = await _everything(scene.store, batch_id)
        await scene.store.close()
        again = await self.reopen_store(self.clock)
        await again.open()
        try:
            assert await _everything(again, batch_id) == before
            committed = await again.commit(hand.worker_id, hand.number + 1, [hand.succeeded(one)])
            assert not committed.refused, "a worker goes on with its numbers and its lease"
        finally:
            await again.close()
            await scene.store.open()


class WaitingConformance(Conformance):
    """`wait`."""

    async def test_wait_returns_when_there_is_news_already(self, scene: Scene) -> None:
        """`wait` does not sleep if a batch is beyond the seen number, or work can be claimed."""
        batch_id = await scene.batch(1)
        await asyncio.wait_for(scene.store.wait({batch_id: 0}, work=(), timeout=HOUR), 10)
        await asyncio.wait_for(scene.store.wait({batch_id: 1}, work=[LETTERS], timeout=HOUR), 10)

    async def test_wait_wakes_for_an_event(self, scene: Scene) -> None:
        """`wait` returns when another task's commit adds an event to one of its batches."""
        batch_id = await scene.batch(1)
        hand = await scene.worker(lease=1_000)
        await self._wakes(scene.store, scene, {batch_id: 1, NOWHERE: 0}, hand)

    async def test_wait_wakes_for_a_cancel(self, scene: Scene) -> None:
        """`wait` also returns for writes of `control`, and knows batch ids in any script."""
        record = scene.record("Größe/文書")
        batch_id = await scene.sealed(record, 1)
        waiting = asyncio.create_task(scene.store.wait({batch_id: 1}, work=(), timeout=HOUR))
        await asyncio.sleep(0)
        assert not waiting.done()
        await scene.cancel(batch_id)
        await self._returns(waiting, scene)

    async def test_wait_wakes_for_work(self, scene: Scene) -> None:
        """`wait` returns when a batch of one of its workflows can be claimed from."""
        waiting = asyncio.create_task(scene.store.wait({}, work=[("others", "1"), LETTERS], timeout=HOUR))
        await asyncio.sleep(0)
        await scene.batch(1)
        await self._returns(waiting, scene)

    async def test_wait_ends_with_its_time(self, scene: Scene) -> None:
        """`wait` returns when the time is up, even if nothing happens."""
        batch_id = await scene.batch(1)
        await asyncio.wait_for(scene.store.wait({batch_id: 1}, work=(), timeout=0), 10)
        waiting = asyncio.create_task(scene.store.wait({batch_id: 1}, work=(), timeout=1_000_000))
        await asyncio.sleep(0.01)
        await self._returns(waiting, scene)

    async def test_a_wait_can_be_cancelled(self, scene: Scene) -> None:
        """Cancelling a waiting task ends it, and the store keeps working."""
        waiting = asyncio.create_task(scene.store.wait({}, work=[LETTERS], timeout=HOUR))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await scene.batch(1)

    async def test_wait_wakes_for_another_process(self, scene: Scene, second_store: Store) -> None:
        """A store that declares `pushes` wakes for what another process commits."""
        if not scene.store.capabilities.pushes:
            pytest.skip("the store does not declare pushes")
        batch_id = await scene.batch(1)
        hand = await scene.worker(store=second_store, lease=1_000)
        await self._wakes(scene.store, scene, {batch_id: 1}, hand)

    # ---- level 2: for what one claim would take ----------------------------------------------------------------

    async def test_a_wait_for_a_claim_is_one_for_its_batches(self, scene: Scene) -> None:
        """`wait_for_claim` returns for what the request takes from, by id or by labels, and sleeps beside others."""
        store = _waits_for_claims(scene.store)
        named = await scene.batch(1)
        await scene.sealed(scene.record(metadata={"team": "Müller", "kind": "b"}), 1)
        wanted = [
            Hand.request(batches=[named, NOWHERE]),
            Hand.request(metadata={"team": "Müller"}),
            Hand.request(batches=[NOWHERE], metadata={"kind": "b", "team": "Müller"}),
            Hand.request(),
        ]
        for request in wanted:
            await asyncio.wait_for(store.wait_for_claim(request, timeout=HOUR), 10)
        others = [
            Hand.request(batches=[NOWHERE]),
            Hand.request(batches=[]),
            Hand.request(metadata={"team": "Müller", "kind": "a"}),
            Hand.request(batches=[named], workflows=[("others", "1")]),
        ]
        waiting = [asyncio.create_task(store.wait_for_claim(request, timeout=HOUR)) for request in others]
        for _ in range(3):
            await scene.batch(1)
            await scene.pass_time(0.1)
            # It looks no later than those do.
            await asyncio.wait_for(store.wait_for_claim(Hand.request(), timeout=HOUR), 10)
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "there is work, but none that these requests take"
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    async def test_a_wait_for_a_claim_wakes_for_it(self, scene: Scene) -> None:
        """`wait_for_claim` returns when one of the request's batches can be claimed from: a new one, a label's."""
        store = _waits_for_claims(scene.store)
        await scene.batch(1)
        by_id = asyncio.create_task(store.wait_for_claim(Hand.request(batches=[BatchId("new")]), timeout=HOUR))
        by_label = asyncio.create_task(store.wait_for_claim(Hand.request(metadata={"team": "a"}), timeout=HOUR))
        await asyncio.sleep(0.01)
        await scene.sealed(scene.record("new"), 1)
        await self._returns(by_id, scene)
        assert not by_label.done()
        await scene.sealed(scene.record(metadata={"team": "a", "kind": "b"}), 1)
        await self._returns(by_label, scene)

    async def test_a_wait_for_a_claim_wakes_for_a_release(self, scene: Scene) -> None:
        """What is held cannot be claimed: `wait_for_claim` returns when it is released."""
        store = _waits_for_claims(scene.store)
        batch_id = await scene.batch(1)
        await scene.batch(1)
        hand = await scene.worker(lease=1_000)
        (claim,) = (await hand.commit(claim=hand.request(batches=[batch_id]))).claims
        waiting = asyncio.create_task(store.wait_for_claim(hand.request(batches=[batch_id]), timeout=HOUR))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await hand.report(hand.released(claim))
        await self._returns(waiting, scene)

    async def test_a_wait_for_a_claim_ends(self, scene: Scene) -> None:
        """`wait_for_claim` returns when its time is up, and can be cancelled."""
        store = _waits_for_claims(scene.store)
        await scene.batch(1)
        request = Hand.request(batches=[NOWHERE])
        await asyncio.wait_for(store.wait_for_claim(request, timeout=0), 10)
        waiting = asyncio.create_task(store.wait_for_claim(request, timeout=1_000_000))
        await asyncio.sleep(0.01)
        await self._returns(waiting, scene)
        waiting = asyncio.create_task(store.wait_for_claim(request, timeout=HOUR))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def _wakes(self, store: Store, scene: Scene, seen: Mapping[BatchId, int], hand: Hand) -> None:
        waiting = asyncio.create_task(store.wait(seen, work=(), timeout=HOUR))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "wait() returned though nothing had happened"
        await hand.claim(1)
        await self._returns(waiting, scene)

    @staticmethod
    async def _returns(waiting: asyncio.Task[None], scene: Scene) -> None:
        # Far less than the hour that was asked for; a store that polls needs some time to pass, on its own clock.
        for _ in range(100):
            if (await asyncio.wait([waiting], timeout=0.01))[0]:
                break
            await scene.pass_time(0.1)
        else:
            waiting.cancel()
        assert waiting.done(), "wait() must return for a commit, and for the end of its time"
        await waiting


def _waits_for_claims(store: Store) -> WaitsForClaims:
    if store.capabilities.level < 2 or not isinstance(store, WaitsForClaims):
        pytest.skip("the store has no wait_for_claim")
    return store


async def _everything(store: Store, batch_id: BatchId) -> tuple[BatchRecord | None, list[object]]:
    documents = await store.documents(batch_id, after=RESOLVER_POSITION - 1, limit=100)
    return await store.batch(batch_id), [
        list(documents),
        await all_events(store, batch_id),
        [list(await store.checkpoints(batch_id, item.execution.position, limit=100)) for item in documents],
        list(await store.workers()),
    ]
