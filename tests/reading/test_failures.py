"""Many documents that failed for one reason are one group of errors()."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import ONCE, STAGES, Thinking, within

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchNotFoundError,
    BatchOrchestrator,
    ConfigurationError,
    ErrorDigest,
    RetryFailed,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle import failure_groups
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import CountedFailures, MemoryStore


@durable_activity(stage=Thinking, retry=ONCE)
async def ask(document: str) -> str:
    kind, _, number = document.partition(" ")
    if kind == "slow":
        raise TimeoutError(f"no answer to request req_{number} after {number} s")
    if kind == "bad":
        raise ValueError(f"the field 'x{number}' is missing")
    return document


@workflow(STAGES, name="asking")
async def asking(document: str) -> str:
    answer = await ask(document)
    if document.startswith("odd"):
        raise KeyError(document)
    return answer


DOCUMENTS = [f"slow {number}" for number in range(5)] + ["bad 1", "fine", "bad 2", "odd"]


async def test_failures_are_grouped_by_what_failed(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(asking, store=open_store(None)) as batches:
        batch_id = (await within(batches.run(DOCUMENTS, document_id=str))).batch_id
        digest = await batches.errors(batch_id, examples=2)
        async with BatchClient(open_store(None), read_only=True) as client:
            assert await client.errors(batch_id, examples=2) == digest
            with pytest.raises(BatchNotFoundError):
                await client.errors("nobody's")
            with pytest.raises(ConfigurationError, match="examples must be 0 or more"):
                await client.errors(batch_id, examples=-1)
            assert [group.examples for group in (await client.errors(batch_id, examples=0)).groups] == [[], [], []]
        ended = (await batches.snapshot(batch_id)).ended_at
    assert (digest.batch_id, digest.run, digest.failed, digest.others) == (batch_id, 1, 8, 0)
    slow, bad, odd = digest.groups
    assert (slow.error_type, slow.activity, slow.stage, slow.count) == ("TimeoutError", "ask", "thinking", 5)
    failed = "activity 'ask' failed after 1 attempt"
    assert slow.message == f"{failed}: TimeoutError: no answer to request req_0 after 0 s"
    assert [example.document_id for example in slow.examples] == ["slow 0", "slow 1"]
    assert ended is not None
    assert slow.first_at <= slow.last_at <= ended
    assert (bad.error_type, bad.count) == ("ValueError", 2)
    assert bad.message == f"{failed}: ValueError: the field 'x1' is missing"
    assert (odd.error_type, odd.activity, odd.count) == ("KeyError", None, 1)
    assert len({group.fingerprint for group in digest.groups}) == 3


async def test_what_runs_again_has_not_failed(open_store: StoreMaker) -> None:
    policy = RetryFailed(max_attempts=2, backoff=timedelta(hours=1))
    async with BatchOrchestrator(asking, store=open_store(None)) as batches:
        batch_id = await batches.submit(["bad 1"], config=BatchConfig(failure_policy=policy))
        async for event in batches.progress(batch_id):
            if event.tag == "document_retrying":
                break
        assert await batches.errors(batch_id) == ErrorDigest(batch_id=batch_id, run=1, failed=0, groups=[], others=0)


async def test_groups_are_bounded_and_the_rest_is_counted(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_groups, "MOST_GROUPS", 3)
    words = "alpha beta gamma delta epsilon delta beta".split()

    @workflow(STAGES, name="each its own")
    async def run(document: str) -> Any:
        raise ValueError(document)

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = (await within(batches.run(words))).batch_id
        digest = await batches.errors(batch_id)
    assert [(group.message, group.count) for group in digest.groups] == [("beta", 2), ("alpha", 1), ("gamma", 1)]
    assert (digest.failed, digest.others) == (7, 3)


class Uncounted(MemoryStore):
    """Counts a failure less than there is, as where one failed under an older version."""

    async def failures(self, batch_id: BatchId) -> CountedFailures:
        counted = await super().failures(batch_id)
        return counted._replace(groups=counted.groups[1:])


@pytest.mark.parametrize("examples", [0, 2, 20])
async def test_groups_that_are_not_counted_are_read(examples: int) -> None:
    store, uncounted = MemoryStore(), Uncounted()
    digests: list[ErrorDigest] = []
    for each in (store, uncounted):
        async with BatchOrchestrator(asking, store=each) as batches:
            await within(batches.run(DOCUMENTS, batch_id="one", document_id=str))
            digests.append(await batches.errors("one", examples=examples))
    counted, read = digests
    assert counted.failed == read.failed == 8
    assert [
        (group.fingerprint, group.count, group.message, group.stage, group.examples) for group in counted.groups
    ] == [(group.fingerprint, group.count, group.message, group.stage, group.examples) for group in read.groups]
