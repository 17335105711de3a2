"""Context managers round a user's code: what it raises leaves them as it is, also where its class refuses assignments.

Those of `contextlib` assign to an error that leaves their block. A frozen dataclass that is an exception raises
`FrozenInstanceError` then, which takes the place of the error.
"""

from __future__ import annotations

import contextlib
from functools import wraps
from types import CodeType
from typing import TYPE_CHECKING, Any

__all__ = ["asynccontextmanager", "contextmanager"]

if TYPE_CHECKING:  # to checkers they are those of `contextlib`
    from contextlib import asynccontextmanager, contextmanager
else:

    def contextmanager(function: Any) -> Any:
        """See `contextlib.contextmanager`."""

        @wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            return _Block(function, args, kwargs)

        return make

    def asynccontextmanager(function: Any) -> Any:
        """See `contextlib.asynccontextmanager`."""

        @wraps(function)
        def make(*args: Any, **kwargs: Any) -> Any:
            return _AsyncBlock(function, args, kwargs)

        return make

    class _Block(contextlib._GeneratorContextManager):
        def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
            code = self.gen.gi_code
            try:
                return super().__exit__(kind, error, trace)
            except BaseException as raised:
                if error is None or _was_raised_in(code, raised):
                    raise
            return False

    class _AsyncBlock(contextlib._AsyncGeneratorContextManager):
        async def __aexit__(self, kind: Any, error: Any, trace: Any) -> Any:
            code = self.gen.ag_code
            try:
                return await super().__aexit__(kind, error, trace)
            except BaseException as raised:
                if error is None or _was_raised_in(code, raised):
                    raise
            return False


def _was_raised_in(code: CodeType, error: BaseException) -> bool:
    """Whether the generator raised it, and not the assignment to what had left the generator."""
    entry = BaseException.__getattribute__(error, "__traceback__")
    while entry is not None:
        if entry.tb_frame.f_code is code:
            return True
        entry = entry.tb_next
    return False
