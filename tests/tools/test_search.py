"""`search` and `open` over real corpora."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palestra.tools import Tool, run_call, search
from palestra.types import Failure, ToolResult

pytest.importorskip("bm25s")

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/lima.md").write_text("Lima is the capital of Peru.")
    (tmp_path / "rome.txt").write_text("Rome is the capital of Italy. It has seven hills.")
    (tmp_path / ".hidden").write_text("capital of nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe capital")
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    paragraphs = [
        f"Paragraph {number}: {word} " + "filler " * 15 for number, word in enumerate(WORDS)
    ]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    return tmp_path


def call(tools: tuple[Tool, ...], name: str, **arguments: Any) -> ToolResult:
    by_name = {tool.name: tool for tool in tools}
    request = {"id": "c", "function": {"name": name, "arguments": arguments}}
    return asyncio.run(run_call(request, by_name, {}))


def ids(result: ToolResult) -> list[str]:
    return [line[1:].partition("]")[0] for line in result.content.splitlines() if line[0:1] == "["]


def test_the_best_passage_comes_first_with_its_id_and_a_snippet(folder: Path) -> None:
    result = call(search(folder), "search", query="capital of Peru?")
    assert result.error is None
    assert ids(result) == ["sub/lima.md", "rome.txt"]
    assert result.content.startswith("[sub/lima.md] sub/lima.md\nLima is the capital of Peru.")


def test_a_found_passage_is_opened_and_read_on(folder: Path) -> None:
    tools = search(folder, passage_chars=150, page_chars=300)
    (found,) = ids(call(tools, "search", query="zeta"))
    assert found == "long.txt#6"
    page = call(tools, "open", id=found).content
    assert page.startswith("long.txt (passages 6 to 7 of 10)\n\nParagraph 5: zeta filler")
    assert page.endswith("[goes on in long.txt#8]")
    assert call(tools, "open", id="long.txt#10").content.count("Paragraph") == 1
    assert "Paragraph 0" in call(tools, "open", id="long.txt").content


def test_the_snippet_shows_where_the_word_is(folder: Path) -> None:
    (folder / "late.txt").write_text("nothing here " * 50 + "xylophone " + "and more " * 50)
    snippet = call(search(folder, passage_chars=2000), "search", query="xylophone").content
    assert "xylophone" in snippet
    assert len(snippet) < 400


@pytest.mark.parametrize("query", ["", "???", "nowhere", "root", "\0", "(((", "x" * 100_000])
def test_what_is_not_there_is_not_found(folder: Path, query: str) -> None:
    result = call(search(folder), "search", query=query)
    assert (result.error, result.content) == (
        None,
        "[nothing found: no passage has any of these words]",
    )


def test_hostile_arguments_are_answered(folder: Path) -> None:
    tools = search(folder)
    assert call(tools, "search", query="capital " * 100_000, max_results=1).error is None
    assert "from 1 to 20" in call(tools, "search", query="capital", max_results=0).content
    for id in ("", "../../etc/passwd", "link.txt", ".hidden", "long.txt#0", "long.txt#99", "#"):
        result = call(tools, "open", id=id)
        assert result.error == "tool_error"
        assert "there is no passage" in result.content


def test_a_jsonl_corpus_has_ids_and_titles(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "title": "Peru", "text": "Its capital is Lima."},
        {"id": "b", "text": "Rome is in Italy."},
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    tools = search(path, prefix="wiki_")
    assert [tool.name for tool in tools] == ["wiki_search", "wiki_open"]
    assert call(tools, "wiki_search", query="peru").content == "[1] Peru\nIts capital is Lima."
    assert call(tools, "wiki_open", id="b").content == "b\n\nRome is in Italy."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"id": 1, "text": "a"}\n{"id": 2}', ":2: a line is an object with"),
        ("[1]", ":1: a line is"),
        ("nonsense", "got nonsense"),
        ('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}', 'the id "1" is there twice'),
        ("", "there is no text to search"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_our_fault(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(text)
    with pytest.raises(Failure, match="tool:search") as failure:
        call(search(path), "search", query="a")
    assert complaint in str(failure.value)


def test_an_index_is_built_once_and_shared(folder: Path) -> None:
    call(search(folder), "search", query="capital")
    (folder / "rome.txt").unlink()
    assert "rome.txt" in call(search(folder), "search", query="Italy").content


def test_no_such_corpus_is_refused_when_the_tools_are_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder or file to search"):
        search(tmp_path / "missing")
    with pytest.raises(ValueError, match="passage_chars must be at least 50"):
        search(tmp_path, passage_chars=10)


def test_importing_the_tools_imports_nothing_slow() -> None:
    script = (
        "import sys, palestra.tools\n"
        "print({'numpy', 'bm25s', 'mcp', 'jsonschema', 'docker', 'gymnasium'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
