"""A child that user code has forked, and that comes back from it to the library: it is ended.

It has none of its parent's threads, and asyncio does not go on in it. Left to itself it would wait for ever, and so
would all that wait for its end.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["end_child"]

_log = logging.getLogger("durable_batches")


def end_child(place: str, error: BaseException | None) -> NoReturn:
    """End this process, a child that was forked there; at `sys.exit()` with its code, as if it had been handled.

    Args:
        place: The code that it was forked in.
        error: What was raised out of it there; None: it has returned.
    """
    code = 1
    if isinstance(error, SystemExit):
        match error.code:
            case None:
                code = 0
            case int() as number:
                code = number
            case text:
                print(text, file=sys.stderr)
    else:
        _log.error(
            "child process %d ends: it was forked in %s, and comes back from there to what only its parent runs; "
            "have it end by os._exit(), or use multiprocessing or subprocess",
            os.getpid(),
            place,
            exc_info=error,
            extra={"process_id": os.getpid()},
        )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
