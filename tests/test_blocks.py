"""What a user's code raises leaves the library's blocks as it is, also where its class refuses assignments."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from tests.support import AT_ONCE, STAGES, within

from durable_batches import BatchOrchestrator, MemoryStore, durable_activity, run_batch, workflow
from durable_batches.blocks import asynccontextmanager, contextmanager
from durable_batches.testing import EffectsLog, activity_context, environment, execution_context


@dataclass(frozen=True)
class Frozen(Exception):
    status: int


class Closed(Exception):
    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(name)


class Meanwhile(Exception):
    pass


ERRORS = [Frozen(503), Closed(), ValueError("plain"), StopIteration(3), KeyboardInterrupt()]


@contextmanager
def block(ends: list[str], does: str) -> Generator[int]:
    try:
        yield 1
    except BaseException as error:
        if does == "raises":
            raise Meanwhile from error
        if does == "swallows":
            return
        raise
    finally:
        ends.append("ended")


@asynccontextmanager
async def async_block(ends: list[str], does: str) -> AsyncGenerator[int]:
    with block(ends, does) as value:
        yield value


@pytest.mark.parametrize("error", ERRORS, ids=repr)
async def test_an_error_leaves_a_block_as_it_is(error: BaseException) -> None:
    ends: list[str] = []
    with pytest.raises(type(error)) as caught, block(ends, "nothing"):
        raise error
    assert caught.value is error
    if not isinstance(error, StopIteration):  # no coroutine can raise it
        with pytest.raises(type(error)) as caught:
            async with async_block(ends, "nothing"):
                raise error
        assert caught.value is error
    assert set(ends) == {"ended"}


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_block_may_raise_another_error_or_none(error: BaseException) -> None:
    ends: list[str] = []
    with pytest.raises(Meanwhile) as caught, block(ends, "raises"):
        raise error
    assert caught.value.__cause__ is error
    with block(ends, "swallows"):
        throw(error)
    assert ends == ["ended"] * 2


def test_a_block_is_a_decorator_too() -> None:
    ends: list[str] = []

    @block(ends, "nothing")
    def add(number: int) -> int:
        return number + 1

    assert (add(1), add(2)) == (2, 3)
    assert ends == ["ended"] * 2
    assert block.__name__ == "block"


@durable_activity(retry=AT_ONCE)  # a 503 is retried
async def act(document: str) -> str:
    return document


@workflow(STAGES)
async def echo(document: str) -> str:
    return await act(document)


BLOCKS: list[Callable[[], AbstractContextManager[object]]] = [
    lambda: act.override(lambda document: document),
    activity_context,
    execution_context,
]


@pytest.mark.parametrize("make", BLOCKS, ids=["override", "activity_context", "execution_context"])
def test_an_error_leaves_the_blocks_for_tests_as_it_is(make: Callable[[], AbstractContextManager[object]]) -> None:
    with pytest.raises(Frozen), make():
        raise Frozen(503)


async def test_an_error_leaves_an_environment_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(Frozen):
        async with environment(echo):
            raise Frozen(503)

    effects = EffectsLog(tmp_path / "effects.log", "here")

    async def fails(document: str) -> str:
        with effects.activity("act"):
            raise Frozen(503)

    with act.override(fails):
        async with BatchOrchestrator(echo, store=MemoryStore()) as batches:
            (failure,) = (await within(batches.run(["x"]))).failures
    assert failure.error_type == "Frozen"


def test_an_error_of_its_documents_leaves_a_script_as_it_is() -> None:
    def documents() -> Iterator[str]:
        yield "a"
        raise Frozen(503)

    with pytest.raises(Frozen):
        run_batch(echo, documents(), store=MemoryStore(), progress=False)
