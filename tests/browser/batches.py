"""Batches to look at: one of each kind, on a file that a server of its own process serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.support import NO_DRAIN, ONCE, STAGES, Reading, Thinking, Writing, eventually

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchOrchestrator,
    BatchSnapshot,
    ContinueOnFailure,
    FailurePolicy,
    QuotaExhausted,
    SQLiteStore,
    Worker,
    durable_activity,
    workflow,
)

Stages: TypeAlias = Reading | Thinking | Writing
Kind: TypeAlias = Literal["live", "failed", "paused", "held", "completed", "long"]

KINDS: Final[Sequence[Kind]] = ("live", "failed", "paused", "held", "completed", "long")

HOSTILE: Final = "</script><img src=x onerror=alert(1)>\"'&\n\r\x1b[31m\u202egnp \u2028é"
"""What might break out of a page: as an id, and in the text of an error."""


LONG: Final = "long-" + "0123456789" * 14 + "-كتاب"
"""An id without a space, in two directions of writing."""


WORDS: Final = ("commas", "colons", "brackets", "quotes", "dashes", "dots", "blanks", "tabs")
"""What makes an error of each, and a group of errors."""


class Shop:
    """A running worker, whose documents are held where a test wants to look at them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gate = asyncio.Event()
        """Lets the documents go on that begin with `slow`."""
        gate = self.gate

        @durable_activity(stage=Reading)
        async def read(text: str) -> str:
            return text

        @durable_activity(stage=Thinking, retry=ONCE)
        async def think(text: str) -> str:
            kind, _, rest = text.partition(" ")
            match kind:
                case "slow":
                    await gate.wait()
                case "bad":
                    raise ValueError(f"cannot make sense of {rest}")
                case "dear":
                    # Afterwards the others would wait until the provider is asked again.
                    await self.rest("paused", succeeded=4)
                    raise QuotaExhausted("the account is empty", retry_after=timedelta(hours=1))
                case _:
                    pass
            return text

        @durable_activity(stage=Writing)
        async def write(text: str) -> str:
            return text

        @workflow(STAGES, name="letters", version="3")
        async def letters(text: str) -> str:
            return await write(await think(await read(text)))

        # Its loop turns while a test runs, and not between two of them.
        hour = timedelta(hours=1)
        worker = Worker(SQLiteStore(path), drain=NO_DRAIN, lease=hour, max_stall=hour, blocked_warning=None)
        self.batches: BatchOrchestrator[str, str, Stages, None] = BatchOrchestrator(letters, worker=worker)

    async def submit(
        self, batch_id: str, documents: Sequence[str], policy: FailurePolicy = ContinueOnFailure()
    ) -> None:
        """Submit a batch; a document is its own id."""
        config = BatchConfig(concurrency=len(documents), failure_policy=policy)
        await self.batches.submit(documents, batch_id=batch_id, document_id=str, config=config)

    async def snapshot(self, batch_id: str) -> BatchSnapshot[Stages]:
        """The batch as it is."""
        return await self.batches.snapshot(batch_id)

    async def rest(self, batch_id: str, *, succeeded: int, failed: int = 0) -> None:
        """Wait until so many documents have ended."""

        async def has() -> bool:
            counts = (await self.snapshot(batch_id)).counts
            return (counts.succeeded, counts.failed) == (succeeded, failed)

        await eventually(has)

    async def _is_paused(self, batch_id: str) -> bool:
        return (await self.snapshot(batch_id)).paused

    async def fill(self) -> None:
        """Have one batch of each kind."""
        good = [f"letter {number}" for number in range(24)]
        bad = [f"bad page {number}" for number in range(3)]
        await self.submit("completed", good)
        await self.batches.result("completed")
        await self.submit("failed", [*good, "bad page 7"], AbortAll())
        await self.batches.result("failed")
        await self.submit("paused", ["dear letter", *good[:4]])
        await eventually(lambda: self._is_paused("paused"))
        await self.submit("held", [*good[:3], "slow letter"])
        await self.rest("held", succeeded=3)
        await self.batches.pause("held", note="the price is looked at")
        await self.submit(LONG, [*good, *(f"bad {WORDS[number % 8]} {number} {LONG}" for number in range(64))])
        await self.batches.result(LONG)
        await self.submit("live", [*good, *bad, *(f"slow letter {number}" for number in range(13))])
        await self.rest("live", succeeded=len(good), failed=len(bad))


@asynccontextmanager
async def shop(path: Path) -> AsyncGenerator[Shop]:
    """A shop that is open."""
    found = Shop(path)
    async with found.batches:
        yield found
        found.gate.set()
