"""What runs first in a `landlock` sandbox that sandlock supervises: it loads filters, then serves.

Only the standard library: it is bundled with the guest for the sandbox's interpreter.
"""

from __future__ import annotations

import base64

from palestra.tools.sandboxes.guest import server
from palestra.tools.sandboxes.kernel import load_filter


def main(filters: list[str]) -> None:
    """Load the seccomp filters, in base64, and serve on the standard input and output."""
    for program in filters:
        load_filter(base64.b64decode(program))
    server.main(0, 1)
