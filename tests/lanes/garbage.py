"""What is there before the first test is left out of every collection of garbage.

The tests themselves are some hundred thousand objects that live until the last test has ended. To look through them
takes a third of a second, each time that the collector or a test asks for it.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # next to nothing of what is made meanwhile is garbage
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
