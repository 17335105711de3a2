"""Which process a worker runs in, and whether that process has ended.

The death of a process on the same machine is seen at once: where boot id and pid namespace are the same, and no process
has that pid, or one that was started at another time. Of processes anywhere else only the lease tells.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from durable_batches.lifecycle.records import WorkerRecord

__all__ = ["ProcessIdentity", "is_dead", "this_process"]


class ProcessIdentity(NamedTuple):
    """Tells a process from all others of its machine, past ones included; empty fields: the system does not tell."""

    boot_id: str
    pid_namespace: str
    pid: int
    started: str


@lru_cache(maxsize=1)
def _identity(pid: int) -> ProcessIdentity:
    return ProcessIdentity(_read("/proc/sys/kernel/random/boot_id"), _namespace(), pid, _started(pid) or "")


def this_process() -> ProcessIdentity:
    """Return the identity of the running process (not of the one it was forked from)."""
    return _identity(os.getpid())


def is_dead(worker: WorkerRecord) -> bool:
    """Return whether the worker's process is known to have ended; False where that cannot be told from here."""
    here = this_process()
    if not here.boot_id or not worker.boot_id or not worker.started:
        return False
    if worker.boot_id != here.boot_id or worker.pid_namespace != here.pid_namespace or not here.pid_namespace:
        return False
    started = _started(worker.pid)
    if started is None:
        return not _is_hidden(worker.pid)
    return started != worker.started


def _started(pid: int) -> str | None:
    """Return when the process started, in clock ticks since boot; empty where it has ended, None where none is seen."""
    # The name, in parentheses, may itself hold spaces and parentheses; the state follows it. A zombie is dead.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]


def _is_hidden(pid: int) -> bool:
    """Return whether the process exists all the same: /proc may be mounted without other users' processes."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
