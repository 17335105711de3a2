"""The short ways (nearly all calls, flat arguments, scalars, payloads that cannot be in doubt) end as the long ones do.

A middleware that only goes on takes a call the long way; the digest and the payload have theirs behind the attributes
that the short ones are chosen by.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from tests.runtime.attempts import Trial
from tests.runtime.keys import key
from tests.support import AT_ONCE, ONCE, Reading

from durable_batches import (
    ActivityDefinitionError,
    ActivityFailedError,
    ActivityTimeoutError,
    PayloadError,
    RetryLater,
    RetryPolicy,
    current_activity,
    current_execution,
    durable_activity,
)
from durable_batches.codec import canonical, codec
from durable_batches.codec.canonical import Digester
from durable_batches.codec.codec import Codec
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, StageEntered
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.runtime import attempt
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptStopped, AttemptSucceeded
from durable_batches.runtime.call import Call
from durable_batches.runtime.checkpoint import CallKeys
from durable_batches.runtime.middleware import CallNext, Middleware, MiddlewareCall

MORE_DIGITS_THAN_PYTHON_CONVERTS = 10**5000


# ---- calls ---------------------------------------------------------------------------------------------------------


if TYPE_CHECKING:

    class Late:
        """Defined only when the activity is called, and nothing that can be recorded."""


async def goes_on(call: MiddlewareCall, call_next: CallNext, /) -> Any:
    return await call_next()


class Pair(BaseModel):
    words: list[str]
    size: int | None = None


@durable_activity
async def returns(value: str) -> str:
    return value


@durable_activity(stage=Reading, version="2")
async def returns_a_model(pair: Pair, *, size: int = 3) -> Pair:
    pair.words.append("mine")
    return Pair(words=pair.words, size=size)


OBJECTS: dict[str, Any] = {"not a number": float("nan"), "text": "text", "object": object()}


@durable_activity(retry=ONCE)
async def returns_one(name: str) -> float:
    found: float = OBJECTS[name]
    return found


def own_key(value: int) -> str:
    return f"own {value}"


@durable_activity(key=own_key)
async def with_a_key(value: int) -> int:
    return value


@durable_activity(retry=AT_ONCE)
async def fails_at_first(value: str) -> str:
    if current_activity().attempt == 1:
        raise ConnectionError(value)
    return f"{value} {current_activity().attempt}"


@durable_activity(retry=RetryPolicy(max_attempts=2, initial=AT_ONCE.initial))
async def always_fails(value: str) -> str:
    raise ValueError(value)


@durable_activity(retry=ONCE)
async def leaves(value: str) -> str:
    sys.exit(value)


@durable_activity(retry=ONCE)
async def is_cancelled_itself(value: str) -> str:
    raise asyncio.CancelledError(value)


@durable_activity(retry=ONCE)
async def wants_to_wait(value: str) -> str:
    raise RetryLater(timedelta(seconds=len(value)))


@durable_activity
async def calls_another(value: str) -> str:
    return await returns(value)


@durable_activity
async def looks_around(value: str) -> dict[str, Any]:
    context, execution = current_activity(), current_execution()
    context.report(1, 2)
    return {"value": value, "key": context.idempotency_key, "attempt": context.attempt, "run": execution.run}


async def caught(value: str) -> str:
    try:
        return await always_fails(value)
    except ActivityFailedError as error:
        return f"caught {error}"


async def twice(value: str) -> list[str]:
    return [await returns(value), await returns(value)]


BODIES: dict[str, Callable[[], Awaitable[Any]]] = {
    "returns": lambda: returns("a"),
    "a model": lambda: returns_a_model(Pair(words=["a"]), size=4),
    "not a number": lambda: returns_one("not a number"),
    "of another type": lambda: returns_one("text"),
    "of no type": lambda: returns_one("object"),
    "a key": lambda: with_a_key(3),
    "an argument that cannot be encoded": lambda: returns("\ud800"),
    "an argument too many": lambda: returns("a", "b"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    "fails at first": lambda: fails_at_first("a"),
    "always fails": lambda: always_fails("a"),
    "caught": lambda: caught("a"),
    "leaves": lambda: leaves("a"),
    "cancelled": lambda: is_cancelled_itself("a"),
    "waits": lambda: wants_to_wait("a"),
    "calls another": lambda: calls_another("a"),
    "looks around": lambda: looks_around("a"),
    "twice": lambda: twice("a"),
}


async def told_of(body: Callable[[], Awaitable[Any]], log: pytest.LogCaptureFixture, *middleware: Middleware) -> Any:
    """All that can be seen of an attempt."""
    trial = Trial(middleware=middleware)

    async def run() -> Any:
        return await body()

    log.clear()
    with log.at_level(logging.INFO, logger="durable_batches"):
        outcome = await trial.end(run)
    ended: Any = outcome
    if isinstance(outcome, AttemptFailed):
        ended = (type(outcome.error), str(outcome.error), outcome.record, outcome.retryable, outcome[3])
    assert trial.resources.reports == {}
    return trial.recorder.facts, ended, trial.stats, log.messages


@pytest.mark.parametrize("body", BODIES)
async def test_a_call_ends_the_same_on_both_ways(
    body: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await told_of(BODIES[body], caplog) == await told_of(BODIES[body], caplog, goes_on)


@pytest.mark.parametrize("body", BODIES)
async def test_a_replay_of_a_call_is_the_same_on_both_ways(body: str) -> None:
    async def run() -> Any:
        return await BODIES[body]()

    for middleware in ([], [goes_on]):
        first = Trial(middleware=middleware)
        ended = await first.end(run)
        checkpoints = [
            CheckpointRecord(fact.key, "succeeded" if isinstance(fact, ActivityCompleted) else "failed", fact.payload)
            for fact in first.recorder.facts
            if isinstance(fact, ActivityCompleted | ActivityFailed)
        ]
        second = Trial(checkpoints=checkpoints)
        again = await second.end(run)
        assert [fact for fact in second.recorder.facts if not isinstance(fact, StageEntered)] == []
        assert second.stats.activities_replayed == len(checkpoints)
        if isinstance(ended, AttemptSucceeded):
            assert again == ended
        else:
            assert isinstance(again, AttemptFailed)
            assert isinstance(ended, AttemptFailed)
            assert (str(again.error), again.record) == (str(ended.error), ended.record)


@pytest.mark.parametrize("middleware", [[], [goes_on]], ids=["short", "long"])
async def test_a_call_that_is_stopped_is_not_recorded(middleware: list[Middleware]) -> None:
    inside = asyncio.Event()

    @durable_activity
    async def waits() -> str:
        inside.set()
        await asyncio.Event().wait()
        return "never"

    trial = Trial(middleware=middleware)
    running = asyncio.create_task(trial.end(waits))
    await inside.wait()
    trial.attempt.stop("ended")
    assert await running == AttemptStopped("ended")
    assert trial.recorder.facts == []
    assert trial.stats.activities_run == 0


@pytest.mark.parametrize("middleware", [[], [goes_on]], ids=["short", "long"])
async def test_what_cannot_be_encoded_is_said_with_its_document(middleware: list[Middleware]) -> None:
    async def body() -> None:
        with pytest.raises(PayloadError, match=r"argument 'value' .*\(document 'document' of batch 'batch'\)$"):
            await returns("\ud800")
        with pytest.raises(ActivityFailedError, match="nan is no JSON number") as caught:
            await returns_one("not a number")
        assert isinstance(caught.value.__cause__, PayloadError)

    await Trial(middleware=middleware).value(body)


@pytest.mark.parametrize("middleware", [[], [goes_on]], ids=["short", "long"])
async def test_a_failure_keeps_what_it_was_raised_from(middleware: list[Middleware]) -> None:
    @durable_activity(retry=ONCE)
    async def hides_one(value: str) -> str:
        try:
            raise ValueError(value)
        except ValueError:
            raise KeyError(value)  # noqa: B904  (without a cause, as much code does)

    async def body() -> None:
        try:
            raise RuntimeError
        except RuntimeError:
            with pytest.raises(ActivityFailedError) as caught:
                await hides_one("x")
        error = caught.value.__cause__
        assert isinstance(error, KeyError)
        assert isinstance(error.__context__, ValueError)

    await Trial(middleware=middleware).value(body)


async def test_a_timeout_that_is_set_later_counts() -> None:
    @durable_activity(retry=ONCE)
    async def never(value: str) -> str:
        await asyncio.get_running_loop().create_future()
        return value

    never.timeout = timedelta(microseconds=1)

    async def body() -> None:
        with pytest.raises(ActivityFailedError) as caught:
            await never("x")
        assert isinstance(caught.value.__cause__, ActivityTimeoutError)

    await Trial().value(body)


async def test_a_result_that_cannot_be_recorded_is_refused_each_time_before_anything_runs() -> None:
    ran: list[str] = []

    @durable_activity
    async def late(value: str) -> Late:
        ran.append(value)
        return Late()

    async def body() -> None:
        for _ in range(2):
            with pytest.raises(ActivityDefinitionError):
                await late("x")

    trial = Trial()
    globals()["Late"] = type("Late", (), {})
    try:
        await trial.value(body)
    finally:
        del globals()["Late"]
    assert ran == []
    assert trial.recorder.facts == []


async def test_only_plain_forms_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    long_way: list[str] = []

    class Noted(Call):
        async def once(self) -> tuple[bytes, Any]:
            long_way.append(self.bound.activity.name)
            return await super().once()

    monkeypatch.setattr(attempt, "Call", Noted)

    async def body() -> None:
        await returns("a")
        assert long_way == []
        await fails_at_first("b")
        # From the second attempt on.
        assert long_way == ["fails_at_first"]
        with returns.override(lambda value: value.upper()):
            assert await returns("a") == "A"
        assert long_way == ["fails_at_first", "returns"]
        assert await returns("a") == "a"
        assert long_way == ["fails_at_first", "returns"]

    await Trial().value(body)


async def test_the_context_of_an_attempt_is_made_once_and_when_it_is_asked_for() -> None:
    trial = Trial()

    async def body() -> bool:
        assert trial.attempt._context is None
        await returns("a")
        assert trial.attempt._context is None
        first = current_execution()
        await looks_around("a")
        return current_execution() is first

    assert await trial.value(body)
    context = trial.attempt.context
    assert (context.batch_id, context.document_id, context.ordinal) == ("batch", "document", 0)
    assert (context.attempt, context.run, context.metadata) == (1, 1, {})


# ---- keys ----------------------------------------------------------------------------------------------------------


@contextmanager
def by_binding(keys: CallKeys) -> Generator[None]:
    single, direct = keys._single, keys._direct
    keys._single = keys._direct = None
    try:
        yield
    finally:
        keys._single, keys._direct = single, direct


@durable_activity
async def of_two(later: str, first: int | None) -> None: ...


@durable_activity
async def with_default(text: str = "a") -> None: ...


@durable_activity(ignore=("client",))
async def of_some(text: str, client: object) -> None: ...


TEXTS = st.text(st.characters(codec="utf-8"))


@given(TEXTS, st.integers() | st.none())
def test_arguments_in_their_places_have_the_key_that_binding_gives(text: str, number: int | None) -> None:
    keys = of_two.definition.keys
    assert keys._direct is not None
    direct = key(of_two, text, number)
    assert direct == key(of_two, first=number, later=text) == key(of_two, text, first=number)
    with by_binding(keys):
        assert direct == key(of_two, text, number)


@given(TEXTS)
@example("a")
def test_a_single_argument_has_the_key_that_binding_gives(text: str) -> None:
    keys = with_default.definition.keys
    assert keys._single is not None
    single = key(with_default, text)
    assert single == key(with_default, text=text)
    assert (single == key(with_default)) == (text == "a")
    with by_binding(keys):
        assert single == key(with_default, text)


@given(TEXTS)
def test_arguments_that_are_no_part_of_the_key_are_left_out(text: str) -> None:
    assert of_some.definition.keys._direct is None
    assert key(of_some, text, object()) == key(of_some, client=None, text=text)


@given(st.integers())
@example(MORE_DIGITS_THAN_PYTHON_CONVERTS)
@example(-MORE_DIGITS_THAN_PYTHON_CONVERTS)
def test_a_whole_number_is_digested_as_the_serializer_writes_it(number: int) -> None:
    short, long = Digester(int, "number"), Digester(int, "number")
    long._scalar = None
    assert short.encode(number) == long.encode(number)


@given(st.booleans() | TEXTS | st.floats() | st.none())
def test_what_is_no_whole_number_is_digested_as_ever(value: Any) -> None:
    for annotation in (int, bool, str):
        short, long = Digester(annotation, "value"), Digester(annotation, "value")
        long._scalar = None
        assert outcome_of(short.encode, value) == outcome_of(long.encode, value)


# ---- payloads ------------------------------------------------------------------------------------------------------


class Size(StrEnum):
    SMALL = "small"


class Text(str):
    __slots__ = ()


def outcome_of(function: Callable[[Any], Any], value: Any) -> Any:
    """What it returns, with its type; or the error."""
    try:
        returned = function(value)
    except PayloadError as error:
        return str(error)
    return returned, type(returned[1]) if isinstance(returned, tuple) else None  # pyright: ignore


@given(st.integers() | st.booleans() | TEXTS)
@example(MORE_DIGITS_THAN_PYTHON_CONVERTS)
@example(-MORE_DIGITS_THAN_PYTHON_CONVERTS)
@example(Size.SMALL)
@example(Text("a"))
@example("\ud800")
@example(None)
@example(1.0)
def test_a_scalar_comes_back_as_if_it_were_read(value: Any) -> None:
    for annotation in (int, str, bool):
        short, long = Codec[Any](annotation, "value"), Codec[Any](annotation, "value")
        assert short._scalar is annotation
        long._scalar = None
        assert outcome_of(short.recoded, value) == outcome_of(long.recoded, value)


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str = ""


class Strict(BaseModel):
    text: str
    numbers: list[int] = []
    either: Literal["NaN", 3] | None = None
    inner: Strict | None = None


ANNOTATIONS: dict[Any, bool] = {
    # Whether their values may hold what JSON has no form for.
    int: False,
    str: False,
    list[str | int]: True,
    list[str]: False,
    Strict: False,
    list[Strict]: False,
    float: True,
    dict[str, str]: True,
    Any: True,
    Loose: True,
    list[Loose]: True,
}

WORDS = st.sampled_from(["NaN", "Infinity", "-Infinity", "In", "N", "I", "\ufffd", "\ud800", "x" * 600, '"', "a"])
VALUES = st.recursive(
    st.none() | WORDS | st.floats() | st.integers() | st.lists(WORDS).map("".join),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_which_types_are_looked_at(annotation: Any) -> None:
    assert Codec[Any](annotation, "value")._strict is ANNOTATIONS[annotation]


@given(VALUES)
@example({"NaN": "x" * 600})
@example(["x" * 600, float("nan")])
@example(["x" * 600, 10**20])
@example([float("-inf")])
@example({"\ud800": 1})
def test_a_search_finds_all_that_a_look_at_every_part_finds(value: Any) -> None:
    loose = Loose.model_construct(text="", **{f"x{index}": part for index, part in enumerate([value])})
    models = [Strict.model_construct(text=value), Strict.model_construct(text="a", numbers=[value])]
    of_other_types = [(annotation, value) for annotation in (int, str, list[str], list[Strict])]
    for annotation, given_value in [
        (Any, value),
        (Loose, loose),
        *((Strict, each) for each in models),
        *of_other_types,
    ]:
        for make in (Codec[Any], Digester):
            searched = outcome_of(make(annotation, "value").encode, given_value)
            with always_looking():
                assert outcome_of(every_part(make(annotation, "value")).encode, given_value) == searched


def every_part(writer: Codec[Any] | Digester) -> Codec[Any] | Digester:
    writer._scalar = None
    if isinstance(writer, Codec):
        writer._strict = True
    return writer


@contextmanager
def always_looking() -> Generator[None]:
    """Within: no payload is trusted for what a search of it finds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (codec, canonical):
            patch.setattr(module, "is_suspicious", bool)
        yield


@pytest.mark.parametrize("length", [0, 600])
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "N", "I", "None"])
def test_texts_that_look_like_numbers_are_stored(length: int, word: str) -> None:
    value = {"text": word, "more": "x" * length, word: [word]}
    payload = Codec[Any](dict[str, Any], "value").encode(value)
    assert json.loads(payload) == value


# ---- what is prepared late -----------------------------------------------------------------------------------------


def activity_with_a_later_type() -> DurableActivity[..., Any]:
    async def act(value: str) -> str:
        return value

    act.__annotations__ = {"value": "str", "return": "Later"}
    namespace: dict[str, Any] = {}
    activity = DurableActivity[[str], str](act, namespace=namespace)
    assert not {"keys", "codec"} & vars(activity.definition).keys()
    namespace["Later"] = str
    return activity


def test_keys_and_codec_are_prepared_by_the_first_use_of_either() -> None:
    first, second = activity_with_a_later_type(), activity_with_a_later_type()
    assert first.definition.codec.encode("a") == second.definition.codec.encode("a") == b'"a"'
    assert key(first, "a") == key(second, "a")
    third = activity_with_a_later_type()
    assert key(third, "a") == key(first, "a")
    assert third.definition.codec.encode("a") == b'"a"'


def test_a_type_that_is_nowhere_is_said_at_the_first_use() -> None:
    async def act(value: str) -> str:
        return value

    act.__annotations__ = {"value": "str", "return": "Nowhere"}
    activity = DurableActivity[[str], str](act)
    for use in (lambda: activity.definition.codec, lambda: key(activity, "a")):
        with pytest.raises(ActivityDefinitionError, match="'Nowhere' is not defined"):
            use()
