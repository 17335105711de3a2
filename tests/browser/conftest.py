"""A Chromium for all tests of this folder, in one event loop with the batches that it shows.

None of the tests is ever skipped: a browser that is not there fails them, and says how to install it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright, expect
from pytest_asyncio import is_async_test
from tests.browser.chromium import HOW_TO_INSTALL, executable
from tests.browser.tab import Tabs, new_window
from tests.support import PATIENCE


@pytest.hookimpl
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser" in item.path.as_posix() and is_async_test(item):
            # The browser belongs to the loop that it was started in.
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncGenerator[Browser]:
    """A running Chromium."""
    path = executable()
    if path is None:
        pytest.fail(HOW_TO_INSTALL, pytrace=False)
    expect.set_options(timeout=PATIENCE * 1000)
    async with async_playwright() as playwright:
        # One process for all tabs, as where many are open: to start one takes longer than to show the page. Its
        # sandbox cannot be set up by root.
        options = ["--process-per-site", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        chromium = await playwright.chromium.launch(executable_path=path, args=options)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def window(browser: Browser) -> AsyncGenerator[BrowserContext]:
    """The window of all tests, with one tab that keeps their process while no other is open."""
    window = await new_window(browser)
    keeper = await window.new_page()
    await keeper.route("**", lambda route: route.fulfill(body=""))
    await keeper.goto("http://127.0.0.1/")
    yield window
    await window.close()


@pytest_asyncio.fixture(loop_scope="session")
async def tabs(window: BrowserContext) -> AsyncGenerator[Tabs]:
    """Opens tabs; at the end, each must have been without a fault."""
    tabs = Tabs(window)
    yield tabs
    await tabs.close()
