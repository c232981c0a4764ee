"""`build_app`: the HTTP server's application: the APIs, models, health, metrics, errors."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from palestra.rollout.serving import chat, completions, messages, responses
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.api_keys import ApiKeys
from palestra.rollout.serving.error_response import error_response
from palestra.rollout.serving.find_replier import FindReplier, unknown_model
from palestra.rollout.serving.gate import Gate
from palestra.rollout.serving.gateway_routes import session_routes
from palestra.rollout.serving.limits import ServerLimits
from palestra.rollout.serving.metrics import MeasuredApp, Metrics
from palestra.rollout.serving.openai_answers import ERROR_RESPONSES, json_answer
from palestra.rollout.serving.reply import Replier, ReplyDelta, ReplyRequest
from palestra.rollout.serving.request_fields import of_validation
from palestra.rollout.serving.text_completer import TextCompleter, TextRequest
from palestra.rollout.serving.traffic import Traffic

_log = logging.getLogger(__name__)


def _no_trouble() -> str:
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What an application serves.

    `models` are its names, `context_length` the most tokens of prompt and reply. Without a
    `completer` there is no /v1/completions. `find_session` finds who answers and records under
    `/episodes/{key}/v1`. `find_trouble` says why the engine is not available, "" while it is.
    """

    find_replier: FindReplier
    models: tuple[str, ...]
    context_length: int
    completer: TextCompleter | None = None
    find_session: FindReplier | None = None
    find_trouble: Callable[[], str] = _no_trouble
    keys: ApiKeys | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    traffic: Traffic = field(default_factory=Traffic)
    metrics: Metrics = field(default_factory=Metrics)


def build_app(served: Served, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application, with `routers` beside the APIs."""
    app = FastAPI(
        title="palestra",
        version=version("palestra"),
        summary="A trained policy behind the APIs of OpenAI and Anthropic.",
        docs_url=None,  # the page would load its scripts from elsewhere
        redoc_url=None,
    )
    find_replier = _watched(served, served.find_replier)
    for router in (
        chat.routes(find_replier),
        responses.routes(find_replier),
        messages.routes(find_replier),
        _model_routes(served),
    ):
        app.include_router(router, prefix="/v1")
    if served.completer is not None:
        find_completer = _find_completer(served, served.completer)
        app.include_router(completions.routes(find_completer), prefix="/v1")
    if served.find_session is not None:
        app.include_router(session_routes(_watched(served, served.find_session)))
    app.include_router(_service_routes(served))
    for router in routers:
        app.include_router(router)
    _answer_errors(app)
    app.add_middleware(Gate, traffic=served.traffic, limits=served.limits, keys=served.keys)
    app.add_middleware(MeasuredApp, metrics=served.metrics)
    return app


class _Watched:
    """A replier whose tokens are counted and whose replies end when the server goes down."""

    def __init__(self, replier: Replier, served: Served) -> None:
        self._replier = replier
        self._served = served
        self.models = replier.models

    def reply(self, request: ReplyRequest, *, stream: bool) -> AsyncGenerator[ReplyDelta, None]:
        """See `Replier`."""
        deltas = self._replier.reply(request, stream=stream)
        return _watch(deltas, self._served, stream=stream)

    def count_prompt(self, request: ReplyRequest) -> int:
        """See `Replier`."""
        return self._replier.count_prompt(request)


class _WatchedCompleter(TextCompleter):
    """The same for completions."""

    def __init__(self, completer: TextCompleter, served: Served) -> None:
        self._completer = completer
        self._served = served

    def complete(self, request: TextRequest) -> AsyncGenerator[ReplyDelta, None]:
        """See `TextCompleter`."""
        return _watch(self._completer.complete(request), self._served, stream=False)


def _watch(
    deltas: AsyncGenerator[ReplyDelta, None], served: Served, *, stream: bool
) -> AsyncGenerator[ReplyDelta, None]:
    return served.traffic.attend(served.metrics.count(deltas, stream=stream))


def _watched(served: Served, find_replier: FindReplier) -> FindReplier:
    def find(request: Request) -> Replier:
        return _Watched(find_replier(request), served)

    return find


def _find_completer(served: Served, completer: TextCompleter) -> completions.FindCompleter:
    watched = _WatchedCompleter(completer, served)

    def find(model: str) -> TextCompleter:
        if model not in served.models:
            raise unknown_model(model, served.models)
        return watched

    return find


def _model_routes(served: Served) -> APIRouter:
    router = APIRouter(responses=ERROR_RESPONSES)
    cards = {
        name: {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "palestra",
            "max_model_len": served.context_length,
        }
        for name in served.models
    }

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The names that requests may ask for."""
        return {"object": "list", "data": list(cards.values())}

    @router.get("/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        """One of them."""
        if model not in cards:
            raise unknown_model(model, served.models)
        return cards[model]

    return router


def _service_routes(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={503: {"description": "the same, with the reason"}})
    async def health() -> Response:
        """Whether requests are answered; needs no key."""
        draining = served.traffic.is_draining
        trouble = "the server is shutting down" if draining else served.find_trouble()
        answer = json_answer({"status": "unavailable" if trouble else "ok", "reason": trouble})
        answer.status_code = 503 if trouble else 200
        return answer

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        served.metrics.engine_up.set(not served.find_trouble())
        return Response(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _answer_errors(app: FastAPI) -> None:
    """Whatever goes wrong is answered in the shape of the API, and nothing with a traceback."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def bad_body(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path}"[:200]
        if error.status_code == 404:
            told = ApiError(404, f"there is no {where}", code="unknown_url")
        elif error.status_code == 405:
            told = ApiError(405, f"{where} is not allowed", code="method_not_allowed")
        else:
            told = ApiError(error.status_code, str(error.detail), code="invalid_request")
        response = error_response(request.url.path, told)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        # Starlette raises it again, so that the server logs its traceback.
        return error_response(
            request.url.path, ApiError(500, "internal error", code="internal_error")
        )
