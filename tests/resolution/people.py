"""People whom several documents name, with the errors that people make: who is who is known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Annotated

from pydantic import BaseModel

from durable_batches import EXTRACTION, BatchOrchestrator, Store, workflow
from durable_batches.extraction.resolution import (
    Cluster,
    DateField,
    Decision,
    EmailField,
    EntityResolution,
    EntityResolutionService,
    ExactField,
    NameField,
    ResolutionPage,
    SameAsLink,
)

SYLLABLES = "an be ca do el fi go ha in jo ka li mo na ol pe ri sa to ul".split()


class Person(BaseModel):
    id: str
    given: Annotated[str | None, NameField()] = None
    surname: Annotated[str | None, NameField()] = None
    born: Annotated[str | None, DateField()] = None
    town: Annotated[str | None, ExactField()] = None
    mail: Annotated[str | None, EmailField()] = None


def people(count: int, seed: int = 1) -> list[Person]:
    """So many people, two in three of them twice; records of one person have its number before the dash."""
    random = Random(seed)

    def word(length: int) -> str:
        return "".join(random.choices(SYLLABLES, k=length)).capitalize()

    towns = [word(3) for _ in range(30)]
    found: list[Person] = []
    for number in range(count):
        given, surname = word(2), word(3)
        person = Person(
            id=f"{number:04}-a",
            given=given,
            surname=surname,
            born=f"{random.randint(1930, 2005)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}",
            town=random.choice(towns),
            mail=f"{given}.{surname}@h{random.randrange(50)}.org" if random.random() < 0.7 else None,
        )
        found.append(person)
        if number % 3:
            changes: list[dict[str, object]] = [
                {"given": typo(given, random)},
                {"surname": typo(surname, random)},
                {"town": random.choice(towns)},
                {"born": None},
                {"mail": None},
            ]
            changed: dict[str, object] = {"id": f"{number:04}-b"}
            for change in random.sample(changes, 2):
                changed |= change
            found.append(person.model_copy(update=changed))
    return found


def typo(text: str, random: Random) -> str:
    place = random.randrange(1, len(text))
    return text[:place] + random.choice("aeiou") + text[place + 1 :]


def same(clusters: Iterable[Cluster]) -> set[tuple[str, str]]:
    return {pair for cluster in clusters for pair in combinations(cluster.members, 2)}


def truth(records: Sequence[Person]) -> set[tuple[str, str]]:
    ids = {record.id for record in records}
    return {(f"{name[:4]}-a", name) for name in ids if name.endswith("-b") and f"{name[:4]}-a" in ids}


def f1(found: set[tuple[str, str]], true: set[tuple[str, str]]) -> float:
    return 2 * len(found & true) / (len(found) + len(true))


@dataclass
class Resolved:
    """What the resolver of a batch has found."""

    value: EntityResolution
    pages: list[ResolutionPage]
    clusters: list[Cluster]
    refused: list[SameAsLink]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        return [cluster.members for cluster in self.clusters]

    async def earlier(self) -> AsyncIterator[ResolutionPage]:
        for page in self.pages:
            yield page


async def resolved(
    records: Sequence[Person],
    *,
    store: Store,
    after: Resolved | None = None,
    decisions: Sequence[Decision] = (),
    batch_id: str = "batch",
) -> Resolved:
    """Run a batch of documents that have seven records each, and read what its resolver has found."""
    service = EntityResolutionService(Person)
    resolver = service.resolver(everybody, after=None if after is None else after.earlier, decisions=lambda: decisions)

    @workflow(EXTRACTION, name="people", resolver=resolver)
    async def hand_on(of_document: list[Person]) -> list[Person]:
        return of_document

    documents = [list(records[start : start + 7]) for start in range(0, len(records), 7)]
    async with BatchOrchestrator(hand_on, store=store) as batches:
        value = (await batches.run(documents, batch_id=batch_id)).value
        pages = [page async for page in batches.resolver_results(batch_id, "resolution-page", ResolutionPage)]
    assert all(len(page.data) <= 4 << 20 for page in pages)
    found = Resolved(value, pages, [], [])
    found.clusters = [cluster async for cluster in service.clusters(found.earlier())]
    found.refused = [link async for link in service.refused(found.earlier())]
    assert len(found.clusters) == value.clusters
    assert len(found.refused) == value.refused
    return found


def everybody(records: list[Person]) -> list[Person]:
    return records
