"""An attempt is stopped, and its running calls may finish: those whose bodies have not begun are unwound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from tests.runtime.attempts import Trial
from tests.support import eventually, within

from durable_batches import DurableActivity, dependency, durable_activity
from durable_batches.runtime.attempt_result import AttemptStopped
from durable_batches.runtime.middleware import MiddlewareCall


class Stopped:
    """A document that makes a call, and is stopped once the call has come to its wait."""

    def __init__(self, trial: Trial, activity: DurableActivity[[], str]) -> None:
        self.trial = trial
        self.activity = activity
        self.outcomes: list[object] = []

    async def run(self) -> None:
        async def body() -> str:
            return await self.activity()

        self.outcomes.append(await self.trial.end(body))

    async def outcome(self, waits: Callable[[], bool], go_on: Callable[[], object]) -> object:
        """Stop it, have the wait end, and return what became of the attempt."""
        running = asyncio.create_task(self.run())
        await eventually(waits)
        self.trial.attempt.stop("paused", drain=True)
        go_on()
        # The stop may have cancelled the task itself, in which the call was made.
        await within(asyncio.wait([running]))
        (outcome,) = self.outcomes
        return outcome


async def test_a_call_that_was_handed_to_a_thread_which_has_not_begun_it() -> None:
    gate, begun, handed = threading.Event(), list[str](), list[str]()

    async def hand_over(call: MiddlewareCall, call_next: Callable[[], Any]) -> Any:
        handed.append("ask")
        return await call_next()

    trial = Trial(middleware=[hand_over])
    # The thread does something else first.
    thread = trial.threads.take()
    thread.run(gate.wait)
    trial.threads.keep(thread)

    @durable_activity
    def ask() -> str:
        begun.append("ask")
        return "paid"

    outcome = await Stopped(trial, ask).outcome(lambda: bool(handed), gate.set)
    assert isinstance(outcome, AttemptStopped)
    assert begun == []
    assert trial.recorder.facts == []


async def test_a_call_that_middleware_holds_up() -> None:
    reached, gate, begun = asyncio.Event(), asyncio.Event(), list[str]()

    async def holds_up(call: MiddlewareCall, call_next: Callable[[], Any]) -> Any:
        reached.set()
        await gate.wait()
        return await call_next()

    @durable_activity
    async def ask() -> str:
        begun.append("ask")
        return "paid"

    trial = Trial(middleware=[holds_up])
    outcome = await Stopped(trial, ask).outcome(reached.is_set, gate.set)
    assert isinstance(outcome, AttemptStopped)
    assert begun == []


async def test_a_call_whose_dependency_is_being_opened_is_not_waited_for() -> None:
    opening, gate, begun = asyncio.Event(), asyncio.Event(), list[str]()

    async def client() -> AsyncGenerator[str]:
        opening.set()
        await gate.wait()
        yield "client"

    @durable_activity
    async def ask(client: str = dependency(client)) -> str:
        begun.append("ask")
        return "paid"

    trial = Trial()
    trial.resources.dependencies.start()
    outcome = await Stopped(trial, ask).outcome(opening.is_set, lambda: None)
    assert isinstance(outcome, AttemptStopped)
    gate.set()
    await within(trial.resources.dependencies.close())
    assert begun == []
