"""OCR with custom stages: scanned pages to text, on the CPU.

    python examples/ocr.py                   (needs: pip install durable-batches)

The first run makes a folder `scans/` with a few noisy pages (as PBM files, which any image viewer shows), reads them
and writes `text/`. Stop it in the middle and start it again: recorded pages are not read again.

It shows custom stages, sync functions that run in threads with a timeout and report their progress, live snapshots for
a UI, and a `match` on the batch's state that the type checker verifies to be exhaustive.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Literal, assert_never

from pydantic import BaseModel

from durable_batches import (
    ActivityReport,
    BatchConfig,
    BatchOrchestrator,
    BatchState,
    BatchStateMachine,
    Cancelled,
    Completed,
    ContinueOnFailure,
    DocumentCancelled,
    DocumentFailure,
    DocumentSucceeded,
    Failed,
    NonRetryableError,
    Pending,
    Resolving,
    Results,
    SQLiteStore,
    Stage,
    current_activity,
    durable_activity,
    workflow,
)

# ---- stages ---------------------------------------------------------------------------------------------------------


class Cleaning(Stage):
    tag: Literal["cleaning"] = "cleaning"


class Ocr(Stage):
    tag: Literal["ocr"] = "ocr"


class Proofreading(Stage):
    tag: Literal["proofreading"] = "proofreading"


PAGES = BatchStateMachine(Cleaning, Ocr, Proofreading)


# ---- documents and results ------------------------------------------------------------------------------------------


class Scan(BaseModel):
    """The batch contains only the path of a page's file."""

    id: str
    path: Path


class Bitmap(BaseModel):
    width: int
    height: int
    pixels: bytes
    """One byte per pixel, row by row: 1 is ink."""

    def row(self, y: int) -> bytes:
        return self.pixels[y * self.width : (y + 1) * self.width]


class Line(BaseModel):
    text: str
    certainty: float
    """The share of pixels that match the recognised characters, 0 to 1."""


class Page(BaseModel):
    text: str
    certainty: float
    corrected: int
    """Words that the proofreader has changed."""


class DamagedScanError(NonRetryableError):
    """The file is not a page; retrying does not help."""


# ---- activities -----------------------------------------------------------------------------------------------------

# Sync functions run in a thread, so the event loop and all other documents continue.


@durable_activity(stage=Cleaning)
def clean(scan: Path) -> Bitmap:
    """Read the file and remove dust: isolated pixels."""
    page = read_pbm(scan)
    ink = page.pixels
    rows = [bytes(page.width), *(page.row(y) for y in range(page.height)), bytes(page.width)]
    kept = bytearray(len(ink))
    for y, x in product(range(page.height), range(page.width)):
        around = slice(max(x - 1, 0), x + 2)
        if rows[y + 1][x] and sum(sum(rows[y + near][around]) for near in range(3)) > 1:
            kept[y * page.width + x] = 1
    return Bitmap(width=page.width, height=page.height, pixels=bytes(kept))


# The version is part of the checkpoint key: after an improvement of the font table, "2" reads all pages again.
@durable_activity(stage=Ocr, timeout=timedelta(minutes=1), version="1")
def recognise(page: Bitmap) -> list[Line]:
    call = current_activity()
    top, left = find_grid(page)
    lines: list[Line] = []
    tops = range(top, page.height - GLYPH_HEIGHT + 1, LINE_PITCH)
    for number, y in enumerate(tops, start=1):
        lines.append(read_line(page, y, left))
        call.report(number, len(tops))
    return lines


@durable_activity(stage=Proofreading)
def proofread(lines: list[Line], vocabulary: list[str]) -> Page:
    corrected = 0
    text: list[str] = []
    for line in lines:
        words = [nearest(word, vocabulary) for word in line.text.split()]
        corrected += sum(word != read for word, read in zip(words, line.text.split(), strict=True))
        text.append(" ".join(words))
    certainty = min((line.certainty for line in lines), default=1.0)
    return Page(text="\n".join(text).strip(), certainty=round(certainty, 3), corrected=corrected)


async def worst_first(results: Results[Page]) -> list[str]:
    """For manual review: page ids, the least certain one first."""
    pages = [(result.value.certainty, result.document_id) async for result in results]
    return [page for _, page in sorted(pages)]


@workflow(PAGES, name="ocr", resolver=worst_first)
async def read_page(scan: Scan) -> Page:
    bitmap = await clean(scan.path)
    lines = await recognise(bitmap)
    return await proofread(lines, VOCABULARY)


# ---- recognition: characters on a grid, told apart by their pixels --------------------------------------------------

SCALE = 2
GLYPH_WIDTH, GLYPH_HEIGHT = 5 * SCALE, 7 * SCALE
CHARACTER_PITCH, LINE_PITCH = 6 * SCALE, 10 * SCALE

# Five columns per character, the lowest bit on top.
FONT: dict[str, bytes] = {
    character: bytes.fromhex(columns)
    for character, columns in zip(
        " .,-'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "0000000000 0000606000 0080703000 0808080808 0008070300 3e5149453e 00427f4000 7249494946 2141494d33 1814127f10 "
        "2745454539 3c4a494931 4121110907 3649494936 464949291e 7c1211127c 7f49494936 3e41414122 7f4141413e 7f49494941 "
        "7f09090901 3e41415173 7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f021c027f 7f0408107f 3e4141413e "
        "7f09090906 3e4151215e 7f09192946 2649494932 03017f0103 3f4040403f 1f2040201f 3f4038403f 6314081463 0304780403 "
        "6159494d43".split(),
        strict=True,
    )
}


def glyph_rows(character: str) -> list[bytes]:
    """Return the character's pixels, row by row."""
    columns = FONT[character]
    rows = [bytes(column >> y & 1 for column in columns for _ in range(SCALE)) for y in range(7)]
    return [row for row in rows for _ in range(SCALE)]


def as_number(rows: Sequence[bytes]) -> int:
    """Pack one bit per pixel, so that two images are compared in one operation."""
    return int("".join("1" if pixel else "0" for pixel in b"".join(rows)), 2)


TEMPLATES = [(character, as_number(glyph_rows(character))) for character in FONT]


def find_grid(page: Bitmap) -> tuple[int, int]:
    """Find the start of the first line and character: the gaps between them have hardly any ink."""
    by_row = [sum(page.row(y)) for y in range(page.height)]
    by_column = [sum(page.pixels[x :: page.width]) for x in range(page.width)]
    return _first(by_row, GLYPH_HEIGHT, LINE_PITCH), _first(by_column, GLYPH_WIDTH, CHARACTER_PITCH)


def _first(ink: Sequence[int], size: int, pitch: int) -> int:
    def in_the_gaps(begin: int) -> int:
        return sum(amount for place, amount in enumerate(ink) if (place - begin) % pitch >= size)

    return min(range(pitch), key=in_the_gaps)


def read_line(page: Bitmap, top: int, left: int) -> Line:
    rows = [page.row(y) for y in range(top, top + GLYPH_HEIGHT)]
    text, wrong = "", 0
    for x in range(left, page.width - GLYPH_WIDTH + 1, CHARACTER_PITCH):
        seen = as_number([row[x : x + GLYPH_WIDTH] for row in rows])
        distance, character = min(((seen ^ template).bit_count(), character) for character, template in TEMPLATES)
        text += character
        wrong += distance
    pixels = max(len(text), 1) * GLYPH_WIDTH * GLYPH_HEIGHT
    return Line(text=text.rstrip(), certainty=1 - wrong / pixels)


def nearest(word: str, vocabulary: Sequence[str]) -> str:
    """Return the word of the vocabulary that differs by at most one character, or else the given word."""
    alike = [known for known in vocabulary if len(known) == len(word)]
    close = [known for known in alike if sum(a != b for a, b in zip(known, word, strict=True)) <= 1]
    return word if word in close or len(close) != 1 else close[0]


# ---- files ----------------------------------------------------------------------------------------------------------


def read_pbm(path: Path) -> Bitmap:
    """Parse a plain portable bitmap: "P1", width, height, and one digit per pixel."""
    kind, *numbers = path.read_text(encoding="ascii", errors="replace").split(maxsplit=3)
    if kind != "P1" or len(numbers) != 3 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        raise DamagedScanError(f"{path} is no plain PBM file")
    width, height = int(numbers[0]), int(numbers[1])
    digits = "".join(numbers[2].split())
    if len(digits) != width * height or digits.strip("01"):
        raise DamagedScanError(f"{path} has {len(digits)} pixels, and says {width} x {height}")
    return Bitmap(width=width, height=height, pixels=bytes(digit == "1" for digit in digits))


def write_scan(path: Path, text: str, *, seed: int, noise: float = 0.08) -> None:
    """Render a page like a bad scanner: shifted a little, with a share of its pixels flipped."""
    chance = random.Random(seed)
    lines = text.splitlines()
    top, left = chance.randrange(3, LINE_PITCH), chance.randrange(3, CHARACTER_PITCH)
    width = left + max(map(len, lines)) * CHARACTER_PITCH + 4
    rows = [bytes(width)] * top
    for line in lines:
        characters = [glyph_rows(character) for character in line]
        gap = bytes(CHARACTER_PITCH - GLYPH_WIDTH)
        rows += [(bytes(left) + gap.join(parts) + gap).ljust(width, b"\0") for parts in zip(*characters, strict=True)]
        rows += [bytes(width)] * (LINE_PITCH - GLYPH_HEIGHT)
    noisy = [[pixel ^ (chance.random() < noise) for pixel in row] for row in rows]
    picture = "\n".join("".join(map(str, map(int, row))) for row in noisy)
    path.write_text(f"P1\n{width} {len(rows)}\n{picture}\n", encoding="ascii")


TEXTS = [
    "DEAR MR BABBAGE,\nI AM WORKING VERY HARD FOR YOU,\nLIKE THE DEVIL IN FACT.\nYOURS, ADA. 5 JULY 1843",
    "THE ANALYTICAL ENGINE WEAVES\nALGEBRAICAL PATTERNS JUST AS\nTHE JACQUARD LOOM WEAVES\nFLOWERS AND LEAVES.",
    "NUMBERS 1, 1, 2, 3, 5, 8, 13, 21\nARE TO BE FOUND ON CARD 7.\nPLEASE SEND CARDS 8 TO 12.",
    "MY BRAIN IS SOMETHING MORE THAN\nMERELY MORTAL, AS TIME WILL SHOW.",
    "IT HAS NO PRETENSIONS WHATEVER\nTO ORIGINATE ANYTHING. IT CAN\nDO WHATEVER WE KNOW HOW TO\nORDER IT TO PERFORM.",
]
VOCABULARY = sorted({word for text in TEXTS for word in text.split()})


def scans(folder: Path) -> Iterator[Scan]:
    """List the pages in the folder; make a few if there are none."""
    if not folder.exists():
        folder.mkdir()
        for number, text in enumerate(TEXTS * 4, start=1):
            write_scan(folder / f"page-{number:02}.pbm", text, seed=number)
        (folder / "page-21.pbm").write_text("P1\n200 40\n0110", encoding="ascii")  # the scanner ran out of paper
    for path in sorted(folder.glob("*.pbm")):
        yield Scan(id=path.stem, path=path)


# ---- the program ----------------------------------------------------------------------------------------------------


def in_words(state: BatchState[Cleaning | Ocr | Proofreading]) -> str:
    """Describe a state; without one of the cases, mypy and pyright report an error."""
    match state:
        case Pending(total=total):
            return f"{total} pages wait"
        case Cleaning(done=done, total=total):
            return f"cleaning, {done} of {total} done"
        case Ocr(done=done, total=total):
            return f"reading, {done} of {total} done"
        case Proofreading(done=done, total=total):
            return f"proofreading, {done} of {total} done"
        case Resolving():
            return "putting the pages in order"
        case Completed(counts=counts):
            return f"{counts.succeeded} pages read, {counts.failed} not"
        case Failed(error=error):
            return f"failed: {error}"
        case Cancelled(reason=reason):
            return f"cancelled: {reason}"
        case _:
            assert_never(state)


def show(percentage: float, words: str, reports: Sequence[ActivityReport]) -> None:
    lines = ", ".join(f"{report.document_id}: line {report.current} of {report.total}" for report in reports)
    print(f"{percentage:5.1f} %  {words}" + (f"  ({lines})" if lines else ""))


async def main() -> None:
    output = Path("text")
    output.mkdir(exist_ok=True)
    config = BatchConfig(concurrency=4, failure_policy=ContinueOnFailure(max_failures=3))
    async with BatchOrchestrator(read_page, store=SQLiteStore("ocr.db"), config=config) as batches:
        batch_id = await batches.submit(scans(Path("scans")), batch_id="scans")
        async for snapshot in batches.watch(batch_id, interval=timedelta(milliseconds=50)):
            show(snapshot.percentage, in_words(snapshot.state), batches.reports(batch_id))

        async for outcome in batches.results(batch_id):
            match outcome:
                case DocumentSucceeded(document_id=page, value=value):
                    (output / f"{page}.txt").write_text(value.text + "\n", encoding="utf-8")
                case DocumentFailure(document_id=page, error=error):
                    print(f"{page}: {error}", file=sys.stderr)
                case DocumentCancelled(document_id=page):
                    print(f"{page}: cancelled", file=sys.stderr)

        result = await batches.result(batch_id)
        print(f"to be looked at first: {result.value[0]}")
        print(f"activities run and recorded this time: {batches.stats.activities_run}")


if __name__ == "__main__":
    asyncio.run(main())
