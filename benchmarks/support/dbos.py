"""The same workload on DBOS, in a process of its own; DBOS is no dependency of the project."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.postgres.databases import scratch_database

# Sync steps, which are the faster ones there, and a queue that as many documents are in flight of.
_PROGRAM = """
import sys, time
from dbos import DBOS, DBOSConfig, Queue

DBOS(config=DBOSConfig(name="benchmark", system_database_url=sys.argv[1], log_level="ERROR"))
queue = Queue("documents", concurrency=64)


@DBOS.step()
def step(document, number):
    return {"document": document, "step": number, "text": f"{document:08d} " * 24, "scores": [0.125] * 6}


@DBOS.workflow()
def five_steps(document):
    return sum(step(document, number)["step"] for number in range(5))


DBOS.launch()
documents = int(sys.argv[2])
handles = [queue.enqueue(five_steps, document) for document in range(documents)]
began = time.perf_counter()
for handle in handles:
    handle.get_result()
print(time.perf_counter() - began, flush=True)
DBOS.destroy()
"""


def seconds_with_dbos(dsn: str | None, documents: int) -> float | None:
    """Seconds from the last enqueued document to the end of the last one; None where DBOS is not installed.

    Args:
        dsn: Of a server; None: DBOS keeps its state in an SQLite file.
        documents: How many.
    """
    if importlib.util.find_spec("dbos") is None:
        return None
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        database = f"sqlite:///{Path(folder) / 'dbos.db'}"
        if dsn is not None:
            database = stack.enter_context(scratch_database(dsn))
        command = [sys.executable, "-c", _PROGRAM, database, str(documents)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        return float(done.stdout.strip().splitlines()[-1])
