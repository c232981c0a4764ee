"""`ApiError`: what went wrong with a request, as the APIs tell it to clients."""

from __future__ import annotations

from palestra.rollout.engine_errors import ContextOverflow, EngineError, RequestFailed


class ApiError(Exception):
    """An error for the client: an HTTP status, OpenAI's `type` and `code`, the parameter at fault.

    `retry_after_s` becomes a Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """OpenAI's name for the kind of error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def openai_body(self) -> dict[str, object]:
        """As OpenAI's endpoints answer it."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def of_engine(error: Exception) -> ApiError:
    """The client's view of an engine's trouble: 400 where the prompt is at fault, else 503.

    What an engine says about its servers stays here, for the log.
    """
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, RequestFailed) and error.status == 400:
        return ApiError(400, error.message, code="invalid_value")
    if isinstance(error, TimeoutError):
        return ApiError(503, "no reply in time; try again later", code="timeout", retry_after_s=1.0)
    if isinstance(error, (EngineError, OSError)):
        return ApiError(
            503, "the engine is not available; try again", code="unavailable", retry_after_s=1.0
        )
    if isinstance(error, ValueError):
        return ApiError(400, str(error), code="invalid_value")
    return ApiError(500, "internal error", code="internal_error")
