"""Attempts that no worker runs: nothing is written, and every fact is committed at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from tests.support import STAGES

from durable_batches import workflow
from durable_batches.clock import Clock, SystemClock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import CheckpointRecord, ExecutionRecord, Refusal
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.attempt import Attempt
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptStopped, AttemptSucceeded
from durable_batches.runtime.middleware import Middleware
from durable_batches.runtime.resources import Resources, RunStats
from durable_batches.runtime.threads import Threads


class FactList:
    """A recorder that keeps what is handed in."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def post(self, fact: Fact) -> None:
        self.facts.append(fact)

    def record(self, fact: Fact) -> Awaitable[Refusal | None]:
        self.facts.append(fact)
        verdict: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        verdict.set_result(None)
        return verdict

    def before_commit(self, callback: Callable[[], None]) -> None:
        callback()


class Trial:
    """One attempt of a document, and what it shares with others."""

    def __init__(
        self,
        *,
        middleware: Sequence[Middleware] = (),
        checkpoints: Sequence[CheckpointRecord] = (),
        clock: Clock | None = None,
    ) -> None:
        @workflow(STAGES)
        async def machine(document: str) -> str:
            return document

        self.recorder = FactList()
        self.stats = RunStats()
        self.threads = Threads(1)
        self.resources = Resources(
            recorder=self.recorder,
            clock=clock or SystemClock(),
            threads=self.threads,
            stats=self.stats,
            middleware=middleware,
        )
        self.attempt = Attempt(
            ExecutionRecord(
                batch_id=BatchId("batch"),
                position=0,
                document_id="document",
                run=1,
                status="running",
                mark=-1,
                attempt=1,
                failures=0,
                crashes=0,
                alone=False,
                owner=None,
                due=None,
                updated_at=0,
            ),
            stage_index=machine.stage_index,
            checkpoints=list(checkpoints),
            resources=self.resources,
        )

    async def end(
        self, body: Callable[[], Coroutine[Any, Any, Any]]
    ) -> AttemptSucceeded | AttemptFailed | AttemptStopped:
        try:
            return await self.attempt.run(body)
        finally:
            self.threads.close()

    async def value(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        outcome = await self.end(body)
        assert isinstance(outcome, AttemptSucceeded), outcome
        return outcome.value
