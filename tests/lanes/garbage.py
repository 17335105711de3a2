"""What is there before a test, and stays, is left out of the collections of garbage.

The tests themselves are some hundred thousand objects that live until the last test has ended, and what is remembered
of those that have run makes it twice as many. To look through them takes a third of a second, each time that the
collector or a test asks for it; all such looks were a tenth of the time of all tests.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

_looks: int = 0
"""The collections of all that is not left out, when that was done last."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # next to nothing of what is made meanwhile is garbage
    try:
        return (yield)
    finally:
        _leave_out_what_is_there()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Do it again between two tests, where the collector has looked at everything meanwhile."""
    if gc.get_stats()[2]["collections"] > _looks:
        _leave_out_what_is_there()


def _leave_out_what_is_there() -> None:
    global _looks
    gc.collect()
    gc.freeze()
    _looks = gc.get_stats()[2]["collections"]
