"""Checkpoint keys, and the recorded activities of an execution.

A key consists of the activity's name and version, a digest of the canonical input, and the occurrence among
identical calls. It does not depend on the order of calls: `asyncio.gather` may reorder them, and a deployment may
insert or remove activities, and every other recorded result is still found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from inspect import Parameter, Signature
from typing import Any, Final, TypeAlias

from durable_batches.codec.canonical import Digester
from durable_batches.codec.hidden import form_of
from durable_batches.errors import CheckpointMismatchError, PayloadError
from durable_batches.lifecycle.records import CheckpointRecord

__all__ = ["CallKeys", "Defaults", "Recorded", "collected"]

Defaults: TypeAlias = Mapping[str, str]
"""A digest of each default of an activity, by its parameter; for a field, by parameter, class and field."""

_DIGEST_BYTES: Final = 12
"""96 bits distinguish the calls of one execution: a thousand calls collide with a probability of about 1e-23."""


class CallKeys:
    """Make the checkpoint keys of one activity's calls.

    Args:
        name: The activity's name.
        version: The activity's version.
        signature: The function's signature, without parameters that are not inputs (`self`, dependencies).
        hints: The parameters' annotations; parameters without one are not part of the digest.
        as_before: Make them as up to 0.2.0; see `before`.
    """

    __slots__ = (
        "_as_before",
        "_before",
        "_defaults",
        "_digesters",
        "_direct",
        "_had_other_form",
        "_hints",
        "_label",
        "_names",
        "_prefix",
        "_signature",
        "_simple",
        "_single",
        "loose",
    )

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        hints: Mapping[str, Any],
        *,
        as_before: bool = False,
    ) -> None:
        self._prefix = f"{name}:{version}:"
        self._signature = signature
        parameters = signature.parameters.values()
        self._names = tuple(signature.parameters)
        # Calls that pass exactly the positional parameters in order need no binding.
        self._simple = all(parameter.kind is Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
        digesters = [
            (
                parameter.name,
                f'"{parameter.name}":'.encode(),
                Digester(
                    collected(parameter, hints[parameter.name]),
                    f"argument {parameter.name!r} of activity {name!r}",
                    as_before=as_before,
                ),
                parameter.default,
            )
            for parameter in parameters
            if parameter.name in hints
        ]
        # By name, so that parameters may change their order.
        self._digesters = tuple(sorted(digesters, key=lambda digester: digester[0]))
        self.loose: bool = any(digester.loose for _, _, digester, _ in self._digesters)
        """Whether inputs of several types may have one key."""
        self._label = name, version
        self._hints = hints
        self._as_before = as_before
        self._before: CallKeys | None = None
        self._had_other_form: bool = not as_before and any(
            digester.had_other_form or _is_loose(default) for _, _, digester, default in self._digesters
        )
        self._defaults: Defaults | None = None
        # If each parameter has a digest and none a default, calls that pass all by position need no binding.
        places = {name: index for index, name in enumerate(self._names)}
        direct = self._simple and len(digesters) == len(places)
        self._direct = (
            tuple((places[name], label, digester.encode) for name, label, digester, _ in self._digesters)
            if direct and all(digester[3] is Parameter.empty for digester in self._digesters)
            else None
        )
        # Most activities have one parameter, and most calls pass it by position.
        single = self._simple and len(self._names) == 1 and len(digesters) == 1
        self._single = self._of_one(*digesters[0][1:]) if single else None

    def base(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Make the key of a call from its input, without its occurrence.

        Raises:
            PayloadError: An argument cannot be encoded.
            TypeError: The arguments do not fit the function.
        """
        return self._prefix + blake2b(self._canonical(args, kwargs), digest_size=_DIGEST_BYTES).hexdigest()

    @property
    def before(self) -> CallKeys | None:
        """The keys that calls had up to 0.2.0, whose records are found yet; None: the same.

        Those did not order sets and dicts in some fields (`Digester.had_other_form`), and took one member of a union
        there for another one. So a set had another key in another process, and a call could be answered with the
        result of another one; as could one whose input differed in the zone of a time alone. Made when they are asked
        for: few documents have records of that age.
        """
        if self._before is None and self._had_other_form:
            self._before = CallKeys(*self._label, self._signature, self._hints, as_before=True)
        return self._before

    @property
    def defaults(self) -> Defaults:
        """A digest of each default that a key leaves out: of a parameter, or of a field within one, by its name."""
        if self._defaults is None:
            self._defaults = _digests_of_defaults(self._digesters)
        return self._defaults

    def base_as_of(self, then: Defaults, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Make the key of a call as of the defaults of an earlier version of the function.

        What equals one of those is left out, and what equals one that has changed since is not. Parameters and fields
        that had no default then are left out as they are now.

        Raises:
            PayloadError: An argument cannot be encoded.
            TypeError: The arguments do not fit the function.
        """
        now = self.defaults
        arguments = self._bound(args, kwargs)
        changed = [name for name, digest in then.items() if now.get(name) != digest]
        parts: list[bytes] = []
        for name, label, digester, default in self._digesters:
            fields = [field.removeprefix(f"{name}:") for field in changed if field.startswith(f"{name}:")]
            if name in arguments:
                value = arguments[name]
            elif (name in changed or fields) and default is not Parameter.empty:
                value = default
            else:
                continue
            if name in changed:
                left_out = _digest_of_default(digester.encode(value)) == then[name]
            else:
                left_out = self._is_left_out(value, default, digester) and not fields
            if not left_out:
                parts.append(label + digester.encode_as_of(value, fields))
        return self._prefix + _digest(b",".join(parts))

    def named(self, key: str) -> str:
        """Make the key of a call from an explicit key, without its occurrence."""
        return f"{self._prefix}key={_digest(key.encode())}"

    def input_digest(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Digest the input of a call with an explicit key; None if it has no digest."""
        try:
            return _digest(self._canonical(args, kwargs))
        except PayloadError:
            # An explicit key is for inputs that have no stable digest.
            return None

    def form(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """List the types in an input that its key does not show."""
        arguments = self._bound(args, kwargs)
        forms = [
            f"{name}{form}"
            for name, _, digester, _ in self._digesters
            if digester.loose and name in arguments and (form := form_of(arguments[name]))
        ]
        return "\n".join(forms)

    def _canonical(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        if not kwargs:
            if self._single is not None and len(args) == 1:
                return self._single(args[0])
            if self._direct is not None and len(args) == len(self._direct):
                return b",".join([label + encode(args[place]) for place, label, encode in self._direct])
        arguments = self._bound(args, kwargs)
        parts: list[bytes] = []
        for name, label, digester, default in self._digesters:
            if name not in arguments:
                continue
            value = arguments[name]
            if self._is_left_out(value, default, digester):
                continue
            parts.append(label + digester.encode(value))
        return b",".join(parts)

    def _of_one(self, label: bytes, digester: Digester, default: Any) -> Callable[[Any], bytes]:
        encode = digester.encode

        def canonical(value: Any) -> bytes:
            return b"" if self._is_left_out(value, default, digester) else label + encode(value)

        return canonical

    def _is_left_out(self, value: Any, default: Any, digester: Digester) -> bool:
        """Tell whether an argument is its default, and not only equal to it: 1.0 and 1.00, a time in two zones."""
        if value is default:
            return True
        if type(value) is not type(default) or not bool(value == default):
            return False
        if self._as_before or not _is_loose(default):
            return True
        try:
            return digester.encode(value) == digester.encode(default)
        except PayloadError:
            # A default that cannot be encoded is left out.
            return True

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._simple and not kwargs and len(args) == len(self._names):
            return dict(zip(self._names, args, strict=True))
        return self._signature.bind(*args, **kwargs).arguments


def _digests_of_defaults(digesters: Iterable[tuple[str, bytes, Digester, Any]]) -> Defaults:
    found: dict[str, str] = {}
    for name, _, digester, default in digesters:
        if default is not Parameter.empty:
            # A default that cannot be encoded is left out where it is passed, and never compared.
            with suppress(PayloadError):
                found[name] = _digest_of_default(digester.encode(default))
        for field, encoded in digester.hidden.defaults().items():
            found[f"{name}:{field}"] = _digest_of_default(encoded)
    return found


def _digest_of_default(encoded: bytes) -> str:
    """Digest a default: short, because all of them are stored with each batch, and few are compared."""
    return blake2b(encoded, digest_size=4).hexdigest()


def _is_loose(default: Any) -> bool:
    """Tell whether values of its class that are equal to it may be written in another way."""
    return default is not Parameter.empty and not isinstance(default, str | bytes | int | None)


def collected(parameter: Parameter, annotation: Any) -> Any:
    """Return the type of a parameter's bound value."""
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return tuple[annotation, ...]
    if parameter.kind is Parameter.VAR_KEYWORD:
        return dict[str, annotation]
    return annotation


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


class Recorded:
    """The checkpoints that an attempt found, and the keys of its new calls.

    The calls of one key take its checkpoints in the order in which those calls were begun, successes and failures
    alike: which of them had failed decides what the code between them did. A call that finds none is new, and gets a
    key that no other call of this execution has.
    """

    __slots__ = ("_inputs", "_next", "_waiting", "found", "used")

    def __init__(self, checkpoints: Sequence[CheckpointRecord] = ()) -> None:
        self._waiting: dict[str, list[CheckpointRecord]] = {}
        self._next: dict[str, int] = {}
        self._inputs: dict[str, str] = {}
        self.found: int = 0
        self.used: int = 0
        if not checkpoints:
            return
        for checkpoint in sorted(checkpoints, key=_occurrence, reverse=True):
            base, occurrence = _split(checkpoint.key)
            self._waiting.setdefault(base, []).append(checkpoint)
            self._next[base] = max(self._next.get(base, 0), occurrence + 1)
            self.found += 1

    @property
    def unused(self) -> int:
        """Checkpoints that no call has taken."""
        return self.found - self.used

    def take(self, base: str) -> CheckpointRecord | None:
        """Return the checkpoint of the next call with this key, if there is one."""
        if self.used == self.found:
            return None
        waiting = self._waiting.get(base)
        if not waiting:
            return None
        self.used += 1
        return waiting.pop()

    def take_before(self, base: str) -> CheckpointRecord | None:
        """Return the checkpoint that 0.2.0 recorded of the next call with this key, if there is one.

        By its keys, several inputs have one. Of what is recorded since, such a key belongs to one of them alone, and
        the others must not be answered by it: it says in which stage it was recorded, which 0.2.0 did not say.
        """
        waiting = self._waiting.get(base, [])
        for index in reversed(range(len(waiting))):
            if waiting[index].stage is None:
                self.used += 1
                return waiting.pop(index)
        return None

    def new_key(self, base: str) -> str:
        """Make the complete key of a call that found no checkpoint."""
        occurrence = self._next.get(base, 0)
        self._next[base] = occurrence + 1
        return f"{base}#{occurrence}"

    def check_input(self, base: str, digest: str, activity: str, batch_id: str, document_id: str) -> None:
        """Verify that calls of one attempt with the same explicit key have the same input.

        Raises:
            CheckpointMismatchError: The inputs differ.
        """
        if self._inputs.setdefault(base, digest) != digest:
            raise CheckpointMismatchError(activity, batch_id, document_id)


def _split(key: str) -> tuple[str, int]:
    base, _, occurrence = key.rpartition("#")
    return base, int(occurrence)


def _occurrence(checkpoint: CheckpointRecord) -> int:
    return _split(checkpoint.key)[1]
