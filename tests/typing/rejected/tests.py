"""What is wrong in a user's tests."""

from __future__ import annotations

from datetime import timedelta

from tests.typing.accepted import A, Answer, Query, extract, plain, words

from durable_batches import MemoryStore, SQLiteStore
from durable_batches.testing import (
    BatchEnvironment,
    Environment,
    activity_context,
    environment,
    execution_context,
    survives_crashes,
)


async def wrong_environments(batch_environment: BatchEnvironment) -> None:
    environment(words)  # error
    environment(extract, store="batches.db")  # error
    environment(extract, store=SQLiteStore)  # error
    environment(extract, store=lambda: MemoryStore())  # error
    environment(extract, MemoryStore())  # error
    environment(extract, max_in_flight="8")  # error
    environment(extract, patience=1)  # error
    batch_environment(words)  # error
    async with batch_environment(plain) as env:
        await env.batches.submit(["text"])  # error


async def wrong_steps(env: Environment[Query, Answer, A]) -> None:
    await env.advance(60)  # error
    await env.advance()  # error
    await env.settled(timedelta(seconds=1))  # error
    await env.finished()  # error
    env.crash()  # error
    await env.batches.submit(["text"])  # error
    _number: int = await env.finished("batch")  # error


async def wrong_crashes() -> None:
    await survives_crashes(words, ["a"])  # error
    await survives_crashes(extract, [1])  # error
    await survives_crashes(extract, ["a"], store=MemoryStore())  # error
    await survives_crashes(extract, ["a"], comparing=lambda counts: counts.text)  # error
    await survives_crashes(plain, ["a"])  # error


def wrong_contexts() -> None:
    activity_context(attempt="2")  # error
    activity_context(tries=2)  # error
    execution_context(metadata=["customer"])  # error
    with activity_context() as context:
        context.report(1)  # error
