"""The test suite of llm_extraction.py: how to test a pipeline, from the fastest test to the most thorough.

    pytest examples/test_pipeline.py         (needs: pip install 'durable-batches[testing]')

Nothing here calls a model or waits for anything. Async tests are run by pytest-asyncio, with `asyncio_mode = "auto"`
in the configuration of pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

from examples.llm_extraction import (
    CONFIG,
    RELATIONS,
    ContentRefusedError,
    Letter,
    LetterGraph,
    Model,
    Network,
    OverloadedError,
    Relation,
    TooManyRequestsError,
    extract,
    find_people,
    find_relations,
    link,
    model,
    same_person,
    split,
)

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchOrchestrator,
    Completed,
    DocumentFailure,
    DocumentSucceeded,
    Failed,
    MemoryStore,
    Verdict,
    Worker,
    default_classifier,
)
from durable_batches.testing import BatchEnvironment, environment, results_of, survives_crashes


class ScriptedModel(Model):
    """Answers immediately; fails a given number of times."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__(latency=0)
        self.failures = list(failures)
        self.prompts: Counter[str] = Counter()

    async def complete(self, instruction: str, text: str) -> str:
        if self.failures:
            raise self.failures.pop(0)
        self.prompts[f"{instruction} {text}"] += 1
        return self.answer(instruction, text)

    @property
    def paid_twice(self) -> list[str]:
        return [prompt for prompt, times in self.prompts.items() if times > 1]


MEETING = Letter(id="meeting", text="Ada Lovelace met Charles Babbage. It was a party.")
NOTES = Letter(id="notes", text="Luigi Menabrea wrote to A. Lovelace. Luigi Menabrea was kind.")
REFUSED = Letter(id="refused", text="Burn this. It is about a debt.")


# ---- functions: activities, workflows and resolvers are plain functions ---------------------------------------------


async def test_a_letter_is_split_after_sentences_and_not_after_initials() -> None:
    assert await split("A. Lovelace wrote. C. Babbage read.") == ["A. Lovelace wrote.", "C. Babbage read."]


async def test_an_activity_takes_its_client_as_an_argument() -> None:
    assert await find_people("Ada Lovelace met Charles Babbage.", client=ScriptedModel()) == [
        "Ada Lovelace",
        "Charles Babbage",
    ]


def test_what_the_provider_says_is_understood() -> None:
    assert default_classifier(OverloadedError("529: overloaded")) == Verdict(kind="overloaded")
    verdict = default_classifier(TooManyRequestsError(3))
    assert verdict == Verdict(kind="overloaded", retry_after=timedelta(seconds=3))
    assert default_classifier(ContentRefusedError("400: not for me")) == Verdict(kind="never")


async def test_the_workflow_with_other_activities() -> None:
    def people(sentence: str, client: Model | None = None) -> list[str]:
        return sentence.rstrip(".").split(" and ")

    def relations(sentence: str, client: Model | None = None) -> list[Relation]:
        return [Relation(source="a", relation="met", target="b")]

    with find_people.override(people), find_relations.override(relations):
        graph = await extract(Letter(id="1", text="ada and charles. luigi."))
    assert graph.people == {"ada": 1, "charles": 1, "luigi": 1}
    assert len(graph.relations) == 1, "a sentence about one person relates nobody"


async def test_the_resolver_links_names() -> None:
    results = results_of(
        {
            "one": LetterGraph(people={"Ada Lovelace": 1, "Charles Babbage": 1}, relations=[]),
            "two": LetterGraph(
                people={"A. Lovelace": 2},
                relations=[Relation(source="A. Lovelace", relation="met", target="Charles Babbage")],
            ),
        },
        failures={"three": ContentRefusedError("400")},
    )

    def same(names: tuple[str, str], client: Model | None = None) -> bool:
        assert names == ("A. Lovelace", "Ada Lovelace")
        return True

    with same_person.override(same):
        network = await link(results)
    assert {person.name: person.also for person in network.people} == {
        "Ada Lovelace": ["A. Lovelace"],
        "Charles Babbage": [],
    }
    assert network.relations == [Relation(source="Ada Lovelace", relation="met", target="Charles Babbage")]


# ---- batches: results are stored and decoded, failures are counted --------------------------------------------------


async def test_a_batch_in_memory() -> None:
    worker = Worker(MemoryStore(), dependencies={model: ScriptedModel()})
    async with BatchOrchestrator(extract, worker=worker, config=CONFIG) as batches:
        result = await batches.run([MEETING, NOTES, MEETING.model_copy(update={"id": "again"})])
        assert [person.name for person in result.raise_for_failures().value.people] == [
            "Ada Lovelace",
            "Charles Babbage",
            "Luigi Menabrea",
        ]
        outcomes = [outcome async for outcome in batches.results(result.batch_id)]
    assert [(outcome.document_id, outcome.tag) for outcome in outcomes] == [
        ("meeting", "succeeded"),
        ("notes", "succeeded"),
        ("again", "succeeded"),
    ]


async def test_a_letter_that_the_model_refuses_fails_alone() -> None:
    async with environment(extract, dependencies={model: ScriptedModel()}) as env:
        batch_id = await env.batches.submit([MEETING, REFUSED], config=BatchConfig())
        result = await env.finished(batch_id)
        assert isinstance(result.state, Completed)
        (failure,) = result.failures
        assert (failure.document_id, failure.activity, failure.attempts) == ("refused", "find_people", 1)
        match [outcome async for outcome in env.batches.results(batch_id)]:
            case [DocumentSucceeded(document_id="meeting"), DocumentFailure(document_id="refused")]:
                pass
            case other:
                raise AssertionError(other)


async def test_a_letter_without_relations_is_better_than_none() -> None:
    async def babbling(sentence: str, client: Model | None = None) -> list[Relation]:
        return RELATIONS.validate_json("I would rather talk about the weather.")

    async with environment(extract, dependencies={model: ScriptedModel()}) as env:
        with find_relations.override(babbling):
            result = await env.finished(await env.batches.submit([MEETING]))
    assert result.raise_for_failures().value.relations == []


async def test_or_with_the_whole_batch() -> None:
    async with environment(extract, dependencies={model: ScriptedModel()}) as env:
        result = await env.finished(await env.batches.submit([REFUSED], config=BatchConfig(failure_policy=AbortAll())))
        assert isinstance(result.state, Failed)


# ---- time: retries, timeouts and deadlines without waiting ----------------------------------------------------------


async def test_a_retry_after_is_obeyed() -> None:
    client = ScriptedModel(TooManyRequestsError(retry_after=3600))
    async with environment(extract, dependencies={model: client}) as env:
        batch_id = await env.batches.submit([NOTES], config=BatchConfig(concurrency=1))
        await env.advance(timedelta(minutes=59))
        assert (await env.batches.snapshot(batch_id)).counts.running == 1
        await env.advance(timedelta(minutes=1))
        assert (await env.batches.state(batch_id)).tag == "completed"


async def test_a_model_that_hangs_is_asked_again() -> None:
    hung: list[str] = []

    async def hanging(sentence: str, client: Model | None = None) -> list[str]:
        if not hung:
            hung.append(sentence)
            await asyncio.Event().wait()
        return []

    async with environment(extract) as env:
        with find_people.override(hanging):
            result = await env.finished(await env.batches.submit([MEETING]))
    assert result.counts.succeeded == 1


# ---- crashes: nothing is paid for twice -----------------------------------------------------------------------------


async def test_a_crash_repeats_nothing_that_was_recorded(batch_environment: BatchEnvironment) -> None:
    client = ScriptedModel()

    async with batch_environment(extract, dependencies={model: client}) as env:

        async def slow(sentence: str, client: Model | None = None) -> list[Relation]:
            await env.clock.sleep(5)
            return []

        with find_relations.override(slow):
            batch_id = await env.batches.submit([MEETING, NOTES])
            await env.settled()
            paid = client.prompts.total()
            assert paid > 0
            await env.crash()
            result = await env.finished(batch_id)
    assert result.raise_for_failures().value.people
    assert not client.paid_twice


async def test_a_crash_at_any_moment_changes_nothing() -> None:
    client = ScriptedModel()
    report = await survives_crashes(extract, [MEETING, NOTES, REFUSED], dependencies={model: client})
    assert report.points > report.writes > 10


def test_what_is_stored_can_be_read_by_the_next_version() -> None:
    """Results outlive deployments: a new field of a stored type needs a default."""
    stored = '{"people": [{"name": "Ada Lovelace", "also": [], "letters": ["one"]}], "relations": []}'
    assert Network.model_validate_json(stored).people[0].name == "Ada Lovelace"
