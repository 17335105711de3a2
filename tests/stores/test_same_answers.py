"""Every store lists the same batches, whatever characters the labels and names have that it is asked for."""

from __future__ import annotations

import asyncio
from itertools import combinations

from tests.support import STAGES, opened, within

from durable_batches import BatchClient, BatchId, BatchOrchestrator, Store, workflow
from durable_batches.stores import BatchQuery
from durable_batches.testing.conformance.scene import Hand, Scene

LABELS: list[dict[str, str]] = [
    {},
    {"": ""},
    {"a": "b", "A": "B", "a ": "b ", "number": "1", "flag": "true", "none": "null"},
    {"a": "b "},
    {"number": "1.0", "none": ""},
    {"\u00e9": "\u00e9"},
    {"e\u0301": "\u00e9"},
    {"a\0": "b", "c": "\0"},
    # As JSON, the end of this name looks like the one above.
    {'zz"a\0': "b"},
    {"zz": '"a\\u0000": "b"', 'c": "\0': "x"},
    {"\ud800": "b"},
    {"\\ud800": "b", "%": "_", "a.b": "$", '"': "'", "[0]": "{}"},
    {"\U0001f4c4": "\n\r\t\x1b\x7f\u2028"},
]

WORKFLOWS = [
    ("letters", "1"),
    ("Letters", "1"),
    ("letters ", "1"),
    ("letters", "2"),
    ("l%", "1"),
    ("l\u00e9", "1"),
    ("le\u0301", "1"),
]


async def test_batches_are_found_by_what_they_are_labelled(store: Store) -> None:
    """And taken by a worker that takes from those alone."""
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        batches = {await scene.sealed(scene.record(metadata=labels), 1): labels for labels in LABELS}
        single = [{name: value} for labels in LABELS for name, value in labels.items()]
        pairs = [one | other for one, other in combinations(single, 2) if len(one | other) == 2][::7]
        mixed = [
            {name: value} for one in LABELS[1:4] for name in one for other in LABELS[1:4] for value in other.values()
        ]
        for wanted in [*single, *pairs, *mixed, {"a\0": "B"}, {"\udfff": "b"}, {"missing": "\0"}]:
            query = BatchQuery(metadata=wanted)
            found = {record.batch_id for record in await store.batches(query, after=None, limit=100)}
            assert found == {batch_id for batch_id, labels in batches.items() if wanted.items() <= labels.items()}, (
                wanted
            )
        hand = await scene.worker()
        for wanted in single:
            committed = await hand.commit(claim=Hand.request(metadata=wanted, limit=1))
            expected = {batch_id for batch_id, labels in batches.items() if wanted.items() <= labels.items()}
            assert {claim.batch.batch_id for claim in committed.claims} <= expected, wanted


async def test_batches_are_found_by_their_workflow_and_the_time_and_page_by_page(store: Store) -> None:
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        records = [
            scene.record(workflow=workflow, created_at=2**52 + number) for number, workflow in enumerate(WORKFLOWS)
        ]
        ids = [await scene.sealed(record, 1) for record in records]

        async def listed(query: BatchQuery, after: BatchId | None = None, limit: int = 100) -> list[BatchId]:
            return [record.batch_id for record in await store.batches(query, after=after, limit=limit)]

        for name in {name for name, _ in WORKFLOWS} | {"LETTERS", "letter_", "", "l"}:
            found = await listed(BatchQuery(workflow=name))
            expected = [batch_id for batch_id, (own, _) in zip(ids, WORKFLOWS, strict=True) if own == name]
            assert found == expected[::-1], name
        for moment in (-(2**62), 0, 2**52, 2**52 + 1, 2**63 - 1):
            expected = [record.batch_id for record in records if record.created_at < moment]
            assert await listed(BatchQuery(created_before=moment)) == expected[::-1]
        assert await listed(BatchQuery(states=["no such state"])) == []
        assert await listed(BatchQuery(), after=BatchId("nobody's")) == []
        assert await listed(BatchQuery(), after=ids[2]) == ids[:2][::-1]
        assert await listed(BatchQuery(), limit=1) == ids[-1:]
        assert await store.batch(BatchId("Nobody's")) is None


async def test_no_store_is_asked_for_a_number_that_it_cannot_hold(store: Store) -> None:
    """The answer is that of any number beyond the last."""

    @workflow(STAGES)
    async def run(document: str) -> str:
        return document

    async with BatchOrchestrator(run, store=store) as batches, BatchClient(store) as client:
        batch_id = (await within(batches.run(["x"]))).batch_id
        for after in (10**12, 2**63 - 1, 2**63, 2**70):
            assert [event async for event in client.events(batch_id, after=after)] == []
            assert [document async for document in client.documents(batch_id, after=after)] == []
        for after in (-1, -(2**70)):
            assert len([document async for document in client.documents(batch_id, after=after)]) == 1
            assert [event.seq async for event in client.events(batch_id, after=after)][:1] == [1]
