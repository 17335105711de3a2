"""The page in a real browser: live, readable in every light and size, by keyboard, whatever it shows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Route, expect
from tests.browser.batches import HOSTILE, KINDS, LONG, Shop, shop
from tests.browser.serving import Here, serving_here
from tests.browser.tab import DESKTOP, Looks, Tab, Tabs
from tests.support import within
from tests.web.servers import TOKEN, Server, serving

from durable_batches import RetryFailed
from durable_batches.web.urls import segment_of

LOOKS = [Looks(device, scheme) for device in ("desktop", "phone") for scheme in ("light", "dark")]
LIST = ""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    """A server with a batch of each kind, which no test changes."""
    async with shop(tmp_path_factory.mktemp("filled") / "batches.db") as found:
        await found.fill()
        async with serving(found.path) as server:
            yield server


@pytest_asyncio.fixture(loop_scope="session")
async def empty(tmp_path: Path) -> AsyncGenerator[Shop]:
    """A shop of one test."""
    async with shop(tmp_path / "batches.db") as found:
        yield found


def url_of(server: Server | Here, batch_id: str) -> str:
    return server.address if batch_id == LIST else f"{server.address}?batch={segment_of(batch_id)}"


async def shown(tab: Tab, *, ended: bool = False) -> None:
    """Wait until a batch is on the page, with all that is asked for beside the stream."""
    await expect(tab.page.locator("#link")).to_have_text("ended" if ended else "live")
    await expect(tab.page.locator("section[aria-labelledby=why] li").first).to_be_visible()


# ---- how it looks ----------------------------------------------------------------------------------------------------


# The long one has completed, too.
@pytest.mark.parametrize(
    "view", [LIST, *(kind for kind in KINDS if kind != "completed")], ids=lambda view: view or "list"
)
async def test_everybody_can_read_it(view: str, filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, LONG if view == "long" else view))
    if view == LIST:
        states = ["thinking", "completed", "thinking, paused", "thinking, paused", "failed", "completed"]
        await expect(tab.page.locator("tbody .tag")).to_have_text(states)
    else:
        await shown(tab, ended=view in ("failed", "completed", "long"))
    for looks in LOOKS:
        await tab.look(looks)
        if view != LIST:
            # The picture has as many states in a row as there is room for, also of a batch that has ended.
            await expect(tab.page.locator(f'[data-shape$="{looks.device}"]')).to_be_visible()
            for state, contrast in (await tab.contrasts()).items():
                assert contrast >= 4.5, (state, looks)
        await tab.screenshot(f"{view or 'list'}-{looks}")
        if (view, looks) == ("live", DESKTOP):
            await tab.picture("page")
        assert await tab.violations() == [], looks
        assert not await tab.is_too_wide(), looks


async def test_a_batch_is_shown_with_its_state_its_stages_its_errors_and_why(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "live"))
    await shown(tab)
    assert await tab.text("h2") == "live thinking"
    assert (await tab.text(".big")).startswith("78.3\u00a0% · 27 of 40 documents")
    assert "letters, version 3" in await tab.text(".big")
    assert await tab.text(".machine .now text") == "thinking"
    assert (await tab.text(".bars")).split("\n")[:2] == ["reading", "40 of 40"]
    assert (await tab.text(".counts .failed dd")) == "3"
    group = tab.page.locator("section[aria-labelledby=errors] tbody tr")
    await expect(group).to_have_count(1)
    assert "ValueError: cannot make sense of page" in await group.inner_text()
    assert await tab.page.locator("section[aria-labelledby=documents] tbody tr").count() == 3
    await tab.page.select_option("#status", "running")
    await expect(tab.page.locator("section[aria-labelledby=documents] tbody tr")).to_have_count(13)
    # Each figure is of what was recorded before the page was opened.
    times = tab.page.locator("section[aria-labelledby=throughput] tbody tr")
    assert [(await row.locator("td").all_inner_texts())[::5] for row in await times.all()] == [
        ["reading", "40"],
        ["thinking", "24"],
        ["writing", "24"],
    ]
    figures = tab.page.locator("figcaption")
    await expect(figures.first).to_have_text(re.compile(r"^Documents finished in a second: 0 now, [1-9]"))
    await expect(figures.last).to_have_text("Documents running: 13 now, 40 at most")
    for line in await tab.page.locator(".line").all():
        assert len((await line.get_attribute("points") or "").split()) >= 2
    assert "13 documents run on 1 worker" in await tab.text("section[aria-labelledby=why]")


async def test_many_documents_are_shown_page_by_page(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, LONG))
    await shown(tab, ended=True)
    documents = tab.page.locator("section[aria-labelledby=documents] tbody tr")
    await expect(documents).to_have_count(50)
    await expect(tab.page.locator("section[aria-labelledby=errors] tbody tr")).to_have_count(8)
    await tab.page.get_by_role("button", name="Next documents").click()
    await expect(documents).to_have_count(14)
    await expect(tab.page.get_by_role("button", name="Next documents")).to_be_hidden()
    await expect(tab.page.locator("#status")).to_be_focused()
    await tab.page.get_by_role("button", name="First documents").click()
    await expect(documents).to_have_count(50)
    await expect(tab.page.get_by_role("button", name="First documents")).to_be_hidden()
    await tab.page.select_option("#status", "waiting")
    await expect(documents).to_have_count(0)
    assert (await tab.text("section[aria-labelledby=documents]")).endswith("None.")


async def test_a_failed_batch_says_why(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "failed"))
    await shown(tab, ended=True)
    assert await tab.text("h2 .tag") == "failed"
    assert "the failure policy is to abort all" in await tab.text("section[aria-labelledby=title] .bad")
    assert "cannot make sense of page 7" in await tab.text("section[aria-labelledby=errors]")
    assert await tab.text(".machine .now text") == "failed"
    await expect(tab.page.get_by_role("button", name="Cancel batch")).to_be_hidden()


async def test_what_could_not_be_fetched_is_asked_for_again(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "no such batch"))
    tab.allowed += ["404 (Not Found)", "net::ERR_FAILED"]
    failed = 0

    async def fail_once(route: Route) -> None:
        nonlocal failed
        failed += 1
        await (route.abort() if failed == 1 else route.continue_())

    await tab.page.route("**/errors", fail_once)
    # Of a batch that has ended there is one snapshot only.
    await tab.page.goto(url_of(filled, "failed"))
    await shown(tab, ended=True)
    assert failed == 2
    assert "cannot make sense of page 7" in await tab.text("section[aria-labelledby=errors]")


async def test_what_is_chosen_while_it_asks_is_shown_as_well(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "live"))
    await shown(tab)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        asked.set()
        await answer.wait()
        await route.continue_()

    await tab.page.route("**/errors", hold)
    await tab.page.select_option("#status", "waiting")
    await within(asked.wait())
    # The batch stands still: no snapshot comes that would have it asked again.
    await tab.page.select_option("#status", "running")
    answer.set()
    await expect(tab.page.locator("section[aria-labelledby=documents] tbody tr")).to_have_count(13)


async def test_a_paused_batch_says_what_it_waits_for(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "paused"))
    await shown(tab)
    assert (await tab.text("h2 .tag")).endswith(", paused")
    assert "the account is empty" in await tab.text("section[aria-labelledby=why]")
    # The pause is not the operator's, who can have the provider asked at once, and can pause it, too.
    await expect(tab.page.get_by_role("button", name="Ask provider now")).to_be_visible()
    await expect(tab.page.get_by_role("button", name="Pause batch")).to_be_visible()


# ---- live ------------------------------------------------------------------------------------------------------------


async def test_it_follows_a_batch_to_its_end_and_disturbs_nobody(empty: Shop, tabs: Tabs) -> None:
    documents = [f"slow letter {number}" for number in range(20)]
    await empty.submit("monday", ["letter", *documents])
    await empty.rest("monday", succeeded=1)
    async with serving_here(empty) as server:
        tab = await tabs.open(url_of(server, "monday"))
        await shown(tab)
        assert await tab.text(".counts .running dd") == "20"
        # Somebody has chosen something, has marked a text, and is not to lose either.
        await tab.page.focus("#status")
        await tab.page.evaluate("getSelection().selectAllChildren(document.querySelector('h2 bdi'))")
        empty.gate.set()
        await expect(tab.page.locator(".counts .succeeded dd")).to_have_text("21")
        await expect(tab.page.locator("h2 .tag")).to_have_text("completed")
        assert (await tab.text(".big")).startswith("100.0\u00a0% · 21 of 21 documents")
        assert await tab.page.evaluate("document.activeElement.id") == "status"
        assert await tab.page.evaluate("String(getSelection())") == "monday"
        await expect(tab.page.locator("#link")).to_have_text("ended")
        # One stream a tab: a browser has six connections to a server.
        assert [url for url in tab.requested if url.endswith("/progress")] == []
        assert len([url for url in tab.requested if url.endswith("/snapshots")]) == 2


async def test_it_goes_on_by_itself_after_the_server_was_killed(empty: Shop, tabs: Tabs) -> None:
    await empty.submit("monday", ["letter", "slow letter"])
    await empty.rest("monday", succeeded=1)
    async with serving(empty.path) as server:
        tab = await tabs.open(url_of(server, "monday"))
        await shown(tab)
        server.process.kill()
        await within(server.process.wait())
        await expect(tab.page.locator("#link")).to_have_text("connection lost, trying again")
        assert await tab.text(".counts .succeeded dd") == "1"
        empty.gate.set()
        await empty.rest("monday", succeeded=2)
        _, port = server.peer
    async with serving(empty.path, port=port):
        await expect(tab.page.locator(".counts .succeeded dd")).to_have_text("2")
        await expect(tab.page.locator("h2 .tag")).to_have_text("completed")


async def test_the_list_has_older_batches_behind_a_button(empty: Shop, tabs: Tabs) -> None:
    for number in range(60):
        await empty.batches.submit(["letter"], batch_id=f"batch {number}", document_id=str)
    async with serving_here(empty) as server:
        tab = await tabs.open(url_of(server, LIST))
        rows = tab.page.locator("tbody tr")
        await expect(rows).to_have_count(50)
        await tab.page.get_by_role("button", name="Older batches").click()
        await expect(rows).to_have_count(60)
        await expect(tab.page.get_by_role("button", name="Older batches")).to_be_hidden()
        assert await rows.locator("a").all_inner_texts() == [f"batch {number}" for number in reversed(range(60))]


async def test_the_list_shows_what_happens(empty: Shop, tabs: Tabs) -> None:
    for number in range(60):
        await empty.submit(f"batch {number}", ["slow letter" if number == 0 else "letter"])
    await empty.rest("batch 59", succeeded=1)
    async with serving_here(empty) as server:
        tab = await tabs.open(url_of(server, LIST))
        await tab.page.get_by_role("button", name="Older batches").click()
        rows = tab.page.locator("tbody tr")
        await expect(rows).to_have_count(60)
        await rows.nth(1).locator("a").focus()
        await empty.submit("new", ["letter", "slow letter"])
        # It comes first, and the others stay where they are.
        await expect(rows.first.locator("a")).to_have_text("new")
        await expect(rows.nth(2).locator("a")).to_be_focused()
        await expect(rows.first.locator(".tag")).to_have_text("thinking")
        await expect(rows.last.locator(".tag")).to_have_text("thinking")
        empty.gate.set()
        # Also on the last page of those that are shown.
        await expect(rows.last.locator(".tag")).to_have_text("completed")
        await expect(rows.first.locator("td").nth(3)).to_have_text("100.0 %")
        assert await rows.locator("a").all_inner_texts() == [
            "new",
            *(f"batch {number}" for number in range(59, -1, -1)),
        ]


async def test_a_tab_that_nobody_looks_at_asks_for_nothing(empty: Shop, tabs: Tabs) -> None:
    await empty.submit("monday", ["letter", "slow letter"])
    await empty.rest("monday", succeeded=1)
    async with serving_here(empty) as server:
        batches, batch = (
            await tabs.open(url_of(server, LIST), own_window=True),
            await tabs.open(url_of(server, "monday"), own_window=True),
        )
        await expect(batches.page.locator("tbody tr")).to_have_count(1)
        await shown(batch)
        for tab in (batches, batch):
            await tab.page.clock.install()
            await tab.hide()
            await tab.page.clock.run_for(12_000)
            tab.requested.clear()
        empty.gate.set()
        await within(empty.batches.result("monday"))
        for tab in (batches, batch):
            await tab.page.clock.run_for(60_000)
            assert tab.requested == []
            assert await tab.text("main .tag") == "thinking"
            await tab.hide(hidden=False)
            await expect(tab.page.locator("main .tag")).to_have_text("completed")


# ---- by keyboard -----------------------------------------------------------------------------------------------------

FOCUSED = """
() => {
  const element = document.activeElement;
  if (element === document.body) return null;
  return [element.textContent.trim().slice(0, 40), getComputedStyle(element).outlineStyle !== "none"];
}
"""


async def focus_by_tab(tab: Tab, text: str) -> list[str]:
    """Press Tab until an element with this text has the focus; return what had it before."""
    passed: list[str] = []
    while len(passed) < 60:
        await tab.page.keyboard.press("Tab")
        found: tuple[str, bool] | None = await tab.page.evaluate(FOCUSED)
        if found is None:
            continue
        assert found[1], f"{found[0]!r} has the focus, and does not look like it"
        if found[0] == text:
            return passed
        passed.append(found[0])
    raise AssertionError(f"no {text!r} among {passed}")


async def test_the_keyboard_reaches_everything(empty: Shop, tabs: Tabs) -> None:
    await empty.submit("monday", ["letter", "slow letter"])
    await empty.rest("monday", succeeded=1)
    async with serving_here(empty) as server:
        tab = await tabs.open(url_of(server, LIST))
        await expect(tab.page.locator("tbody tr")).to_have_count(1)
        assert await focus_by_tab(tab, "Skip to content") == []
        await tab.page.keyboard.press("Enter")
        assert await tab.page.evaluate("document.activeElement.id") == "main"
        await focus_by_tab(tab, "monday")
        await tab.page.keyboard.press("Enter")
        await shown(tab)
        await focus_by_tab(tab, "Pause batch")
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("h2 .tag")).to_have_text("thinking, paused")
        assert await tab.violations() == []
        # The focus is on the button that takes it back.
        await expect(tab.page.get_by_role("button", name="Resume batch")).to_be_focused()
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("h2 .tag")).to_have_text("thinking")
        assert not (await empty.snapshot("monday")).paused
        await focus_by_tab(tab, "Cancel batch")
        # Its options are behind the next stop.
        await tab.page.keyboard.press("Tab")
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.get_by_label("Documents at once")).to_have_value("2")
        await tab.page.get_by_label("Documents at once").fill("3")
        await tab.page.get_by_label("When a document fails").select_option("it runs again")
        await tab.page.get_by_label("Deadline after submission, in seconds").fill("90")
        assert await tab.violations() == []
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.get_by_text("Changed.")).to_be_visible()
        config = await empty.batches.config("monday")
        assert (config.concurrency, config.failure_policy) == (3, RetryFailed())
        assert (config.deadline, config.document_timeout) == (timedelta(seconds=90), None)
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.get_by_text("Nothing was changed.")).to_be_visible()
        await tab.page.get_by_role("button", name="Cancel batch").focus()
        tab.answer(accept=False)
        await tab.page.keyboard.press("Enter")
        assert await tab.text("h2 .tag") == "thinking"
        tab.answer(accept=True)
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("h2 .tag")).to_have_text("cancelled")
        assert (await empty.batches.result("monday")).state.tag == "cancelled"


# ---- refusals --------------------------------------------------------------------------------------------------------


async def test_it_says_who_may_not_see_it(filled: Server, tabs: Tabs) -> None:
    for token in ("wrong", "", "a%zz", "ключ"):
        tab = await tabs.open(url_of(filled, LIST), token=token)
        tab.allowed.append("401 (Unauthorized)")
        await expect(tab.page.get_by_role("alert")).to_contain_text("Not signed in")
        assert await tab.violations() == []
        await tab.page.close()  # it would take the next tab's token


async def test_it_says_that_there_is_no_such_batch(filled: Server, tabs: Tabs) -> None:
    tab = await tabs.open(url_of(filled, "no such batch"))
    tab.allowed.append("404 (Not Found)")
    await expect(tab.page.get_by_role("alert")).to_have_text("There is no such batch.")
    assert await tab.violations() == []


async def test_it_says_who_may_not_cancel(empty: Shop, tabs: Tabs) -> None:
    await empty.submit("monday", ["slow letter"])
    async with serving_here(empty, ["read"]) as server:
        tab = await tabs.open(url_of(server, "monday"))
        await shown(tab)
        tab.allowed.append("403 (Forbidden)")
        tab.answer(accept=True)
        await tab.page.get_by_role("button", name="Cancel batch").click()
        await expect(tab.page.locator("section[aria-labelledby=title] .bad")).to_have_text("You may not cancel it.")


# ---- signing in ------------------------------------------------------------------------------------------------------


async def test_a_new_tab_is_handed_the_token_until_it_is_forgotten(filled: Server, tabs: Tabs) -> None:
    first = await tabs.open(url_of(filled, LIST))
    await expect(first.page.locator("tbody a")).to_have_count(6)
    # As with the middle button on a link: nothing of the first tab's storage is there.
    second = await tabs.beside(first, url_of(filled, "live"))
    await shown(second)
    for tab in (first, second):
        assert await tab.page.evaluate("location.hash + Object.keys(localStorage).join() + document.cookie") == ""
        tab.allowed.append("401 (Unauthorized)")
    await second.page.get_by_role("button", name="Sign out").click()
    for tab in (first, second):
        await expect(tab.page.get_by_role("alert")).to_contain_text("Not signed in")
        await expect(tab.page.get_by_role("button", name="Sign out")).to_be_hidden()
        assert await tab.page.evaluate("Object.keys(sessionStorage).join()") == ""
        assert await tab.violations() == []
    # There is nobody who could hand it over.
    third = await tabs.beside(first, url_of(filled, "live"))
    third.allowed.append("401 (Unauthorized)")
    await expect(third.page.get_by_role("alert")).to_contain_text("Not signed in")
    # One token is enough for all that wait for one.
    await third.page.get_by_label("Token").fill(TOKEN)
    await third.page.keyboard.press("Enter")
    for tab in (second, third):
        await shown(tab)
    await expect(first.page.locator("tbody a")).to_have_count(6)


async def test_tabs_with_the_token_of_an_earlier_server_take_the_new_one(empty: Shop, tabs: Tabs) -> None:
    await empty.submit("monday", ["letter"])
    await within(empty.batches.result("monday"))
    async with serving_here(empty) as server:
        earlier = await tabs.open(url_of(server, LIST), token="of an earlier server")
        earlier.allowed.append("401 (Unauthorized)")
        await expect(earlier.page.get_by_role("alert")).to_contain_text("Not signed in")
        later = await tabs.beside(earlier, f"{url_of(server, LIST)}#token={TOKEN}")
        for tab in (earlier, later):
            await expect(tab.page.locator("tbody a")).to_have_text("monday")


# ---- what it shows is text -------------------------------------------------------------------------------------------


async def test_ids_and_errors_with_markup_are_text(empty: Shop, tabs: Tabs) -> None:
    await empty.submit(HOSTILE, [f"bad {HOSTILE}", "slow letter"])
    await empty.rest(HOSTILE, succeeded=0, failed=1)
    async with serving_here(empty) as server:
        tab = await tabs.open(url_of(server, LIST))
        await tab.page.locator("tbody a").click()
        await shown(tab)
        title, body = await tab.text("h2 bdi"), await tab.text("main")
        assert title.startswith("</script><img src=x onerror=alert(1)>\"'&\\u000a\\u000d\\u001b[31m\\u202egnp")
        assert await tab.page.locator("img").count() == 0
        assert "cannot make sense of </script>" in body
        assert not set(body) & {"\x1b", "\u202e", "\r"}
        assert await tab.violations() == []
        tab.answer(accept=True)
        await tab.page.get_by_role("button", name="Cancel batch").click()
        await expect(tab.page.locator("h2 .tag")).to_have_text("cancelled")
        assert (await empty.snapshot(HOSTILE)).state.tag == "cancelled"
