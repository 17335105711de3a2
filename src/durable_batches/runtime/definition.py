"""The definition of an activity, shared by all of its forms: bound to an instance, with other options, or replaced."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property
from types import MethodType
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from durable_batches.codec.codec import Codec
from durable_batches.errors import ActivityDefinitionError
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.options import check_callable, check_names
from durable_batches.runtime.arguments import Arguments
from durable_batches.runtime.checkpoint import CallKeys
from durable_batches.runtime.dependencies import Dependency, dependencies_of

__all__ = ["ActivityDefinition", "Replacement", "annotations_of"]

T = TypeVar("T")


class Replacement(NamedTuple):
    """The replacement of a function in a test."""

    fn: Callable[..., Any]
    takes_instance: bool
    """Whether it gets the instance of a method, like the function itself."""


class ActivityDefinition(Generic[T]):
    """A function, the keys of its calls, and the codec of its results.

    Args:
        fn: The function.
        name: The activity's name; by default the function's name.
        version: The activity's version.
        key: The user's key function, in place of the input's digest.
        ignore: Parameters that are not part of the digest.
        namespace: The names that annotations may use beyond those of the function's module.

    Raises:
        ActivityDefinitionError: Its calls cannot be recorded.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        version: str,
        key: Callable[..., str] | None,
        ignore: tuple[str, ...],
        namespace: Mapping[str, Any] | None,
    ) -> None:
        check_callable("an activity", fn, error=ActivityDefinitionError)
        self.fn = fn
        self.version: str = version
        self.key: Callable[..., str] | None = key
        self.is_async: bool = inspect.iscoroutinefunction(fn)
        self.replacement: Replacement | None = None
        self.dependencies: dict[str, Dependency] = dependencies_of(fn)
        self.is_method: bool = False
        self.ignore: tuple[str, ...] = ignore
        self._namespace = namespace
        self._signature = inspect.signature(fn)
        # It is a method if a class has it as an attribute; a static method may look like one as well.
        self._takes_instance = _is_in_class(fn) and _first_is_instance(self._signature)
        self.name: str = _name_of(fn, in_class=self._takes_instance) if name is None else name
        self.label: str = f"{self.name}:{version}"
        self._positional = _positional(self._signature)[1 if self._takes_instance else 0 :]
        # Whether each argument of a call is an input: no instance, no dependency.
        self.all_input: bool = not self._takes_instance and not self.dependencies
        self._check()

    # Plain attributes after the first use: every call reads them without another call.

    @cached_property
    def keys(self) -> CallKeys:
        """The keys of its calls."""
        return self._prepared_late()[0]

    @cached_property
    def codec(self) -> Codec[T]:
        """The codec of its results."""
        return self._prepared_late()[1]

    @cached_property
    def arguments(self) -> Arguments:
        """The codecs of its inputs, for calls that run elsewhere."""
        try:
            return self._prepare_arguments()
        except NameError as error:
            raise _unresolved(self.name, error) from None

    def became_method(self) -> None:
        """Note that a class has it as an attribute: a function that looks like a method is one."""
        self.is_method = self._takes_instance

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Select the inputs among a call's arguments (without the instance)."""
        if self._takes_instance and not self.is_method:
            first = next(iter(self._signature.parameters))
            raise ActivityDefinitionError(
                f"parameter {first!r} of activity {self.name!r} has no annotation, and it is no method: annotate it; "
                "for a static or class method, define the activity outside of the class"
            )
        positional = self._positional
        kept = [value for name, value in zip(positional, args, strict=False) if name not in self.dependencies]
        named = {name: value for name, value in kwargs.items() if name not in self.dependencies}
        return (*kept, *args[len(positional) :]), named

    def missing(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Dependency]:
        """List the dependencies that a call's arguments (without the instance) leave open."""
        if not self.dependencies or self.replacement is not None:
            # A replacement is called with the caller's arguments.
            return {}
        given = {*self._positional[: len(args)], *kwargs}
        return {name: wanted for name, wanted in self.dependencies.items() if name not in given}

    def function(self, instance: object | None) -> tuple[Callable[..., Any], bool]:
        """The function to call, without the instance, and whether it is async."""
        if self.replacement is None:
            return (self.fn if instance is None else MethodType(self.fn, instance)), self.is_async
        fake, takes_instance = self.replacement
        if instance is not None and takes_instance:
            fake = MethodType(fake, instance)
        return fake, inspect.iscoroutinefunction(fake)

    # ---- checks ----------------------------------------------------------------------------------------------

    def check_sendable(self) -> None:
        """Verify that a call can be sent to another process, which finds the function by its name.

        Raises:
            ActivityDefinitionError: It cannot.
        """
        fn, subject = self.fn, f"activity {self.name!r} cannot run on an executor:"
        if not inspect.isfunction(fn):
            raise ActivityDefinitionError(f"{subject} it is no function of a module, which another process could find")
        if "<locals>" in fn.__qualname__ or "<lambda>" in fn.__qualname__:
            raise ActivityDefinitionError(
                f"{subject} {fn.__qualname__} is defined within a function, where another process cannot find it; "
                "define it at the top of a module"
            )
        if self.dependencies:
            name = next(iter(self.dependencies))
            raise ActivityDefinitionError(
                f"{subject} its dependency {name!r} is opened by the worker, and cannot be sent to another process; "
                "make it within the function"
            )
        if self._takes_instance:
            raise ActivityDefinitionError(
                f"{subject} it is a method, whose instance cannot be sent to another process; use a function"
            )
        # A name that is defined later in the module is resolved at the first call.
        with suppress(NameError):
            self._prepare_arguments()

    def _check(self) -> None:
        # Both are part of a key that every store must be able to hold.
        for given in (self.name, self.version, f"{self.name}{self.version}"):
            if (problem := problem_with_name(given)) is not None:
                raise ActivityDefinitionError(f"the name and the version of an activity {problem}")
        if ":" in self.version:
            raise ActivityDefinitionError(f"the version of activity {self.name!r} must not contain ':'")
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            raise ActivityDefinitionError(
                f"activity {self.name!r} is a generator; an activity returns one result, a list for example"
            )
        check_callable(f"activity {self.name!r}: key", self.key, optional=True, error=ActivityDefinitionError)
        check_names(f"activity {self.name!r}: ignore", self.ignore, error=ActivityDefinitionError)
        unknown = [name for name in self.ignore if name not in self._signature.parameters]
        if unknown:
            raise ActivityDefinitionError(f"activity {self.name!r} has no parameter {unknown[0]!r} to ignore")
        # A name that is defined later in the module is resolved at the first call.
        with suppress(NameError):
            self._prepare()

    def _prepared_late(self) -> tuple[CallKeys, Codec[T]]:
        try:
            return self._prepare()
        except NameError as error:
            raise _unresolved(self.name, error) from None

    def _prepare(self) -> tuple[CallKeys, Codec[T]]:
        hints = annotations_of(self.fn, self._namespace)
        if "return" not in hints:
            raise ActivityDefinitionError(
                f"activity {self.name!r} has no return annotation; its results are recorded and read as that type"
            )
        returned = hints.pop("return")
        signature = self._signature_of_inputs()
        digested = {name: hint for name, hint in hints.items() if name not in self.ignore}
        missing = [name for name in signature.parameters if name not in hints and name not in self.ignore]
        if missing and self.key is None:
            raise ActivityDefinitionError(
                f"parameter {missing[0]!r} of activity {self.name!r} has no annotation; annotate it, or leave it "
                f"out of the checkpoint's key with ignore=({missing[0]!r},)"
            )
        if self.key is not None:
            # The digest only verifies the explicit key: parameters that cannot have a digest are omitted.
            digested = {name: hint for name, hint in digested.items() if _is_encodable(hint)}
        keys = CallKeys(self.name, self.version, signature, digested)
        codec = Codec[T](_awaited(returned), f"the result of activity {self.name!r}")
        # Both or none: a call that finds keys runs its function, whose result must be recordable.
        self.keys, self.codec = keys, codec
        self._namespace = None
        return self.keys, self.codec

    def _prepare_arguments(self) -> Arguments:
        hints = annotations_of(self.fn, self._namespace)
        self.arguments = Arguments(self.name, self._signature_of_inputs(), hints)
        return self.arguments

    def _signature_of_inputs(self) -> inspect.Signature:
        parameters = list(self._signature.parameters.values())[1 if self._takes_instance else 0 :]
        return self._signature.replace(
            parameters=[parameter for parameter in parameters if parameter.name not in self.dependencies]
        )


def _unresolved(name: str, error: NameError) -> ActivityDefinitionError:
    return ActivityDefinitionError(f"activity {name!r} has an annotation that cannot be resolved: {error}")


def annotations_of(fn: Callable[..., Any], namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    """Resolve the function's annotations, including names local to the place of its definition."""
    target = fn if inspect.isroutine(fn) else type(fn).__call__
    return get_type_hints(target, localns=dict(namespace) if namespace else None, include_extras=True)


def _name_of(fn: Callable[..., Any], *, in_class: bool) -> str:
    """Return the function's name (without its module: code may move); for a method, with its class."""
    name = getattr(fn, "__name__", "") or type(fn).__name__
    return f"{fn.__qualname__.split('.')[-2]}.{name}" if in_class else name


def _is_in_class(fn: Callable[..., Any]) -> bool:
    """Return whether it is defined in a class body (a bound method already has its instance)."""
    if not inspect.isfunction(fn):
        return False
    within = getattr(fn, "__qualname__", "").rpartition(".")[0]
    return bool(within) and not within.endswith("<locals>")


def _first_is_instance(signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    return first is not None and (first.name == "self" or first.annotation is first.empty)


def _positional(signature: inspect.Signature) -> tuple[str, ...]:
    """List the parameters that can be passed by position."""
    return tuple(
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def _awaited(annotation: Any) -> Any:
    """Return the type that an awaitable of this type awaits to: a sync function may return an awaitable."""
    origin = get_origin(annotation)
    return get_args(annotation)[-1] if isinstance(origin, type) and issubclass(origin, Awaitable) else annotation


def _is_encodable(annotation: Any) -> bool:
    try:
        Codec[Any](annotation, "argument")
    except ActivityDefinitionError:
        return False
    return True
