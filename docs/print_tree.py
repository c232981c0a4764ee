"""Print the source tree with one comment per file, its docstring's first line, into README.md.

Run it after adding, moving or removing a file; tests/test_docs.py fails until then.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->\n"

# In the order of their imports: each folder uses only those above it.
FOLDERS = {
    "palestra": "the package: types, the command, the demo, reports",
    "tools": "palestra.tools: what a policy calls",
    "verifiers": "palestra.verifiers: what makes a reward verifiable",
    "envs": "palestra.envs: Gymnasium environments and their registry",
    "rollout": "palestra.rollout: policies, engines, the driver, evaluation",
    "trainer": "palestra.trainer: advantages, losses, the training stages",
    "examples": "small programs to start from",
    "benchmarks": "what it reaches, beside its peers",
}


def tree() -> str:
    """Every Python file, by folder, the folder's own files first."""
    lines = []
    for folder, comment in FOLDERS.items():
        lines.append((f"{folder}/", comment))
        top = ROOT / folder
        files = sorted(top.rglob("*.py"), key=lambda path: (path.parent != top, path))
        lines += [
            (f"  {path.relative_to(top)}", describe(path))
            for path in files
            if path.name != "__init__.py"
        ]
    lines.append(("tests/", "mirrors the folders above"))
    width = max(len(name) for name, _ in lines) + 2
    return "".join(f"{name:<{width}}{comment}".rstrip() + "\n" for name, comment in lines)


def describe(path: Path) -> str:
    """The first line of a file's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].strip().removesuffix(".")


def with_tree(readme: str) -> str:
    """The README with its tree replaced by the one on disk."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tree()}{END}{after}"


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
