"""Forms of texts for comparisons, of any script: never an identity, and never shown."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

__all__ = ["fold", "tokens"]

_PLAIN: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"}
)
"""Latin letters that do not decompose into a plain one and a mark."""

_POINTS: Final = frozenset(
    {*range(0x0591, 0x05C8)} - {0x05BE, 0x05C0, 0x05C3, 0x05C6} | {*range(0x064B, 0x0653), 0x0670, 0x0640}
)
"""Points of Hebrew and Arabic, which writers may leave out."""

_APOSTROPHES: Final = "'’`\u02bc"

_UNSPACED: Final = ("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
"""How the names of letters begin in scripts that put no blanks between words."""


@lru_cache(65_536)
def fold(text: str) -> str:
    """Return a text without what writers vary: width, case, accents, optional points, punctuation, blanks.

    Marks are dropped where they are accents, on Latin and Greek letters. Elsewhere they are part of the letter: Indic
    vowels, voiced kana, and the Cyrillic short i tell names apart.
    """
    if text.isascii():
        text = text.lower()
    else:
        kept: list[str] = []
        accented = False
        for letter in unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold()):
            if ord(letter) in _POINTS or unicodedata.category(letter) == "Cf":
                continue
            if not unicodedata.combining(letter):
                accented = _has_accents(letter)
            elif accented:
                continue
            kept.append(letter)
        text = unicodedata.normalize("NFC", "".join(kept)).translate(_PLAIN)
    return " ".join("".join(map(_without_punctuation, text)).split())


def tokens(text: str) -> frozenset[str]:
    """Return the words of a folded text; of a script without blanks, each two neighbouring letters."""
    found: set[str] = set()
    for word in text.split():
        if not word.isascii() and len(word) > 2 and is_unspaced(word[0]):
            found.update(word[start : start + 2] for start in range(len(word) - 1))
        else:
            found.add(word)
    return frozenset(found)


@lru_cache(65_536)
def is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script that puts no blanks between words."""
    return unicodedata.name(letter, "").startswith(_UNSPACED)


@lru_cache(65_536)
def _has_accents(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN ", "GREEK "))


@lru_cache(65_536)
def _without_punctuation(letter: str) -> str:
    if letter.isalnum() or unicodedata.category(letter).startswith("M"):
        return letter
    return "" if letter in _APOSTROPHES else " "
