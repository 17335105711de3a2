"""Activities that workflows of the tests reach by way of this module."""

from __future__ import annotations

from typing import Literal

from tests.support import Reading

from durable_batches import Stage, durable_activity


class Elsewhere(Stage):
    tag: Literal["elsewhere"] = "elsewhere"


@durable_activity(stage=Elsewhere)
async def foreign(text: str) -> str:
    return text


@durable_activity(stage=Reading)
async def native(text: str) -> str:
    return text


@durable_activity(stage=Elsewhere)
async def split(text: str) -> list[str]:
    """Has the name of a method that every text has."""
    return [text]


class Toolbox:
    foreign = foreign
    native = native


class DerivedToolbox(Toolbox):
    pass
