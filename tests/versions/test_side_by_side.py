"""An old and a new version of the library work on one database, during a deployment, and after it is rolled back.

The old one is the wheel that is kept beside this file (README.md there says what it was built from). The new one is the
code under test, with what a later version may add. From 0.2.0 on, all versions have to get along like that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase
from tests.support import eventually
from tests.versions.newer import make_newer
from tests.warm import Source, warm

import durable_batches
from durable_batches.lifecycle.records import GENERATION

HERE: Final = Path(__file__).parent
PACKAGE: Final = Path(durable_batches.__file__).parent

pytestmark = pytest.mark.processes


@dataclass(frozen=True)
class Version:
    """A version of the library: its folder, and a process that has imported it."""

    folder: Path
    source: Source


class Child:
    """A process of one version."""

    def __init__(self, version: Version, place: str, folder: Path, max_in_flight: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(version.folder)}
        command = [sys.executable, "-W", "error", str(HERE / "program.py"), place, str(folder), str(max_in_flight)]
        pipe = subprocess.PIPE
        with warm(version.source):
            self.process: Final = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
            )
        self.expect("ready")

    def ask(self, do: str, **question: Any) -> Any:
        """Ask, and wait for the answer."""
        self.tell(do, **question)
        return self.answer()

    def tell(self, do: str, **question: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **question}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, error = self.process.communicate()
            raise AssertionError(f"the process has ended: {error}")
        return json.loads(line)

    def expect(self, answer: object) -> None:
        assert self.answer() == answer

    def leave(self) -> None:
        """End it as a shutdown does."""
        _, error = self.process.communicate(timeout=30)
        assert (self.process.returncode, error) == (0, "")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class Deployment:
    """Processes of both versions on one database."""

    def __init__(self, old: Version, new: Version, database: Database, folder: Path) -> None:
        self.old, self.new = old, new
        self.folder = folder
        self._place = database.place
        self._children = ExitStack()

    def start(self, version: Version, max_in_flight: int = 4) -> Child:
        child = Child(version, self._place, self.folder, max_in_flight)
        self._children.callback(child.kill)
        return child

    def end(self) -> None:
        self._children.close()

    def let_end(self, *documents: str) -> None:
        """Let these activities return; those of other `held` documents go on."""
        for document in documents:
            (self.folder / f"open-{document}").touch()

    def calls(self, kind: str) -> Counter[str]:
        """How often each document's activity of this name was called."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(document for name, document, _ in map(str.split, lines) if name == kind)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Version, Version]]:
    """The old version and the new one."""
    (wheel,) = HERE.glob("*.whl")
    old = tmp_path_factory.mktemp("old")
    zipfile.ZipFile(wheel).extractall(old)
    new = make_newer(PACKAGE, tmp_path_factory.mktemp("new"))
    with closing(Source(old)) as of_old, closing(Source(new)) as of_new:
        yield Version(old, of_old), Version(new, of_new)


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(
    request: pytest.FixtureRequest, versions: tuple[Version, Version], tmp_path: Path
) -> Iterator[Deployment]:
    database: Database = SQLiteDatabase(tmp_path / "batches.db")
    if request.param == "postgres":
        database = PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))
    made = Deployment(*versions, database, tmp_path)
    try:
        yield made
    finally:
        made.end()


def tags(progress: list[list[Any]]) -> list[str]:
    """The tags of events as they are stored, whichever version read them."""
    assert [seq for seq, _, _ in progress] == list(range(1, len(progress) + 1))
    return [name if tag == "unknown" else tag for _, tag, name in progress]


async def test_a_deployment(deployment: Deployment) -> None:
    old = deployment.start(deployment.old, max_in_flight=8)
    held = ["held-1", "held-2"]
    others = [*(f"plain-{number}" for number in range(6)), *(f"stumbles-{number}" for number in range(6))]
    old.ask("submit", batch_id="shared", documents=[*held, *others[:6]])
    await eventually(lambda: deployment.calls("think").keys() >= set(held))

    # The new version comes, adds to the schema, and shares the work; the old one's next submission is run by both.
    new = deployment.start(deployment.new)
    new.ask("submit", batch_id="of-the-new", documents=others[6:])
    assert new.ask("result", batch_id="of-the-new") == ["completed", 6, 6]
    assert tags(old.ask("progress", batch_id="of-the-new")) == tags(new.ask("progress", batch_id="of-the-new"))

    # The old one dies with documents in its hands: the new one takes them over, with what was recorded.
    await eventually(lambda: old.ask("succeeded", batch_id="shared") == 6)
    old.kill()
    deployment.let_end(*held)
    assert new.ask("result", batch_id="shared") == ["completed", 8, 8]
    assert deployment.calls("read").total() == 14, "what was recorded is not run again by the other version"
    assert all(count == (2 if document in held else 1) for document, count in deployment.calls("think").items())

    # Whoever looks sees the same, also where it does not know an event.
    again = deployment.start(deployment.old)
    seen = again.ask("progress", batch_id="shared")
    assert tags(seen) == tags(new.ask("progress", batch_id="shared"))
    assert "document_released" in tags(seen)
    assert ["unknown", "document_considered"] in [event[1:] for event in seen]
    assert tags(seen).count("document_considered") >= len(held)

    # A deadline that one of them sets is kept by both.
    again.ask("submit", batch_id="late", documents=["held-3"], deadline=0.001)
    assert again.ask("result", batch_id="late")[0] == "failed"
    assert new.ask("result", batch_id="late")[0] == "failed"
    new.leave()
    again.leave()


async def test_what_needs_the_new_version_is_left_to_it(deployment: Deployment) -> None:
    submitter = deployment.start(deployment.new, max_in_flight=0)
    submitter.ask("submit", batch_id="newer", documents=["plain-1"], metadata={"needs": str(GENERATION + 1)})
    old = deployment.start(deployment.old)
    # The older batch would be served first.
    old.ask("submit", batch_id="older", documents=["plain-2"])
    assert old.ask("result", batch_id="older") == ["completed", 1, 1]
    assert old.ask("state", batch_id="newer") == "pending"
    new = deployment.start(deployment.new)
    assert new.ask("result", batch_id="newer") == ["completed", 1, 1]
    assert tags(old.ask("progress", batch_id="newer"))[-1] == "batch_completed"

    # Rolled back: the old version works alone, also on what the new one had in its hands when it was killed.
    old.leave()
    submitter.ask("submit", batch_id="left", documents=["held-3", "stumbles-3"])
    await eventually(lambda: "held-3" in deployment.calls("think"))
    new.kill()
    submitter.leave()
    deployment.let_end("held-3")
    alone = deployment.start(deployment.old)
    alone.ask("submit", batch_id="rolled-back", documents=["plain-4"])
    assert alone.ask("result", batch_id="rolled-back") == ["completed", 1, 1]
    assert alone.ask("result", batch_id="left") == ["completed", 2, 2]
    assert deployment.calls("read")["held-3"] == 1
    assert alone.ask("state", batch_id="newer") == "completed"
    alone.leave()


async def test_an_older_version_starts_nothing_of_a_paused_batch(deployment: Deployment) -> None:
    """It finishes the document that it runs, keeps the pause that it does not know, and may even end the batch."""
    old = deployment.start(deployment.old, max_in_flight=1)
    old.ask("submit", batch_id="shared", documents=["held-1", "plain-1", "plain-2"])
    await eventually(lambda: "held-1" in deployment.calls("think"))
    new = deployment.start(deployment.new)
    await eventually(lambda: new.ask("succeeded", batch_id="shared") == 2)
    new.ask("submit", batch_id="waiting", documents=["held-2", "plain-3"], concurrency=1)
    await eventually(lambda: "held-2" in deployment.calls("think"))
    assert new.ask("pause", batch_id="shared") is True
    assert new.ask("pause", batch_id="waiting") is True
    assert old.ask("paused", batch_id="shared") is True
    deployment.let_end("held-1", "held-2")
    # The old one ends the batch, and leaves what it does not know.
    assert old.ask("result", batch_id="shared") == ["completed", 3, 3]
    assert new.ask("paused", batch_id="shared") is False
    new.leave()
    assert old.ask("paused", batch_id="waiting") is True
    # A batch that comes later is served, and this one is not.
    old.ask("submit", batch_id="after", documents=["plain-4"])
    assert old.ask("result", batch_id="after") == ["completed", 1, 1]
    assert "plain-3" not in deployment.calls("read")
    again = deployment.start(deployment.new)
    assert again.ask("resume", batch_id="waiting") == 0
    assert again.ask("result", batch_id="waiting") == ["completed", 2, 2]
    assert all(count == 1 for count in deployment.calls("read").values())
    assert deployment.calls("think")["held-2"] == 1, "it was paid for before the pause, and recorded"
    old.leave()
    again.leave()
