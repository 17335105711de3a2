"""The committed TypeScript types are those of the schemas; the lane `browser` compares them with what is generated."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.web.typescript import TYPES, digest, schema

INTERFACE = re.compile(r"^export interface (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^  (\w+)(\??):", re.MULTILINE)
AGAIN = "the schemas have changed: run `make typescript`, and commit what it writes"


@pytest.fixture(scope="module")
def types() -> str:
    return TYPES.read_text(encoding="utf-8")


def fields_of(definition: dict[str, Any]) -> dict[str, bool]:
    """The fields of a schema, each with whether it is always there."""
    return {name: name in definition.get("required", ()) for name in definition["properties"]}


def test_they_were_made_of_these_schemas(types: str) -> None:
    assert f"// Schemas: {digest(schema())}\n" in types, AGAIN


def test_every_schema_has_its_interface_with_its_fields(types: str) -> None:
    found = {
        name: {field: not optional for field, optional in FIELD.findall(body)}
        for name, body in INTERFACE.findall(types)
    }
    combined = schema()
    wanted = {name: fields_of(each) for name, each in combined["$defs"].items() if "properties" in each}
    wanted["Schemas"] = fields_of(combined)
    assert len(wanted) > 50
    assert found == wanted, AGAIN


def test_an_event_is_one_of_all_by_its_tag(types: str) -> None:
    union = re.search(r"^export type BatchEvent =(.*?);", types, re.MULTILINE | re.DOTALL)
    assert union is not None
    members = set(re.findall(r"\w+", union[1]))
    event = schema()["$defs"]["BatchEvent"]
    assert members == {each["$ref"].rpartition("/")[2] for each in event["oneOf"]}, AGAIN
    for tag, reference in event["discriminator"]["mapping"].items():
        name = reference.rpartition("/")[2]
        assert f'  tag: "{tag}";' in dict(INTERFACE.findall(types))[name], AGAIN


def test_words_that_may_grow_leave_room_for_others(types: str) -> None:
    assert 'reason: "shutdown"' in types
    assert types.count("| (string & {})") == str(schema()).count("'x-open': True")
