"""`FindReplier`: who answers a request, for the front ends; and whether it goes by a name."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import Replier

# Raises ApiError where nobody answers.
FindReplier = Callable[[Request], Replier]


def require_model(replier: Replier, model: str) -> None:
    """Raises ApiError (404) if the replier does not go by the name that a request asks for."""
    if replier.models is not None and model not in replier.models:
        raise unknown_model(model, replier.models)


def unknown_model(model: str, known: tuple[str, ...]) -> ApiError:
    """The error for a model that is not served here."""
    return ApiError(
        404,
        f'the model "{model[:200]}" is not served here: there is {", ".join(known)}',
        code="model_not_found",
        param="model",
    )
