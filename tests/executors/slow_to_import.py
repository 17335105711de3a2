"""An activity of a module whose import in another process ends when its test says so."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import timedelta
from multiprocessing import parent_process
from pathlib import Path
from typing import Final

from tests.executors.activities import ONCE

from durable_batches import durable_activity

TIMEOUT: Final = timedelta(seconds=1)


def importing(process: int) -> Path:
    """A file that is there while a child of a process imports this module; it goes on when that is removed."""
    return Path(tempfile.gettempdir()) / f"durable-batches-importing-{process}"


parent = parent_process()
if parent is not None and parent.pid is not None:
    mark = importing(parent.pid)
    mark.touch()
    # Its test may have failed.
    while mark.exists() and os.getppid() != 1:
        time.sleep(0.01)


@durable_activity(run_on="cpu", timeout=TIMEOUT, retry=ONCE)
def double_slowly(number: int) -> int:
    return number * 2
