"""The arguments of a call as bytes, for activities that run in another process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from durable_batches.codec.codec import Codec
from durable_batches.errors import ActivityDefinitionError
from durable_batches.runtime.checkpoint import collected

__all__ = ["Arguments"]


class Arguments:
    """Encode and decode the arguments of one activity's calls, by their annotations.

    Args:
        activity: The activity's name.
        signature: The function's signature.
        hints: The annotations of its parameters.

    Raises:
        ActivityDefinitionError: A parameter has no annotation, or one that cannot be encoded.
    """

    def __init__(self, activity: str, signature: inspect.Signature, hints: Mapping[str, Any]) -> None:
        self._signature = signature
        self._codecs: dict[str, Codec[Any]] = {}
        for name, parameter in signature.parameters.items():
            if name not in hints:
                raise ActivityDefinitionError(
                    f"activity {activity!r} cannot run on an executor: parameter {name!r} has no annotation, by which "
                    "it is sent to another process"
                )
            self._codecs[name] = Codec(collected(parameter, hints[name]), f"argument {name!r} of activity {activity!r}")

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, bytes]:
        """Encode the arguments of a call, by parameter; those that are left out stay so.

        Raises:
            PayloadError: An argument cannot be encoded, or would not arrive as it is.
            TypeError: The arguments do not fit the function.
        """
        given = self._signature.bind(*args, **kwargs).arguments
        return {name: self._codecs[name].recoded(value)[0] for name, value in given.items()}

    def decode(self, encoded: Mapping[str, bytes]) -> inspect.BoundArguments:
        """Decode the arguments of a call.

        Raises:
            ActivityDefinitionError: The function has no such parameter: it is another version of the code.
            PayloadError: An argument is not of the annotated type.
        """
        unknown = [name for name in encoded if name not in self._codecs]
        if unknown:
            raise ActivityDefinitionError(
                f"the function has no parameter {unknown[0]!r} here: it is of another version of the code"
            )
        found = {name: codec.decode(encoded[name]) for name, codec in self._codecs.items() if name in encoded}
        return inspect.BoundArguments(self._signature, found)
