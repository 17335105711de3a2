from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import pytest

from durable_batches import EXTRACTION, BatchStateMachine, ConfigurationError, MachineError, Stage

S = TypeVar("S", bound=Stage)


class Ocr(Stage):
    tag: Literal["ocr"] = "ocr"


class Translate(Stage):
    tag: Literal["translate"] = "translate"


class Index(Stage):
    tag: Literal["index"] = "index"


class Untagged(Stage):
    pass


class Empty(Stage):
    tag: Literal[""] = ""


class OcrAgain(Stage):
    tag: Literal["ocr"] = "ocr"


class NoStage:
    tag: Literal["no_stage"] = "no_stage"


# As a caller without a type checker sees it.
MACHINE: Final[Any] = BatchStateMachine


def reserved(tag: str) -> type[Stage]:
    return type("Reserved", (Stage,), {"tag": tag, "__annotations__": {"tag": str}})


def test_a_machine_knows_its_stages() -> None:
    machine = BatchStateMachine(Ocr, Translate, Index)
    assert machine.tags == ("ocr", "translate", "index")
    assert list(machine.stages) == [Ocr, Translate, Index]
    assert [machine.index(tag) for tag in ("ocr", "index", "elsewhere")] == [0, 2, None]
    assert machine.stage("translate", done=1, total=3) == Translate(done=1, total=3)
    assert machine.stage("elsewhere", done=1, total=3) is None
    assert repr(machine) == "BatchStateMachine(Ocr, Translate, Index)"


def test_a_machine_has_its_table() -> None:
    machine = BatchStateMachine(Ocr, Translate)
    assert machine.transitions["ocr"] == {"translate", "resolving", "completed", "failed", "cancelled"}
    assert machine.can_transition("pending", "translate")
    assert not machine.can_transition("translate", "ocr")
    assert not machine.can_transition("elsewhere", "ocr")


def test_the_built_in_machine() -> None:
    assert EXTRACTION.tags == (
        "chunking",
        "extracting_mentions",
        "extracting_entities",
        "extracting_relations",
        "assembling",
    )
    assert len(EXTRACTION.transitions) == 10


@pytest.mark.parametrize("size", range(1, 14))
def test_machines_of_any_size(size: int) -> None:
    stages = [reserved(f"stage-{number}") for number in range(size)]
    machine: BatchStateMachine[Stage] = BatchStateMachine(*stages)
    assert machine.tags == tuple(f"stage-{number}" for number in range(size))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "^a machine needs at least one stage$"),
        ([Untagged], "Untagged has no tag"),
        ([Empty], "Empty has no tag"),
        ([Stage], "Stage has no tag"),
        ([Ocr, Translate, OcrAgain], "Ocr and OcrAgain have the same tag 'ocr'"),
        ([Ocr, Ocr], "Ocr and Ocr have the same tag 'ocr'"),
        ([NoStage], "is no Stage"),
        ([Ocr(done=0, total=0)], "is no Stage"),
        (["ocr"], "is no Stage"),
        ([Ocr | Translate], "is no Stage"),
        *[
            ([Ocr, reserved(tag)], f"the tag {tag!r}, which every machine has already")
            for tag in ("pending", "resolving", "completed", "failed", "cancelled")
        ],
    ],
)
def test_a_machine_that_cannot_work_is_refused(stages: list[Any], message: str) -> None:
    with pytest.raises(MachineError, match=message) as caught:
        MACHINE(*stages)
    assert isinstance(caught.value, ConfigurationError)
    assert isinstance(caught.value, TypeError)


def test_a_type_argument_that_names_the_stages_is_fine() -> None:
    assert BatchStateMachine[Ocr | Translate](Ocr, Translate).tags == ("ocr", "translate")
    assert BatchStateMachine[Ocr](Ocr).tags == ("ocr",)
    assert BatchStateMachine[Stage](Ocr, Translate).tags == ("ocr", "translate")


def test_a_type_argument_may_be_a_variable() -> None:
    """In a function that is generic itself, nothing is known that could be compared."""

    def made(*stages: type[S]) -> BatchStateMachine[S]:
        return BatchStateMachine[S](*stages)

    assert made(Ocr, Translate).tags == ("ocr", "translate")


@pytest.mark.parametrize(
    ("argument", "stages", "message"),
    [
        (Ocr | Translate, (Ocr,), "names Ocr, Translate, its stages are Ocr$"),
        (Ocr, (Ocr, Translate), "names Ocr, its stages are Ocr, Translate$"),
        (Ocr | Index, (Ocr, Translate), "names Index, Ocr, its stages are Ocr, Translate$"),
        (int, (Ocr,), "names int, its stages are Ocr$"),
        (Literal["ocr"], (Ocr,), "names ocr, its stages are Ocr$"),
    ],
)
def test_a_type_argument_that_names_others_is_refused(argument: Any, stages: Any, message: str) -> None:
    with pytest.raises(MachineError, match=message):
        # At construction, or where the interpreter's `typing` swallows that, at the first use.
        _ = MACHINE[argument](*stages).tags
