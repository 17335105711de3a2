"""Loading: `create`, `add`, and the commands about a batch that is being loaded; data is returned unchanged."""

from __future__ import annotations

from typing import Final

import pytest

from durable_batches.errors import BatchNotFoundError, DuplicateDocumentError, FactRejectedError
from durable_batches.lifecycle.commands import Cancel, Discard, Seal
from durable_batches.lifecycle.records import NewDocument, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import BatchQuery, FindsAbandoned
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import Scene

__all__ = ["LoadingConformance"]

LOADER: Final = WorkerId("loader")
OTHER_LOADER: Final = WorkerId("other loader")

AWKWARD_IDS: Final = (
    "a",
    "A",
    "a ",
    " a",
    "",
    "%",
    "_",
    "'; DROP TABLE batch; --",
    '"quoted"\\',
    "line\nbreak\ttab",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "文書",
    "\U0001f4c4",
    "\uffff",
    "null",
    "0",
    "1e3",
    "x" * 512,
)
"""Distinct ids that collations, patterns and JSON may confuse."""

AWKWARD_PAYLOADS: Final = {
    "empty": b"",
    "every byte value": bytes(range(256)),
    "zeros": bytes(3),
    "not UTF-8": b"\xff\xfe\x80",
    "looks escaped": b"\\x00\\000%s?:name$1",
    "1 MiB": bytes(range(256)) * 4096,
}


class LoadingConformance(Conformance):
    """Load batches."""

    # ---- create ----------------------------------------------------------------------------------------------

    async def test_create_inserts_once(self, scene: Scene) -> None:
        """`create` returns None for a new id; for a known one its record, and changes nothing."""
        record = scene.record("batch")
        assert await scene.store.create(record) is None
        other = scene.record("batch", workflow=("others", "9"), loader="another", metadata={"a": "b"})
        assert await scene.store.create(other) == record, "create() must return the record that is there"
        assert await scene.look(BatchId("batch")) == record, "create() must not change a batch that is there"

    async def test_a_batch_comes_out_as_it_went_in(self, scene: Scene) -> None:
        """Every field of a batch's record is kept exactly, metadata in any script included."""
        metadata = {"": "", "kunde": "Müller & Söhne", "\U0001f4c4": "\n\"'\\", "case": "a", "Case": "A"}
        record = scene.record("Ünïcödé/文書 #1", metadata=metadata, resolver=True, deadline=60, created_at=2**52)
        assert await scene.store.create(record) is None
        found = await scene.look(record.batch_id)
        assert found == record
        assert dict(found.metadata) == metadata

    async def test_awkward_batch_ids_are_told_apart(self, scene: Scene) -> None:
        """Batch ids are compared exactly: case, spaces, accents and normal forms count."""
        for number, batch_id in enumerate(AWKWARD_IDS):
            record = scene.record(f"-{batch_id}", metadata={"number": str(number)})
            assert await scene.store.create(record) is None, f"{batch_id!r} was taken for another id"
        for number, batch_id in enumerate(AWKWARD_IDS):
            assert (await scene.look(BatchId(f"-{batch_id}"))).metadata == {"number": str(number)}

    # ---- an unsealed batch -----------------------------------------------------------------------------------

    async def test_an_unsealed_batch_is_invisible(self, scene: Scene) -> None:
        """Until it is sealed a batch is neither listed nor claimed, but `batch` finds it."""
        batch_id = await scene.load(scene.record(), 2)
        assert (await scene.look(batch_id)).loader == LOADER
        assert not await scene.store.batches(BatchQuery(), limit=10)
        hand = await scene.worker()
        assert not await hand.claim()
        assert not await scene.store.events(batch_id, after=0, limit=10)

    async def test_an_unsealed_batch_cannot_be_cancelled(self, scene: Scene) -> None:
        """`Cancel` is not applied before the batch is sealed, and does not spoil the loading."""
        batch_id = await scene.load(scene.record(), 1)
        before = await scene.look(batch_id)
        assert not (await scene.store.control(batch_id, Cancel("request", ""))).applied
        assert await scene.look(batch_id) == before
        assert (await scene.store.control(batch_id, Seal(LOADER, 1))).applied

    async def test_what_dead_submitters_left_is_found(self, scene: Scene) -> None:
        """`abandoned` has the unsealed batches whose loader is gone, the oldest first; and nothing of a living one."""
        store = scene.store
        if not isinstance(store, FindsAbandoned):
            pytest.skip("the store is not FindsAbandoned")
        gone, heir, alive = [await scene.worker(name) for name in ("gone", "heir", "alive")]
        names = (("first", gone), ("second", gone), ("inherited", heir), ("loading", alive))
        for name, hand in names:
            await scene.load(scene.record(name, loader=hand.worker_id), 2)
        await scene.sealed(scene.record("sealed", loader=gone.worker_id), 1)

        async def found(*, created_before: int = 2**52, limit: int = 10) -> list[str]:
            return [batch.batch_id for batch in await store.abandoned(created_before=created_before, limit=limit)]

        assert await found() == []
        await store.leave(gone.worker_id)
        assert await found() == ["first", "second"]
        assert await found(limit=1) == ["first"]
        assert await found(created_before=scene.record().created_at) == []
        # The process goes on under another id.
        await scene.worker("successor", before=heir.worker_id)
        await store.leave(heir.worker_id)
        assert await found() == ["first", "second"]
        await store.leave(WorkerId("successor"))
        assert await found() == ["first", "second", "inherited"]
        assert (await store.control(BatchId("first"), Discard(gone.worker_id))).applied
        assert await found() == ["second", "inherited"]

    # ---- add -------------------------------------------------------------------------------------------------

    async def test_documents_are_added_chunk_by_chunk(self, scene: Scene) -> None:
        """Documents of several chunks all belong to the batch, in the order of their positions."""
        batch_id = await scene.load(scene.record(), _chunk(0, 3))
        await scene.store.add(batch_id, LOADER, _chunk(3, 5))
        await scene.store.control(batch_id, Seal(LOADER, 5))
        found = await scene.store.documents(batch_id, limit=10)
        assert [(item.execution.position, item.execution.document_id, item.input) for item in found] == [
            tuple(document) for document in _chunk(0, 5)
        ]

    async def test_the_same_chunk_again_is_harmless(self, scene: Scene) -> None:
        """A chunk that is repeated because its reply was lost, or that overlaps with one, adds nothing twice."""
        batch_id = await scene.load(scene.record(), _chunk(0, 3))
        await scene.store.add(batch_id, LOADER, _chunk(0, 3))
        await scene.store.add(batch_id, LOADER, _chunk(2, 4))
        assert len(await scene.store.documents(batch_id, limit=10)) == 4

    async def test_an_empty_chunk_is_harmless(self, scene: Scene) -> None:
        """`add` of no documents does nothing."""
        batch_id = await scene.load(scene.record())
        await scene.store.add(batch_id, LOADER, [])

    async def test_an_id_twice_in_a_chunk_is_refused(self, scene: Scene) -> None:
        """Two documents with the same id in one chunk raise DuplicateDocumentError, and none of the chunk is stored."""
        batch_id = await scene.load(scene.record())
        chunk = [NewDocument(0, "fine", b""), NewDocument(1, "twice", b""), NewDocument(2, "twice", b"")]
        with pytest.raises(DuplicateDocumentError) as caught:
            await scene.store.add(batch_id, LOADER, chunk)
        assert caught.value.document_id == "twice"
        assert not await scene.store.documents(batch_id, limit=10), "a refused chunk must leave nothing behind"

    async def test_an_id_of_an_earlier_chunk_is_refused(self, scene: Scene) -> None:
        """A document id that the batch has already raises DuplicateDocumentError, and none of the chunk is stored."""
        batch_id = await scene.load(scene.record(), _chunk(0, 2))
        with pytest.raises(DuplicateDocumentError) as caught:
            await scene.store.add(batch_id, LOADER, [*_chunk(2, 3), NewDocument(3, "document-1", b"")])
        assert caught.value.document_id == "document-1"
        assert len(await scene.store.documents(batch_id, limit=10)) == 2
        await scene.store.add(batch_id, LOADER, _chunk(2, 3))

    async def test_a_position_has_one_document(self, scene: Scene) -> None:
        """Another document at a position that is taken raises FactRejectedError, and none of the chunk is stored."""
        batch_id = await scene.load(scene.record(), _chunk(0, 2))
        with pytest.raises(FactRejectedError):
            await scene.store.add(batch_id, LOADER, [*_chunk(2, 3), NewDocument(1, "another", b"")])
        found = await scene.store.documents(batch_id, limit=10)
        assert [item.execution.document_id for item in found] == ["document-0", "document-1"]

    async def test_document_ids_are_unique_in_their_batch_only(self, scene: Scene) -> None:
        """Two batches may have documents of the same ids."""
        one, other = await scene.batch(2), await scene.batch(2)
        assert len(await scene.store.documents(one, limit=10)) == 2
        assert len(await scene.store.documents(other, limit=10)) == 2

    async def test_awkward_document_ids_are_told_apart(self, scene: Scene) -> None:
        """Document ids are compared exactly and returned unchanged."""
        documents = [NewDocument(position, name, b"") for position, name in enumerate(AWKWARD_IDS)]
        batch_id = await scene.sealed(scene.record(), documents)
        found = await scene.store.documents(batch_id, limit=100)
        assert [item.execution.document_id for item in found] == list(AWKWARD_IDS)

    async def test_only_the_loader_may_add(self, scene: Scene) -> None:
        """`add` raises BatchNotFoundError for another loader, for a sealed batch, and where there is none."""
        batch_id = await scene.load(scene.record(), 1)
        with pytest.raises(BatchNotFoundError):
            await scene.store.add(batch_id, OTHER_LOADER, _chunk(1, 2))
        with pytest.raises(BatchNotFoundError):
            await scene.store.add(BatchId("nowhere"), LOADER, _chunk(1, 2))
        await scene.store.control(batch_id, Seal(LOADER, 1))
        with pytest.raises(BatchNotFoundError):
            await scene.store.add(batch_id, LOADER, _chunk(1, 2))
        assert len(await scene.store.documents(batch_id, limit=10)) == 1

    # ---- payloads --------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("payload", AWKWARD_PAYLOADS.values(), ids=AWKWARD_PAYLOADS.keys())
    async def test_payloads_are_kept_to_the_byte(self, scene: Scene, payload: bytes) -> None:
        """Inputs, checkpoints and outcomes are returned unchanged by every method."""
        batch_id = await scene.sealed(scene.record(), [NewDocument(0, "document", payload)])
        hand = await scene.worker()
        claim = await hand.take()
        assert claim.input == payload
        await hand.report(hand.recorded(claim, "kept", payload), hand.recorded_failure(claim, "lost", payload))
        await hand.report(hand.released(claim))
        claim = await hand.take()
        assert [(item.key, item.kind, item.payload) for item in claim.checkpoints] == [
            ("kept", "succeeded", payload),
            ("lost", "failed", payload),
        ]
        assert await scene.checkpoints(batch_id) == list(claim.checkpoints)
        await hand.report(hand.succeeded(claim, payload))
        found = await scene.document(batch_id, 0)
        assert (found.input, found.outcome) == (payload, payload)

    # ---- seal ------------------------------------------------------------------------------------------------

    async def test_sealing_makes_it_run(self, scene: Scene) -> None:
        """`Seal` makes the batch visible, with all of its documents pending, and begins its events."""
        batch_id = await scene.load(scene.record(), 3)
        committed = await scene.store.control(batch_id, Seal(LOADER, 3))
        assert committed.applied
        assert [(event.seq, event.tag) for event in committed.events] == [(1, "batch_created")]
        record = await scene.look(batch_id)
        assert (record.loader, record.state, record.counts.pending) == (None, "pending", 3)
        assert [found.batch_id for found in await scene.store.batches(BatchQuery(), limit=10)] == [batch_id]

    async def test_sealing_again_is_harmless(self, scene: Scene) -> None:
        """The same loader's `Seal` again is answered as applied and does nothing; another's is not applied."""
        batch_id = await scene.load(scene.record(), 1)
        assert not (await scene.store.control(batch_id, Seal(OTHER_LOADER, 1))).applied
        await scene.store.control(batch_id, Seal(LOADER, 1))
        again = await scene.store.control(batch_id, Seal(LOADER, 1))
        assert (again.applied, list(again.events)) == (True, [])
        assert not (await scene.store.control(batch_id, Seal(OTHER_LOADER, 1))).applied
        assert await scene.tags(batch_id) == ["batch_created"]

    async def test_an_empty_batch_completes_at_once(self, scene: Scene) -> None:
        """A batch without documents and resolver completes when it is sealed."""
        batch_id = await scene.batch(0)
        assert (await scene.look(batch_id)).state == "completed"

    async def test_an_empty_batch_runs_its_resolver(self, scene: Scene) -> None:
        """A batch without documents has its resolver claimable when it is sealed."""
        batch_id = await scene.batch(0, resolver=True)
        hand = await scene.worker()
        await hand.report(hand.succeeded(await hand.take()))
        assert (await scene.look(batch_id)).state == "completed"

    # ---- discard ---------------------------------------------------------------------------------------------

    async def test_discarding_leaves_nothing(self, scene: Scene) -> None:
        """`Discard` removes an unsealed batch with all that belongs to it; its id can be used again."""
        kept = await scene.batch(2)
        batch_id = await scene.load(scene.record("again", resolver=True), 3)
        assert (await scene.store.control(batch_id, Discard(LOADER))).applied
        assert await scene.store.batch(batch_id) is None
        assert not await scene.store.documents(batch_id, limit=10)
        with pytest.raises(BatchNotFoundError):
            await scene.store.control(batch_id, Discard(LOADER))
        await scene.sealed(scene.record("again"), _chunk(0, 1))
        assert len(await scene.store.documents(batch_id, limit=10)) == 1
        assert len(await scene.store.documents(kept, limit=10)) == 2, "another batch's documents were removed"

    async def test_only_the_loader_may_discard(self, scene: Scene) -> None:
        """`Discard` is not applied for another loader, nor once the batch is sealed."""
        batch_id = await scene.load(scene.record(), 1)
        assert not (await scene.store.control(batch_id, Discard(OTHER_LOADER))).applied
        await scene.store.control(batch_id, Seal(LOADER, 1))
        assert not (await scene.store.control(batch_id, Discard(LOADER))).applied
        assert len(await scene.store.documents(batch_id, limit=10)) == 1


def _chunk(start: int, stop: int) -> list[NewDocument]:
    return [NewDocument(position, f"document-{position}", b"%d" % position) for position in range(start, stop)]
