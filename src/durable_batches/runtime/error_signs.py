"""Signs of a provider in an error, wherever in it they are: its status and headers, and whether the provider failed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from durable_batches.lifecycle.failures import leaves
from durable_batches.runtime.error_facts import ErrorFacts
from durable_batches.runtime.tracebacks import own_attribute

__all__ = ["ErrorSigns", "causes_of", "is_of_provider", "signs_of"]

_LONGEST_CHAIN: Final = 8
_MOST_LEAVES: Final = 20
_MOST_GROUPS: Final = 8
"""Among the causes of an error: each may have as many errors as the error itself."""


_CONNECTION_ERRORS: Final = re.compile(
    r"(?:Timeout|Timeouts?Error|TimeoutException|TransportError|Network(?:Error)?|ProtocolError|ConnectError"
    r"|Connection(?:Closed)?Error|ClientConnectionError|ClientPayloadError|ServerDisconnectedError"
    r"|ChunkedEncodingError|IncompleteRead|gaierror)$"
)
"""The ends of names of classes: clients have their own, few of which derive from Python's."""


class ErrorSigns(NamedTuple):
    """What a provider has answered."""

    status: int | None
    """The HTTP status; None: no part of the error has one."""
    headers: Mapping[str, str]
    """The headers, by their names in lower case."""


def signs_of(error: BaseException, now: float) -> ErrorSigns:
    """Find the first status and the first headers in an error, the errors of a group, and what they were raised from.

    Args:
        error: The error.
        now: The time, in seconds since the epoch.
    """
    status: int | None = None
    headers: Mapping[str, str] = {}
    for chain in islice(_chains_of(error), _MOST_LEAVES):
        for part in chain:
            facts = ErrorFacts(part, now)
            status = facts.status if status is None else status
            headers = headers or facts.headers
            if status is not None and headers:
                return ErrorSigns(status, headers)
    return ErrorSigns(status, headers)


def is_of_provider(error: BaseException, now: float) -> bool:
    """Decide whether an error is the provider's failure: an answer of 500 or more, a timeout, a failed connection.

    Args:
        error: The error, which may be a group.
        now: The time, in seconds since the epoch.
    """
    return any(_is_of_provider(chain, now) for chain in _chains_of(error))


def _is_of_provider(chain: Sequence[BaseException], now: float) -> bool:
    for part in chain:
        status = ErrorFacts(part, now).status
        if status is not None:
            return status >= 500
        if isinstance(part, TimeoutError | ConnectionError):
            return True
        if any(_CONNECTION_ERRORS.search(kind.__name__) for kind in type(part).__mro__):
            return True
    return False


def _chains_of(error: BaseException) -> Iterator[Sequence[BaseException]]:
    """List the errors of a group, each with those that it was raised from; a group among them has a chain an error."""
    groups: list[BaseException] = []

    def chains(error: BaseException, before: Sequence[BaseException]) -> Iterator[Sequence[BaseException]]:
        for leaf in leaves(error):
            chain = before
            for part in causes_of(leaf):
                group = part  # of which type checkers know more: that they do not know the type of its errors
                if not isinstance(part, BaseExceptionGroup):
                    chain = (*chain, part)
                elif len(groups) < _MOST_GROUPS and not any(group is each for each in groups):
                    groups.append(group)
                    yield from chains(group, chain)
            yield chain

    return chains(error, ())


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """List an error and those that it was raised from, the first few; each once."""
    seen: list[BaseException] = []
    part: BaseException | None = error
    while part is not None and len(seen) < _LONGEST_CHAIN and not any(part is each for each in seen):
        seen.append(part)
        yield part
        part = own_attribute(part, "__cause__")
