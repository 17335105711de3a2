"""Machines, workflows and resolvers that do not fit each other."""

from __future__ import annotations

from contextlib import aclosing

from tests.typing.accepted import ONE, A, Answer, B, Query, extract, gather, link, plain

from durable_batches import EXTRACTION, BatchStateMachine, Results, Stage, Workflow, enter_stage, workflow
from durable_batches.testing import results_of

# ---- machines -----------------------------------------------------------------------------------------------------

BatchStateMachine(int)  # error
BatchStateMachine(A, int)  # error
BatchStateMachine(A, "b")  # error
BatchStateMachine(A(done=0, total=1))  # error
_wider: BatchStateMachine[A] = BatchStateMachine(A, B)  # error


# ---- workflows ----------------------------------------------------------------------------------------------------


async def of_text(document: str) -> str:
    return document


async def of_query(query: Query) -> Answer:
    return Answer(query.text)


async def of_two(query: Query, more: Query) -> Answer:
    return Answer(query.text + more.text)


def not_async(document: str) -> str:
    return document


workflow(ONE)(of_two)  # error
workflow(ONE)(not_async)  # error
workflow(A)(of_text)  # error
workflow()(of_text)  # error
workflow(ONE, resolve=gather)(of_query)  # error
workflow(ONE, version=1)(of_query)  # error
workflow(ONE, accepts=[1])(of_query)  # error
_other_document: Workflow[int, str, A, None] = workflow(ONE)(of_text)  # error
_other_result: Workflow[str, int, A, None] = workflow(ONE)(of_text)  # error
_other_stages: Workflow[str, str, B, None] = workflow(ONE)(of_text)  # error
_other_resolution: Workflow[Query, Answer, A, str] = workflow(ONE, resolver=gather)(of_query)  # error


async def called() -> None:
    await extract(1)  # error
    await extract(text="a")  # error
    await plain("a")  # error
    _text: str = await extract("a")  # error
    _same: dict[str, int] = extract("a")  # error
    await extract  # error
    enter_stage(A(done=0, total=1))  # error
    enter_stage("a")  # error
    enter_stage(Query)  # error


# ---- resolvers ----------------------------------------------------------------------------------------------------


def sync_resolver(results: Results[Answer]) -> int:
    return results.counts.total


async def of_a_list(results: list[Answer]) -> int:
    return len(results)


async def of_more(results: Results[Answer], more: int) -> int:
    return results.counts.total + more


# It reads other results than the workflow returns.
workflow(EXTRACTION, resolver=link)(of_text)  # error
workflow(ONE, resolver=gather)(of_text)  # error
# It is not a resolver.
workflow(ONE, resolver=sync_resolver)  # error
workflow(ONE, resolver=of_a_list)  # error
workflow(ONE, resolver=of_more)  # error


async def reads_them_wrongly(results: Results[Answer]) -> None:
    for _ in results:  # error
        pass
    async for result in results:
        _value: str = result.value  # error
        _text: Answer = result  # error
    await anext(results.pages())  # error
    async for failure in results.failures():
        print(failure.value)  # error
    async for result in results.reopen():
        _again: str = result.value  # error
    await anext(results.reopen())  # error
    async with aclosing(results):  # error
        pass
    print(len(results))  # error


link(results_of([Answer("a")]))  # error
results_of(failures={"a": ValueError()})  # error
results_of([1], failures={"a": "no"})  # error
results_of([1], failures=["a"])  # error
results_of(1)  # error


class Mistagged(Stage):
    tag: int = 3  # error
