"""The files of the page: each that one of them names is served, and nothing else is needed."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import pytest
from tests.web.asgi import Client

from durable_batches import BatchClient, MemoryStore
from durable_batches.web import create_app, page

FILES: Final = {
    path.name: path.read_text(encoding="utf-8")
    for path in Path(page.__file__).parent.iterdir()
    if path.suffix in (".html", ".css", ".js")
}
NAMED: Final = re.compile(r'(?:from "\./|import "\./|"static/)([\w.]+)"')


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with BatchClient(MemoryStore()) as batches:
        yield Client(create_app(batches, allow_anonymous=True))


async def test_what_the_page_names_is_served_and_nothing_is_left_over(client: Client) -> None:
    served = {"index.html": (await client.get("/")).body.decode()}
    wanted = NAMED.findall(served["index.html"])
    while wanted:
        name = wanted.pop()
        if name not in served:
            answer = await client.get(f"/static/{name}")
            assert answer.status == 200, name
            served[name] = answer.body.decode()
            wanted += NAMED.findall(served[name])
    assert served == FILES


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere_and_nothing_is_markup(name: str) -> None:
    # The one address is the name of a language, and is not fetched.
    text = FILES[name].replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|url\(|@import", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|<style|style=", text)
