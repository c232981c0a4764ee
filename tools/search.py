"""`search` and `open`: find passages of a corpus by their words (BM25), and read them."""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
from pathlib import Path
from typing import Any

from palestra.tools.corpus import Passage, cut_into_passages, read_documents
from palestra.tools.hidden import TimeLimit
from palestra.tools.threads import run_in_thread
from palestra.tools.tool import Tool
from palestra.types import ToolError

MAX_RESULTS = 20
MAX_QUERY_CHARS = 1000
_SNIPPET_CHARS = 240
_WORD = re.compile(r"\w+")


def search(
    corpus: str | Path,
    *,
    passage_chars: int = 1000,
    page_chars: int = 4000,
    prefix: str = "",
) -> tuple[Tool, Tool]:
    """The tools `search` and `open` over a corpus, e.g. `ToolEnv(tools=[*search("docs/")], …)`.

    `corpus` is a folder of text files or a JSONL file of objects with "id", "title" and "text". Its
    index is built at the first call, once for all environments of the process. `prefix` goes before
    the tools' names, for a second corpus.

    Raises:
        ValueError: no such corpus, a number out of range, or `bm25s` is not installed.
    """
    path = Path(corpus)
    if not path.exists():
        raise ValueError(f"{path}: no such folder or file to search")
    if passage_chars < 50 or page_chars < passage_chars:
        raise ValueError(
            "passage_chars must be at least 50 and at most page_chars, got "
            f"{passage_chars} and {page_chars}"
        )
    if importlib.util.find_spec("bm25s") is None:
        raise ValueError('search needs bm25s: pip install "palestra[tools]"')
    shared = _shared_index(path.resolve(), passage_chars)

    # The time limit is asked for because the index, which is ours to build, may take longer.
    async def find(query: str, limit: TimeLimit, max_results: int = 5) -> str:
        """Search the corpus for words, best matches first.

        Args:
            query: A few words, e.g. "capital of Peru".
        """
        if not 1 <= max_results <= MAX_RESULTS:
            raise ToolError(f"max_results must be from 1 to {MAX_RESULTS}, got {max_results}")
        index = await run_in_thread(shared.get)
        return await run_in_thread(lambda: index.find(query[:MAX_QUERY_CHARS], max_results))

    async def read(id: str, limit: TimeLimit) -> str:
        """Read a passage found by searching, and what follows it.

        Args:
            id: The passage's id, as in a search result; a document's id opens its beginning.
        """
        index = await run_in_thread(shared.get)
        return index.read(id, page_chars)

    return Tool(find, name=f"{prefix}search"), Tool(read, name=f"{prefix}open")


class CorpusIndex:
    """A corpus in memory, ready to be searched; not changed after it is built."""

    def __init__(self, path: Path, passage_chars: int) -> None:
        self._documents: dict[str, list[Passage]] = {}
        self._passages: dict[str, Passage] = {}
        for document in read_documents(path):
            for passage in cut_into_passages(document, passage_chars):
                if passage.id in self._passages:
                    raise ValueError(f'{path}: the id "{passage.id}" is there twice')
                self._passages[passage.id] = passage
                self._documents.setdefault(document.id, []).append(passage)
        if not self._passages:
            raise ValueError(f"{path}: there is no text to search")
        self._order = list(self._passages.values())
        self._index = _build_index(
            [_words(f"{passage.title} {passage.text}") for passage in self._order]
        )

    def find(self, query: str, max_results: int) -> str:
        """The best passages, a paragraph each: id, title and a snippet around the first match."""
        words = [word for word in dict.fromkeys(_words(query)) if word in self._index.vocab_dict]
        if not words:
            return "[nothing found: no passage has any of these words]"
        found, scores = self._index.retrieve(
            [words],
            k=min(max_results, len(self._order)),
            show_progress=False,
            backend_selection="numpy",
        )
        return "\n\n".join(
            _result(self._order[int(position)], words)
            for position, score in zip(found[0], scores[0], strict=True)
            if score > 0
        )

    def read(self, id: str, page_chars: int) -> str:
        """Passages from this one on, up to `page_chars`. Raises ToolError if there is none."""
        if id in self._passages:
            first = self._passages[id]
        elif id in self._documents:
            first = self._documents[id][0]
        else:
            raise ToolError(f'there is no passage "{id[:100]}": use an id that search has shown')
        passages = self._documents[first.document][first.number - 1 :]
        page = [first]
        room = page_chars - len(first.text)
        for passage in passages[1:]:
            room -= len(passage.text)
            if room < 0:
                break
            page.append(passage)
        parts = f" (passages {first.number} to {page[-1].number} of {first.count})"
        text = "\n\n".join(passage.text for passage in page)
        rest = passages[len(page) :]
        end = f"\n\n[goes on in {rest[0].id}]" if rest else ""
        return f"{first.title}{parts if first.count > 1 else ''}\n\n{text}{end}"


class _SharedIndex:
    """Built by whoever needs it first; the others wait."""

    def __init__(self, path: Path, passage_chars: int) -> None:
        self._build = functools.partial(CorpusIndex, path, passage_chars)
        self._lock = threading.Lock()
        self._index: CorpusIndex | None = None

    def get(self) -> CorpusIndex:
        """The index. Raises ValueError or OSError if the corpus cannot be read."""
        with self._lock:
            if self._index is None:
                self._index = self._build()
            return self._index


_shared_index = functools.cache(_SharedIndex)


def _build_index(words: list[list[str]]) -> Any:
    import bm25s

    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _result(passage: Passage, words: list[str]) -> str:
    text = " ".join(passage.text.split())
    match = re.search(rf"\b({'|'.join(map(re.escape, words))})\b", text, re.IGNORECASE)
    start = max(0, (match.start() if match else 0) - _SNIPPET_CHARS // 3)
    if start:
        start = text.find(" ", start) + 1
    snippet = text[start : start + _SNIPPET_CHARS]
    before = "… " if start else ""
    after = " …" if start + _SNIPPET_CHARS < len(text) else ""
    return f"[{passage.id}] {passage.title}\n{before}{snippet}{after}"
