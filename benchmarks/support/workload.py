"""Documents of five sequential activities that do no work and return about 300 bytes each."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from durable_batches import (
    EXTRACTION,
    Assembling,
    Chunking,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    durable_activity,
    workflow,
)

ACTIVITIES = 5
IN_FLIGHT = 64


@dataclass
class Run:
    """One measured run."""

    seconds: float
    transactions: int = 0
    database_bytes: int = 0


class Finding(BaseModel):
    """A result of about 300 bytes as JSON."""

    document: int
    step: int
    text: str
    scores: list[float]


def finding(document: int, step: int) -> Finding:
    return Finding(document=document, step=step, text=f"{document:08d} " * 24, scores=[0.125 * n for n in range(6)])


@durable_activity(stage=Chunking)
async def chunk(document: int) -> Finding:
    return finding(document, 0)


@durable_activity(stage=ExtractingMentions)
async def mentions(document: int) -> Finding:
    return finding(document, 1)


@durable_activity(stage=ExtractingEntities)
async def entities(document: int) -> Finding:
    return finding(document, 2)


@durable_activity(stage=ExtractingRelations)
async def relations(document: int) -> Finding:
    return finding(document, 3)


@durable_activity(stage=Assembling)
async def assemble(document: int) -> Finding:
    return finding(document, 4)


@workflow(EXTRACTION, name="throughput")
async def five_steps(document: int) -> int:
    total = 0
    for step in (chunk, mentions, entities, relations, assemble):
        total += (await step(document)).step
    return total
