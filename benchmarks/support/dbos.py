"""The same workload on DBOS, in a process of its own; DBOS is no dependency of the project."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.postgres.databases import scratch_database

# Sync steps, which are the faster ones there; as many documents in flight, by a queue of its own or by as many threads
# that call the workflow.
_PROGRAM = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from dbos import DBOS, DBOSConfig

DBOS(config=DBOSConfig(name="benchmark", system_database_url=sys.argv[1], log_level="ERROR"))


@DBOS.step()
def step(document, number):
    return {"document": document, "step": number, "text": f"{document:08d} " * 24, "scores": [0.125] * 6}


@DBOS.workflow()
def five_steps(document):
    return sum(step(document, number)["step"] for number in range(5))


DBOS.launch()
documents, in_flight = range(int(sys.argv[2])), int(sys.argv[4])
if sys.argv[3] == "queue":
    queue = DBOS.register_queue("documents", worker_concurrency=in_flight, polling_interval_sec=0.1)
    handles = [queue.enqueue(five_steps, document) for document in documents]
    began = time.perf_counter()
    for handle in handles:
        handle.get_result()
else:
    began = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as threads:
        for _ in threads.map(five_steps, documents):
            pass
print(time.perf_counter() - began, flush=True)
DBOS.destroy()
"""


def seconds_with_dbos(dsn: str | None, documents: int, in_flight: int) -> float | None:
    """Seconds that it takes DBOS, the faster way; None where it is not installed.

    Args:
        dsn: Of a server; None: DBOS keeps its state in an SQLite file.
        documents: How many.
        in_flight: The number of concurrent ones.
    """
    if importlib.util.find_spec("dbos") is None:
        return None
    return min(_seconds(dsn, documents, way, in_flight) for way in ("queue", "threads"))


def _seconds(dsn: str | None, documents: int, way: str, in_flight: int) -> float:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        database = f"sqlite:///{Path(folder) / 'dbos.db'}"
        if dsn is not None:
            database = stack.enter_context(scratch_database(dsn))
        command = [sys.executable, "-c", _PROGRAM, database, str(documents), way, str(in_flight)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        return float(done.stdout.strip().splitlines()[-1])
