from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from math import log2
from random import Random

import pytest
from tests.resolution.people import Person, Resolved, f1, people, resolved, same, truth

from durable_batches import BatchFailedError, MemoryStore
from durable_batches.extraction.resolution import Decision
from durable_batches.extraction.resolution.process import ResolutionProcess

PEOPLE = people(240)


@pytest.fixture(scope="module")
def whole() -> Resolved:
    return asyncio.run(resolved(PEOPLE, store=MemoryStore()))


def shown(found: Resolved) -> str:
    """All that readers see, as text."""
    return json.dumps([[cluster.model_dump() for cluster in found.clusters], found.value.model.splink])


async def test_people_are_found_again_and_each_link_says_why(whole: Resolved) -> None:
    assert f1(same(whole.clusters), truth(PEOPLE)) > 0.97
    assert whole.value.members == sum(map(len, whole.groups))
    assert whole.value.model.converged
    for cluster in whole.clusters:
        assert cluster.canonical in cluster.members
        assert cluster.links
        for link in cluster.links:
            assert {link.a, link.b} <= {*cluster.members}
            assert link.a < link.b
            assert 0.5 <= link.probability <= 1
            assert {reason.field for reason in link.reasons} <= {*Person.model_fields}
    said = {reason.level for cluster in whole.clusters for link in cluster.links for reason in link.reasons}
    assert {"same", "typo", "different"} <= said
    assert "missing" not in said


async def test_the_weight_of_a_link_is_the_prior_and_what_its_fields_say(whole: Resolved) -> None:
    prior = whole.value.model.prior
    link = whole.clusters[0].links[0]
    assert link.weight == pytest.approx(log2(prior / (1 - prior)) + sum(r.weight for r in link.reasons), abs=0.02)


async def test_no_order_of_documents_changes_anything(whole: Resolved) -> None:
    shuffled = await resolved(Random(5).sample(PEOPLE, len(PEOPLE)), store=MemoryStore())
    assert shown(shuffled) == shown(whole)


async def test_a_later_batch_joins_the_clusters_of_an_earlier_one_which_keep_their_ids(whole: Resolved) -> None:
    cut = len(PEOPLE) * 3 // 4  # so few more that the model stays
    first = await resolved(PEOPLE[:cut], store=MemoryStore())
    both = await resolved(PEOPLE[cut - 7 :], store=MemoryStore(), after=first)
    assert both.value.model == first.value.model
    assert abs(f1(same(both.clusters), truth(PEOPLE)) - f1(same(whole.clusters), truth(PEOPLE))) < 0.02
    now = {member: cluster.id for cluster in both.clusters for member in cluster.members}
    kept = [now.get(member) == cluster.id for cluster in first.clusters for member in cluster.members]
    assert sum(kept) >= 0.99 * len(kept)


async def test_a_batch_of_as_many_records_again_gives_what_both_at_once_give(whole: Resolved) -> None:
    half = len(PEOPLE) // 2
    first = await resolved(PEOPLE[:half], store=MemoryStore())
    both = await resolved(PEOPLE[half:], store=MemoryStore(), after=first)
    assert both.value.model.splink == whole.value.model.splink
    assert both.groups == whole.groups


async def test_a_changed_record_takes_the_place_of_what_it_was(whole: Resolved) -> None:
    cluster = whole.clusters[0]
    somebody = next(record for record in PEOPLE if record.id == cluster.members[0])
    other = Person(id=somebody.id, given="Zyxwvut", surname="Qqqwww", born="1801-01-01", town="Nowhere")
    after = await resolved([other], store=MemoryStore(), after=whole)
    assert somebody.id not in {member for members in after.groups for member in members}
    assert after.value.plan.records == len(PEOPLE)
    rest = [members for members in whole.groups if somebody.id not in members]
    assert set(rest) <= set(after.groups)


async def test_a_decision_holds_whatever_is_computed_and_its_undoing_gives_back_what_was(whole: Resolved) -> None:
    a, b = whole.groups[0][:2]
    c, d = whole.groups[1][0], whole.groups[2][0]
    decisions = [Decision(a=b, b=a, verdict="apart"), Decision(a=c, b=d, verdict="together")]
    decided = await resolved(PEOPLE[:7], store=MemoryStore(), after=whole, decisions=decisions)
    of = {member: members for members in decided.groups for member in members}
    assert of.get(a) is None or of.get(a) != of.get(b)
    assert of[c] == of[d]
    assert [link.status for link in decided.refused if {link.a, link.b} == {a, b}] == ["decided"]
    untouched = {members for members in whole.groups if not {a, b, c, d} & {*members}}
    assert untouched <= set(decided.groups)
    undone = await resolved(PEOPLE[:7], store=MemoryStore(), after=decided)
    assert undone.groups == whole.groups


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_next_to_no_records_are_no_error(count: int) -> None:
    alone = [Person(id="a", given="Kim"), Person(id="b", given="Kim")][:count]
    found = await resolved(alone, store=MemoryStore())
    assert found.clusters == []
    assert found.value.plan.records == count


async def test_five_people_of_one_given_name_stay_five() -> None:
    five = [Person(id=name, given="Kim", surname=name) for name in ("Olsen", "Sato", "Moreau", "Adeyemi", "Ruiz")]
    assert (await resolved(five, store=MemoryStore())).clusters == []


async def test_two_records_of_one_id_that_differ_are_named(caplog: pytest.LogCaptureFixture) -> None:
    records = [Person(id="x", given="Ada"), Person(id="y"), Person(id="x", given="Kim")]
    with pytest.raises(BatchFailedError, match="records of one id must be equal, and these differ: 'x'"):
        await resolved(records, store=MemoryStore())
    failures = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert len(failures) == 1, "it is not tried again"


async def test_a_process_that_is_killed_is_replaced_and_goes_on(
    whole: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ResolutionProcess.page
    killed: list[int] = []

    async def page_after_a_kill(process: ResolutionProcess, step: str, number: int) -> bytes:
        if step == "model" and not killed:
            for child in multiprocessing.active_children():
                killed.append(child.pid or 0)
                child.kill()
                await asyncio.to_thread(child.join)
        return await page(process, step, number)

    monkeypatch.setattr(ResolutionProcess, "page", page_after_a_kill)
    assert shown(await resolved(PEOPLE, store=MemoryStore())) == shown(whole)
    assert killed


async def test_nothing_of_it_is_loaded_into_the_worker_and_no_process_is_left(whole: Resolved) -> None:
    assert not {"duckdb", "pyarrow", "splink"} & {*sys.modules}
    assert multiprocessing.active_children() == []
    assert whole.clusters
