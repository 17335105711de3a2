from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import PARROT, parrot, quick

from durable_batches.extraction import installed_packages, package_document, text_files


def test_the_installed_packages_are_documents() -> None:
    documents = {document.id: document for document in installed_packages()}
    assert list(documents) == sorted(documents)
    assert documents["pydantic"].title == f"pydantic {version('pydantic')}"
    assert "Requires-Dist" in documents["pydantic"].metadata
    assert "pydantic" in documents["pydantic"].text.lower()


def test_a_package_that_is_installed_twice_counts_as_an_import_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, number in (("one", "1.0"), ("two", "2.0")):
        information = tmp_path / folder / f"parrot-{number}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Parrot\nVersion: {number}\n\nHello\n")
    (tmp_path / "one" / "broken-1.0.dist-info").mkdir()
    (tmp_path / "one" / "broken-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "one"), str(tmp_path / "two")])
    assert [document.title for document in installed_packages()] == ["Parrot 1.0"]


def test_a_packages_metadata_and_readme_are_parted() -> None:
    document = parrot()
    assert (document.id, document.title) == ("py-parrot", "Py.Parrot 1.4.2")
    assert document.text.startswith("# Parrot\n")
    assert document.metadata["Requires-Dist"][0] == "click>=8.0"


def test_an_older_metadata_files_description_is_the_text() -> None:
    document = package_document(
        "Metadata-Version: 1.1\nName: parrot\n"
        "Description: # Parrot\n        \n        Says it.\n          Again.\nVersion: 1\n"
    )
    assert document.text == "# Parrot\n\nSays it.\n  Again."
    assert "Description" not in document.metadata


def test_metadata_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="names no package"):
        package_document("Metadata-Version: 2.1\n\nHello")


def test_text_files_are_found_below_a_folder(tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    write("b.txt", b"two")
    write("a/one.md", "Grüße\r\n".encode())
    write("a/latin.txt", b"caf\xe9")
    write("c/METADATA", PARROT.encode())
    write("c/PKG-INFO", b"Metadata-Version: 1.0\n")
    write("empty.txt", b" \n")
    write("picture.png", b"\x89PNG\0\0")
    write("large.txt", b"x" * 2000)
    write(".hidden/x.txt", b"no")
    write(".hidden.txt", b"no")
    write("node_modules/x.txt", b"no")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")

    documents = list(text_files(tmp_path, max_bytes=1000))

    assert [document.id for document in documents] == [
        "b.txt",
        "a/latin.txt",
        "a/one.md",
        "c/METADATA",
        "c/PKG-INFO",
    ]
    texts = {document.id: document.text for document in documents}
    assert texts["a/one.md"] == "Grüße\n"
    assert texts["a/latin.txt"] == "caf\ufffd"
    assert documents[3].title == "Py.Parrot 1.4.2"
    assert [document.id for document in text_files(tmp_path / "b.txt")] == ["b.txt"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        next(text_files(tmp_path / "missing"))


@quick
@given(st.text())
def test_what_a_document_holds_can_be_stored(text: str) -> None:
    document = package_document(f"Name: parrot\nSummary: {text}\n\n{text}")
    for value in (document.text, *(value for values in document.metadata.values() for value in values)):
        assert value.encode("utf-8").decode("utf-8") == value
        assert "\0" not in value
