"""Put data, style and scripts into one page that can do nothing but show itself.

Every string in the data is hostile: a model wrote it. It travels as JSON that cannot end its
script element, the scripts only ever set text, and a Content-Security-Policy allows just the
page's own style and scripts, named by hash, and no connection to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

STYLES = ("uplot/uPlot.min.css", "report.css", "plots.css", "transcripts.css")
# In the order in which they need each other; each sees what the ones before it define.
SCRIPTS = ("dom.js", "headline.js", "plot.js", "plots.js", "token.js", "transcripts.js", "main.js")


def page(data: Mapping[str, Any]) -> str:
    """The report's HTML for this data."""
    style = "\n".join(map(_asset, STYLES))
    # The licence asks to stay with the copies of the software, and each report is one.
    library = f"/*\n{_asset('uplot/LICENSE')}\n*/\n{_asset('uplot/uPlot.iife.min.js')}"
    script = '(() => {\n"use strict";\n' + "\n".join(map(_asset, SCRIPTS)) + "\n})();"
    policy = (
        "default-src 'none'; "
        f"script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "data": embedded_json(data),
        "library": library,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))


def embedded_json(data: Any) -> str:
    """JSON that is inert inside an HTML script element, in ASCII."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _asset(name: str) -> str:
    return files("palestra.view").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The CSP source expression for an inline element with exactly this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
