"""Events as the core packs them: every field by its name and of its type, and none left out."""

from __future__ import annotations

from durable_batches import Counts
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import BatchCore
from durable_batches.lifecycle.event_data import (
    batch_completed,
    document_completed,
    document_released,
    document_retrying,
    document_started,
)


def packed(batch: BatchInProgress) -> None:
    batch.emit(document_started(document_id="a", attempt=1))
    batch.emit(document_started(document_id="a"))  # error
    batch.emit(document_started(document_id="a", attempts=1))  # error
    batch.emit(document_started(document_id="a", attempt="1"))  # error
    batch.emit(document_started("a", 1))  # error
    batch.emit(document_completed(document_id="a", percentage=1.0))  # error
    batch.emit(document_retrying(document_id="a", failures=1, due=None, error=""))  # error
    batch.emit(document_released(document_id="a", reason="boredom", crashes=0))  # error
    batch.emit(batch_completed(counts=(1, 1, 0, 0, 0, 0, 0)))  # error
    batch.emit(batch_completed(counts=Counts()))
    batch.emit("document_started")  # error


def core(kept: BatchCore) -> None:
    kept["phase"] = "due"
    kept["phase"] = "done"  # error
    kept["phases"] = "due"  # error
    kept["started_at"] = 1.5  # error
    kept["at"] = [0.5]  # error
    _: int = kept["started_at"]  # error
