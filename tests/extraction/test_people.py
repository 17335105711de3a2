from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.extraction.examples import quick

from durable_batches.extraction.people import (
    Contact,
    canonical_email,
    email_fits_name,
    looks_like_person,
    name_key,
    pair_contacts,
    parse_contacts,
)

ADA = Contact(name="Ada Quill")
BRAM = Contact(name="Bram van Dijk")


def addressed(name: str | None, email: str, *, organization: bool = False) -> Contact:
    return Contact(name=name, email=email, organization=organization)


@pytest.mark.parametrize(
    ("value", "contacts"),
    [
        ("Ada Quill", [ADA]),
        ("Ada Quill, Bram van Dijk", [ADA, BRAM]),
        ("Ada Quill and Bram van Dijk", [ADA, BRAM]),
        ("Ada Quill & Bram van Dijk", [ADA, BRAM]),
        ("Ada Quill; Bram van Dijk", [ADA, BRAM]),
        ("Ada Quill, Bram van Dijk, and others", [ADA, BRAM]),
        ("Ada Quill and many others", [ADA]),
        ("Ada Quill et al.", [Contact(name="Ada Quill et al")]),
        ("Ada Quill, et al.", [ADA]),
        ("Ada Quill, Others (see AUTHORS), Bram van Dijk", [ADA, BRAM]),
        ("Ada Quill (University of Somewhere)", [ADA]),
        ("Quill, Ada", [ADA]),
        ("Ada Quill, Jr.", [ADA]),
        ("Ada Quill <ada@quill.dev>", [addressed("Ada Quill", "ada@quill.dev")]),
        ("Ada Quill (ada@quill.dev)", [addressed("Ada Quill", "ada@quill.dev")]),
        ('"Ada Q. Quill" <ada@quill.dev>', [addressed("Ada Q. Quill", "ada@quill.dev")]),
        ('"Quill, Ada" <ada@quill.dev>', [addressed("Ada Quill", "ada@quill.dev")]),
        (
            "Ada Quill <ada@quill.dev>, Bram van Dijk <bram@vandijk.nl>",
            [addressed("Ada Quill", "ada@quill.dev"), addressed("Bram van Dijk", "bram@vandijk.nl")],
        ),
        ("ada@quill.dev", [addressed(None, "ada@quill.dev")]),
        (
            "<ada@quill.dev>, bram@vandijk.nl",
            [addressed(None, "ada@quill.dev"), addressed(None, "bram@vandijk.nl")],
        ),
        # One address for several people is nobody's own.
        ('"Ada Quill and Bram van Dijk" <both@quill.dev>', [ADA, BRAM]),
        ('"Ada Quill, Bram van Dijk" <both@quill.dev>', [ADA, BRAM]),
        ("ada quill and contributors <parrot-dev@example.org>", [Contact(name="ada quill")]),
        ("=?utf-8?q?N=C3=BA=C3=B1ez?= <n@nunez.es>", [addressed("Núñez", "n@nunez.es")]),
        ("", []),
        ("see AUTHORS.txt", []),
        ("Parrot Software Foundation", [Contact(name="Parrot Software Foundation", organization=True)]),
        (
            "The parrot developers <dev@x.org>",
            [addressed("The parrot developers", "dev@x.org", organization=True)],
        ),
        (
            "The Parrot Authority and individual contributors",
            [Contact(name="The Parrot Authority", organization=True)],
        ),
        # A single word with a team's mailbox is a team, with a person's it is a person.
        (
            "Feathers <contact@feathers.example>",
            [addressed("Feathers", "contact@feathers.example", organization=True)],
        ),
        ("adaq <ada@quill.dev>", [addressed("adaq", "ada@quill.dev")]),
        # A mailing list is nobody's address.
        ("Ada Quill <parrot-dev@lists.example.org>", [ADA]),
    ],
)
def test_contacts_are_parsed(value: str, contacts: list[Contact]) -> None:
    assert parse_contacts(value) == contacts


@pytest.mark.parametrize(
    ("author", "email", "contacts"),
    [
        ("Ada Quill", "a@quill.dev", [addressed("Ada Quill", "a@quill.dev")]),
        (
            "Ada Quill, Bram van Dijk",
            "ada@quill.dev, post@vandijk.nl",
            [addressed("Ada Quill", "ada@quill.dev"), addressed("Bram van Dijk", "post@vandijk.nl")],
        ),
        ("Ada Quill, Bram van Dijk", "bram@x.nl", [ADA, addressed("Bram van Dijk", "bram@x.nl")]),
        ("Ada Quill", "Ada Quill <ada@quill.dev>", [addressed("Ada Quill", "ada@quill.dev")]),
        ("Ada Quill", "Bram van Dijk <b@x.nl>", [addressed("Bram van Dijk", "b@x.nl"), ADA]),
        ("Ada Quill", "parrot-dev@lists.example.org", [ADA]),
        ("", "parrot-dev@lists.example.org", []),
        ("", "ada@quill.dev", [addressed(None, "ada@quill.dev")]),
    ],
)
def test_names_and_addresses_of_two_fields_are_paired(author: str, email: str, contacts: list[Contact]) -> None:
    assert pair_contacts(parse_contacts(author), parse_contacts(email)) == contacts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Łukasz Żółć", "lukasz zolc"),
        ("O'Neill", "O’Neill"),
        ("Ada  Quill", "ADA QUILL"),
        ("Ada-Quill", "Ada Quill"),
        ("A.Q. Quill", "A. Q. Quill"),
    ],
)
def test_spellings_of_one_name_have_one_key(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(
    ("email", "canonical"),
    [
        ("Ada@Quill.DEV", "ada@quill.dev"),
        ("ada+parrot@quill.dev", "ada@quill.dev"),
        ("12345+ada@users.noreply.forge.example", "ada@users.noreply.forge.example"),
        ("+odd@quill.dev", "+odd@quill.dev"),
    ],
)
def test_spellings_of_one_address_are_one(email: str, canonical: str) -> None:
    assert canonical_email(email) == canonical


@pytest.mark.parametrize(
    "local", ["ada", "quill", "adaquill", "ada.quill", "aquill", "quill.a", "ada-quill", "dr.quill"]
)
def test_an_address_made_of_the_name_fits(local: str) -> None:
    assert email_fits_name(f"{local}@example.org", "Ada Quill")


@pytest.mark.parametrize("local", ["bram", "contact", "a", "42", "ad"])
def test_another_address_does_not_fit(local: str) -> None:
    assert not email_fits_name(f"{local}@example.org", "Ada Quill")


@pytest.mark.parametrize("name", ["Ada Quill", "Bram van Dijk", "A. Q. Quill", "Núñez Carla", "Ada McQuill"])
def test_a_persons_name_looks_like_one(name: str) -> None:
    assert looks_like_person(name)


@pytest.mark.parametrize(
    "name",
    ["Ada", "the parrot", "Python Software", "Quick Start", "Read The Docs", "ADA QUILL CORP", "Parrot Team",
     "Version 2 Beta", "All Rights Reserved Here Now", "Apache License"],
)  # fmt: skip
def test_other_capitalised_words_do_not(name: str) -> None:
    assert not looks_like_person(name)


@quick
@given(st.text())
def test_any_field_is_answered(value: str) -> None:
    for contact in parse_contacts(value):
        assert contact.name or contact.email


@quick
@given(st.text())
def test_a_key_is_its_own_key(name: str) -> None:
    assert name_key(name_key(name)) == name_key(name)


@quick
@given(st.emails())
def test_a_canonical_address_is_its_own(email: str) -> None:
    assert canonical_email(canonical_email(email)).rpartition("@")[2] == email.rpartition("@")[2].casefold()
