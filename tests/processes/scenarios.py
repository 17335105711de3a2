"""What a child goes through, so that every statement of its store is executed and every mark reached.

`python -m tests.processes.scenarios JOB` (JSON of a `Job`) is one process; mostly it is forked instead.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from typing import Any, Final

import asyncpg
import pytest
from tests.processes import books, fleets, pairs
from tests.processes.places import store_at
from tests.processes.workload import Batches, Job, Page, Process, here

from durable_batches import (
    BatchEndedError,
    BatchId,
    BatchNotFoundError,
    DocumentReleased,
    DuplicateDocumentError,
)
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.records import SharedLimit, SharedSlot, SharedWrites

CHUNK: Final = 500
"""Documents that a submission stores at once."""


class Limited(Process):
    """Takes twice of a limit that workers share, and goes on."""

    async def work(self, batches: Batches) -> dict[str, object]:
        store = batches.worker.store
        # Wrapped: it has all methods of what it wraps.
        take = getattr(store, "take")  # noqa: B009
        for amount in (2, 1):
            await take(self.job.batch_id, batches.worker.worker_id, partial(_writes, amount))
        return await super().work(batches)


def _writes(amount: int, limit: SharedLimit) -> SharedWrites[None]:
    """Hold this much; what others held that are gone must have gone with them."""
    assert sum(slot.amount for slot in limit.slots.values()) <= 2, limit
    return SharedWrites(b"written", SharedSlot(amount), None)


class Repetitive(Process):
    """Submits a batch whose last document has the first one's id: refused, and what was loaded is removed."""

    async def work(self, batches: Batches) -> dict[str, object]:
        async def pages() -> AsyncGenerator[Page]:
            for number in range(CHUNK + 1):
                yield Page(number % CHUNK)

        with pytest.raises(DuplicateDocumentError):
            await batches.submit(pages(), batch_id=self.job.batch_id, document_id=lambda page: f"page-{page.number}")
        with pytest.raises(BatchNotFoundError):
            await batches.worker.store.control(BatchId(self.job.batch_id), Cancel("of nothing", ""))
        return {"state": "refused"}


class Overruled(Process):
    """Another process cancels the batch while an activity runs, whose result comes too late: it is refused.

    This process follows the batch, and has heard of its end by then.
    """

    async def work(self, batches: Batches) -> dict[str, object]:
        began, waits, looked, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        self.marks.on("split: begun", lambda: loop.call_soon_threadsafe(began.set))
        self.marks.on("news.waiting", lambda: loop.call_soon_threadsafe(waits.set))
        self.marks.on("news.looked", lambda: loop.call_soon_threadsafe(looked.set))
        here.hold = cancelled
        await self.submit(batches)
        result = asyncio.create_task(batches.result(self.job.batch_id))
        await began.wait()
        await waits.wait()
        await self.cancel_elsewhere()
        await result
        await looked.wait()
        cancelled.set()
        return {"state": "cancelled"}


class Pausing(Process):
    """An operator pauses the batch while an activity runs, and resumes it when its document is released."""

    async def work(self, batches: Batches) -> dict[str, object]:
        began, released = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        self.marks.on("split: begun", lambda: loop.call_soon_threadsafe(began.set))
        here.hold = may_end = asyncio.Event()
        await self.submit(batches)
        await began.wait()
        self.marks.note("pausing")
        await batches.pause(self.job.batch_id, note="prices look wrong")

        async def wait_for_release() -> None:
            async for event in batches.progress(self.job.batch_id):
                if isinstance(event, DocumentReleased):
                    released.set()
                    return

        waiting = asyncio.create_task(wait_for_release())
        self.marks.note("draining")
        may_end.set()
        await released.wait()
        await waiting
        self.marks.note("resuming")
        await batches.resume(self.job.batch_id)
        return await super().work(batches)


class Resuming(Process):
    """Finds a batch that may be paused, and resumes it."""

    async def submit(self, batches: Batches) -> None:
        await super().submit(batches)
        with suppress(BatchEndedError):
            await batches.resume(self.job.batch_id)


class Leaving(Process):
    """Leaves while its documents are in their first activity, which does not end."""

    async def work(self, batches: Batches) -> dict[str, object]:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.marks.on("split: begun", lambda: loop.call_soon_threadsafe(began.set))
        here.hold = asyncio.Event()
        await self.submit(batches)
        await began.wait()
        return {"state": "left"}


class Following(Process):
    """Runs nothing, and waits for its batch, which another process cancels."""

    async def work(self, batches: Batches) -> dict[str, object]:
        waits, read = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        await self.submit(batches)
        self.marks.on("news.waiting", lambda: loop.call_soon_threadsafe(waits.set))
        self.marks.on("store.batch: answered", lambda: loop.call_soon_threadsafe(read.set))
        result = asyncio.create_task(batches.result(self.job.batch_id))
        await waits.wait()
        # It has read that the batch goes on, and hears of the end by news only.
        await read.wait()
        await self.cancel_elsewhere()
        return {"state": (await result).state.tag}


class Renewing(Process):
    """Renews its lease before it has anything to do."""

    async def work(self, batches: Batches) -> dict[str, object]:
        renewed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.marks.on("store.renew: answered", lambda: loop.call_soon_threadsafe(renewed.set))
        await renewed.wait()
        return await super().work(batches)


class Empty(Process):
    """Submits a batch without documents: its resolver has something to do at once."""

    async def submit(self, batches: Batches) -> None:
        await batches.submit([], batch_id=self.job.batch_id, config=self.config)
        self.marks.note("submitted")


class Fenced(Process):
    """Another process declares its worker dead while an activity runs."""

    async def work(self, batches: Batches) -> dict[str, object]:
        began, fenced = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        self.marks.on("split: begun", lambda: loop.call_soon_threadsafe(began.set))
        here.hold = fenced
        await self.submit(batches)
        await began.wait()
        other = store_at(self.place)
        await other.open()
        await other.expire(dead=[batches.worker.worker_id])
        await other.close()
        fenced.set()
        return await super().work(batches)


class Crowd(Process):
    """Holds its documents in their first activity until all of them are in it at once."""

    async def work(self, batches: Batches) -> dict[str, object]:
        begun = 0
        here.hold = asyncio.Event()

        def count() -> None:
            nonlocal begun
            begun += 1
            if begun == self.job.documents:
                self.marks.reach("all in flight")

        self.marks.on("split: begun", count)
        return await super().work(batches)


class Broken(Process):
    """Its store has a mistake, which ends its worker's session: what that held is released at once."""

    async def work(self, batches: Batches) -> dict[str, object]:
        self.marks.on("measure: begun", self._break)
        return await super().work(batches)

    def _break(self) -> None:
        self.marks.on("measure: begun", lambda: None)
        self.marks.on("store.commit: called", self._fail)

    def _fail(self) -> None:
        self.marks.on("store.commit: called", lambda: None)
        raise ZeroDivisionError("a mistake in the adapter")


class Obstructed(Process):
    """Another session has locked the batch, which a dead worker's documents are of, when they are to be released."""

    async def run(self) -> dict[str, object]:
        place = json.loads(self.place)
        connection = await asyncpg.connect(place["dsn"])
        transaction = connection.transaction()
        await transaction.start()
        locked = await connection.fetch(
            f'SELECT 1 FROM "{place["schema"]}".batch WHERE batch_id = $1 FOR UPDATE', self.job.batch_id
        )
        assert len(locked) == 1
        loop = asyncio.get_running_loop()
        passed_over = asyncio.Event()
        self.marks.on("expire: UPDATE worker SET dead", lambda: loop.call_soon_threadsafe(passed_over.set))

        async def unlock() -> None:
            await passed_over.wait()
            await transaction.rollback()
            await connection.close()

        unlocking = asyncio.create_task(unlock())
        result = await super().run()
        await unlocking
        return result


class Hindered(Process):
    """Another process switches the same new file to a write-ahead log at the same moment."""

    async def run(self) -> dict[str, object]:
        self.marks.on("open: PRAGMA journal_mode", self._fail)
        return await super().run()

    def _fail(self) -> None:
        self.marks.on("open: PRAGMA journal_mode", lambda: None)
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


SCENARIOS: Final = {
    "hindered": Hindered,
    "work": Process,
    "limited": Limited,
    "repetitive": Repetitive,
    "overruled": Overruled,
    "leaving": Leaving,
    "pausing": Pausing,
    "resuming": Resuming,
    "following": Following,
    "renewing": Renewing,
    "empty": Empty,
    "fenced": Fenced,
    "broken": Broken,
    "crowd": Crowd,
    "obstructed": Obstructed,
}


async def main(job: dict[str, Any]) -> object:
    """Be the process that does a job."""
    parsed = Job(**job)
    if parsed.scenario == "pair":
        await pairs.main(parsed)
        return None
    if parsed.scenario == "fleet":
        return await fleets.main(parsed)
    if parsed.scenario == "book":
        return await books.main(parsed)
    return await SCENARIOS[parsed.scenario](parsed).run()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))), flush=True)
