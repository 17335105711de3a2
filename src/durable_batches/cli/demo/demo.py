"""`durable-batches demo`: a batch that can be stopped in any way, and is resumed when it is run again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shlex
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchSnapshot,
    Cancelled,
    Completed,
    DocumentCancelled,
    DocumentFailure,
    DocumentSucceeded,
    ExtractionStage,
    Failed,
    SQLiteStore,
)
from durable_batches.cli.demo.summary import print_summary
from durable_batches.errors import with_type
from durable_batches.extraction import (
    Chunk,
    DocumentRef,
    Entity,
    ExtractionWorkflow,
    Extractor,
    GraphBuilder,
    KnowledgeGraph,
    Mention,
    MergedGraph,
    Relation,
    Resolution,
    RuleExtractor,
    SourceDocument,
    extraction_workflow,
    installed_packages,
    text_files,
    write_graph,
)
from durable_batches.printable import printable_lines
from durable_batches.script.signals import StopSignals
from durable_batches.terminal.bars import follow, stdout_console

__all__ = ["RESOLVING", "Demo", "Paced"]

RESOLVING = "linking across documents"
"""The description of the resolver's work."""

_SHOWN_FAILURES = 5
_ENDED = {"completed": "ended", "failed": "failed", "cancelled": "been cancelled"}
_SOURCE = "demo-source"
"""The label that has the source of a batch."""

Batches = BatchOrchestrator[SourceDocument, KnowledgeGraph, ExtractionStage, Resolution]
Snapshot = BatchSnapshot[ExtractionStage]


class Paced:
    """An extractor that waits before each call, as one that calls a service does.

    Args:
        extractor: The extractor that does the work.
        seconds: The wait before each call.
    """

    def __init__(self, extractor: Extractor, seconds: float) -> None:
        self._extractor = extractor
        self._seconds = seconds

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """Call the extractor after the wait."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.find_mentions(chunk)

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """Call the extractor after the wait."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.make_entities(document, mentions)

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """Call the extractor after the wait."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.find_relations(document, entities, mentions)


@dataclass(frozen=True, kw_only=True)
class _Existing:
    """The newest batch of this source, as earlier runs left it."""

    newest: Snapshot
    recorded: int


@dataclass(kw_only=True)
class Demo:
    """One run of the demonstration.

    Attributes:
        path: The folder to read; None: the installed packages.
        db: The database that keeps the batch.
        out: The file to write the graph to.
        concurrency: Documents at once.
        pace: Seconds that each step of the extractor waits.
        fresh: Whether to begin a new batch also where there is one of this source.
        console: The console to print on.
    """

    path: Path | None
    db: Path
    out: Path
    concurrency: int
    pace: float
    fresh: bool
    console: Console = field(default_factory=stdout_console)
    _batches: int = field(default=0, init=False)
    """The number of this source's batches in the database."""

    async def run(self) -> int:
        """Run until the batch has ended or a signal stops it.

        Returns:
            The exit code: 0, 1 where a document or the batch failed, or 128 and the signal's number.
        """
        with StopSignals() as signals:
            workflow = extraction_workflow(Paced(RuleExtractor(), self.pace))
            existing = await self._find_newest(workflow)
            batches = BatchOrchestrator(workflow, store=SQLiteStore(self.db))
            async with signals.ending_drain(batches.worker), batches:
                work = asyncio.create_task(self._work(batches, existing))
                await signals.wait_for(work, stop=batches.worker.begin_drain)
                if work.cancelled():
                    self._print("stopping: running activities finish and are recorded first (again: stop at once)")
            if work.cancelled():
                self._print(f"stopped; run the same command again to resume the batch in {self.db}")
                return signals.exit_code
            return work.result()

    # ---- before ------------------------------------------------------------------------------------------

    async def _find_newest(self, workflow: ExtractionWorkflow) -> _Existing | None:
        # With max_in_flight=0 nothing runs, and the counts stay as they are while they are read.
        async with BatchOrchestrator(workflow, store=SQLiteStore(self.db), max_in_flight=0) as batches:
            found = [snapshot async for snapshot in batches.list_batches(metadata={_SOURCE: self._source})]
            self._batches = len(found)
            if not found or self.fresh:
                return None
            recorded = await batches.count_checkpoints(found[0].batch_id)
            return _Existing(newest=found[0], recorded=recorded)

    @property
    def _source(self) -> str:
        if self.path is None:
            return f"installed packages of {sys.prefix}"
        return f"text files in {self.path.resolve()}"

    @property
    def _source_text(self) -> str:
        return "the installed packages" if self.path is None else f"the text files in {self.path}"

    def _documents(self) -> Iterator[SourceDocument]:
        return installed_packages() if self.path is None else text_files(self.path)

    # ---- the batch ---------------------------------------------------------------------------------------

    async def _work(self, batches: Batches, existing: _Existing | None) -> int:
        documents = self._documents()
        if existing is not None:
            self._print_existing(existing)
        else:
            first = next(documents, None)
            if first is None:
                self._print(f"there is nothing to read: no documents among {self._source_text}")
                return 1
            documents = itertools.chain([first], documents)
        # Where the batch exists, the documents are not read.
        batch_id = await batches.submit(
            documents,
            batch_id=existing.newest.batch_id if existing else self._new_batch_id(),
            document_id=lambda document: document.id,
            config=BatchConfig(concurrency=self.concurrency, metadata={_SOURCE: self._source}),
        )
        if existing is None:
            total = (await batches.snapshot(batch_id)).counts.total
            self._print(f"reading {self._source_text}: {total} documents; the batch {batch_id} is kept in {self.db}")
        if existing is None or not _has_ended(existing.newest):
            self._print(f"its page, from another terminal: durable-batches serve --store {shlex.quote(str(self.db))}")
            async with aclosing(batches.watch(batch_id)) as snapshots:
                await follow(snapshots, self.console, resolving=RESOLVING)
        return await self._conclude(batches, batch_id)

    def _new_batch_id(self) -> str:
        digest = hashlib.sha256(self._source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"demo-{'packages' if self.path is None else 'files'}-{digest}"
        return f"{name}-{self._batches + 1}" if self._batches else name

    def _print_existing(self, existing: _Existing) -> None:
        newest = existing.newest
        if _has_ended(newest):
            self._print(
                f"the batch {newest.batch_id} in {self.db} has {_ENDED[newest.state.tag]} already: "
                f"{newest.counts.ended} documents, {existing.recorded} recorded activities, none to repeat "
                "(--fresh begins a new batch)"
            )
        else:
            self._print(
                f"resuming the batch {newest.batch_id} in {self.db}: {newest.counts.ended} of "
                f"{newest.counts.total} documents already finished, "
                f"{existing.recorded} recorded activities will not be repeated"
            )

    # ---- after -------------------------------------------------------------------------------------------

    async def _conclude(self, batches: Batches, batch_id: str) -> int:
        result = await batches.result(batch_id)
        match result.state:
            case Completed():
                pass
            case Failed(error=why) | Cancelled(reason=why):
                self._print(f"the batch {batch_id} has {_ENDED[result.state.tag]}: {why} (--fresh begins a new one)")
                return 1
        resolution = result.value
        graph = GraphBuilder(resolution)
        failures: list[DocumentFailure] = []
        async with aclosing(batches.results(batch_id)) as outcomes:
            async for outcome in outcomes:
                match outcome:
                    case DocumentSucceeded(value=value):
                        graph.add(value)
                    case DocumentFailure():
                        failures.append(outcome)
                    case DocumentCancelled():
                        pass  # not in a batch that completed
        print_summary(resolution, self.console)
        self._print("")
        run, recorded = batches.stats.activities_run, await batches.count_checkpoints(batch_id)
        self._print(f"{recorded:,} activities: {run:,} run now, {recorded - run:,} recorded earlier and not repeated")
        for failure in failures[:_SHOWN_FAILURES]:
            self._print(f"failed: {failure.document_id}: {with_type(failure.error_type, failure.error)}")
        if len(failures) > _SHOWN_FAILURES:
            self._print(f"failed: {len(failures) - _SHOWN_FAILURES} more")
        return 1 if not self._write(graph.build()) or failures else 0

    def _write(self, graph: MergedGraph) -> bool:
        try:
            write_graph(graph, self.out)
        except OSError as error:
            self._print(f"the graph cannot be written to {self.out}: {error.strerror}; run again with another --out")
            return False
        self._print(
            f"the graph is in {self.out}: {len(graph.nodes):,} nodes, {len(graph.edges):,} edges, "
            "each edge with the places that state it"
        )
        self._print(
            "to look further: the file is JSON, and durable_batches.extraction.MergedGraph reads it; "
            "--path FOLDER extracts from your own texts"
        )
        return True

    def _print(self, text: str) -> None:
        # Without markup, since names of files and packages hold brackets. Wrapped on a terminal only, so that a log
        # can be searched by line.
        self.console.print(printable_lines(text), soft_wrap=not self.console.is_terminal, markup=False, highlight=False)


def _has_ended(snapshot: Snapshot) -> bool:
    return snapshot.state.tag in _ENDED
