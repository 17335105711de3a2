"""Entity resolution as the resolver of a batch: durable steps, each one a page that is recorded."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

from durable_batches import ActivityFailedError, MissingExtraError, NonRetryableError, Results, durable_activity
from durable_batches.extraction.resolution.blocking import BlockingPlan
from durable_batches.extraction.resolution.fields import fields_of
from durable_batches.extraction.resolution.incremental import weight_at
from durable_batches.extraction.resolution.keys import PlainRecord, PlainValue, plain_record
from durable_batches.extraction.resolution.links import Cluster, Decision, SameAsLink
from durable_batches.extraction.resolution.pages import Clustering, ClusterPage, Known, LinkPlan, page_name
from durable_batches.extraction.resolution.process import Job, ResolutionProcess
from durable_batches.extraction.resolution.settings import Settings, version_of
from durable_batches.extraction.resolution.training import ResolutionModel
from durable_batches.options import check_callable, check_integer

__all__ = ["EntityResolution", "EntityResolutionService", "ResolutionPage"]

R = TypeVar("R")
T = TypeVar("T", bound=BaseModel)

_DOCUMENTS_AT_ONCE: Final = 50
_CHARACTERS_OF_A_PAGE: Final = 2 << 20
_RECORDS_IN_A_ROW: Final = 200
"""Records that are taken out of results before others have a turn on the event loop."""

_DECISIONS: Final = TypeAdapter(tuple[Decision, ...])


@dataclass(frozen=True)
class ResolutionPage:
    """What one step of a resolution has recorded.

    Attributes:
        name: The step and its number.
        data: Parquet or JSON, of 4 MiB at most.
        documents: Of a page of records: the documents up to its end.
        last: Of a page of records: whether there are no more.
    """

    name: str
    data: bytes
    documents: int = 0
    last: bool = True


class EntityResolution(BaseModel, frozen=True, extra="forbid"):
    """What came of a resolution. The clusters themselves are in pages.

    Attributes:
        clusters: Clusters of two records or more.
        members: Their records.
        refused: Links whose records are in two clusters: decided, contradicted or ambiguous.
        plan: How candidate pairs were found, and the number of records and pairs.
        components: What links connect, before clusters are made of it.
        model: The model that pairs were scored by.
        pages: Pages of clusters.
    """

    clusters: int
    members: int
    refused: int
    plan: BlockingPlan
    components: LinkPlan
    model: ResolutionModel
    pages: int


class EntityResolutionService(Generic[T]):
    """Find the records that are the same, over all documents of a batch and of those before it.

    Needs the extra `resolution`. The probability that two records are the same is computed by the model of Fellegi and
    Sunter, which is estimated without labels: a value that agrees says the more, the rarer it is, and a value that is
    missing says nothing.

    Args:
        model: The record model: a pydantic model with an `id` and comparisons, see `NameField`.
        threshold: The probability from which two records are linked.
        keys: Gives further keys of a record: records with a key in common are compared, too.
        bound: The records that may have a key in common; a key of more is split by the records' other keys.
        memory_mib: Memory of the database in the process that compares; what does not fit is written to disk.
        threads: Its threads.

    Raises:
        ConfigurationError: The model compares nothing, or another argument is out of its range.
    """

    def __init__(
        self,
        model: type[T],
        *,
        threshold: float = 0.5,
        keys: Callable[[T], Iterable[str]] | None = None,
        bound: int = 30,
        memory_mib: int = 192,
        threads: int = 2,
    ) -> None:
        weight_at(threshold)
        check_callable("keys", keys, optional=True)
        for name, number in (("bound", bound), ("memory_mib", memory_mib), ("threads", threads)):
            check_integer(name, number)
        self._keys = keys
        self._settings = Settings(
            fields=fields_of(model), threshold=threshold, bound=bound, memory_mib=memory_mib, threads=threads
        )

    def resolver(
        self,
        records: Callable[[R], Iterable[T]],
        *,
        after: Callable[[], AsyncIterable[ResolutionPage]] | None = None,
        decisions: Callable[[], Iterable[Decision]] | None = None,
    ) -> Callable[[Results[R]], Awaitable[EntityResolution]]:
        """Make a resolver, for `@workflow(resolver=...)`.

        Its steps are recorded one by one: a worker that goes on after another one was killed repeats the last step
        only. They run in a process of their own, which ends with the worker.

        Args:
            records: Gives the records of a document's result. It must give the same each time.
            after: Gives the pages of the batch before, whose records and clusters this one joins.
            decisions: Gives all decisions that hold. It is called once, and its answer recorded.
        """
        check_callable("records", records)
        check_callable("after", after, optional=True)
        check_callable("decisions", decisions, optional=True)

        async def resolve(results: Results[R]) -> EntityResolution:
            run = _Run(self._settings, self._version(), _Source(results, records, self._plain), after, decisions)
            return await run.resolve()

        return resolve

    async def clusters(self, pages: AsyncIterable[ResolutionPage]) -> AsyncGenerator[Cluster, None]:
        """Yield the clusters that a batch's pages tell, a page in memory at a time.

        Args:
            pages: The pages, such as `batches.resolver_results(batch_id, "resolution-page", ResolutionPage)`.
        """
        async for page in self._cluster_pages(pages):
            for cluster in page.clusters:
                yield cluster

    async def refused(self, pages: AsyncIterable[ResolutionPage]) -> AsyncGenerator[SameAsLink, None]:
        """Yield the links whose records are in two clusters, each with what speaks against it in `status`."""
        async for page in self._cluster_pages(pages):
            for link in page.refused:
                yield link

    async def _cluster_pages(self, pages: AsyncIterable[ResolutionPage]) -> AsyncGenerator[ClusterPage, None]:
        prefix = page_name("clusters")[:-6]
        async for page in pages:
            if page.name.startswith(prefix):
                yield ClusterPage.model_validate_json(page.data)

    def _plain(self, record: T) -> PlainRecord:
        return plain_record(record, self._settings.fields, self._keys)

    def _version(self) -> str:
        try:
            return version_of(self._settings)
        except PackageNotFoundError as missing:
            raise MissingExtraError("resolution", missing.name or "splink") from missing


class _Source(Generic[R, T]):
    """The records of all results, in pages; those of the documents of recorded pages are passed over."""

    def __init__(
        self, results: Results[R], records: Callable[[R], Iterable[T]], plain: Callable[[T], PlainRecord]
    ) -> None:
        self._pages = results.pages(_DOCUMENTS_AT_ONCE)
        self._records = records
        self._plain = plain
        self._held: list[R] = []
        self._documents = 0

    async def close(self) -> None:
        await self._pages.aclose()

    async def page(self, after: int, most: int) -> tuple[list[PlainRecord], int, bool]:
        """Return the next records, the number of documents up to there, and whether that is all.

        Args:
            after: The documents whose records are passed over.
            most: The records from which a page is full.
        """
        found: list[PlainRecord] = []
        size = 0
        while len(found) < most and size < _CHARACTERS_OF_A_PAGE:
            if not self._held:
                try:
                    page = await anext(self._pages)
                except StopAsyncIteration:
                    return found, self._documents, True
                self._held = [success.value for success in reversed(page)]
            value = self._held.pop()
            self._documents += 1
            if self._documents <= after:
                continue
            for record in self._records(value):
                plain = self._plain(record)
                found.append(plain)
                size += len(plain.id) + sum(map(_size, plain.values))
                if not len(found) % _RECORDS_IN_A_ROW:
                    await asyncio.sleep(0)
        return found, self._documents, False


def _size(value: PlainValue) -> int:
    """Return about how many characters a value has that count."""
    if isinstance(value, tuple):
        return sum(len(member) if isinstance(member, str) else 8 for member in value)
    return min(len(value), 1_000) if isinstance(value, str) else 8


class _Run(Generic[R, T]):
    """One execution of a resolver."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        source: _Source[R, T],
        after: Callable[[], AsyncIterable[ResolutionPage]] | None,
        decisions: Callable[[], Iterable[Decision]] | None,
    ) -> None:
        self._settings = settings
        self._version = version
        self._source = source
        self._after = after
        self._decisions = decisions
        self._documents = 0
        self._earlier_is_there = after is None
        self._process: ResolutionProcess | None = None

        @durable_activity(name="resolution-page", version=version, key=page_name)
        async def record(step: str, number: int = 0) -> ResolutionPage:
            return await self._compute(step, number)

        self._record = record

    async def resolve(self) -> EntityResolution:
        """Take all steps, those that are recorded from the records."""
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="durable-batches-resolution-"))
        try:
            return await self._steps()
        except ActivityFailedError as error:
            if error.caused_by(NonRetryableError):
                raise NonRetryableError(str(error)) from error
            raise
        finally:
            if self._process is not None:
                await self._process.close()
            await self._source.close()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _steps(self) -> EntityResolution:
        decided = await self._page("decisions")
        job = Job(self._folder, self._settings, self._version, _DECISIONS.validate_json(decided.data))
        self._process = ResolutionProcess(job)
        number = 0
        while True:
            page = await self._page("records", number)
            self._documents = page.documents
            if page.last:
                break
            number += 1
        known = Known()
        if self._after is not None:
            known = Known.model_validate_json((await self._page("known")).data)
            await self._pages("known-records", known.records)
            await self._pages("known-links", known.links)
            await self._pages("known-members", known.members)
        plan = BlockingPlan.model_validate_json((await self._page("plan")).data)
        if known.retrain:
            await self._page("random-pairs")
            await self._page("patterns")
        model = ResolutionModel.model_validate_json((await self._page("model")).data)
        await self._pages("score", -(-plan.pairs // self._settings.page_pairs))
        links = LinkPlan.model_validate_json((await self._page("links")).data)
        await self._pages("gaps", links.gap_pages)
        found = Clustering.model_validate_json((await self._page("clustering")).data)
        for number in range(found.pages):
            await self._record("clusters", number)
        return EntityResolution(
            clusters=found.clusters,
            members=found.members,
            refused=found.refused,
            plan=plan,
            components=links,
            model=model,
            pages=found.pages,
        )

    async def _pages(self, step: str, count: int) -> None:
        for number in range(count):
            await self._page(step, number)

    async def _page(self, step: str, number: int = 0) -> ResolutionPage:
        """Record a page, or take it from the record, and lay it down where later steps read it."""
        page = await self._record(step, number)
        await asyncio.to_thread((self._folder / page_name(step, number)).write_bytes, page.data)
        return page

    async def _compute(self, step: str, number: int) -> ResolutionPage:
        name = page_name(step, number)
        if step == "decisions":
            found = () if self._decisions is None else tuple(self._decisions())
            return ResolutionPage(name, _DECISIONS.dump_json(found))
        process = self._process
        assert process is not None
        if step == "records":
            records, documents, last = await self._source.page(self._documents, self._settings.page_records)
            return ResolutionPage(name, await process.records(number, records), documents, last)
        if step == "model" or step.startswith("known"):
            await self._lay_earlier_down()
        return ResolutionPage(name, await process.page(step, number))

    async def _lay_earlier_down(self) -> None:
        """Write the pages of the batch before to a folder of their own, once."""
        if self._earlier_is_there or self._after is None:
            return
        folder = self._folder / "earlier"
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        async for page in self._after():
            await asyncio.to_thread((folder / page.name).write_bytes, page.data)
        self._earlier_is_there = True
