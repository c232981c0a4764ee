"""The gateway over HTTP: the APIs under each episode's URL, and requests that open and close it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from palestra.rollout.serving import chat, messages, responses
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.api_keys import find_key
from palestra.rollout.serving.find_replier import FindReplier
from palestra.rollout.serving.json_route import JsonRoute
from palestra.rollout.serving.remote_episodes import EpisodeState, RemoteEpisodes

Key = Annotated[str, Path(description="the secret key of an episode")]


async def _declare_key(key: Key) -> None:
    """The APIs themselves know nothing of it."""


def session_routes(find_replier: FindReplier) -> APIRouter:
    """`/episodes/{key}/v1/…`: the APIs, answered and recorded by the episode's session.

    The key in the path is all that a client needs: what it sends as its API key is ignored.
    """
    router = APIRouter(
        prefix="/episodes/{key}/v1",
        tags=["recorded episodes"],
        dependencies=[Depends(_declare_key)],
    )
    for front_end in (chat, messages, responses):
        router.include_router(front_end.routes(find_replier))
    return router


class OpenEpisode(BaseModel):
    """Which task to begin; without one, the task whose turn it is."""

    model_config = ConfigDict(extra="forbid")

    task_id: str | None = None
    split: str | None = None


class OpenedEpisode(BaseModel):
    """Where the episode's agent finds the policy, and what the task is."""

    id: str = Field(description="of the task")
    key: str
    base_url: str = Field(description="for OpenAI clients")
    anthropic_base_url: str = Field(description="for Anthropic clients")
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


class CloseEpisode(BaseModel):
    """The agent's answer; without one, the policy's last reply is it."""

    model_config = ConfigDict(extra="forbid")

    answer: str | None = None


def episode_routes(episodes: RemoteEpisodes) -> APIRouter:
    """Opening, closing and looking at episodes."""
    router = APIRouter(prefix="/episodes", route_class=JsonRoute, tags=["recorded episodes"])

    @router.post("")
    async def open_episode(body: OpenEpisode, request: Request) -> OpenedEpisode:
        if episodes.has(find_key(request.scope["headers"])):
            raise ApiError(
                403, "the key of an episode opens no other: use an API key", code="forbidden"
            )
        task = await episodes.open(body.task_id, body.split)
        here = str(request.base_url).rstrip("/") if task.base_url.startswith("/") else ""
        return OpenedEpisode(
            id=task.id,
            key=task.api_key,
            base_url=here + task.base_url,
            anthropic_base_url=here + task.anthropic_base_url,
            messages=list(task.messages),
            tools=list(task.tools),
        )

    @router.post("/{key}/close")
    async def close_episode(key: Key, body: CloseEpisode) -> dict[str, Any]:
        """Have it judged. Closing it again answers the same."""
        return asdict(await episodes.close(key, body.answer))

    @router.get("/{key}")
    async def look_at_episode(key: Key) -> EpisodeState:
        return episodes.state(key)

    return router
