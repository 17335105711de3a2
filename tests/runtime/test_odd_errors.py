"""Errors that are not made for being handled: each is told as what it is, and holds nothing up."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import pytest
from tests.support import NO_DELAY, NO_DRAIN, STAGES, within

from durable_batches import (
    ActivityFailedError,
    BatchConfig,
    BatchOrchestrator,
    DocumentFailure,
    DocumentSucceeded,
    Failed,
    Results,
    RetryFailed,
    RetryLater,
    RetryPolicy,
    Store,
    Verdict,
    Worker,
    durable_activity,
    workflow,
)

Batches: TypeAlias = BatchOrchestrator[str, str, Any, Any]


@dataclass(frozen=True)
class Frozen(Exception):
    status: int = 503


@dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    status: int = 503


@dataclass
class Unhashable(Exception):
    status: int = 503


class Closed(Exception):
    """Refuses assignments with another error than frozen dataclasses."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(f"{name} cannot be assigned")

    def __delattr__(self, name: str) -> NoReturn:
        raise TypeError(f"{name} cannot be deleted")


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it cannot be shown")

    def __repr__(self) -> str:
        raise ValueError("it cannot be shown")


class NoText(Exception):
    def __str__(self) -> str:
        return 3  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    __repr__ = __str__


class Unpicklable(Exception):
    def __reduce__(self) -> NoReturn:
        raise TypeError("it cannot be sent anywhere")

    def __copy__(self) -> NoReturn:
        raise TypeError("it cannot be copied")


class Hostile(Exception):
    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> NoReturn:
        raise RuntimeError("it cannot be compared")

    def __hash__(self) -> NoReturn:
        raise RuntimeError("it has no hash")

    def __bool__(self) -> NoReturn:
        raise RuntimeError("it is neither true nor false")


class Proxy(Exception):
    """Has of its attributes those that every object has."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__notes__", "__cause__", "__context__", "__traceback__"):
            return super().__getattribute__(name)
        raise KeyError(name)


class Barred(Exception):
    """Answers for nothing that it is asked for."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)


class Exiting(Exception):
    """Its text is asked for, and ends the process, as far as it can."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Derailed(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> NoReturn:
        raise RuntimeError("it has no parts")


class OfProvider(RetryLater):
    """Forgets what its base has to be told."""

    def __init__(self) -> None:
        pass


class Base(BaseException):
    pass


def in_a_circle() -> Exception:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def with_notes_of_no_text() -> Exception:
    error = ValueError("noted")
    error.__notes__ = "no list"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    return error


def deep_group() -> Exception:
    group: ExceptionGroup[Exception] = ExceptionGroup("deep", [ValueError("at the bottom")])
    for _ in range(200):
        group = ExceptionGroup("deep", [group])
    return group


MANY = 1_500
"""More errors than calls may be within one another, so that nothing gets by that calls itself for each of them."""


def deep_chain() -> Exception:
    error = ValueError("at the bottom")
    for number in range(MANY):
        outer = ValueError(f"{number}")
        outer.__cause__ = error
        error = outer
    return error


SHARED = ValueError("the one error of a client")

ODD: dict[str, Callable[[], BaseException]] = {
    "Frozen": Frozen,
    "FrozenSlots": FrozenSlots,
    "Unhashable": Unhashable,
    "Closed": Closed,
    "Mute": Mute,
    "NoText": NoText,
    "Unpicklable": lambda: Unpicklable("no"),
    "Hostile": Hostile,
    "Proxy": Proxy,
    "Exiting": Exiting,
    "Base": Base,
    "SystemExit": lambda: SystemExit(3),
    "RecursionError": lambda: RecursionError("too deep"),
    "MemoryError": MemoryError,
    "ExceptionGroup": lambda: ExceptionGroup("several", [Frozen(), Mute(), Hostile(), Proxy()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [SystemExit(3), Base()]),
    "Derailed": lambda: Derailed("several", [ValueError("no"), Mute()]),
    "deep": deep_group,
    "wide": lambda: ExceptionGroup("wide", [ValueError(number) for number in range(MANY)]),
    "twice": lambda: ExceptionGroup("twice", [SHARED, SHARED]),
    "circle": in_a_circle,
    "chain": deep_chain,
    "notes": with_notes_of_no_text,
    "text": lambda: ValueError("\0 \ud800 \x1b[31m" + "x" * 100_000),
    "shared": lambda: SHARED,
    "long name": type("E" * 10_000, (Exception,), {}),
    "OfProvider": OfProvider,
    "OSError": lambda: OSError(2, "no such file", "\udcff"),
}

PLACES = ("activity", "sync activity", "workflow", "group", "no error")


def group_of(error: BaseException) -> str:
    return "ExceptionGroup" if isinstance(error, Exception) else "BaseExceptionGroup"


@durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
async def ask(place: str, name: str) -> str:
    if place == "activity":
        raise ODD[name]()
    return place


@durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
def ask_sync(place: str, name: str) -> str:
    if place == "sync activity":
        raise ODD[name]()
    return place


async def fail(name: str) -> None:
    raise ODD[name]()


def met(place: str, name: str) -> str:
    """A document that meets this error there; it is its own id."""
    return f"{place}: {name}"


@asynccontextmanager
async def batches_of(store: Store, *, resolver: bool = False) -> AsyncGenerator[Batches]:
    """Batches of documents that meet an error, or whose resolver meets that of its first document."""

    async def resolve(results: Results[str]) -> int:
        ids = [result.document_id async for result in results]
        if resolver:
            raise ODD[ids[0].split(": ")[1]]()
        return len(ids)

    @workflow(STAGES, resolver=resolve, resolver_retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
    async def run(document: str) -> str:
        place, name = document.split(": ")
        if place == "workflow":
            raise ODD[name]()
        if place == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(name))
        return await ask(place, name) + await ask_sync(place, name)

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=NO_DELAY))
    async with BatchOrchestrator(run, worker=Worker(store, drain=NO_DRAIN), config=config) as batches:
        yield batches


async def read_all(batches: Batches, batch_id: str) -> None:
    """What was recorded of it can be read in every way that there is."""
    assert (await batches.snapshot(batch_id)).percentage <= 100
    assert str(await batches.explain(batch_id))
    assert [event async for event in batches.progress(batch_id)]
    assert [document async for document in batches.documents(batch_id)]


async def test_an_odd_error_is_told_as_what_it_is(store: Store) -> None:
    # In a task that nothing stands round, asyncio lets SystemExit end the process, as it does without a library.
    met_there = {met(place, name): (place, name) for name in ODD for place in PLACES}
    del met_there[met("group", "SystemExit")]
    async with batches_of(store) as batches:
        result = await within(batches.run(met_there, document_id=str))
        assert str(result)
        await read_all(batches, result.batch_id)
        outcomes = {outcome.document_id: outcome async for outcome in batches.results(result.batch_id)}
        digest = await batches.errors(result.batch_id)
    assert result.state.tag == "completed"
    assert digest.failed == result.counts.failed == len(met_there) - len(ODD)
    for document, (place, name) in met_there.items():
        outcome = outcomes.pop(document)
        if place == "no error":
            assert outcome == DocumentSucceeded(document_id=document, value="no error" * 2)
            continue
        assert isinstance(outcome, DocumentFailure), document
        error = ODD[name]()
        kind = group_of(error) if place == "group" else type(error).__name__
        assert outcome.error_type == kind, document
        assert outcome.error, document
    assert not outcomes


async def test_an_odd_error_of_a_resolver_fails_its_batch(store: Store) -> None:
    async with batches_of(store, resolver=True) as batches:
        for name in ODD:
            result = await within(batches.run([met("no error", name)], document_id=str))
            await read_all(batches, result.batch_id)
            assert isinstance(result.state, Failed), name
            assert result.state.error.startswith("the resolver failed: "), name
            assert result.counts.succeeded == 1, name


async def test_an_error_that_answers_for_nothing_ends_its_document(store: Store) -> None:
    """Nobody can find out what it is, but that it was raised."""
    ODD["Barred"] = Barred
    try:
        async with batches_of(store) as batches:
            documents = [met(place, "Barred") for place in PLACES]
            result = await within(batches.run(documents, document_id=str))
            await read_all(batches, result.batch_id)
        assert (result.counts.failed, result.counts.succeeded) == (4, 1)
    finally:
        del ODD["Barred"]


async def test_an_error_of_a_document_s_id_and_of_the_documents_is_the_user_s(store: Store) -> None:
    def documents() -> Iterator[str]:
        yield "a"
        raise Frozen(1)

    async with batches_of(store) as batches:
        for raised, submitting in (
            (Frozen, batches.submit(documents())),
            (Frozen, batches.submit(["a"], document_id=raise_frozen)),
            (Hostile, batches.submit(["a"], document_id=raise_hostile)),
        ):
            with pytest.raises(BaseException) as caught:  # noqa: PT011  (compared by its very class below)
                await within(submitting)
            assert type(caught.value) is raised


# ---- what judges an error --------------------------------------------------------------------------------------------


def raise_frozen(_: object) -> NoReturn:
    raise Frozen(2)


def raise_hostile(_: object) -> NoReturn:
    raise Hostile


def exits(_: object) -> NoReturn:
    sys.exit("not even this")


def interrupted_group(_: object) -> NoReturn:
    raise BaseExceptionGroup("several", [SystemExit(3), Base()])


def returns_nothing(_: object) -> None:
    pass


def returns_a_word(_: object) -> str:
    return "retry"


def nonsense(_: object) -> Verdict:
    return Verdict(kind="perhaps")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


JUDGES: list[Any] = [raise_frozen, raise_hostile, exits, interrupted_group, returns_nothing, returns_a_word, nonsense]


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.__name__)
async def test_what_judges_an_error_never_takes_its_place(
    judge: Any, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is judged as if there were no such judge: of an activity, of a worker, of a policy, of a resolver's policy."""
    attempts: Counter[str] = Counter()

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY, retryable=judge))
    async def by_policy() -> None:
        attempts["policy"] += 1
        raise ConnectionError("the user's own")

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY), classify=judge)
    async def by_classifier() -> None:
        attempts["classifier"] += 1
        raise ConnectionError("the user's own")

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
    async def by_worker() -> None:
        attempts["worker"] += 1
        raise ConnectionError("the user's own")

    acts = {"policy": by_policy, "classifier": by_classifier, "worker": by_worker}

    async def resolve(results: Results[str]) -> None:
        attempts["resolver"] += 1
        raise ConnectionError("the user's own")

    retry = RetryPolicy(max_attempts=2, initial=NO_DELAY, retryable=judge)

    @workflow(STAGES, resolver=resolve, resolver_retry=retry)
    async def run(document: str) -> str:
        with pytest.raises(ActivityFailedError, match="ConnectionError: the user's own"):
            await acts[document]()
        return document

    async with BatchOrchestrator(run, worker=Worker(store, drain=NO_DRAIN, classify=judge)) as batches:
        result = await within(batches.run(list(acts)))
    assert isinstance(result.state, Failed)
    assert result.state.error == "the resolver failed: the user's own"
    assert attempts == {"policy": 2, "classifier": 2, "worker": 2, "resolver": 2}
    assert any("could not judge a ConnectionError" in record.getMessage() for record in caplog.records)
