"""Events as JSON: there and back, valid by the published schema, also those of a newer library."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_batches import BatchEvent, BatchId, PayloadError, StageProgress, UnknownEvent
from durable_batches.web import event_json, event_of, event_schema, openapi, snapshot_schema

KINDS: list[Any] = list(get_args(BatchEvent))

moments = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
st.register_type_strategy(datetime, moments)
percentages = st.floats(min_value=0, max_value=100)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | percentages | names, st.lists, max_leaves=3)
OWN: dict[str, Any] = {
    "waits_for": st.lists(names, max_size=3).map(tuple),
    "percentage": percentages,
    "changes": st.dictionaries(names, json_values, max_size=3),
}
"""Of fields whose type alone allows what is never sent."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_comes_back_as_it_was(kind: Any) -> None:
    @settings(max_examples=30)
    @given(st.builds(kind, **{name: own for name, own in OWN.items() if name in kind.__dataclass_fields__}))
    def check(event: BatchEvent) -> None:
        text = event_json(event)
        assert "\n" not in text
        assert "\r" not in text
        assert event_of(text) == event
        assert {"batch_id", "seq", "at", "tag"} <= json.loads(text).keys()

    check()


def test_moments_are_utc_with_a_zone() -> None:
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    event = StageProgress(
        batch_id=BatchId("b"), seq=1, at=moment, document_id="d", stage="s", current=1, total=2, percentage=12.5
    )
    assert json.loads(event_json(event)) == {
        "batch_id": "b",
        "seq": 1,
        "at": "2030-01-02T03:04:05Z",
        "document_id": "d",
        "stage": "s",
        "current": 1,
        "total": 2,
        "percentage": 12.5,
        "tag": "stage_progress",
    }


def test_an_event_of_a_newer_library_is_unknown_and_a_new_field_is_left_out() -> None:
    newer = '{"batch_id": "b", "seq": 7, "at": "2030-01-01T00:00:00Z", "tag": "document_admired", "by": "all"}'
    event = event_of(newer)
    assert isinstance(event, UnknownEvent)
    assert (event.name, json.loads(event.data)) == ("document_admired", {"by": "all"})
    grown = (
        '{"batch_id": "b", "seq": 7, "at": "2030-01-01T00:00:00Z", "tag": "document_started", "document_id": "d",'
        ' "attempt": 1, "colour": "red"}'
    )
    assert event_of(grown).tag == "document_started"


@pytest.mark.parametrize("wrong", ["", "[]", "{}", '{"tag": "document_started"}', '{"tag": 1}', "nothing"])
def test_what_is_no_event_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        event_of(wrong)


def test_the_schema_of_events_tells_them_apart_by_their_tags() -> None:
    schema = event_schema()
    assert len(schema["oneOf"]) == len(KINDS)
    assert set(schema["discriminator"]["mapping"]) == {kind.__dataclass_fields__["tag"].default for kind in KINDS}
    for definition in schema["$defs"].values():
        # What is sent has every field, also one with a default.
        assert set(definition.get("required", ())) == set(definition.get("properties", ()))


def test_the_schemas_are_copies() -> None:
    for make in (event_schema, snapshot_schema, openapi):
        changed: Any = make()
        changed.clear()
        assert make() != {}
