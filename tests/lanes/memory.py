"""Temporary files are kept in memory, if the machine has a file system for that and enough room on it.

Stores wait for the disk at each commit. No test loses what only the disk would have kept: processes and servers are
killed, machines are not. TMPDIR, where it is set, says another place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest

_MEMORY: Final = Path("/dev/shm")
_NEEDED: Final = 2 << 30


@pytest.hookimpl
def pytest_configure() -> None:
    if "TMPDIR" not in os.environ and _is_usable(_MEMORY):
        # For the processes that tests start, too; in this one somebody may have asked before.
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


def _is_usable(place: Path) -> bool:
    return (
        place.is_dir()
        and os.access(place, os.W_OK | os.X_OK)
        and not os.statvfs(place).f_flag & os.ST_NOEXEC  # some tests write programs
        and shutil.disk_usage(place).free >= _NEEDED
    )
