from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import quick

from durable_batches.extraction.urls import canonical_url, find_urls, public_form


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("See https://parrot.dev/docs.", ["https://parrot.dev/docs"]),
        ("(https://parrot.dev/a_(bird))", ["https://parrot.dev/a_(bird)"]),
        ("<https://parrot.dev>, and **https://quill.dev**!", ["https://parrot.dev", "https://quill.dev"]),
        ("[docs](https://parrot.dev/docs)", ["https://parrot.dev/docs"]),
        ("`Docs <https://parrot.dev/docs>`_", ["https://parrot.dev/docs"]),
        (".. _docs: https://parrot.dev/docs", ["https://parrot.dev/docs"]),
        # Pictures and badges say nothing.
        ("![logo](https://parrot.dev/logo)", []),
        ("https://parrot.dev/logo.png https://img.shields.io/x/parrot", []),
        (".. image:: https://ci.dev/badge/parrot", []),
        # Nor does a changelog's every issue.
        ("Fixed [#12](https://forge.dev/quill/parrot/issues/12)", []),
        (
            "https://forge.dev/quill/parrot/pull/3 https://forge.dev/quill/parrot",
            ["https://forge.dev/quill/parrot"],
        ),
        # Addresses that lead nowhere.
        ("http://localhost:8000/ http://127.0.0.1 https://example.com/x http://10.0.0.1/", []),
        ("ftp://parrot.dev mailto:ada@quill.dev parrot.dev", []),
    ],
)
def test_the_addresses_of_a_text_are_found(text: str, urls: list[str]) -> None:
    found = list(find_urls(text))
    assert [url.url for url in found] == urls
    assert all(text[url.start : url.end] == url.url for url in found)


def test_a_links_label_is_kept() -> None:
    found = find_urls("[The  docs](https://parrot.dev/docs) and `its source <https://forge.dev/quill/parrot>`_")
    assert [url.label for url in found] == ["The docs", "its source"]


@pytest.mark.parametrize(
    "spelling",
    [
        "https://forge.dev/quill/parrot",
        "http://www.forge.dev/quill/parrot/",
        "HTTPS://Forge.DEV:443/quill/parrot.git",
        "https://forge.dev/quill/parrot#readme",
        "https://forge.dev/quill/parrot?utm_source=x",
        "https://ada:secret@forge.dev/quill/parrot",
        " https://forge.dev/quill/parrot ",
    ],
)
def test_spellings_of_one_address_are_one(spelling: str) -> None:
    assert canonical_url(spelling) == "forge.dev/quill/parrot"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://forge.dev/Quill", "https://forge.dev/quill"),
        ("https://forge.dev/?page=1", "https://forge.dev/?page=2"),
        ("https://forge.dev:8080/", "https://forge.dev/"),
    ],
)
def test_different_addresses_stay_different(one: str, other: str) -> None:
    assert canonical_url(one) != canonical_url(other)


@pytest.mark.parametrize(
    "text", ["", "parrot", "ftp://forge.dev", "http://", "https://[::1", "http://a b/", "https://x:y/"]
)
def test_what_is_no_web_address_is_none(text: str) -> None:
    assert canonical_url(text) is None


def test_credentials_are_not_shown() -> None:
    assert public_form("https://ada:secret@forge.dev/x#y") == "https://forge.dev/x"


hosts = st.from_regex(r"[a-z]{1,8}(\.[a-z]{2,6}){1,2}", fullmatch=True)
paths = st.lists(st.text(st.characters(categories=["L", "N"], include_characters="-_.~% "), max_size=8), max_size=4)


@quick
@given(hosts, paths)
def test_a_canonical_address_is_its_own(host: str, path: list[str]) -> None:
    canonical = canonical_url(f"https://{host}/{'/'.join(path)}")
    assert canonical is not None
    assert canonical_url(f"http://{canonical}") == canonical


@quick
@given(st.text())
def test_any_text_is_answered(text: str) -> None:
    assert canonical_url(text) is None or "://" in text
    assert list(find_urls(text)) is not None
