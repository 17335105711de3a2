"""Tell the loss of a machine from the death of a process, by the workers' rows alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple

from durable_batches.lifecycle.records import Micros, WorkerId, WorkerRecord

__all__ = ["KnownWorker", "gone_with_machine"]


class KnownWorker(NamedTuple):
    """A worker's row."""

    worker: WorkerRecord
    left: Micros
    """The time until its lease expires; negative: since then."""
    length: Micros
    """How long its lease is when it has just been renewed."""


def gone_with_machine(gone: Collection[WorkerId], known: Sequence[KnownWorker]) -> frozenset[WorkerId]:
    """Find those of the workers that are gone whose whole machine is: no document can have done that to them.

    A machine is gone if two processes or more had workers on it (by boot id) and none of them renews its lease any
    more, which each does several times in its length. Whose lease runs out last, when the rows of the others are gone,
    cannot be told from one that died alone.

    Args:
        gone: The workers that are being expired.
        known: All workers, those included.
    """
    found: set[WorkerId] = set()
    by_boot = sorted((each for each in known if each.worker.boot_id), key=lambda each: each.worker.boot_id)
    for _, group in groupby(by_boot, key=lambda each: each.worker.boot_id):
        of_machine = list(group)
        processes = {(each.worker.pid_namespace, each.worker.pid, each.worker.started) for each in of_machine}
        renewing = any(each.worker.worker_id not in gone and 2 * each.left >= each.length for each in of_machine)
        if len(processes) > 1 and not renewing:
            found.update(each.worker.worker_id for each in of_machine if each.worker.worker_id in gone)
    return frozenset(found)
