"""Calls of one document that have one key and are not the same call are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.runtime.attempts import Trial
from tests.support import ONCE

from durable_batches import ActivityDefinitionError, durable_activity
from durable_batches.runtime.attempt_result import AttemptFailed


def translator(language: str) -> Callable[[str], Awaitable[str]]:
    @durable_activity(retry=ONCE)
    async def translate(text: str) -> str:
        return f"{language}:{text}"

    return translate


async def refusal_of(body: Callable[[], Any]) -> str:
    ended = await Trial().end(body)
    assert isinstance(ended, AttemptFailed), ended
    assert isinstance(ended.error, ActivityDefinitionError)
    assert not ended.retryable
    return str(ended.error)


# ---- activities ----------------------------------------------------------------------------------------------


async def test_activities_of_one_name_that_a_factory_makes_are_refused() -> None:
    languages = {"fr": translator("fr"), "de": translator("de")}
    ran: list[str] = []

    async def body() -> None:
        ran.extend([await languages["fr"]("hello")])
        ran.extend([await languages["de"]("hello")])

    assert "two activities of the name 'translate'" in await refusal_of(body)
    assert ran == ["fr:hello"]


async def test_another_function_of_the_name_is_refused_whatever_its_input() -> None:
    @durable_activity(name="translate")
    async def other(text: str) -> str:
        return text

    async def body() -> None:
        await asyncio.gather(translator("fr")("hello"), other("good bye"))

    assert "two activities of the name 'translate'" in await refusal_of(body)


async def test_two_versions_of_an_activity_are_two_activities() -> None:
    @durable_activity(version="1")
    async def read() -> int:
        return 1

    @durable_activity(name="read", version="2")
    async def newer() -> int:
        return 2

    async def body() -> list[int]:
        return [await read(), await newer(), await read()]

    assert await Trial().value(body) == [1, 2, 1]


async def test_an_activity_that_a_helper_defines_each_time_is_one_activity() -> None:
    async def helper(number: int, unit: str) -> str:
        @durable_activity
        async def inner(number: int) -> str:
            return str(number)

        @durable_activity
        async def label(number: int, suffix: str = "") -> str:
            return await inner(number) + unit + suffix

        return await label(number)

    async def body() -> list[str]:
        return [await helper(1, "m"), await helper(2, "m"), await helper(2, "m")]

    assert await Trial().value(body) == ["1m", "2m", "2m"]

    async def another_unit() -> list[str]:
        return [await helper(1, "m"), await helper(2, "ft")]

    assert "two activities of the name 'label'" in await refusal_of(another_unit)


async def test_a_key_function_or_ignored_parameters_make_another_activity() -> None:
    def made(ignore: tuple[str, ...]) -> Callable[[int, int], Awaitable[int]]:
        async def act(number: int, other: int) -> int:
            return number

        return durable_activity(ignore=ignore)(act)

    async def body() -> None:
        await made(("other",))(1, 2)
        await made(())(1, 2)

    assert "two activities of the name 'act'" in await refusal_of(body)


# ---- objects that methods are bound to -----------------------------------------------------------------------


class Client:
    """Holds what is another one in each object, and is no data."""


@dataclass
class Settings:
    language: str
    tags: list[str] = field(default_factory=list[str])


class Translator:
    def __init__(self, language: str, settings: Settings | None = None) -> None:
        self.language = language
        self.settings = settings
        self.client = Client()

    @durable_activity
    async def translate(self, text: str) -> str:
        return f"{self.language}:{text}"

    def _key(self, text: str) -> str:
        return f"{self.language}/{text}"

    @durable_activity(key=_key)
    async def keyed(self, text: str) -> str:
        return f"{self.language}:{text}"


class Slotted:
    __slots__ = ("__weakref__", "language")

    def __init__(self, language: str) -> None:
        self.language = language

    @durable_activity
    async def translate(self, text: str) -> str:
        return f"{self.language}:{text}"


DIFFERENT = [
    (Translator("fr"), Translator("de"), "language"),
    (Translator("fr", Settings("fr")), Translator("fr", Settings("de")), "settings"),
    (Translator("fr", Settings("fr", ["a"])), Translator("fr", Settings("fr", ["b"])), "settings"),
    (Translator("fr", Settings("fr")), Translator("fr"), "settings"),
    (Slotted("fr"), Slotted("de"), "language"),
]


@pytest.mark.parametrize(("one", "other", "name"), DIFFERENT, ids=range(len(DIFFERENT)))
async def test_one_call_on_objects_that_differ_is_refused(one: Any, other: Any, name: str) -> None:
    async def body() -> None:
        await asyncio.gather(one.translate("hello"), other.translate("hello"))

    assert f"on two objects that differ ({name})" in await refusal_of(body)


async def test_objects_that_differ_may_be_called_with_different_inputs() -> None:
    async def body() -> list[str]:
        return [await Translator("fr").translate("hello"), await Translator("de").translate("good bye")]

    assert await Trial().value(body) == ["fr:hello", "de:good bye"]


async def test_objects_of_the_same_data_are_one_however_often_they_are_made() -> None:
    async def body() -> list[str]:
        return [await Translator("fr", Settings("fr")).translate("hello") for _ in range(3)]

    assert await Trial().value(body) == ["fr:hello"] * 3


async def test_an_explicit_key_tells_objects_apart() -> None:
    async def body() -> list[str]:
        keyed = [await Translator(language).keyed("hello") for language in ("fr", "de")]
        named = [await Translator(language).translate.with_options(key=language)("hello") for language in ("fr", "de")]
        return keyed + named

    assert await Trial().value(body) == ["fr:hello", "de:hello"] * 2
