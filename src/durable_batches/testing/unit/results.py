"""Make results for the unit test of a resolver, without a store or a batch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from itertools import count
from typing import Final, Generic, TypeVar

from typing_extensions import deprecated

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.failures import message_of
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.options import check_instance, check_text
from durable_batches.reading.results import checked_page_size
from durable_batches.runtime.results import DocumentFailure, DocumentSucceeded
from durable_batches.runtime.workflow import Results

__all__ = ["results_of"]

R = TypeVar("R")


def results_of(
    values: Sequence[R] | Mapping[str, R],
    *,
    failures: Sequence[DocumentFailure] | Mapping[str, Exception] = (),
    batch_id: str = "test",
) -> Results[R]:
    """Make the `Results` of a resolver in memory: `await link(results_of([...]))` is a unit test of a resolver.

    Args:
        values: The workflow's results, in submission order, or by document id. Without ids, the documents have those
            that `submit` would give them: their ordinals from 0, without those of failed documents.
        failures: The failed documents, in order or by document id.
        batch_id: The batch's id.

    Raises:
        ConfigurationError: Two documents have the same id, or an option cannot work.
    """
    check_instance("values", values, (Sequence, Mapping))
    if isinstance(values, str | bytes):
        raise ConfigurationError(f"values must be a collection of results, not a single one: [{type(values).__name__}]")
    check_instance("failures", failures, (Sequence, Mapping))
    check_text("batch_id", batch_id)
    failed = _failures(failures)
    taken = {failure.document_id for failure in failed}
    named = values.items() if isinstance(values, Mapping) else zip(_places(taken), values, strict=False)
    succeeded = [DocumentSucceeded(document_id=document_id, value=value) for document_id, value in named]
    ids = [*(result.document_id for result in succeeded), *(failure.document_id for failure in failed)]
    if len(set(ids)) < len(ids):
        raise ConfigurationError("two documents have one id: of what succeeded and what failed, each has its own")
    return _KnownResults(BatchId(batch_id), succeeded, failed)


class _KnownResults(Generic[R]):
    """`Results` in memory."""

    def __init__(self, batch_id: BatchId, succeeded: list[DocumentSucceeded[R]], failed: list[DocumentFailure]) -> None:
        self.batch_id: Final = batch_id
        self.counts: Final = Counts(total=len(succeeded) + len(failed), succeeded=len(succeeded), failed=len(failed))
        self._succeeded = succeeded
        self._failed = failed

    def reopen(self) -> _KnownResults[R]:
        return self

    @deprecated("again() is called reopen() now")
    def again(self) -> _KnownResults[R]:
        return self

    async def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[R], None]:
        for result in self._succeeded:
            yield result

    def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        return self._pages(checked_page_size(size))

    async def _pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        for begin in range(0, len(self._succeeded), size):
            yield self._succeeded[begin : begin + size]

    async def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        for failure in self._failed:
            yield failure


def _failures(failures: Sequence[DocumentFailure] | Mapping[str, Exception]) -> list[DocumentFailure]:
    if not isinstance(failures, Mapping):
        return list(failures)
    return [
        DocumentFailure(
            document_id=document_id,
            error=message_of(error),
            error_type=type(error).__name__,
            activity=None,
            attempts=1,
        )
        for document_id, error in failures.items()
    ]


def _places(taken: set[str]) -> Iterator[str]:
    return (place for place in map(str, count()) if place not in taken)
