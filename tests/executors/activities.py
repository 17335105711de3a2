"""Activities that other processes find by their names."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support import Reading

from durable_batches import (
    ActivityContext,
    ExecutionContext,
    RetryLater,
    RetryPolicy,
    Verdict,
    current_activity,
    current_execution,
    durable_activity,
)
from durable_batches.flow import CentralRateLimiter, CircuitBreaker

DAY = timedelta(days=1)
ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, initial=timedelta(0))


class RefusedError(Exception):
    """An error that pickle cannot restore: it takes two arguments, and has one."""

    def __init__(self, customer: str, code: int) -> None:
        super().__init__(f"{customer} was refused")
        self.status_code = code


@durable_activity(run_on="cpu", stage=Reading, retry=TWICE)
def double(number: int, *more: int, by: int = 2) -> int:
    return (number + sum(more)) * by


@durable_activity(run_on="cpu", retry=TWICE)
async def double_async(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


@durable_activity(run_on="cpu", retry=ONCE)
def where() -> tuple[int, str, int, str, int]:
    """The process, the attempt and its key, and what is known of the document."""
    call = current_activity()
    call.report(3, 7)
    execution: ExecutionContext = current_execution()
    return call.attempt, call.idempotency_key, os.getpid(), call.document_id, execution.ordinal


@durable_activity(run_on="cpu", retry=ONCE)
def refuse(customer: str) -> None:
    raise RefusedError(customer, 403)


@durable_activity(run_on="cpu", retry=TWICE)
def fail(text: str) -> None:
    raise ValueError(text)


@durable_activity(run_on="cpu", retry=RetryPolicy(max_attempts=3, initial=timedelta(0), non_retryable=(ValueError,)))
def fail_for_good(text: str) -> None:
    raise ValueError(text)


judged_here = fail_for_good.with_options(retry=RetryPolicy(retryable=lambda _: True))


def is_no_value_error(error: BaseException) -> bool:
    return not isinstance(error, ValueError)


@durable_activity(run_on="cpu", retry=TWICE)
async def cancel_own_work() -> None:
    work = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(work.cancel)
    await work


@durable_activity(run_on="cpu", retry=TWICE)
def leave(code: int) -> None:
    raise SystemExit(code)


@durable_activity(run_on="cpu", retry=TWICE)
def ask_for_time(seconds: int) -> None:
    raise RetryLater(timedelta(seconds=seconds))


@durable_activity(run_on="cpu", retry=TWICE)
def return_something_else() -> int:
    wrong: Any = "a text"
    return wrong  # type: ignore[no-any-return]


@durable_activity(run_on="cpu", timeout=timedelta(seconds=30), retry=TWICE)
def hang(number: int) -> int:
    return number


class Answer:
    """As a client gives it."""

    headers: Mapping[str, str] = {"x-ratelimit-limit-tokens": "90000"}


@durable_activity(run_on="cpu", retry=ONCE)
def ask(fails: bool) -> str:
    current_activity().observe(Answer())
    current_activity().settle(tokens=321)
    if fails:
        raise ValueError("the answer makes no sense")
    return "an answer"


@durable_activity(run_on="cpu", retry=ONCE)
def pay(document: str) -> str:
    current_activity().spend(tokens=5, cost=Decimal("0.02"), model="gpt")
    if document == "bad":
        raise Unjudgeable("paid, and of no use")
    return document


kept: list[ActivityContext] = []


@durable_activity(run_on="cpu", retry=ONCE)
def keep() -> None:
    kept.append(current_activity())


class Unjudgeable(Exception):
    """One that raises another error when it is looked at."""

    def __str__(self) -> str:
        raise RuntimeError("it has no message")

    @property
    def status_code(self) -> int:
        raise RuntimeError("it has no status")


class ClientError(Exception):
    """What a client raises for an answer."""

    def __init__(self, status_code: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = headers


class OwnError(Exception):
    """An error of the user's own, which has nothing to do with HTTP."""


OPENAI = CentralRateLimiter(
    name="openai",
    breaker=CircuitBreaker(failure_threshold=3, recovery_timeout=DAY, counts=lambda error: isinstance(error, OwnError)),
)


@durable_activity(run_on="cpu", retry=RetryPolicy(max_attempts=3, initial=timedelta(0)), limiter=OPENAI)
def call_provider(how: str, status: int, headers: Mapping[str, str]) -> None:
    if how == "own":
        raise OwnError
    if how == "timeout":
        raise ValueError("no answer") from TimeoutError()
    if how == "wrapped":
        raise ValueError("no answer") from ClientError(status, headers)
    error = ClientError(status, headers)
    if how == "observed":
        current_activity().observe(error)
        raise ValueError("refused")
    raise error


def judge(error: BaseException) -> Verdict:
    return Verdict(kind="never", note="judged there")


# ---- in real processes -----------------------------------------------------------------------------------------


@durable_activity(run_on="cpu", retry=TWICE)
def exit_on(number: int, bad: int) -> int:
    if number == bad:
        os._exit(1)
    return number


@durable_activity(run_on="cpu", retry=TWICE)
def killed_once(number: int, mark: str) -> int:
    """End its process with SIGKILL, as a system without memory does; the second time it returns."""
    path = Path(mark)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@durable_activity(run_on="cpu", timeout=timedelta(seconds=1), retry=ONCE)
def hang_for_ever(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(3600)


hang_until_killed = hang_for_ever.with_options(timeout=timedelta(hours=1))
