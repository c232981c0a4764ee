"""IFBench's constraints that go with one prompt: capitals, countries, quizzes, CSV, dates."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from datetime import date
from itertools import pairwise

from palestra.verifiers.instructions.relations import unless
from palestra.verifiers.instructions.reply import Reply, words_of

# North to south. Kyiv may be left out: it is missing in the published list, and should not be.
_CAPITALS = words_of(
    "reykjavik helsinki oslo tallinn stockholm riga moscow copenhagen vilnius minsk dublin berlin "
    "amsterdam warsaw london brussels kyiv prague luxembourg paris vienna bratislava budapest "
    "vaduz chisinau bern ljubljana zagreb"
)
# The 54 members of the United Nations; other names after "=".
_AFRICA = (
    "algeria, angola, benin, botswana, burkina faso, burundi, cabo verde=cape verde, cameroon, "
    "central african republic, chad, comoros, democratic republic of the congo=congo democratic "
    "republic of the=dr congo=congo kinshasa, republic of the congo=congo=congo republic of the="
    "congo brazzaville, cote divoire=ivory coast, djibouti, egypt, equatorial guinea, eritrea, "
    "eswatini=swaziland, ethiopia, gabon, gambia=the gambia=gambia the, ghana, guinea, "
    "guinea bissau, kenya, lesotho, liberia, libya, madagascar, malawi, mali, mauritania, "
    "mauritius, morocco, mozambique, namibia, niger, nigeria, rwanda, sao tome and principe, "
    "senegal, seychelles, sierra leone, somalia, south africa, south sudan, sudan, tanzania, togo, "
    "tunisia, uganda, zambia, zimbabwe"
)
_COUNTRY = {
    name: names.partition("=")[0] for names in _AFRICA.split(", ") for name in names.split("=")
}
_MIN_COUNTRIES = 52
_MAX_LINES = 100


def multiples_of_seven(reply: Reply) -> str:
    """The multiples of 7 from 10 to 50 in order, and no other number."""
    numbers = [int(number) for number in re.findall(r"\d{1,9}", reply.text)[:100]]
    return "" if numbers == list(range(14, 50, 7)) else "not 14, 21, 28, 35, 42, 49"


def multiple_choice(reply: Reply) -> str:
    """Four questions labelled "Question", each longer than the last, with options A to E."""
    if not reply.text.startswith("Question"):
        return 'does not begin with "Question"'
    questions = re.split(r"^Question\b\s*\d*[.):;]?", reply.text, flags=re.MULTILINE)[1:]
    if len(questions) != 4:
        return f"{len(questions)} questions, not 4"
    lengths = []
    for number, question in enumerate(questions, 1):
        first = re.search(r"^\s*A[.)]", question, re.MULTILINE | re.IGNORECASE)
        options = re.findall(r"^\s*([A-Za-z])[.)]\s*\w", question, re.MULTILINE)
        if first is None or "".join(options).lower() != "abcde":
            return f"question {number} does not have options A to E"
        lengths.append(len(question[: first.start()].strip()))
    growing = all(first < second for first, second in pairwise(lengths))
    return "" if growing and lengths[0] else "a question that is not longer than the last"


def countries_of_africa(reply: Reply) -> str:
    """At least 52 countries of Africa, a line each, from Zimbabwe back to Algeria, nothing else."""
    if len(reply.lines) > _MAX_LINES:
        return f"more than {_MAX_LINES} lines"
    names = [_plain(re.sub(r"^\s*(?:[-*•]|\d{1,3}[.)])\s*", "", line)) for line in reply.lines]
    unknown = next((name for name in names if name not in _COUNTRY), None)
    if unknown is not None:
        return f'"{unknown:.40}" is no country of Africa'
    if names != sorted(names, reverse=True):
        return "not in reverse alphabetical order"
    return unless(len({_COUNTRY[name] for name in names}), "at least", _MIN_COUNTRIES, "countries")


def european_capitals(reply: Reply) -> str:
    """The capitals of Europe north of 45°, divided by commas, from north to south."""
    listed = reply.text.rstrip(".").split(",", len(_CAPITALS))
    names = [_plain(name).replace("kiev", "kyiv") for name in listed]
    for expected in (_CAPITALS, [name for name in _CAPITALS if name != "kyiv"]):
        if names == expected:
            return ""
    return "not the capitals from Reykjavik to Zagreb by latitude"


def _plain(text: str) -> str:
    """A name without case, accents and punctuation."""
    text = unicodedata.normalize("NFKD", text[:100].lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^\w\s]", lambda m: " " if m[0] in "-–,()" else "", text).split())


def reversed_words(reply: Reply) -> str:
    """A sentence that names the bald eagle, word by word from the end."""
    text = " ".join(reply.folded)
    if len(reply.sentences) != 1 or len(reply.folded) < 4:
        return "not one sentence"
    return "" if "eagle bald" in text and "bald eagle" not in text else 'without "eagle bald"'


def reversed_letters(reply: Reply) -> str:
    """Something that names the bald eagle, letter by letter from the end."""
    text = reply.folded_text
    return "" if "elgae dlab" in text and "bald eagle" not in text else 'without "elgae dlab"'


def sentences_by_alphabet(reply: Reply) -> str:
    """26 sentences, whose first words begin with A to Z."""
    if len(reply.sentences) != 26:
        return f"{len(reply.sentences)} sentences, not 26"
    for letter, sentence in zip("abcdefghijklmnopqrstuvwxyz", reply.sentences, strict=True):
        if not re.sub(r"^[\W_]+", "", sentence[:200]).lower().startswith(letter):
            return f"no sentence for {letter.upper()}"
    return ""


def csv_cities(reply: Reply) -> str:
    """CSV with IFBench's columns ID to Count, and 7 rows."""
    table = _csv(reply, ",")
    return table if isinstance(table, str) else _shape(table, "ID Country City Year Count", 7)


def csv_products(reply: Reply) -> str:
    """CSV with columns ProductID to Stock, 14 rows; a quoted field with a special character."""
    table = _csv(reply, ",")
    if isinstance(table, str):
        return table
    if problem := _shape(table, "ProductID Category Brand Price Stock", 14):
        return problem
    body = _unfenced(reply).split("\n", 1)[1]
    is_special = any(re.search(r"[^\w\s]", field) for field in re.findall(r'"([^"\n]+)"', body))
    return "" if is_special else "no field in double quotes with a special character"


def csv_grades(reply: Reply) -> str:
    """CSV by tabs with columns StudentID to Score, 3 rows, and every field in double quotes."""
    table = _csv(reply, "\t")
    if isinstance(table, str):
        return table
    if problem := _shape(table, "StudentID Subject Grade Semester Score", 3):
        return problem
    for line in _unfenced(reply).split("\n")[1:]:
        if not all(re.fullmatch(r'"[^"]*"', field.strip()) for field in line.split("\t")):
            return "a field that is not in double quotes"
    return ""


def _unfenced(reply: Reply) -> str:
    return re.sub(r"\A```\w*\n|\n```\Z", "", reply.text)


def _csv(reply: Reply, delimiter: str) -> list[list[str]] | str:
    text = _unfenced(reply)
    if len(text) > 20_000:
        return "too long for the table"
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return f"no CSV: {error}"


def _shape(table: list[list[str]], header: str, rows: int) -> str:
    if [name.strip() for name in table[0]] != header.split():
        return f"columns other than {header}"
    if any(len(row) != len(table[0]) or not all(map(str.strip, row)) for row in table):
        return "a row with empty or missing fields"
    return unless(len(table) - 1, "exactly", rows, "rows")


def napoleonic_dates(reply: Reply) -> str:
    """Real dates from 1769 to 1821 as YYYY-MM-DD, divided by commas, and nothing else."""
    for part in reply.text.split(","):
        text = part.strip()
        try:
            day = date.fromisoformat(text)
        except ValueError:
            return f'"{text:.20}" is no date as YYYY-MM-DD'
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII) or not 1769 <= day.year <= 1821:
            return f'"{text:.20}" is no date from 1769 to 1821'
    return ""
