"""What the resolver's activities have recorded is read by whoever has the batch, one value in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.support import STAGES

from durable_batches import (
    BatchClient,
    BatchNotFoundError,
    BatchOrchestrator,
    PayloadError,
    Results,
    Store,
    durable_activity,
    workflow,
)


@dataclass(frozen=True)
class Page:
    number: int
    data: bytes


def key_of(number: int) -> str:
    return f"{number:03}"


@durable_activity(name="page", key=key_of)
async def make_page(number: int) -> Page:
    return Page(number, bytes([number, 255]))


@durable_activity(name="page of another name")
async def other(number: int) -> Page:
    return Page(-number, b"")


@durable_activity(name="page")
async def of_a_document(number: int) -> Page:
    return Page(1_000 + number, b"")


async def link(results: Results[int]) -> int:
    await other(1)
    return sum([(await make_page(number)).number for number in (2, 0, 11, 1)])


@workflow(STAGES, name="pages", resolver=link)
async def pages(document: str) -> int:
    return (await of_a_document(len(document))).number


async def test_each_result_comes_once_in_one_order_and_they_are_the_resolvers_alone(store: Store) -> None:
    async with BatchOrchestrator(pages, store=store) as batches:
        result = await batches.run(["a", "bb"])
        assert result.value == 14
        found = [page async for page in batches.resolver_results(result.batch_id, "page", Page)]
        assert sorted(found, key=lambda page: page.number) == [
            Page(number, bytes([number, 255])) for number in (0, 1, 2, 11)
        ]
        async with BatchClient(store) as client:
            assert [page async for page in client.resolver_results(result.batch_id, "page", Page)] == found
            assert [page async for page in client.resolver_results(result.batch_id, "none", Page)] == []
            with pytest.raises(PayloadError):
                _ = [page async for page in client.resolver_results(result.batch_id, "page", int)]
            with pytest.raises(BatchNotFoundError):
                _ = [page async for page in client.resolver_results("nowhere", "page", Page)]
