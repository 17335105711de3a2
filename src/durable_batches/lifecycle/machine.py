"""State machines: the stages of one kind of batch, in order, and their types.

The rules by which a batch goes from state to state are in `transitions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, cast, get_args, overload

from typing_extensions import TypeVar

from durable_batches.errors import MachineError
from durable_batches.lifecycle.states import (
    RESERVED_TAGS,
    Assembling,
    Chunking,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ExtractionStage,
    Stage,
)
from durable_batches.lifecycle.transitions import transitions

__all__ = ["EXTRACTION", "BatchStateMachine", "tag_of"]

S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)
S1 = TypeVar("S1", bound=Stage)
S2 = TypeVar("S2", bound=Stage)
S3 = TypeVar("S3", bound=Stage)
S4 = TypeVar("S4", bound=Stage)
S5 = TypeVar("S5", bound=Stage)
S6 = TypeVar("S6", bound=Stage)
S7 = TypeVar("S7", bound=Stage)
S8 = TypeVar("S8", bound=Stage)
S9 = TypeVar("S9", bound=Stage)
S10 = TypeVar("S10", bound=Stage)
S11 = TypeVar("S11", bound=Stage)
S12 = TypeVar("S12", bound=Stage)


class BatchStateMachine(Generic[S_co]):
    """The stages of a kind of batch, in order; `PENDING` precedes them, `RESOLVING` and the terminal states follow.

    The union of the stages is inferred from the arguments: this is a `BatchStateMachine[Ocr | Translate | Index]`::

        machine = BatchStateMachine(Ocr, Translate, Index)

    Raises:
        MachineError: A stage has no tag, or a repeated or reserved one, or is not a `Stage`; or the classes do
            not match an explicit type argument (`BatchStateMachine[A | B](A)`).
    """

    @overload
    def __init__(self: BatchStateMachine[S1], a: type[S1], /) -> None: ...
    @overload
    def __init__(self: BatchStateMachine[S1 | S2], a: type[S1], b: type[S2], /) -> None: ...
    @overload
    def __init__(self: BatchStateMachine[S1 | S2 | S3], a: type[S1], b: type[S2], c: type[S3], /) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4], a: type[S1], b: type[S2], c: type[S3], d: type[S4], /
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7 | S8],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        h: type[S8],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7 | S8 | S9],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        h: type[S8],
        i: type[S9],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7 | S8 | S9 | S10],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        h: type[S8],
        i: type[S9],
        j: type[S10],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7 | S8 | S9 | S10 | S11],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        h: type[S8],
        i: type[S9],
        j: type[S10],
        k: type[S11],
        /,
    ) -> None: ...
    @overload
    def __init__(
        self: BatchStateMachine[S1 | S2 | S3 | S4 | S5 | S6 | S7 | S8 | S9 | S10 | S11 | S12],
        a: type[S1],
        b: type[S2],
        c: type[S3],
        d: type[S4],
        e: type[S5],
        f: type[S6],
        g: type[S7],
        h: type[S8],
        i: type[S9],
        j: type[S10],
        k: type[S11],
        l: type[S12],  # noqa: E741  (the twelfth letter of a row of letters)
        /,
    ) -> None: ...
    @overload
    def __init__(self, *stages: type[S_co]) -> None: ...
    def __init__(self, *stages: Any) -> None:
        self._stages: tuple[type[Stage], ...] = _checked(stages)
        self._tags = tuple(tag_of(stage) for stage in self._stages)
        self._indexes = {tag: index for index, tag in enumerate(self._tags)}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # `BatchStateMachine[A | B](...)` sets this attribute after __init__: the first moment at which the type
        # argument and the classes can be compared. From Python 3.12.4 on `typing` swallows what is raised here; then
        # the machine's first use raises it.
        if name == "__orig_class__":
            self._check_type_argument()

    def __repr__(self) -> str:
        return f"BatchStateMachine({', '.join(stage.__name__ for stage in self._stages)})"

    @property
    def stages(self) -> Sequence[type[S_co]]:
        """The stage classes, in order."""
        return self._stages  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    @property
    def tags(self) -> tuple[str, ...]:
        """The stages' tags, in order; they are stored with each batch."""
        self._check_type_argument()
        return self._tags

    @property
    def transitions(self) -> Mapping[str, frozenset[str]]:
        """Each state's tag, and the tags that may follow it within a run."""
        return transitions(self.tags)

    def can_transition(self, current: str, following: str) -> bool:
        """Decide whether a batch in the state `current` may go to `following` (both are tags)."""
        return following in self.transitions.get(current, frozenset())

    def index(self, tag: str) -> int | None:
        """Find the stage's index in the order; None where the machine does not have it."""
        return self._indexes.get(tag)

    def stage(self, tag: str, *, done: int, total: int) -> S_co | None:
        """Make the stage state of this tag; None where the machine does not have it."""
        index = self._indexes.get(tag)
        if index is None:
            return None
        # Its tag has a default, which the base class cannot know.
        stage = cast("Callable[..., S_co]", self.stages[index])
        return stage(done=done, total=total)

    def _check_type_argument(self) -> None:
        alias = getattr(self, "__orig_class__", None)
        if alias is None:
            return
        (argument,) = get_args(alias)
        if isinstance(argument, TypeVar):
            return
        declared: set[Any] = set(get_args(argument)) or {argument}
        if declared != {Stage} and declared != set(self._stages):
            raise MachineError(
                f"the machine's type argument names {_names(declared)}, its stages are {_names(self._stages)}"
            )


def tag_of(stage: type[Stage]) -> str:
    """Read the stage's literal tag."""
    tag: object = getattr(stage, "tag", None)
    if not isinstance(tag, str) or not tag:
        raise MachineError(f'{stage.__name__} has no tag; give it one: tag: Literal["name"] = "name"')
    return tag


def _checked(stages: tuple[Any, ...]) -> tuple[type[Stage], ...]:
    if not stages:
        raise MachineError("a machine needs at least one stage")
    seen: dict[str, str] = {}
    for stage in stages:
        if not (isinstance(stage, type) and issubclass(stage, Stage)):
            raise MachineError(f"{stage!r} is no Stage; subclass durable_batches.Stage")
        tag = tag_of(stage)
        if tag in RESERVED_TAGS:
            raise MachineError(f"{stage.__name__} has the tag {tag!r}, which every machine has already")
        if tag in seen:
            raise MachineError(f"{seen[tag]} and {stage.__name__} have the same tag {tag!r}")
        seen[tag] = stage.__name__
    return stages


def _names(stages: Any) -> str:
    return ", ".join(sorted(getattr(stage, "__name__", str(stage)) for stage in stages))


EXTRACTION: Final[BatchStateMachine[ExtractionStage]] = BatchStateMachine(
    Chunking, ExtractingMentions, ExtractingEntities, ExtractingRelations, Assembling
)
"""The built-in machine of a knowledge-extraction pipeline."""
