"""A corpus to search: documents of a folder or of a JSONL file, cut into passages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text with its title; `id` is a path below the folder, or what the JSONL says."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A piece of a document: number `number` of `count`, from 1.

    `document` is that document's id, and so is `id`, followed by "#" and the number if there are
    several.
    """

    id: str
    document: str
    title: str
    text: str
    number: int
    count: int


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a JSONL file, or the text files of a folder in the order of their names.

    A line of JSONL is an object with "id", "title" (optional) and "text". Files that are not UTF-8,
    hidden ones and links are left out.

    Raises:
        ValueError: neither file nor folder, or a line that is no such object.
    """
    if path.is_dir():
        yield from _read_folder(path)
    elif path.is_file():
        yield from _read_jsonl(path)
    else:
        raise ValueError(f"{path} is neither a folder of texts nor a JSONL file")


def cut_into_passages(document: Document, max_chars: int) -> list[Passage]:
    """The document in pieces of at most `max_chars`, cut between paragraphs, lines or words."""
    pieces = list(_pieces(document.text.strip(), max_chars))
    return [
        Passage(
            id=document.id if len(pieces) == 1 else f"{document.id}#{number}",
            document=document.id,
            title=document.title,
            text=piece,
            number=number,
            count=len(pieces),
        )
        for number, piece in enumerate(pieces, start=1)
    ]


def _read_folder(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or path.is_symlink() or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            yield Document(id=name, title=name, text=text)


def _read_jsonl(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                id, text = str(row["id"]), str(row["text"])
                title = str(row.get("title") or id)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(
                    f'{path}:{number}: a line is an object with "id", "text" and maybe "title", '
                    f"got {line.strip()[:80]}"
                ) from None
            yield Document(id=id, title=title, text=text)


def _pieces(text: str, max_chars: int) -> Iterator[str]:
    start = 0
    while len(text) - start > max_chars:
        end = _cut(text, start, start + max_chars)
        yield text[start:end].strip()
        start = end
        while start < len(text) and text[start].isspace():
            start += 1
    if text[start:].strip():
        yield text[start:].strip()


def _cut(text: str, start: int, limit: int) -> int:
    """The best place to cut in the second half of what fits."""
    least = (start + limit) // 2
    for separator in ("\n\n", "\n", ". ", " "):
        found = text.rfind(separator, least, limit)
        if found >= 0:
            return found + len(separator)
    return limit
