from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches.extraction.resolution.folding import fold, tokens

DIFFERENT = {
    "Hindi vowel signs": ("रीता", "राता"),
    "Hindi names": ("मीरा देवी", "मारी देवा"),
    "kana voicing": ("たかだ はな", "たかた はな"),
    "katakana voicing": ("ガンダ タロウ", "カンタ タロウ"),
    "Thai vowels": ("สมใจ ดี", "สมจ ดู"),
    "Thai": ("มานี", "มานะ"),
    "Tamil": ("மாலா", "மாலி"),
    "Cyrillic short i": ("Андрей Майоров", "Андреи Маиоров"),
    "Bengali": ("মীনা", "মানা"),
    "Hangul": ("김민수", "김민소"),
    "Chinese of one sound": ("李明", "黎明"),
    "Chinese": ("张伟", "章伟"),
    "Ukrainian yi": ("Марія", "Марїя"),
    "Arabic letters": ("سالم", "سليم"),
}

SAME = {
    "composed and decomposed": ("Jérôme Roux", "Je\u0301ro\u0302me Roux"),
    "full width": ("\uff21\uff44\uff41 \uff2c", "Ada L"),
    "zero width": ("Ada\u200b Lindqvist", "Ada Lindqvist"),
    "soft hyphen": ("Ada Lind\u00adqvist", "Ada Lindqvist"),
    "case": ("ADA LINDQVIST", "Ada Lindqvist"),
    "no-break space": ("Ada\u00a0Lindqvist", "Ada Lindqvist"),
    "Turkish": ("İsmail Işık", "Ismail Isik"),
    "Greek accent": ("Γιώργος", "Γιωργος"),
    "letters that do not decompose": ("Søren Łukasz", "Soren Lukasz"),
    "sharp s": ("Strauß", "Strauss"),
    "Hebrew points": ("שָׁלוֹם כהן", "שלום כהן"),
    "Arabic points": ("مُحَمَّد", "محمد"),
    "half width kana": ("\uff80\uff76\uff80\uff9e", "タカダ"),
    "Vietnamese": ("Nguyễn Văn", "Nguyen Van"),
    "apostrophe": ("O’Brien", "O'Brien"),
    "punctuation": ("Moreau, Ada-Maria", "moreau ada maria"),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_letters_that_tell_names_apart_are_kept(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_writers_vary_is_dropped(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@modest(100)
@given(st.text(max_size=30))
def test_a_folded_text_has_one_blank_between_words_and_no_other_form(text: str) -> None:
    folded = fold(text)
    assert folded == " ".join(folded.split())
    assert folded == fold(unicodedata.normalize("NFD", text)) == fold(f"  {text}\u200b ")
    assert not set(folded) & {"\x1f", "|", "=", "'"}


def test_words_are_tokens_and_neighbouring_letters_where_there_are_no_blanks() -> None:
    assert tokens(fold("Durable batches, durable")) == {"durable", "batches"}
    assert tokens("東京都庁") == {"東京", "京都", "都庁"}
    assert tokens("李明") == {"李明"}
    assert tokens("김민수 서울") == {"김민수", "서울"}
    assert tokens("") == frozenset()
