"""LLM extraction: find out from letters who worked with whom, with a model that is paid per call.

    python examples/llm_extraction.py        (needs: pip install durable-batches)

Each letter goes through the five stages of `EXTRACTION`. When all letters have finished, the resolver links their
facts: "Lady Lovelace" in one letter is "Ada Lovelace" in another. Interrupt the program and start it again: it
continues where it stopped. Start it after it has finished, and it shows the result without a single call.

To run it with a real model, replace `Model` by your provider's client, with its own retries switched off. The errors of
well-known clients need no translation: a call that is refused because the provider is overloaded waits, and uses no
attempt; an empty account pauses the batch.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import combinations

from pydantic import BaseModel, TypeAdapter, ValidationError

from durable_batches import (
    EXTRACTION,
    ActivityFailedError,
    Assembling,
    BatchCompleted,
    BatchConfig,
    BatchFailed,
    BatchOrchestrator,
    Chunking,
    ContinueOnFailure,
    DocumentCompleted,
    DocumentFailed,
    DocumentRetrying,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ResolutionStarted,
    Results,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    StateChanged,
    dependency,
    durable_activity,
    enter_stage,
    map_activity,
    workflow,
)

# ---- the model: your provider's client goes here --------------------------------------------------------------------


class TooManyRequestsError(Exception):
    """The call waits for `retry_after` (seconds): status and delay are attributes, as in the errors of real clients."""

    status_code = 429

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"429: retry after {retry_after} s")
        self.retry_after = retry_after


class OverloadedError(Exception):
    """The provider is overloaded, and does not say until when."""

    status_code = 529


class ContentRefusedError(Exception):
    """The model refuses this request; retrying does not help."""

    status_code = 400


class Model:
    """Answers like a language model behind an HTTP API, by rules: slow, sometimes busy, always JSON.

    It is deterministic: the same requests fail with the same errors on every run.
    """

    def __init__(self, *, seed: int = 7, latency: float = 0.03) -> None:
        self._seed = seed
        self._latency = latency
        self._asked: Counter[str] = Counter()

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections, as a real client would."""

    async def complete(self, instruction: str, text: str) -> str:
        """Answer one prompt."""
        request = f"{instruction}\n{text}"
        self._asked[request] += 1
        chance = random.Random(f"{self._seed} {self._asked[request]} {request}")
        await asyncio.sleep(self._latency * (0.5 + chance.random()))
        trouble = chance.random()
        if trouble < 0.05:
            raise TooManyRequestsError(retry_after=0.1)
        if trouble < 0.1:
            raise OverloadedError("529: overloaded")
        return self.answer(instruction, text)

    def answer(self, instruction: str, text: str) -> str:
        """Compute the answer, in place of a model."""
        if "Burn this" in text:
            raise ContentRefusedError("400: this text is not for me")
        match instruction.split()[0]:
            case "List":
                return json.dumps(sorted(set(self._people(text))))
            case "Relate":
                people = self._people(text)
                relations = {"wrote to": "wrote_to", "worked with": "worked_with", "married": "married"}
                relation = next((name for words, name in relations.items() if words in text), "met")
                pairs = combinations(dict.fromkeys(people), 2)
                return json.dumps([{"source": one, "relation": relation, "target": other} for one, other in pairs])
            case _:
                one, other = (name.split() for name in text.splitlines())
                initials = one[0][0] == other[0][0] or "Lady" in (one[0], other[0])
                return json.dumps(one[-1] == other[-1] and initials)

    @staticmethod
    def _people(text: str) -> list[str]:
        return re.findall(r"(?:[A-Z](?:[a-z]+|\.) )+[A-Z][a-z]+", text)


async def model() -> AsyncIterator[Model]:
    """Open the client once for all documents, and close it when the worker has finished."""
    async with Model() as client:
        yield client


PATIENT = RetryPolicy(max_attempts=6, initial=timedelta(milliseconds=50))


# ---- documents and results ------------------------------------------------------------------------------------------


class Letter(BaseModel):
    id: str
    text: str


class Relation(BaseModel):
    source: str
    relation: str
    target: str


class LetterGraph(BaseModel):
    """The facts in one letter."""

    people: dict[str, int]
    """Number of occurrences by name."""
    relations: list[Relation]


class Person(BaseModel):
    name: str
    also: list[str]
    letters: list[str]


class Network(BaseModel):
    """The facts in all letters together."""

    people: list[Person]
    relations: list[Relation]


NAMES = TypeAdapter(list[str])
RELATIONS = TypeAdapter(list[Relation])
YES_OR_NO = TypeAdapter(bool)


# ---- one letter -----------------------------------------------------------------------------------------------------


@durable_activity(stage=Chunking)
async def split(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.split(r"(?<=[a-z]\.)\s+", text) if sentence.strip()]


# An answer that is not the requested JSON is an error like any other: the activity is retried.
@durable_activity(stage=ExtractingMentions, retry=PATIENT, timeout=timedelta(seconds=10))
async def find_people(sentence: str, client: Model = dependency(model)) -> list[str]:
    return NAMES.validate_json(await client.complete("List the people as a JSON array of names.", sentence))


@durable_activity(stage=ExtractingRelations, retry=PATIENT, timeout=timedelta(seconds=10))
async def find_relations(sentence: str, client: Model = dependency(model)) -> list[Relation]:
    return RELATIONS.validate_json(await client.complete("Relate the people to each other, as JSON.", sentence))


# ---- all letters ----------------------------------------------------------------------------------------------------


@durable_activity(retry=PATIENT, timeout=timedelta(seconds=10))
async def same_person(names: tuple[str, str], client: Model = dependency(model)) -> bool:
    question = "Are these two the same person? true or false."
    return YES_OR_NO.validate_json(await client.complete(question, "\n".join(names)))


async def link(results: Results[LetterGraph]) -> Network:
    """Run once, when every letter has finished. Its calls are recorded as well: a crash here repeats none of them."""
    letters: dict[str, set[str]] = {}
    relations: list[Relation] = []
    async for result in results:
        for name in result.value.people:
            letters.setdefault(name, set()).add(result.document_id)
        relations += result.value.relations

    names = sorted(letters)
    doubtful = [(one, other) for one, other in combinations(names, 2) if one.split()[-1] == other.split()[-1]]
    verdicts = await map_activity(same_person, doubtful, concurrency=8)
    called: dict[str, str] = {name: name for name in names}
    for (one, other), same in zip(doubtful, verdicts, strict=True):
        if same:
            winner = max(called[one], called[other], key=lambda name: (len(letters[name]), name))
            loser = called[other] if winner == called[one] else called[one]
            called = {name: winner if target == loser else target for name, target in called.items()}

    people = [
        Person(
            name=winner,
            also=[name for name in names if called[name] == winner and name != winner],
            letters=sorted({letter for name in names if called[name] == winner for letter in letters[name]}),
        )
        for winner in sorted(set(called.values()))
    ]
    linked = {(called[found.source], found.relation, called[found.target]) for found in relations}
    return Network(
        people=people,
        relations=[Relation(source=one, relation=relation, target=other) for one, relation, other in sorted(linked)],
    )


@workflow(EXTRACTION, name="letters", resolver=link)
async def extract(letter: Letter) -> LetterGraph:
    sentences = await split(letter.text)
    mentions = await map_activity(find_people, sentences, concurrency=4)

    enter_stage(ExtractingEntities)  # cheap, so it need not be recorded
    people = Counter(name for found in mentions for name in found)
    telling = [sentence for sentence, found in zip(sentences, mentions, strict=True) if len(found) > 1]

    try:
        relations = await map_activity(find_relations, telling, concurrency=4)
    except ActivityFailedError as error:
        if not error.caused_by(ValidationError):
            raise
        relations = []  # no answer was what it was asked for: a letter without relations is better than none

    enter_stage(Assembling)
    return LetterGraph(people=dict(people), relations=[relation for found in relations for relation in found])


# ---- the program ----------------------------------------------------------------------------------------------------

LETTERS = [
    Letter(id="1833-06", text="Ada Byron met Charles Babbage at a party. He showed her the engine."),
    Letter(
        id="1834-03", text="Mary Somerville wrote to Ada Byron about mathematics. Mary Somerville met Charles Babbage."
    ),
    Letter(id="1835-07", text="Ada Byron married William King. From now on she is Ada King."),
    Letter(id="1840-09", text="Charles Babbage met Luigi Menabrea in Turin. Luigi Menabrea took notes."),
    Letter(id="1842-10", text="Luigi Menabrea wrote about the engine. Lady Lovelace worked with C. Babbage on notes."),
    Letter(id="1843-07", text="Ada Lovelace worked with Charles Babbage. A. Lovelace sent Note G to the printer."),
    Letter(id="1843-09", text="Ada Lovelace wrote to Michael Faraday. M. Faraday was kind."),
    Letter(id="1844-11", text="Burn this. It is about Lord Byron and a debt."),
    Letter(id="1850-01", text="Ada Lovelace met Charles Wheatstone. C. Wheatstone spoke of telegraphs."),
    Letter(id="1851-08", text="Charles Babbage worked with Michael Faraday for the Exhibition. A. Lovelace was ill."),
]

CONFIG = BatchConfig(
    concurrency=4,
    failure_policy=RetryFailed(
        max_attempts=2,
        backoff=timedelta(milliseconds=100),
        then=ContinueOnFailure(max_failure_ratio=0.2),
    ),
)


async def main() -> None:
    async with BatchOrchestrator(extract, store=SQLiteStore("letters.db"), config=CONFIG) as batches:
        # The id makes it resumable: a second submission attaches to the existing batch.
        batch_id = await batches.submit(LETTERS, batch_id="letters-of-ada")
        async for event in batches.progress(batch_id):
            match event:
                case StateChanged(state=state):
                    print(f"-- {state.replace('_', ' ')}")
                case DocumentCompleted(document_id=letter, percentage=percentage):
                    print(f"{percentage:5.1f} %  {letter} done")
                case DocumentRetrying(document_id=letter, error=error):
                    print(f"         {letter} once more, later: {error}")
                case DocumentFailed(document_id=letter, error=error):
                    print(f"         {letter} failed: {error}")
                case ResolutionStarted():
                    print("         all letters are through; linking")
                case BatchCompleted(counts=counts):
                    print(f"{counts.succeeded} of {counts.total} letters")
                case BatchFailed(error=error):
                    print(f"the batch failed: {error}")
                case _:
                    pass
        network = (await batches.result(batch_id)).value
        for person in network.people:
            also = f" (also {', '.join(person.also)})" if person.also else ""
            print(f"{person.name}{also}: in {len(person.letters)} letters")
        for found in network.relations:
            print(f"{found.source} {found.relation.replace('_', ' ')} {found.target}")
        print(f"activities run and recorded this time: {batches.stats.activities_run}")


if __name__ == "__main__":
    asyncio.run(main())
