"""The TypeScript types: generated again, compiled with the documentation's code, and used in a real browser."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import uvicorn
from playwright.async_api import Page
from tests.browser import node
from tests.browser.batches import HOSTILE, shop
from tests.browser.tab import Looks, Tabs
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


def documented() -> str:
    """The documentation's code, as one program."""
    return "\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def compiled(folder: Path, programs: Sequence[str], *options: str) -> str:
    """What the compiler says of programs with the types beside them; it leaves JavaScript in the folder."""
    shutil.copy(TYPES, folder)
    for number, program in enumerate(programs):
        (folder / f"program{number}.ts").write_text(program, encoding="utf-8")
    names = [f"program{number}.ts" for number in range(len(programs))]
    strict = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes")
    target = ("--target", "es2022", "--lib", "es2022,dom", "--module", "esnext", "--moduleResolution", "bundler")
    return node.run("tsc", *strict, *target, *options, TYPES.name, *names, cwd=folder).stdout


def test_what_is_committed_is_what_is_generated() -> None:
    assert TYPES.read_text(encoding="utf-8") == generate()


def test_they_compile_and_narrow_by_tag(tmp_path: Path) -> None:
    assert compiled(tmp_path, [RIGHT, documented()], "--noEmit") == ""


def test_mistakes_are_found(tmp_path: Path) -> None:
    found = compiled(tmp_path, list(WRONG), "--noEmit")
    errors = re.findall(r"^program(\d)\.ts\(.*?: error TS(\d+):", found, re.MULTILINE)
    assert errors == [(str(index), str(number)) for index, number in enumerate(WRONG.values())], found


async def client_in(page: Page, folder: Path, batch_url: str) -> None:
    """Have the documentation's client follow a batch, and keep what it is given."""
    program = BLOCK.findall(PAGE.read_text(encoding="utf-8"))[0]
    assert compiled(folder, [program]) == ""
    script = (folder / "program0.js").read_text(encoding="utf-8").replace("export ", "")
    tags = [*schema()["$defs"]["BatchEvent"]["discriminator"]["mapping"]]
    await page.evaluate(
        f"""([url, tags]) => {{
          {script}
          window.seen = [];
          window.source = follow(url, Object.fromEntries(tags.map((tag) => [tag, (event) => window.seen.push(event)])));
        }}""",
        [batch_url, tags],
    )


async def test_an_event_source_gets_every_event_once_and_stops_at_the_end(tmp_path: Path, tabs: Tabs) -> None:
    async with shop(tmp_path / "batches.db") as found:
        app = create_app(found.batches, allow_anonymous=True)
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
            serving = asyncio.create_task(server.serve([listener]))
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            await found.submit(HOSTILE, ["letter", "slow letter", f"bad {HOSTILE}"])
            await found.rest(HOSTILE, succeeded=1, failed=1)
            tab = await tabs.open(f"{address}/", Looks("desktop", "light"), token="")
            await client_in(tab.page, tmp_path, f"/batches/{segment_of(HOSTILE)}")

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
            server.should_exit = True
            await within(serving)
