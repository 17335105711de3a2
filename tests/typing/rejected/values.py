"""Values: frozen, with keywords only, and nothing left out."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.typing.accepted import A, Animal, Dog

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchId,
    BatchResult,
    BatchSnapshot,
    BatchState,
    Chunking,
    Completed,
    ContinueOnFailure,
    Counts,
    DocumentFailure,
    DocumentInfo,
    DocumentSucceeded,
    Failed,
    FailurePolicy,
    Pending,
    RetryFailed,
    RetryPolicy,
    StageProgress,
)

# ---- frozen -------------------------------------------------------------------------------------------------------


def assigned(
    event: StageProgress,
    snapshot: BatchSnapshot[A],
    result: BatchResult[None],
    outcome: DocumentSucceeded[int] | DocumentFailure,
) -> None:
    stage = A(done=0, total=1)
    stage.done = 1  # error
    stage.tag = "a"  # error
    Chunking(done=0, total=1).total = 2  # error
    Pending(total=1).total = 2  # error
    counts = Counts(total=1)
    counts.failed = 1  # error
    counts.ended = 1  # error
    Completed(counts=counts).counts = counts  # error
    config = BatchConfig()
    config.concurrency = 2  # error
    config.failure_policy = AbortAll()  # error
    config.metadata = {}  # error
    ContinueOnFailure().max_failures = 3  # error
    RetryFailed().backoff = timedelta(0)  # error
    RetryPolicy().max_attempts = 3  # error
    event.seq = 3  # error
    event.percentage = 100.0  # error
    snapshot.percentage = 100.0  # error
    result.counts = counts  # error
    result.value = None  # error
    outcome.document_id = ""  # error


# ---- construction -------------------------------------------------------------------------------------------------

NOW = datetime.fromisoformat("2030-01-01T00:00:00Z")

StageProgress(document_id="a", stage="b")  # error
StageProgress(batch_id=BatchId(""), seq=1, at=NOW, document_id="", stage="", current=1, total=1)  # error
Pending()  # error
Pending(3)  # error
A(1, 2)  # error
A(done=1)  # error
A(done=1, total="2")  # error
A(done=1, total=2, tag="b")  # error
A(done=1, total=2, more=3)  # error
Failed(counts=Counts())  # error
Completed(counts={"total": 1})  # error
_id: BatchId = "nightly"  # error

BatchConfig(8)  # error
BatchConfig(concurency=8)  # error
BatchConfig(concurrency="many")  # error
BatchConfig(failure_policy="abort-all")  # error
BatchConfig(failure_policy=AbortAll)  # error
BatchConfig(deadline=60)  # error
BatchConfig(metadata={"kind": 3})  # error
AbortAll(max_failures=3)  # error
ContinueOnFailure(3)  # error
ContinueOnFailure(max_failures="3")  # error
RetryFailed(backoff=1)  # error
RetryFailed(then=RetryFailed())  # error
_policy: FailurePolicy = RetryPolicy()  # error


# ---- variance -----------------------------------------------------------------------------------------------------


def narrowed(succeeded: DocumentSucceeded[Animal], info: DocumentInfo[Animal], result: BatchResult[Animal]) -> None:
    _succeeded: DocumentSucceeded[Dog] = succeeded  # error
    _info: DocumentInfo[Dog] = info  # error
    _result: BatchResult[Dog] = result  # error


def widened(state: BatchState[A]) -> BatchState[Chunking]:
    return state  # error
