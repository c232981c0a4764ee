"""Every constraint by its id: those of IFEval, of IFBench, of IF-RLVR's training data, and ours."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from palestra.verifiers.instructions import (
    casing,
    copying,
    counts,
    edges,
    keywords,
    language,
    length,
    lists,
    markup,
    one_prompt,
    punctuation,
    sections,
    wordplay,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of constraint: a function of the reply and its arguments, "" where it is met.

    `names` maps the argument names of the published data to the function's, `fixed` holds what the
    data does not say. `may_echo`: the answer may well be the prompt, or a line of it.
    `contradiction` says of the arguments why no reply could meet them, "" if one could.
    """

    function: Callable[..., str]
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    may_echo: bool = False
    contradiction: Callable[..., str] | None = None


def _kind(function: Callable[..., str], **names: str) -> Kind:
    return Kind(function=function, names=names)


def _copying(function: Callable[..., str], **names: str) -> Kind:
    return Kind(function=function, names=names, may_echo=True)


# IFEval, arXiv 2311.07911, appendix A.
_IFEVAL = {
    "keywords:existence": _kind(keywords.existence),
    "keywords:frequency": _kind(keywords.frequency),
    "keywords:forbidden_words": _kind(keywords.forbidden),
    "keywords:letter_frequency": _kind(
        keywords.letter_frequency, let_frequency="frequency", let_relation="relation"
    ),
    "language:response_language": _kind(language.response_language),
    "length_constraints:number_sentences": _kind(length.sentences, num_sentences="count"),
    "length_constraints:number_paragraphs": _kind(
        length.divided_paragraphs, num_paragraphs="count"
    ),
    "length_constraints:number_words": _kind(length.words, num_words="count"),
    "length_constraints:nth_paragraph_first_word": Kind(
        function=length.nth_paragraph_first_word,
        names={"num_paragraphs": "paragraphs"},
        contradiction=length.lacks_paragraph,
    ),
    "detectable_content:number_placeholders": _kind(
        sections.placeholders, num_placeholders="count"
    ),
    "detectable_content:postscript": _kind(sections.postscript),
    "detectable_format:number_bullet_lists": _kind(lists.bullets, num_bullets="count"),
    "detectable_format:constrained_response": _copying(markup.constrained_response),
    "detectable_format:number_highlighted_sections": _kind(
        markup.highlights, num_highlights="count"
    ),
    "detectable_format:multiple_sections": _kind(sections.multiple_sections, num_sections="count"),
    "detectable_format:json_format": _kind(markup.json_format),
    "detectable_format:title": _kind(sections.title),
    "combination:two_responses": _kind(sections.two_responses),
    "combination:repeat_prompt": _copying(copying.repeat_then_answer),
    "startend:end_checker": _kind(edges.ends_with),
    "startend:quotation": _kind(punctuation.quoted),
    "change_case:capital_word_frequency": _kind(
        casing.capital_words, capital_frequency="count", capital_relation="relation"
    ),
    "change_case:english_capital": _kind(casing.all_capitals),
    "change_case:english_lowercase": _kind(casing.all_lowercase),
    "punctuation:no_comma": _kind(punctuation.no_comma),
}

# IFBench, arXiv 2507.02833, appendix A.
_IFBENCH = {
    "count:word_count_range": Kind(
        function=length.words_between,
        names={"min_words": "least", "max_words": "most"},
        contradiction=length.empty_range,
    ),
    "count:unique_word_count": _kind(counts.unique_words, N="count"),
    "count:conjunctions": _kind(keywords.conjunctions, small_n="count"),
    "count:person_names": _kind(keywords.person_names, N="count"),
    "count:numbers": _kind(counts.numbers, N="count"),
    "count:punctuation": _kind(punctuation.every_mark),
    "count:pronouns": _kind(keywords.pronouns, N="count"),
    "count:words_japanese": _kind(wordplay.japanese_words, N="every"),
    "count:keywords_multiple": _kind(keywords.one_to_seven),
    "ratio:stop_words": _kind(counts.stop_words),
    "ratio:sentence_type": _kind(counts.two_statements_a_question),
    "ratio:sentence_balance": _kind(counts.balanced_sentences),
    "ratio:overlap": _kind(counts.overlap),
    "ratio:sentence_words": _kind(length.equal_sentences),
    "words:alphabet": _kind(wordplay.alphabet),
    "words:vowel": _kind(wordplay.three_vowels),
    "words:consonants": _kind(wordplay.consonant_clusters),
    "words:palindrome": Kind(function=wordplay.palindromes, fixed={"count": 10, "letters": 5}),
    "words:prime_lengths": _kind(wordplay.prime_lengths),
    "words:repeats": _kind(counts.repeats, small_n="count"),
    "words:last_first": _kind(edges.chained_sentences),
    "words:paragraph_last_first": _kind(edges.paragraphs_round),
    "words:no_consecutive": _kind(wordplay.no_shared_first_letter),
    "words:keywords_specific_position": _kind(keywords.at_place, n="sentence", m="word"),
    "words:words_position": _kind(keywords.second_and_second_to_last),
    "sentence:alliteration_increment": _kind(wordplay.growing_alliteration),
    "sentence:increment": _kind(length.growing_sentences, small_n="step"),
    "sentence:keyword": _kind(keywords.in_sentence, N="sentence"),
    "format:parentheses": Kind(function=punctuation.nested_brackets, fixed={"depth": 5}),
    "format:quotes": Kind(function=punctuation.nested_quotes, fixed={"depth": 3}),
    "format:options": _copying(markup.options),
    "format:newline": _kind(markup.word_a_line),
    "format:emoji": _kind(punctuation.emoji_ends),
    "format:line_indent": _kind(markup.stairs),
    "format:quote_unquote": _kind(punctuation.explained_quotes),
    "format:list": _kind(lists.marked_items),
    "format:thesis": _kind(sections.thesis),
    "format:sub-bullets": _kind(lists.sub_bullets),
    "format:no_bullets_bullets": _kind(lists.sentences_then_bullets),
    "format:title_case": _kind(casing.title_case),
    "format:output_template": _kind(sections.output_template),
    "format:no_whitespace": _kind(markup.no_whitespace),
    "repeat:repeat_change": _copying(copying.copy_with_another_first_word),
    "repeat:repeat_simple": _copying(copying.only_this_sentence),
    "repeat:repeat_span": Kind(
        function=copying.copy_words,
        names={"n_start": "start", "n_end": "end"},
        may_echo=True,
        contradiction=copying.lacks_words,
    ),
    "custom:multiples": _kind(one_prompt.multiples_of_seven),
    "custom:mcq_count_length": _kind(one_prompt.multiple_choice),
    "custom:reverse_newline": _kind(one_prompt.countries_of_africa),
    "custom:word_reverse": _kind(one_prompt.reversed_words),
    "custom:character_reverse": _kind(one_prompt.reversed_letters),
    "custom:sentence_alphabet": _kind(one_prompt.sentences_by_alphabet),
    "custom:european_capitals_sort": _kind(one_prompt.european_capitals),
    "custom:csv_city": _kind(one_prompt.csv_cities),
    "custom:csv_special_character": _kind(one_prompt.csv_products),
    "custom:csv_quotes": _kind(one_prompt.csv_grades),
    "custom:date_format_list": _kind(one_prompt.napoleonic_dates),
}

# The constraints that IF-RLVR trains on, arXiv 2507.02833, appendix B.
_IF_RLVR = {
    "copy:repeat_phrase": Kind(
        function=copying.varied_phrase,
        names={"small_n": "count"},
        contradiction=copying.lacks_inside,
    ),
    "copy:copy": _copying(copying.copy),
    "copy:copying_simple": _copying(copying.copy),
    "copy:copying_multiple": _copying(copying.copy_often, N="count"),
    "new:copy_span_idx": Kind(
        function=copying.copy_characters,
        names={"n_start": "start", "n_end": "end"},
        may_echo=True,
        contradiction=copying.lacks_characters,
    ),
    "detectable_format:sentence_hyphens": _kind(punctuation.hyphenated_sentences),
    "detectable_format:square_brackets": _kind(markup.words_in_brackets),
    "detectable_format:bigram_wrapping": _kind(markup.pairs_in_brackets),
    "keywords:no_adjacent_consecutive": _kind(wordplay.no_consecutive_first_letters),
    "keywords:word_once": _kind(keywords.once),
    "keywords:word_count_different_numbers": _kind(keywords.exact_frequency),
    "keywords:exclude_word_harder": _kind(keywords.forbidden_word),
    "keywords:palindrome": Kind(function=wordplay.palindromes, fixed={"count": 1, "letters": 3}),
    "keywords:keyword_specific_position": _kind(keywords.at_place, n="sentence", m="word"),
    "keywords:start_end": _kind(edges.same_first_and_last),
    "paragraphs:paragraphs": Kind(function=length.divided_paragraphs, fixed={"count": 2}),
    "paragraphs:paragraphs2": Kind(
        function=length.paragraphs, fixed={"count": 2, "relation": "exactly"}
    ),
    "first_word:first_word_sent": _kind(edges.first_word_of_sentences),
    "first_word:first_word_answer": _kind(edges.first_word),
    "last_word:last_word_sent": _kind(edges.last_word_of_sentences),
    "last_word:last_word_answer": _kind(edges.last_word),
    "punctuation:punctuation_dot": _kind(punctuation.no_dot),
    "punctuation:punctuation_exclamation": _kind(punctuation.no_exclamation),
    "count:lowercase_counting": _kind(counts.lowercase_words, N="count"),
    "count:counting_composition": _kind(length.composition, n_sent="sentences", n_words="words"),
    "count:count_unique": _kind(counts.no_word_twice),
    "count:count_increment_word": _kind(keywords.once_and_twice),
    "letters:letter_counting": _kind(length.letters, N="count"),
    "letters:letter_counting2": _kind(
        keywords.letter_frequency, let_frequency="frequency", let_relation="relation"
    ),
}

_OURS = {
    "length_constraints:number_lines": _kind(length.lines),
    "length_constraints:number_characters": _kind(length.characters),
    "length_constraints:blank_line_paragraphs": _kind(length.paragraphs),
    "length_constraints:words_per_sentence": _kind(length.words_per_sentence),
    "detectable_format:numbered_list": _kind(lists.numbered),
    "detectable_format:headings": _kind(markup.headings),
    "detectable_format:code_block": _kind(markup.code_block),
    "detectable_format:table": _kind(markup.table),
    "detectable_format:json_keys": _kind(markup.json_keys),
    "detectable_format:xml": Kind(function=markup.tagged, contradiction=markup.bad_tag),
    "detectable_content:emoji": _kind(punctuation.emoji),
    "change_case:capital_word_share": _kind(casing.capital_share),
    "startend:start_checker": _kind(edges.starts_with),
    "sentence:alliteration": _kind(wordplay.alliteration),
}

KINDS: Mapping[str, Kind] = {**_IFEVAL, **_IFBENCH, **_IF_RLVR, **_OURS}

# Published ids that are refused rather than guessed at.
REFUSED: Mapping[str, str] = {
    "words:start_verb": "it needs a part-of-speech tagger",
    "words:odd_even_syllables": "it needs a pronouncing dictionary",
}


def kind_of(id: str) -> Kind:
    """The kind of constraint of this id. Raises ValueError for an unknown one."""
    if id in KINDS:
        return KINDS[id]
    if id in REFUSED:
        raise ValueError(f'instruction "{id}" cannot be checked here: {REFUSED[id]}')
    nearest = difflib.get_close_matches(str(id)[:100], KINDS, n=1, cutoff=0.5)
    guess = f': did you mean "{nearest[0]}"?' if nearest else ""
    raise ValueError(f'unknown instruction "{id!s:.100}"{guess}')
