"""Run a batch whose resolver resolves entities, and print each step that is computed: `program.py DATABASE`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from hashlib import sha256
from unittest.mock import patch

from tests.resolution.people import Person, people

from durable_batches import EXTRACTION, BatchExistsError, BatchOrchestrator, SQLiteStore, workflow
from durable_batches.extraction.resolution import EntityResolutionService, ResolutionPage
from durable_batches.extraction.resolution.process import ResolutionProcess

SERVICE = EntityResolutionService(Person)


def everybody(records: list[Person]) -> list[Person]:
    return records


@workflow(EXTRACTION, name="people", resolver=SERVICE.resolver(everybody))
async def hand_on(of_document: list[Person]) -> list[Person]:
    return of_document


async def main(database: str) -> None:
    page = ResolutionProcess.page

    async def told(process: ResolutionProcess, step: str, number: int) -> bytes:
        print(f"{step}-{number}", flush=True)
        return await page(process, step, number)

    with patch.object(ResolutionProcess, "page", told):
        await run(database)


async def run(database: str) -> None:
    async with BatchOrchestrator(hand_on, store=SQLiteStore(database)) as batches:
        records = people(120)
        with suppress(BatchExistsError):
            await batches.submit([records[start : start + 9] for start in range(0, len(records), 9)], batch_id="people")
        (await batches.result("people")).raise_for_failures()
        digest = sha256()
        async for found in batches.resolver_results("people", "resolution-page", ResolutionPage):
            digest.update(found.name.encode() + found.data)
        print(f"digest {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
