"""The TypeScript types: generated again, compiled with the documentation's code, and used in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from playwright.async_api import Page
from tests.browser import node
from tests.browser.batches import HOSTILE, shop
from tests.browser.serving import served
from tests.browser.tab import Tabs
from tests.support import eventually, everything, within
from tests.web.typescript import TYPES, generate, schema

from durable_batches.web import create_app, event_of
from durable_batches.web.urls import segment_of

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "how-to" / "show-progress-over-http.md"
BLOCK: Final = re.compile(r"^```typescript\n(.*?)^```", re.MULTILINE | re.DOTALL)

RIGHT: Final = """
import type { Batch, BatchEvent, ErrorDigest } from "./durable_batches";

export function describe(event: BatchEvent): string {
  switch (event.tag) {
    case "stage_progress":
      return `${event.stage}: ${event.current.toFixed()} of ${event.total.toFixed()}, ${event.percentage.toFixed()} %`;
    case "document_failed":
      return event.error.trim();
    default:
      return `${event.seq.toFixed()} ${event.at.trim()}`;
  }
}

export function eta(batch: Batch): string {
  const done: number = batch.counts.succeeded;
  return batch.eta === null ? `${done}` : batch.eta.slice(0, 10);
}

export function worst(digest: ErrorDigest): string | undefined {
  return digest.groups[0]?.examples[0]?.document_id;
}
"""

WRONG: Final = {
    'import type { BatchEvent } from "./durable_batches"; export const tag: BatchEvent["tag"] = "stage_progres";': 2820,
    'import type { BatchEvent } from "./durable_batches"; export const f = (e: BatchEvent) => e.stage;': 2551,
    'import type { Batch } from "./durable_batches"; export const f = (b: Batch): string => b.eta;': 2322,
    'import type { Batch } from "./durable_batches"; export const f = (b: Batch) => b.count;': 2551,
}
"""Programs with the number of the error that each has."""

WRONG_PROGRAMS: Final = {f"wrong{number}": program for number, program in enumerate(WRONG)}


def documented() -> str:
    """The documentation's code, as one program."""
    return "\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def client() -> str:
    """The first program of the documentation: the client."""
    program: str = BLOCK.findall(PAGE.read_text(encoding="utf-8"))[0]
    return program


class Compiled(NamedTuple):
    said: str
    """The errors, a line each."""
    client: str
    """The documentation's client as JavaScript, without exports."""

    def errors(self, program: str) -> Sequence[int]:
        """The numbers of the errors in one program."""
        found = re.findall(rf"^{program}\.ts\(.*?: error TS(\d+):", self.said, re.MULTILINE)
        return [int(number) for number in found]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """All programs with the types beside them, compiled in one go."""
    folder = tmp_path_factory.mktemp("typescript")
    shutil.copy(TYPES, folder)
    programs = {"right": RIGHT, "documented": documented(), "client": client(), **WRONG_PROGRAMS}
    for name, program in programs.items():
        (folder / f"{name}.ts").write_text(program, encoding="utf-8")
    strict = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes")
    target = ("--target", "es2022", "--lib", "es2022,dom", "--module", "esnext", "--moduleResolution", "bundler")
    said = node.run("tsc", *strict, *target, TYPES.name, *(f"{name}.ts" for name in programs), cwd=folder).stdout
    return Compiled(said, (folder / "client.js").read_text(encoding="utf-8").replace("export ", ""))


def test_what_is_committed_is_what_is_generated() -> None:
    assert TYPES.read_text(encoding="utf-8") == generate()


@pytest.mark.parametrize("program", ["right", "documented", "client"])
def test_they_compile_and_narrow_by_tag(program: str, compiled: Compiled) -> None:
    assert compiled.errors(program) == [], compiled.said


def test_mistakes_are_found(compiled: Compiled) -> None:
    errors = {program: compiled.errors(program) for program in WRONG_PROGRAMS}
    assert errors == {name: [number] for name, number in zip(WRONG_PROGRAMS, WRONG.values(), strict=True)}
    # And nowhere else: neither in the types, nor in an option.
    assert len(re.findall("error TS", compiled.said)) == len(WRONG), compiled.said


async def client_in(page: Page, script: str, batch_url: str) -> None:
    """Have the documentation's client follow a batch, and keep what it is given."""
    tags = [*schema()["$defs"]["BatchEvent"]["discriminator"]["mapping"]]
    await page.evaluate(
        f"""([url, tags]) => {{
          {script}
          window.seen = [];
          window.source = follow(url, Object.fromEntries(tags.map((tag) => [tag, (event) => window.seen.push(event)])));
        }}""",
        [batch_url, tags],
    )


async def test_an_event_source_gets_every_event_once_and_stops_at_the_end(
    compiled: Compiled, tmp_path: Path, tabs: Tabs
) -> None:
    async with (
        shop(tmp_path / "batches.db") as found,
        served(create_app(found.batches, allow_anonymous=True)) as here,
    ):
        await found.submit(HOSTILE, ["letter", "slow letter", f"bad {HOSTILE}"])
        await found.rest(HOSTILE, succeeded=1, failed=1)
        tab = await tabs.open(here.address, token="")
        await client_in(tab.page, compiled.client, f"/batches/{segment_of(HOSTILE)}")

        async def has(count: int) -> bool:
            seen: int = await tab.page.evaluate("window.seen.length")
            return seen >= count

        await eventually(lambda: has(5))
        found.gate.set()
        await within(found.batches.result(HOSTILE))
        events = await everything(found.batches.progress(HOSTILE))

        async def is_closed() -> bool:
            state: int = await tab.page.evaluate("window.source.readyState")
            return state == 2

        # It connects once more, and is told that there is nothing more.
        await eventually(is_closed)
        seen: list[str] = await tab.page.evaluate("window.seen.map((event) => JSON.stringify(event))")
        assert [event_of(each) for each in seen] == events
