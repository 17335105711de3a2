"""An activity of a module that takes longer to import, in another process, than the activity may take."""

from __future__ import annotations

import time
from datetime import timedelta
from multiprocessing import parent_process

from tests.executors.activities import ONCE

from durable_batches import durable_activity

TIMEOUT = timedelta(seconds=1)

if parent_process() is not None:
    time.sleep(1.2 * TIMEOUT.total_seconds())


@durable_activity(run_on="cpu", timeout=TIMEOUT, retry=ONCE)
def double_slowly(number: int) -> int:
    return number * 2
