"""Documents of one activity, which takes a number of seconds: batches that others follow."""

from __future__ import annotations

import asyncio
from typing import Literal

from durable_batches import BatchStateMachine, Stage, durable_activity, workflow


class Reading(Stage):
    tag: Literal["reading"] = "reading"


@durable_activity(stage=Reading)
async def read(seconds: float) -> str:
    if seconds:
        await asyncio.sleep(seconds)
    return "read"


@workflow(BatchStateMachine(Reading), name="followed")
async def followed(seconds: float) -> str:
    return await read(seconds)
