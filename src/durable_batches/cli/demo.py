"""`durable-batches demo`: a batch that can be stopped in any way, and goes on when it is run again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
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
from durable_batches.cli.live import follow, output
from durable_batches.cli.summary import print_summary
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
from durable_batches.script.signals import StopSignals

__all__ = ["Demo", "Paced"]

_SHOWN_FAILURES = 5
_ENDED = {"completed": "ended", "failed": "failed", "cancelled": "been cancelled"}
_SOURCE = "demo-source"
"""The label that tells the batches of one source from all others in the database."""

Batches = BatchOrchestrator[SourceDocument, KnowledgeGraph, ExtractionStage, Resolution]
Snapshot = BatchSnapshot[ExtractionStage]


class Paced:
    """An extractor that takes its time, as one that asks a service would: something to watch, and to stop.

    Args:
        extractor: What does the work.
        seconds: The wait before each call.
    """

    def __init__(self, extractor: Extractor, seconds: float) -> None:
        self._extractor = extractor
        self._seconds = seconds

    async def find_mentions(self, chunk: Chunk) -> list[Mention]:
        """As the extractor, later."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.find_mentions(chunk)

    async def make_entities(self, document: DocumentRef, mentions: list[Mention]) -> list[Entity]:
        """As the extractor, later."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.make_entities(document, mentions)

    async def find_relations(
        self, document: DocumentRef, entities: list[Entity], mentions: list[Mention]
    ) -> list[Relation]:
        """As the extractor, later."""
        await asyncio.sleep(self._seconds)
        return await self._extractor.find_relations(document, entities, mentions)


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    """The batch that this run goes on with, as earlier runs have left it."""

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
        fresh: Whether to begin a new batch, whatever there is of this source.
        console: Where to tell.
    """

    path: Path | None
    db: Path
    out: Path
    concurrency: int
    pace: float
    fresh: bool
    console: Console = field(default_factory=output)
    _batches: int = field(default=0, init=False)
    """Batches of this source that the database has had before."""

    async def run(self) -> int:
        """Run until the batch has ended or a signal says to stop.

        Returns:
            The exit code: 0, 1 where something failed, or 128 and the signal's number.
        """
        with StopSignals() as signals:
            workflow = extraction_workflow(Paced(RuleExtractor(), self.pace))
            earlier = await self._look_for_earlier(workflow)
            batches = BatchOrchestrator(workflow, store=SQLiteStore(self.db))
            async with signals.hurrying(batches.worker), batches:
                work = asyncio.create_task(self._work(batches, earlier))
                await signals.interrupting(work)
                if work.cancelled():
                    self._say("stopping: what is in flight is finished and recorded first (again: stop at once)")
            if work.cancelled():
                self._say(f"stopped; run the same command again, and it goes on from what {self.db} has recorded")
                return signals.exit_code
            return work.result()

    # ---- before ------------------------------------------------------------------------------------------

    async def _look_for_earlier(self, workflow: ExtractionWorkflow) -> _Earlier | None:
        # A worker that runs nothing: the counts must not move while they are read.
        async with BatchOrchestrator(workflow, store=SQLiteStore(self.db), max_in_flight=0) as batches:
            found = [snapshot async for snapshot in batches.list_batches(metadata={_SOURCE: self._source})]
            self._batches = len(found)
            if not found or self.fresh:
                return None
            recorded = await batches.count_checkpoints(found[0].batch_id)
            return _Earlier(newest=found[0], recorded=recorded)

    @property
    def _source(self) -> str:
        if self.path is None:
            return f"installed packages of {sys.prefix}"
        return f"text files in {self.path.resolve()}"

    @property
    def _source_words(self) -> str:
        return "the installed packages" if self.path is None else f"the text files in {self.path}"

    def _documents(self) -> Iterator[SourceDocument]:
        return installed_packages() if self.path is None else text_files(self.path)

    # ---- the batch ---------------------------------------------------------------------------------------

    async def _work(self, batches: Batches, earlier: _Earlier | None) -> int:
        documents = self._documents()
        if earlier is not None:
            self._say_earlier(earlier)
        else:
            first = next(documents, None)
            if first is None:
                self._say(f"there is nothing to read: no documents among {self._source_words}")
                return 1
            documents = itertools.chain([first], documents)
        # Of a batch that is there already, the documents are not even looked at.
        batch_id = await batches.submit(
            documents,
            batch_id=earlier.newest.batch_id if earlier else self._new_batch_id(),
            document_id=lambda document: document.id,
            config=BatchConfig(concurrency=self.concurrency, metadata={_SOURCE: self._source}),
        )
        if earlier is None:
            total = (await batches.snapshot(batch_id)).counts.total
            self._say(f"reading {self._source_words}: {total} documents; the batch {batch_id} is kept in {self.db}")
        if earlier is None or not _has_ended(earlier.newest):
            async with aclosing(batches.watch(batch_id)) as snapshots:
                await follow(snapshots, self.console)
        return await self._conclude(batches, batch_id)

    def _new_batch_id(self) -> str:
        digest = hashlib.sha256(self._source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"demo-{'packages' if self.path is None else 'files'}-{digest}"
        return f"{name}-{self._batches + 1}" if self._batches else name

    def _say_earlier(self, earlier: _Earlier) -> None:
        newest = earlier.newest
        if _has_ended(newest):
            self._say(
                f"the batch {newest.batch_id} in {self.db} has {_ENDED[newest.state.tag]} already: "
                f"{newest.counts.ended} documents, {earlier.recorded} recorded activities, none to repeat "
                "(--fresh begins a new batch)"
            )
        else:
            self._say(
                f"resuming the batch {newest.batch_id} in {self.db}: {newest.counts.ended} of "
                f"{newest.counts.total} documents already finished, "
                f"{earlier.recorded} recorded activities will not be repeated"
            )

    # ---- after -------------------------------------------------------------------------------------------

    async def _conclude(self, batches: Batches, batch_id: str) -> int:
        result = await batches.result(batch_id)
        match result.state:
            case Completed():
                pass
            case Failed(error=why) | Cancelled(reason=why):
                self._say(f"the batch {batch_id} has {_ENDED[result.state.tag]}: {why} (--fresh begins a new one)")
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
        self._say("")
        run, recorded = batches.stats.activities_run, await batches.count_checkpoints(batch_id)
        self._say(f"{recorded:,} activities: {run:,} run now, {recorded - run:,} recorded earlier and not repeated")
        for failure in failures[:_SHOWN_FAILURES]:
            self._say(f"failed: {failure.document_id}: {failure.error_type}: {failure.error}")
        if len(failures) > _SHOWN_FAILURES:
            self._say(f"failed: {len(failures) - _SHOWN_FAILURES} more")
        return 1 if not self._write(graph.build()) or failures else 0

    def _write(self, graph: MergedGraph) -> bool:
        try:
            write_graph(graph, self.out)
        except OSError as error:
            self._say(f"the graph cannot be written to {self.out}: {error.strerror}; run again with another --out")
            return False
        self._say(
            f"the graph is in {self.out}: {len(graph.nodes):,} nodes, {len(graph.edges):,} edges, "
            "each edge with the places that state it"
        )
        self._say(
            "to look further: the file is JSON, and durable_batches.extraction.MergedGraph reads it; "
            "--path FOLDER extracts from your own texts"
        )
        return True

    def _say(self, text: str) -> None:
        # Not interpreted: names of files and packages hold brackets. Wrapped for eyes only: logs are read by line.
        self.console.print(text, soft_wrap=not self.console.is_terminal, markup=False, highlight=False)


def _has_ended(snapshot: Snapshot) -> bool:
    return snapshot.state.tag in _ENDED
