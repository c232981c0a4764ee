"""Whether a reply is nothing but its prompt, or sentences of it: an echo follows no instruction."""

from __future__ import annotations

from palestra.verifiers.instructions.reply import Reply

# Fewer words in common may be chance: "Yes." to "Answer yes or no. Yes."
_MIN_WORDS = 4


def is_echo(reply: Reply, prompt: Reply) -> bool:
    """Whether the reply is the whole prompt, once or more, or whole lines or sentences of it.

    The whole prompt is told in any case and punctuation; its parts only to the letter, because to
    rewrite a sentence of the prompt in capitals or without commas may be the task.
    """
    if reply.folded_text == prompt.folded_text:
        return True
    times, rest = divmod(len(reply.folded), max(1, len(prompt.folded)))
    if times and not rest and reply.folded == prompt.folded * times:
        return True
    if len(reply.words) < _MIN_WORDS:
        return False
    parts = set(map(_plain, (*prompt.sentences, *prompt.lines)))
    return all(_plain(sentence) in parts for sentence in reply.sentences) or all(
        _plain(line) in parts for line in reply.lines
    )


def _plain(text: str) -> str:
    return " ".join(text.split()).strip("\"'“”*_#-• ")
