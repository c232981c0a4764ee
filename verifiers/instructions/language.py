"""Which language a text is in: by its script, then by its commonest words; no model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from palestra.verifiers.instructions.function_words import FUNCTION_WORDS
from palestra.verifiers.instructions.reply import Reply, words_of

# No more of a reply is looked at, from its beginning and end.
_MAX_CHARS = 20_000

SCRIPTS: Mapping[str, str] = {
    "latin": "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "devanagari": "\u0900-\u097f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "hebrew": "\u0590-\u05ff",
    "armenian": "\u0530-\u058f",
    "georgian": "\u10a0-\u10ff",
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f",
    "gujarati": "\u0a80-\u0aff",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "malayalam": "\u0d00-\u0d7f",
    "sinhala": "\u0d80-\u0dff",
    "thai": "\u0e00-\u0e7f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "kana": "\u3041-\u30ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff",
}
# Scripts that tell the language; the others are shared, and words decide.
_ALONE: Mapping[str, str] = {
    "greek": "el", "hebrew": "he", "armenian": "hy", "georgian": "ka", "bengali": "bn",
    "gurmukhi": "pa", "gujarati": "gu", "tamil": "ta", "telugu": "te", "kannada": "kn",
    "malayalam": "ml", "sinhala": "si", "thai": "th", "hangul": "ko",
}  # fmt: skip
_SHARED: Mapping[str, tuple[str, ...]] = {
    "latin": (
        "en", "es", "pt", "fr", "de", "it", "nl", "pl", "cs", "ro", "hu", "fi", "sv", "da", "tr",
        "id", "vi", "sw",
    ),
    "cyrillic": ("ru", "uk", "bg"),
    "devanagari": ("hi", "mr", "ne"),
    "arabic": ("ar", "fa", "ur"),
}  # fmt: skip
# Letters that only some of a script's languages write: each counts as a function word.
_LETTERS: Mapping[str, str] = {
    "es": "ñ¿¡", "pt": "ãõ", "de": "ß", "pl": "ąęłśźżń", "cs": "ěřů", "ro": "șțţş", "hu": "őű",
    "tr": "ğı", "vi": "đơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ", "da": "æø",
    "ru": "ыэё", "uk": "іїєґ", "mr": "ळ", "fa": "گپچژ", "ur": "ٹڈڑےہں", "ar": "ةىأإ",
}  # fmt: skip
LANGUAGES = tuple(sorted({*_ALONE.values(), *FUNCTION_WORDS, "ja", "zh"}))
_NAMES = {
    "english": "en", "spanish": "es", "portuguese": "pt", "french": "fr", "german": "de",
    "italian": "it", "dutch": "nl", "polish": "pl", "czech": "cs", "romanian": "ro",
    "hungarian": "hu", "finnish": "fi", "swedish": "sv", "danish": "da", "turkish": "tr",
    "indonesian": "id", "vietnamese": "vi", "swahili": "sw", "russian": "ru", "ukrainian": "uk",
    "bulgarian": "bg", "hindi": "hi", "marathi": "mr", "nepali": "ne", "arabic": "ar",
    "persian": "fa", "urdu": "ur", "greek": "el", "hebrew": "he", "armenian": "hy",
    "georgian": "ka", "bengali": "bn", "punjabi": "pa", "gujarati": "gu", "tamil": "ta",
    "telugu": "te", "kannada": "kn", "malayalam": "ml", "sinhala": "si", "thai": "th",
    "korean": "ko", "japanese": "ja", "chinese": "zh", "zh-cn": "zh", "zh-tw": "zh",
}  # fmt: skip

_MIN_SHARE = 0.75  # of the letters, in the language's script: names and terms come in others
_MIN_DENSITY = 0.12  # function words to words; running text has 0.3 to 0.5
_FOREIGN_WORDS = 12  # a paragraph this long in another language is no quotation
_CODE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{1,200}`|https?://\S+|\$[^$\n]{1,300}\$"
    r"|\\\(.{1,300}?\\\)|\\\[.{1,300}?\\\]",
    re.DOTALL,
)
_MIN_WORDS = 5


def _language(value: Any) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    code = _NAMES.get(name, name)
    if code not in LANGUAGES:
        raise ValueError(f"a language that is told apart here: {', '.join(LANGUAGES)}")
    return code


Language = Annotated[str, _language]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected:
    """The likeliest language, "" where nothing tells, and how sure: function words to words."""

    language: str
    density: float = 1.0


def response_language(reply: Reply, language: Language) -> str:
    """The reply is in that language (ISO 639-1 code or English name); code does not count.

    A reply whose language cannot be told is in none: the published checker counts it as passed.
    """
    text = _ends(reply.text)
    without_code = _CODE.sub(" ", text)
    text = without_code if len(words_of(without_code)) >= _MIN_WORDS else text
    found = detect(text)
    if found.language != language:
        return f"in {found.language or 'no language that can be told'}, not {language}"
    for paragraph in text.split("\n"):
        if len(words_of(paragraph)) >= _FOREIGN_WORDS:
            other = detect(paragraph)
            if other.language not in ("", language) and other.density > 2 * _MIN_DENSITY:
                return f"partly in {other.language}, not {language}"
    return ""


def is_english(reply: Reply) -> bool:
    """Whether it is English, or so short that nothing tells; for instructions of capitals."""
    text = _ends(reply.text)
    found = detect(text)
    return found.language == "en" or (not found.language and _main_script(text) == "latin")


def detect(text: str) -> Detected:
    """The language of a text of at least a sentence or so.

    Among languages of one script the one with most function words (and letters of its own) wins.
    Languages that are not in `LANGUAGES` may be taken for a relative: Norwegian for Danish, Slovak
    for Czech, Malay for Indonesian, Catalan for Spanish, Galician for Portuguese, Afrikaans for
    Dutch, Azerbaijani for Turkish, Serbian for Bulgarian, Belarusian for Russian.
    """
    script = _main_script(text)
    if script in _ALONE:
        return Detected(language=_ALONE[script])
    if script in ("han", "kana"):
        counts = _letters(text)
        is_japanese = counts["kana"] >= 0.1 * (counts["han"] + counts["kana"])
        return Detected(language="ja" if is_japanese else "zh")
    if script not in _SHARED:
        return Detected(language="")
    text = text.lower().replace("’", "'")
    words = words_of(text)
    hits = {
        language: sum(word in FUNCTION_WORDS[language] for word in words)
        + sum(text.count(letter) for letter in _LETTERS.get(language, ""))
        for language in _SHARED[script]
    }
    best, second = sorted(hits, key=lambda language: -hits[language])[:2]
    density = hits[best] / max(1, len(words))
    is_told = density >= _MIN_DENSITY and hits[best] > hits[second]
    return Detected(language=best if is_told else "", density=density)


def _ends(text: str) -> str:
    if len(text) <= _MAX_CHARS:
        return text
    return f"{text[: _MAX_CHARS // 2]}\n{text[-_MAX_CHARS // 2 :]}"


def _main_script(text: str) -> str:
    counts = _letters(text)
    if counts["kana"] or counts["han"]:
        counts["han"] += counts.pop("kana", 0)
    for script, weight in _WEIGHTS.items():
        counts[script] *= weight
    script, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return script if count and count >= _MIN_SHARE * sum(counts.values()) else ""


# How many letters of an alphabet a character of these says.
_WEIGHTS = {"han": 3, "hangul": 2}


def _letters(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for script, pattern in _PATTERNS.items():
        if found := len(pattern.findall(text)):
            counts[script] = found
    return counts


_PATTERNS = {script: re.compile(f"[{letters}]") for script, letters in SCRIPTS.items()}
