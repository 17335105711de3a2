"""Workflows for `run` and `worker`, which name them as objects of this module, and what their activities did."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from durable_batches import BatchStateMachine, Results, RetryPolicy, Stage, durable_activity, workflow
from durable_batches.testing import ManualClock

MODULE: Final = __name__

calls: list[str] = []
"""The texts that were paid for."""
signalled: list[signal.Signals] = []
"""The signals that the process gets while the first activity runs, a second apart."""
clocks: list[ManualClock] = []
"""That of signals."""


class Reading(Stage):
    tag: Literal["reading"] = "reading"


class Article(BaseModel, extra="forbid"):
    id: str
    text: str
    rating: int = 0


@durable_activity(stage=Reading, retry=RetryPolicy(max_attempts=1))
async def read(text: str) -> str:
    calls.append(text)
    while signalled:
        signal.raise_signal(signalled.pop())
        for clock in clocks:
            clock.advance(1)
    if text.startswith("bad"):
        raise ValueError(f"cannot read {text}")
    return text.upper()


async def count(results: Results[str]) -> int:
    return len([result async for result in results])


@workflow(BatchStateMachine(Reading), name="texts", resolver=count)
async def texts(text: str) -> str:
    return await read(text)


@workflow(BatchStateMachine(Reading), name="short texts")
async def short_texts(text: Annotated[str, Field(max_length=3)]) -> str:
    return await read(text)


@workflow(BatchStateMachine(Reading), name="articles")
async def articles(article: Article) -> str:
    return await read(f"{article.text} {article.rating}")


@workflow(BatchStateMachine(Reading), name="scans")
async def scans(path: Path) -> str:
    return await read(str(path.stat().st_size))


@workflow(BatchStateMachine(Reading), name="numbers")
async def numbers(number: int) -> str:
    return await read(str(number))
