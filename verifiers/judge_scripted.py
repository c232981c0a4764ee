"""`scripted_judge`: a `ScriptedServer` in place of a judge, for tests without a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from palestra.endpoint.scripted import Scripted

_NONCE = re.compile(r'"nonce": "([0-9a-f]{32})"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a judge was shown: its rules, the texts by name ("reply", "task", …), the nonce."""

    rules: str
    user: str
    nonce: str

    @property
    def texts(self) -> dict[str, str]:
        """The texts between this request's marks, by name."""
        found = re.findall(
            rf"\[BEGIN (\w+) {self.nonce}\]\n(.*?)\n\[END \1 {self.nonce}\]", self.user, re.DOTALL
        )
        return dict(found)

    def verdict(self, **fields: Any) -> str:
        """A verdict with these fields, the nonce and, unless given, a reason."""
        return json.dumps({"nonce": self.nonce, "reason": "scripted", **fields})


def scripted_judge(
    decide: Callable[[Shown], Mapping[str, Any] | str | Scripted],
) -> Callable[[dict[str, Any]], str | Scripted]:
    """A judge that decides as a function says, by the fields of its verdict or any other reply.

    with ScriptedServer(scripted_judge(lambda shown: {"verdict": "yes"})) as server:
        verifier = judge("any", base_url=server.base_url, api_key="none")
    """

    def answer(body: dict[str, Any]) -> str | Scripted:
        system, user = (message["content"] for message in body["messages"])
        nonce = _NONCE.search(system)
        assert nonce is not None, "a judge's rules name the nonce"
        shown = Shown(rules=system, user=user, nonce=nonce[1])
        decided = decide(shown)
        if isinstance(decided, Mapping) and "verdicts" in decided:
            return json.dumps({"nonce": shown.nonce, **decided})
        return shown.verdict(**decided) if isinstance(decided, Mapping) else decided

    return answer
