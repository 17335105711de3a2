"""A call of an activity with its arguments, handed from the activity to the attempt of the execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_batches.runtime.activity import DurableActivity
    from durable_batches.runtime.checkpoint import Defaults
    from durable_batches.runtime.definition import ActivityDefinition
    from durable_batches.runtime.dependencies import Dependency

__all__ = ["BoundCall"]


class BoundCall:
    """A call of an activity that has not started.

    Args:
        activity: The form that it is called in: the options of the call, and the instance that it is bound to.
        definition: What all forms of the activity have in common.
        args: The positional arguments, without the instance.
        kwargs: The keyword arguments.
    """

    __slots__ = ("activity", "args", "definition", "kwargs")

    def __init__(
        self,
        activity: DurableActivity[Any, Any],
        definition: ActivityDefinition[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.activity: DurableActivity[Any, Any] = activity
        self.definition: ActivityDefinition[Any] = definition
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs

    def base_key(self) -> str:
        """Make the call's key, without its occurrence.

        Raises:
            PayloadError: An argument, or the explicit key, cannot be encoded.
            TypeError: The arguments do not fit the function.
        """
        definition, activity = self.definition, self.activity
        if activity.explicit_key is not None:
            return definition.keys.named(activity.explicit_key)
        if definition.key is not None:
            own = self.args if activity.instance is None else (activity.instance, *self.args)
            return definition.keys.named(definition.key(*own, **self.kwargs))
        if definition.all_input:
            return definition.keys.base(self.args, self.kwargs)
        return definition.keys.base(*definition.inputs(self.args, self.kwargs))

    def base_key_as_of(self, recorded: Mapping[str, Defaults]) -> str:
        """Make the call's key, without its occurrence, as of the defaults that its batch was submitted with.

        Args:
            recorded: Those defaults, by the activity's name and version.

        Raises:
            PayloadError: An argument, or the explicit key, cannot be encoded.
            TypeError: The arguments do not fit the function.
        """
        definition = self.definition
        then = recorded.get(definition.label)
        if then is None or self.activity.explicit_key is not None or definition.key is not None:
            return self.base_key()
        if then == definition.keys.defaults:
            return self.base_key()
        return definition.keys.base_as_of(then, *definition.inputs(self.args, self.kwargs))

    def base_key_before(self, recorded: Mapping[str, Defaults]) -> str | None:
        """Make the key that the call was recorded with up to 0.2.0; None: the same as now.

        Args:
            recorded: As `base_key_as_of` takes them.
        """
        definition = self.definition
        before = definition.keys.before
        if before is None or self.activity.explicit_key is not None or definition.key is not None:
            return None
        inputs = definition.inputs(self.args, self.kwargs)
        then = recorded.get(definition.label)
        return before.base(*inputs) if then is None else before.base_as_of(then, *inputs)

    def form(self) -> str:
        """List the types in the input that the key does not show."""
        definition = self.definition
        return definition.keys.form(*definition.inputs(self.args, self.kwargs))

    def input_digest(self) -> str | None:
        """Digest the input of a call whose key is explicit; None where it cannot have a digest."""
        definition = self.definition
        return definition.keys.input_digest(*definition.inputs(self.args, self.kwargs))

    def missing(self) -> dict[str, Dependency]:
        """List the dependencies that the arguments leave open."""
        return self.definition.missing(self.args, self.kwargs)

    def target(self) -> tuple[Callable[..., Any], bool]:
        """Find the function to call, the instance bound, and whether it is async."""
        return self.definition.function(self.activity.instance)
