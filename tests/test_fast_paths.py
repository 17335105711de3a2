"""What is done for speed alone: records made without their constructor's checks, events decoded once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pytest
from tests.support import STAGES, Reading, Thinking

import durable_batches
from durable_batches import BatchId, BatchOrchestrator, MemoryStore, durable_activity, workflow
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.records import EventRecord

T = TypeVar("T", bound=tuple[object, ...])

SOURCE: Final = Path(durable_batches.__file__).parent
USERS: Final = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if "import make_record" in path.read_text()
)


@durable_activity(stage=Reading)
async def read(document: str) -> int:
    return len(document)


@durable_activity(stage=Thinking)
async def think(length: int) -> int:
    return length + 1


@workflow(STAGES, name="reading and thinking")
async def read_and_think(document: str) -> int:
    return await think(await read(document))


def fits(value: object, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return type(value) is getattr(hint, "__supertype__", hint)


@pytest.mark.parametrize("module", USERS)
async def test_every_place_gives_all_fields_in_their_order(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[type[Any], tuple[object, ...]]] = []

    def make_and_note(kind: type[T], fields: tuple[object, ...], /) -> T:
        made.append((kind, fields))
        return make_record(kind, fields)

    monkeypatch.setattr(import_module(module), "make_record", make_and_note)
    async with BatchOrchestrator(read_and_think, store=MemoryStore()) as batches:
        result = await batches.run(["one", "three"])
    assert result.counts.succeeded == 2
    assert made, f"{module} has made no record"
    for kind, fields in made:
        hints = get_type_hints(kind)
        assert len(fields) == len(hints), f"{kind.__name__} has other fields"
        for value, (name, hint) in zip(fields, hints.items(), strict=True):
            assert fits(value, hint), f"{kind.__name__}.{name} is made of {value!r}"


def test_all_users_are_known() -> None:
    assert USERS, "nobody uses make_record, or it is imported in another way"


def test_an_event_is_decoded_once_for_all_subscribers() -> None:
    records = [EventRecord(BatchId("batch"), 1, 0, "document_started", b'["a",1]') for _ in range(2)]
    assert records[0] is not records[1]
    assert decode_event(records[0]) is decode_event(records[1])
