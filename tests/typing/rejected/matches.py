"""A `match` that forgets something, or that asks for what cannot be."""

from __future__ import annotations

from typing import assert_never

from tests.typing.accepted import A, Answer, B, C, Query

from durable_batches import (
    AbortAll,
    Assembling,
    BatchCancelled,
    BatchCompleted,
    BatchConfig,
    BatchCreated,
    BatchEvent,
    BatchFailed,
    BatchOrchestrator,
    BatchPaused,
    BatchRedriven,
    BatchResumed,
    BatchSealed,
    BatchUpdated,
    Cancelled,
    Chunking,
    Completed,
    ContinueOnFailure,
    DocumentCancelled,
    DocumentCompleted,
    DocumentFailed,
    DocumentFailure,
    DocumentReleased,
    DocumentRetrying,
    DocumentsAdded,
    DocumentStarted,
    DocumentSucceeded,
    DocumentSuspended,
    DocumentWoken,
    ExtractingEntities,
    ExtractingMentions,
    ExtractionStage,
    Failed,
    Pending,
    ProviderJobChanged,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionReleased,
    ResolutionStarted,
    Resolving,
    StageProgress,
    StateChanged,
    UnknownEvent,
)


async def forgets_a_built_in_stage(batches: BatchOrchestrator[str, str, ExtractionStage]) -> None:
    state = await batches.state("")
    match state:
        case Pending() | Resolving() | Completed() | Failed() | Cancelled():
            pass
        case Chunking() | ExtractingMentions() | ExtractingEntities() | Assembling():
            pass
        case _:
            assert_never(state)  # error


async def forgets_a_stage(batches: BatchOrchestrator[str, str, A | B]) -> None:
    state = await batches.state("")
    match state:
        case Pending() | A() | Resolving() | Completed() | Failed() | Cancelled():
            pass
        case _:
            assert_never(state)  # error


async def forgets_the_resolver(batches: BatchOrchestrator[str, str, A | B]) -> None:
    state = (await batches.snapshot("")).state
    match state:
        case Pending() | A() | B() | Completed() | Failed() | Cancelled():
            pass
        case _:
            assert_never(state)  # error


async def forgets_an_end(batches: BatchOrchestrator[str, str, A | B]) -> None:
    state = (await batches.result("")).state
    match state:
        case Completed() | Failed():
            pass
        case _:
            assert_never(state)  # error


async def names_a_foreign_stage(batches: BatchOrchestrator[str, str, A | B]) -> None:
    state = await batches.state("")
    _foreign: C = state  # error
    print(state.tag == "c")  # error


async def forgets_failures(batches: BatchOrchestrator[Query, Answer, A]) -> None:
    async for outcome in batches.results(""):
        match outcome:
            case DocumentSucceeded() | DocumentCancelled():
                pass
            case _:
                assert_never(outcome)  # error


async def forgets_cancelled_documents(batches: BatchOrchestrator[Query, Answer, A]) -> None:
    async for outcome in batches.results(""):
        match outcome:
            case DocumentSucceeded() | DocumentFailure():
                pass
            case _:
                assert_never(outcome)  # error


def forgets_an_event(event: BatchEvent) -> None:
    match event:
        case BatchCreated() | StateChanged() | BatchCompleted() | BatchFailed() | BatchCancelled():
            pass
        case DocumentStarted() | StageProgress() | DocumentCompleted() | DocumentRetrying() | DocumentReleased():
            pass
        case ResolutionStarted() | ResolutionCompleted() | ResolutionFailed() | ResolutionReleased():
            pass
        case BatchPaused() | BatchResumed() | BatchRedriven() | BatchUpdated() | BatchSealed() | DocumentsAdded():
            pass
        case DocumentSuspended() | DocumentWoken() | ProviderJobChanged() | UnknownEvent():
            pass
        case _:
            assert_never(event)  # error


def expects_too_much_of_an_event(event: BatchEvent) -> None:
    print(event.document_id)  # error
    match event:
        case DocumentFailed():
            print(event.attempt)  # error
        case _:
            pass


def forgets_a_policy(config: BatchConfig) -> None:
    match config.failure_policy:
        case ContinueOnFailure() | AbortAll():
            pass
        case _:
            assert_never(config.failure_policy)  # error
