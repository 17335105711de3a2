"""The TypeScript types of all that the routes answer and the streams send, generated from the published schemas.

python -m tests.web.typescript    # write them, as `make typescript` does

The generator is json-schema-to-typescript. The file begins with a digest of the schemas that it was made of.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.browser import node

from durable_batches.web import openapi

TYPES: Final = Path(__file__).parents[2] / "docs" / "assets" / "durable_batches.d.ts"

_ROOT: Final = "Schemas"
_EVENT: Final = "BatchEvent"
_BANNER: Final = """\
// What durable_batches.web answers and sends. Generated from its schemas by `make typescript`; do not edit.
// Fields and tags that are not here may come with a newer server: ignore them.
// Schemas: {digest}
"""


def schema() -> dict[str, Any]:
    """All published schemas as one: an object that has each of them under its name."""
    published: dict[str, Any] = openapi()["components"]["schemas"]
    text = json.dumps(published).replace("#/components/schemas/", "#/$defs/")
    definitions: dict[str, Any] = json.loads(text)
    for definition in definitions.values():
        for field in definition.get("properties", {}).values():
            _prepare(field)
    definitions[_EVENT]["description"] = "An event of a batch, as `data` of the stream has it."
    return {
        "title": _ROOT,
        "description": "Every schema by its name.",
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions},
        "required": [*definitions],
        "$defs": definitions,
    }


def _prepare(field: dict[str, Any]) -> None:
    # Every field is there in what is sent, so its default says nothing.
    field.pop("default", None)
    if field.get("x-open"):
        # The words that there are, for an editor, and any other that a newer server may send.
        words = " | ".join(json.dumps(word) for word in field["enum"])
        field["tsType"] = f"{words} | (string & {{}})"


def digest(combined: Mapping[str, Any]) -> str:
    """A digest of schemas, whatever the order of their keys."""
    text = json.dumps(combined, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def generate() -> str:
    """The types of the schemas as they are now."""
    combined = schema()
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / f"{_ROOT}.json"
        given.write_text(json.dumps(combined), encoding="utf-8")
        made = node.run(
            "json2ts",
            *("--input", given),
            *("--bannerComment", _BANNER.format(digest=digest(combined)).rstrip()),
            "--no-additionalProperties",
            *("--style.printWidth", "100"),
            cwd=Path(folder),
        )
    if made.returncode or not made.stdout:
        raise RuntimeError(made.stderr or "json2ts printed nothing")
    return made.stdout


if __name__ == "__main__":
    TYPES.write_text(generate(), encoding="utf-8")
