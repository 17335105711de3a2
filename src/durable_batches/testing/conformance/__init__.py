"""The parts of the conformance suite, by subject; `durable_batches.testing.StoreConformance` is all of them.

Importing this is importing pytest, which is no dependency of the library.
"""

from __future__ import annotations

import pkgutil
from typing import ClassVar

from durable_batches.errors import DurableBatchesError, MissingExtraError

__all__: list[str] = []


class PytestMissingError(DurableBatchesError, ImportError):
    """pytest, or its plugin for asyncio, is not installed."""

    code: ClassVar[str] = MissingExtraError.code


try:
    import pytest
    import pytest_asyncio as _pytest_asyncio  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as _error:
    raise PytestMissingError(
        f"{_error.name!r} is not installed; the conformance suite needs pytest and pytest-asyncio: "
        "pip install 'durable-batches[testing]'"
    ) from _error

# Before they are imported: so that a failing assertion shows the values that it compared.
pytest.register_assert_rewrite(*[f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__)])
