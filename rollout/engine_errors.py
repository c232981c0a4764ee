"""What goes wrong with a served engine, by name: none of it is ever the policy's fault."""

from __future__ import annotations


class EngineError(Exception):
    """An engine or its server did not do what it was asked."""


class RequestFailed(EngineError):
    """The server answered with an HTTP error; `message` is what it said."""

    def __init__(self, status: int, message: str, where: str) -> None:
        super().__init__(f"{where} answered {status}: {message}")
        self.status = status
        self.message = message


class ConnectionLost(EngineError):
    """The server could not be reached, or was gone before it had answered."""


class BadAnswer(EngineError):
    """The server answered something that is not what it was asked for."""


class ServerDied(EngineError):
    """A server that we started ended while it was needed."""


class ServerNotStarted(EngineError, ValueError):
    """A server could not be started; the message has the cause from its log."""


class UnsupportedServer(EngineError, ValueError):
    """Not a server of this engine, or one that lacks what training needs."""


class RawLogprobs(EngineError, ValueError):
    """The log-probabilities are not those of the distribution that is sampled."""


class BadLogprobs(EngineError):
    """Log-probabilities are missing, not finite, or not one for each token."""


class UnknownToken(EngineError, ValueError):
    """A token id lies outside the model's vocabulary."""


class ContextOverflow(EngineError, ValueError):
    """A prompt leaves no room in the engine's context."""
