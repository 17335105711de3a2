"""Commands about several batches at once: `watch` without one, and those that change batches, by labels."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from rich.console import Console
from tests.cli.commands import Commands, translate
from tests.support import opened

from durable_batches import BatchOrchestrator
from durable_batches.cli import control, watch
from durable_batches.cli.exits import Exit
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.states import BatchId
from durable_batches.terminal.bars import SeveralBars


def run_all(on_file: Commands) -> None:
    """Run what is unfinished to its end."""

    async def run() -> None:
        async with BatchOrchestrator(translate, store=on_file.make()) as batches:
            async for batch in batches.list_batches():
                await batches.result(batch.batch_id)

    asyncio.run(run())


def states(on_file: Commands) -> dict[str, str]:
    return {batch["batch_id"]: batch["state"] for batch in on_file("list", "--json").json}


# ---- watch ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends_meanwhile(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is unfinished when `watch` has looked for it, ends right after that."""
    look = watch.unfinished_batches

    async def looked(client: object, filters: object) -> object:
        found = await look(client, filters)  # type: ignore[arg-type]
        await asyncio.to_thread(run_all, on_file)
        return found

    monkeypatch.setattr(watch, "unfinished_batches", looked)


def test_without_a_batch_all_that_have_not_ended_are_watched(on_file: Commands, ends_meanwhile: None) -> None:
    on_file.submit("ended", "one")
    on_file.submit("good", "one", runs=False)
    on_file.submit("some", "one", "bad", runs=False)
    ran = on_file("watch")
    assert ran.code == Exit.DOCUMENTS_FAILED
    assert sorted(line.split()[0] for line in ran.out.splitlines()) == ["good", "some"]
    assert "1 succeeded, 1 failed" in ran.out


def test_the_exit_code_is_that_of_the_worst_end(on_file: Commands) -> None:
    on_file.submit("good", "one")
    on_file.submit("some", "one", "bad")
    on_file.submit("none", "bad")
    on_file.submit("cancelled", "one", runs=False)
    assert on_file("cancel", "cancelled").code == Exit.DONE
    assert on_file("watch", "good", "good").code == Exit.DONE
    assert on_file("watch", "good", "some").code == Exit.DOCUMENTS_FAILED
    assert on_file("watch", "some", "cancelled", "good").code == Exit.BATCH_CANCELLED
    ran = on_file("watch", "good", "none", "cancelled", "some")
    assert ran.code == Exit.BATCH_FAILED
    assert "none failed: all documents failed" in ran.out
    assert on_file("watch", "good", "nobody's").code == Exit.NO_BATCH


def test_labels_choose_what_is_watched(on_file: Commands, ends_meanwhile: None) -> None:
    on_file.submit("ours", "one", runs=False, team="a")
    on_file.submit("theirs", "bad", runs=False, team="b")
    ran = on_file("watch", "--label", "team=a", "--json")
    assert ran.code == Exit.DONE
    assert {json.loads(line)["batch_id"] for line in ran.out.splitlines()} == {"ours"}
    ran = on_file("watch", "--workflow", "others")
    assert (ran.code, ran.out) == (Exit.DONE, "")
    assert "no such batches" in ran.err


def test_no_more_are_watched_than_can_be(
    on_file: Commands, ends_meanwhile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MOST_WATCHED", 1)
    on_file.submit("older", "one", runs=False)
    on_file.submit("newer", "one", runs=False)
    ran = on_file("watch")
    assert (ran.code, ran.out.split()[0]) == (Exit.DONE, "newer")
    assert "there are more than these 1" in ran.err


async def test_several_batches_are_a_bar_each(on_file: Commands) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    await asyncio.to_thread(on_file.submit, "\x1b[31mred", "one")
    await asyncio.to_thread(on_file.submit, "some", "one", "bad")
    async with BatchOrchestrator(translate, store=on_file.make(), max_in_flight=0) as batches:
        with SeveralBars(console, ["\x1b[31mred", "some"]) as bars:
            for batch_id in ("\x1b[31mred", "some"):
                last = await bars.follow(batches.watch(batch_id))
                assert last is not None
                assert last.batch_id == batch_id
    shown = screen.getvalue()
    assert "\\x1b[31mred" in shown
    assert "\x1b[31mred" not in shown
    assert "2/2 documents  1 succeeded, 1 failed" in shown


# ---- cancel --------------------------------------------------------------------------------------------------------


def of_two_teams(on_file: Commands) -> None:
    on_file.submit("ended", "one", team="a")
    on_file.submit("first", "one", runs=False, team="a")
    on_file.submit("second", "one", runs=False, team="a")
    on_file.submit("theirs", "one", runs=False, team="b")


def test_labels_choose_what_is_cancelled(on_file: Commands) -> None:
    of_two_teams(on_file)
    ran = on_file("cancel", "--label", "team=a", "--workflow", "translate", "--yes", "--reason", "too late")
    assert ran.code == Exit.DONE
    assert [line.split(":")[0] for line in ran.out.splitlines()] == ["cancelled second", "cancelled first"]
    assert "  first  translate, pending: 1 pending" in ran.err
    assert "ended" not in ran.err
    assert states(on_file) == {
        "ended": "completed",
        "first": "cancelled",
        "second": "cancelled",
        "theirs": "pending",
    }
    again = on_file("cancel", "--label", "team=a", "--yes")
    assert (again.code, again.out) == (Exit.NO_BATCH, "")
    assert "no such batches" in again.err


@pytest.mark.parametrize(("answer", "code"), [("y\n", Exit.DONE), ("n\n", Exit.ERROR), ("\n", Exit.ERROR)])
def test_it_is_asked_before(on_file: Commands, monkeypatch: pytest.MonkeyPatch, answer: str, code: Exit) -> None:
    of_two_teams(on_file)
    monkeypatch.setattr(control, "is_terminal", bool)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    ran = on_file("cancel", "--label", "team=a")
    assert ran.code == code
    assert "Cancel these 2 batches?" in ran.err
    assert states(on_file)["first"] == ("cancelled" if code is Exit.DONE else "pending")
    assert ("nothing was cancelled" in ran.err) is (code is Exit.ERROR)


def test_what_has_nobody_to_ask_has_to_be_told(on_file: Commands) -> None:
    of_two_teams(on_file)
    ran = on_file("cancel", "--label", "team=b")
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    assert "say --yes to cancel this batch" in ran.err
    assert states(on_file)["theirs"] == "pending"


def test_what_came_after_the_question_is_left_alone(on_file: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    of_two_teams(on_file)

    def confirm(choice: control.Choice) -> None:
        on_file.submit("later", "one", runs=False, team="a")
        asyncio.run(end("first"))

    async def end(batch_id: str) -> None:
        async with opened(on_file.make()) as store:
            await store.control(BatchId(batch_id), Cancel("request", ""))

    monkeypatch.setattr(control.Choice, "confirm", confirm)
    ran = on_file("cancel", "--label", "team=a")
    assert ran.code == Exit.DONE
    assert ran.out.splitlines()[1] == "first had ended before: cancelled"
    assert states(on_file)["later"] == "pending"


def test_labels_choose_what_is_paused_changed_and_resumed(on_file: Commands) -> None:
    of_two_teams(on_file)
    chosen = ("--label", "team=a", "--workflow", "translate")
    for command, done in (
        (("pause",), "paused"),
        (("update", "--concurrency", "2"), "updated"),
        (("resume",), "resumed"),
    ):
        asked = on_file(*command, *chosen)
        assert (asked.code, asked.out) == (Exit.USAGE, "")
        assert f"say --yes to {command[0]} these 2 batches" in asked.err
        ran = on_file(*command, *chosen, "--yes")
        assert ran.code == Exit.DONE
        assert [line.split(":")[0] for line in ran.out.splitlines()] == [f"{done} second", f"{done} first"]
        if done == "paused":
            paused = [batch["batch_id"] for batch in on_file("list", "--json").json if batch["paused"]]
            assert paused == ["second", "first"]
    configs = [on_file("show", name, "--json").json[0]["config"] for name in ("first", "second", "theirs")]
    assert [config["concurrency"] for config in configs] == [2, 2, 8]
    assert not [batch for batch in on_file("list", "--json").json if batch["paused"]]


def test_several_are_cancelled_by_their_ids(on_file: Commands) -> None:
    of_two_teams(on_file)
    ran = on_file("cancel", "first", "second", "first", "ended")
    assert ran.code == Exit.DONE
    assert len(ran.out.splitlines()) == 3
    assert on_file("cancel", "first", "second").code == Exit.ENDED_BEFORE


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cancel", "give batches, or choose them by --workflow and --label"),
        ("cancel first --label team=a", "give batches, or choose them"),
        ("cancel --label team", "'team' is no label"),
        ("pause", "give batches, or choose them by --workflow and --label"),
        ("resume first --workflow translate", "give batches, or choose them"),
        ("update --concurrency 2", "give batches, or choose them"),
        ("watch first --label team=a", "give batches, or --workflow and --label"),
    ],
)
def test_a_wrong_command_line(on_file: Commands, line: str, says: str) -> None:
    of_two_teams(on_file)
    ran = on_file(*line.split()) if line.startswith("watch") else on_file(*line.split(), "--yes")
    assert (ran.code, ran.out) == (Exit.USAGE, "")
    assert says in ran.err
    assert states(on_file)["first"] == "pending"
