"""No call is answered by what another one returned, when a document that failed goes on from its records."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from tests.support import NO_DELAY, ONCE, STAGES, everything, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentFailure,
    DocumentSucceeded,
    Outcome,
    RetryFailed,
    Store,
    durable_activity,
    workflow,
)


async def outcome_of(body: Callable[[], Awaitable[list[Any]]], store: Store) -> Outcome[list[Any]]:
    """Of a document whose failed attempts are repeated from what they have recorded."""

    @workflow(STAGES)
    async def run(document: str) -> list[Any]:
        return await body()

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=4, backoff=NO_DELAY))
    async with BatchOrchestrator(run, store=store, config=config) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
    return outcome


async def test_of_two_activities_of_one_name_none_is_answered_by_the_other(store: Store) -> None:
    calls: list[str] = []

    def translator(language: str) -> Callable[[str], Awaitable[str]]:
        @durable_activity(retry=ONCE)
        async def translate(text: str) -> str:
            calls.append(language)
            if language == "fr" and calls.count("fr") == 1:
                raise ConnectionError("overloaded")
            return f"{language}:{text}"

        return translate

    languages = {language: translator(language) for language in ("fr", "de")}

    async def body() -> list[str]:
        return list(await asyncio.gather(*(translate("hello") for translate in languages.values())))

    outcome = await outcome_of(body, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ActivityDefinitionError"
    assert "two activities of the name 'translate'" in outcome.error
    assert "de" not in calls


@dataclass
class Shape:
    name: str


@dataclass
class Square(Shape):
    side: int = 0


class Page(BaseModel):
    text: str = ""
    side: int = Field(default=0, exclude=True)


async def test_inputs_that_differ_in_what_is_not_written_have_results_of_their_own(store: Store) -> None:
    calls: Counter[str] = Counter()

    def of(kind: str, side: int) -> int:
        calls[f"{kind} {side}"] += 1
        if side == 2 and calls[f"{kind} 2"] == 1:
            raise ConnectionError("once")
        return side**2

    @durable_activity(retry=ONCE)
    async def area(shape: Shape) -> int:
        return of("shape", shape.side if isinstance(shape, Square) else 0)

    @durable_activity(retry=ONCE)
    async def area_of_page(page: Page) -> int:
        return of("page", page.side)

    @durable_activity(retry=ONCE)
    async def area_of_key(sides: dict[Any, str]) -> int:
        return of("key", 2 if 2 in sides else 3)

    async def body() -> list[int]:
        areas = await asyncio.gather(*(area(Square("square", side)) for side in (2, 3)))
        pages = await asyncio.gather(*(area_of_page(Page(side=side)) for side in (2, 3)))
        return [*areas, *pages, *await asyncio.gather(area_of_key({2: "a"}), area_of_key({"2": "a"}))]

    assert await outcome_of(body, store) == DocumentSucceeded(document_id="0", value=[4, 9] * 3)
    assert calls == {f"{kind} {side}": 4 - side for kind in ("shape", "page", "key") for side in (2, 3)}
