"""Failure policies as the commands name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.policies import AbortAll, ContinueOnFailure, FailurePolicy, RetryFailed

__all__ = ["policy_of", "policy_text"]

_POLICIES: Final[dict[str, Callable[[int | None], FailurePolicy]]] = {
    "continue": lambda number: ContinueOnFailure(max_failures=number),
    "abort": lambda number: AbortAll(),
    "retry": lambda number: RetryFailed() if number is None else RetryFailed(max_attempts=number),
}


def policy_of(text: str) -> FailurePolicy:
    """Make the failure policy that a text names: `continue`, `continue:N` (failures), `abort`, `retry`, `retry:N`.

    Raises:
        CommandError: It names none.
        ConfigurationError: The number is out of range.
    """
    name, colon, number = text.partition(":")
    known = name in _POLICIES and not (name == "abort" and colon)
    if not known or (colon and not (number.isascii() and number.isdigit() and len(number) < 10)):
        raise CommandError(
            f"{text!r} is no failure policy; give continue, continue:N (the batch fails after more than N failures), "
            "abort, retry, or retry:N (attempts of a document)",
            Exit.USAGE,
        )
    try:
        return _POLICIES[name](int(number) if colon else None)
    except ConfigurationError as error:
        raise ConfigurationError(f"--policy {text}: {error}") from None


def policy_text(policy: FailurePolicy) -> str:
    """Return what names a policy, with what such a name cannot say in words behind it."""
    match policy:
        case AbortAll():
            return "abort"
        case ContinueOnFailure(max_failures=number, max_failure_ratio=ratio):
            name = "continue" if number is None else f"continue:{number}"
            return name if ratio is None else f"{name}, fails with more than {100 * ratio:g} % failed"
        case RetryFailed(max_attempts=attempts, then=then):
            last = policy_text(then)
            return f"retry:{attempts}" + ("" if last == "continue" else f", then {last}")
