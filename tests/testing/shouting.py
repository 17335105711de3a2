"""A small workflow, also for programs and suites that the tests write."""

from __future__ import annotations

from tests.support import STAGES, Reading

from durable_batches import durable_activity, workflow


@durable_activity(stage=Reading)
async def shout(text: str) -> str:
    return text.upper()


@workflow(STAGES, name="shouting")
async def shouting(text: str) -> str:
    return await shout(text)
