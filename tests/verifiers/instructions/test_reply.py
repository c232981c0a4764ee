"""How a reply is taken apart: words, sentences, paragraphs, dividers and lines by example."""

from __future__ import annotations

import pytest

from palestra.verifiers.instructions.reply import MAX_CHARS, Reply, folded, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Don't stop, well-known mother-in-law's!",
            ["Don't", "stop", "well-known", "mother-in-law's"],
        ),
        ("3.14 and 1,000 at 10:30.", ["3.14", "and", "1,000", "at", "10:30"]),
        ("the U.S. at 5 p.m. e.g. x", ["the", "U.S.", "at", "5", "p.m.", "e.g.", "x"]),
        ("snake_case a/b a—b", ["snake", "case", "a", "b", "a", "b"]),
        ("- ... *** ! 😀", []),
        ("हिन्दी में क्या", ["हिन्दी", "में", "क्या"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("e\u0301te\u0301", ["été"]),
        ("我学Python。ねこ", ["我", "学", "Python", "ね", "こ"]),
        ("l’eau d'or", ["l’eau", "d'or"]),
        ("dogs' 'tis rock'n'roll", ["dogs", "tis", "rock'n'roll"]),
        ("zero\u200bwidth soft\u00adhyphen", ["zerowidth", "softhyphen"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert Reply(text).words == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met Mr. J. Doe. He left.", ["Dr. Smith met Mr. J. Doe.", "He left."]),
        ("So do I. Then go.", ["So do I.", "Then go."]),
        ("It was 1999. Then 3.14 came.", ["It was 1999.", "Then 3.14 came."]),
        ("1. First one.\n2. Second one.", ["1. First one.", "2. Second one."]),
        ("**1.** First.\n**2.** More", ["**1.** First.", "**2.** More"]),
        ("See No. 5. I said no. Then left.", ["See No. 5.", "I said no.", "Then left."]),
        ("At 5 p.m. we left. At 6 p.m. He came.", ["At 5 p.m. we left.", "At 6 p.m.", "He came."]),
        ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
        ('"What?" he said. "Go!" She went.', ['"What?" he said.', '"Go!"', "She went."]),
        ("all lower. no capitals.", ["all lower.", "no capitals."]),
        ("你好。再见！真的？是", ["你好。", "再见！", "真的？", "是"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("Fun! 🎉 More. 😀😀 End", ["Fun! 🎉", "More. 😀😀", "End"]),
        ("Fun 🎉\n\n🎉", ["Fun 🎉 🎉"]),
        ("Title\n\nText\n- a\n- b\n# H\ngo on", ["Title", "Text", "- a", "- b", "# H\ngo on"]),
        ("a line\nbroken in two.", ["a line\nbroken in two."]),
        ("... !!! ???", []),
        ("e.g. this, i.e. that, etc. and so on.", ["e.g. this, i.e. that, etc. and so on."]),
        ("v1.2.3 at www.site.org is out.", ["v1.2.3 at www.site.org is out."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert Reply(text).sentences == sentences


def test_paragraphs_dividers_and_lines() -> None:
    reply = Reply("a\nb\r\n\r\nc\n \n\n  d  \n***\ne")
    assert reply.paragraphs == ["a\nb", "c", "d  \n***\ne"]
    assert reply.divided == ["a\nb\n\nc\n \n\n  d", "e"]
    assert reply.lines == ["a", "b", "c", "  d", "***", "e"]
    assert Reply("***").divided == []
    assert Reply("***\na\n***\n***").divided == ["a", ""]
    assert Reply("").paragraphs == Reply("").lines == Reply("").sentences == []


def test_folding_makes_spellings_the_same() -> None:
    assert folded("Don’t  STOP\n") == "don't stop"
    assert folded("می\u200cخواهم") == folded("میخواهم")
    assert folded("STRASSE") == folded("straße")


def test_what_is_too_long_is_cut_and_known() -> None:
    assert not Reply("a" * MAX_CHARS).is_too_long
    reply = Reply("a" * (MAX_CHARS + 1))
    assert reply.is_too_long
    assert len(reply.text) == MAX_CHARS


def test_a_flood_of_combining_marks_is_left_as_it_is() -> None:
    text = "a" + "\u0316\u0301" * 50_000
    assert Reply(text).text == text
    assert Reply("a" + "\u0301").text == "á"
    assert words_of(text) == [text]
