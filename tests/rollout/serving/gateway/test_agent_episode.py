"""Agents with real clients over a real socket: what they do becomes an episode with one verdict."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import openai
import pytest

from palestra.envs import Env, ToolEnv
from palestra.rollout import ChatFormat, Limits, tool_call
from palestra.rollout.engine_errors import EngineError
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.serving.agent_episode import AgentEpisode
from palestra.rollout.serving.agent_program import AgentProgram
from palestra.rollout.serving.agents import Agent, AgentTask, PolicyAtFault
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.gateway_server import run_gateway
from palestra.tools import Tool
from palestra.trainer.batch import rows_of
from palestra.types import Episode, Message, Outcome, Sampling, Score, Task
from palestra.verifiers import number

SUM = Task(id="sum", messages=({"role": "user", "content": "What is 17 + 25?"},), answer="42")
SOLVES = (tool_call("add", a=17, b=25), "It is 42.")

Play = Callable[..., Episode]


@pytest.fixture
def play(make_engine: Any, chat_format: ChatFormat, add: Tool) -> Play:
    """Plays one episode through a gateway of its own and sees that nothing is left running."""

    def play(
        agent: Agent,
        engine: Any = None,
        *,
        env: Env | None = None,
        **limits: Any,
    ) -> Episode:
        async def work() -> Episode:
            policy = TokenPolicy(engine or make_engine(solves), chat_format)
            gateway = Gateway(policy.engine, chat_format)
            async with run_gateway(gateway):
                return await AgentEpisode(
                    env=env or ToolEnv(tasks=[SUM], tools=[add], verifier=number),
                    policy=policy,
                    task=SUM,
                    limits=Limits(**limits),
                    sampling=Sampling(max_tokens=100),
                    seed=0,
                    sample=0,
                    attempt=0,
                    agent=agent,
                    gateway=gateway,
                ).play()

        episode: Episode = run(work())
        return episode

    return play


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def watched() -> Any:
        result = await asyncio.wait_for(work, timeout=60)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(watched())


def solves(prompt: str, number: int) -> str:
    return SOLVES["<|im_start|>tool" in prompt]


def client_of(task: AgentTask) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key, max_retries=0)


async def talk(task: AgentTask, *, rounds: int = 8) -> str | None:
    """A tool loop as people write it."""
    async with client_of(task) as client:
        messages: list[Any] = list(task.messages)
        tools: list[Any] = list(task.tools)
        for _ in range(rounds):
            answer = await client.chat.completions.create(
                model="gpt-4o", messages=messages, tools=tools, temperature=0.0
            )
            reply = answer.choices[0].message
            messages.append(reply.model_dump(exclude_none=True))
            if not reply.tool_calls:
                return reply.content
            for call in reply.tool_calls:
                assert call.type == "function"
                given = json.loads(call.function.arguments)
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": call.id,
                        "content": str(given["a"] + given["b"]),
                    }
                )
    return None


def test_an_agents_tool_loop_becomes_an_episode_that_is_judged_and_trains(
    play: Play, chat_format: ChatFormat
) -> None:
    episode = play(talk)
    assert (episode.outcome, episode.stop_reason, episode.reward) == (
        Outcome.SCORED,
        "answer",
        1.0,
    )
    assert [turn.parent for turn in episode.turns] == [None, 0]
    assert [message["role"] for message in episode.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert episode.turns[-1].terminated and not episode.turns[-1].truncated
    assert episode.turns[-1].reward == 1.0
    # The ids are those of a rollout in which the environment had run the tool.
    prompt = chat_format.render(SUM.messages, episode.tools)
    assert episode.turns[0].prompt_ids == tuple(prompt)
    (row,) = rows_of(episode, 1.0)
    assert sum(row.loss_mask) == sum(len(turn.completion_ids) for turn in episode.turns)
    assert Episode.from_json(episode.to_json()) == episode


@pytest.mark.parametrize(("answer", "reward"), [("43", 0.0), ("42", 1.0), (None, 1.0), ("", 0.0)])
def test_what_the_agent_returns_is_its_answer_and_else_the_last_reply_is(
    play: Play, answer: str | None, reward: float
) -> None:
    async def agent(task: AgentTask) -> str | None:
        await talk(task)
        return answer

    assert play(agent).reward == reward


def test_an_agent_may_have_a_prompt_and_tools_of_its_own(play: Play) -> None:
    async def agent(task: AgentTask) -> str | None:
        own: Message = {"role": "system", "content": "You count."}
        nothing = {"type": "object", "properties": {}}
        function = {"name": "count", "description": "Count.", "parameters": nothing}
        tool = {"type": "function", "function": function}
        async with client_of(task) as client:
            answer = await client.chat.completions.create(
                model="any",
                messages=[own, {"role": "user", "content": task.prompt}],  # type: ignore[list-item]
                tools=[tool],  # type: ignore[list-item]
            )
        return answer.choices[0].message.content

    episode = play(agent)
    assert episode.outcome is Outcome.SCORED, episode.detail
    assert episode.prompt[0]["content"] == "You count."
    assert [tool["function"]["name"] for tool in episode.tools] == ["count"]


@pytest.mark.parametrize(
    ("limits", "stop_reason"),
    [({"max_turns": 1}, "max_turns"), ({"max_total_tokens": 3}, "token_budget")],
)
def test_a_limit_that_makes_the_agent_give_up_is_scored(
    play: Play, limits: dict[str, int], stop_reason: str
) -> None:
    episode = play(talk, **limits)
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, stop_reason)
    assert episode.turns[-1].truncated


def test_what_the_policy_says_may_make_an_agent_give_up_and_is_scored(
    play: Play, make_engine: Any
) -> None:
    # The agent's code reads arguments that are not there.
    wrong = make_engine(tool_call("add", x=17))
    episode = play(talk, wrong)
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, "agent")
    assert episode.tool_errors() == {"bad_arguments": 1}

    async def agent(task: AgentTask) -> str | None:
        await talk(task)
        raise PolicyAtFault("it never asks")

    assert play(agent).outcome is Outcome.SCORED


def test_an_agent_that_breaks_by_itself_has_failed(play: Play) -> None:
    async def agent(task: AgentTask) -> str | None:
        await talk(task)
        raise KeyError("x")

    episode = play(agent)
    assert (episode.outcome, episode.cause) == (Outcome.FAILED, "agent")
    assert episode.detail == "KeyError: 'x'"
    assert episode.reward == 0.0 and episode.score is None
    assert len(episode.turns) == 2  # kept, to be looked at

    async def leaves(task: AgentTask) -> str | None:
        await talk(task)
        sys.exit("no database")

    episode = play(leaves)
    assert (episode.outcome, episode.cause) == (Outcome.FAILED, "agent")
    assert episode.detail == "it called sys.exit('no database')"


def test_an_agent_that_never_asks_the_policy_has_failed_and_says_why(play: Play) -> None:
    async def silent(task: AgentTask) -> str | None:
        return "42"

    async def refused(task: AgentTask) -> str | None:
        async with client_of(task) as client:
            await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "?"}], n=2
            )
        return None

    async def odd(task: AgentTask) -> Any:
        await talk(task)
        return 42

    for agent, complaint in (
        (silent, "does it use the base_url"),
        (refused, "one reply to a request"),
        (odd, "must return text or None, got a int"),
    ):
        episode = play(agent)
        assert (episode.outcome, episode.cause) == (Outcome.FAILED, "agent")
        assert complaint in episode.detail


def test_a_task_that_never_fitted_the_context_is_not_the_policys_doing(
    play: Play, make_engine: Any
) -> None:
    episode = play(talk, make_engine(solves, context_length=10))
    assert (episode.outcome, episode.cause) == (Outcome.FAILED, "prompt_too_long")


def test_an_engine_that_fails_is_not_the_agents_doing(play: Play, make_engine: Any) -> None:
    broken = make_engine(solves)
    broken.error = EngineError("gone")

    async def stoic(task: AgentTask) -> str | None:
        try:
            return await talk(task)
        except openai.APIError:
            return "I do not know"

    for agent in (talk, stoic):
        episode = play(agent, broken)
        assert (episode.outcome, episode.cause) == (Outcome.FAILED, "engine")


def test_an_agent_that_takes_too_long_by_itself_is_scored_as_it_stands(play: Play) -> None:
    async def slow(task: AgentTask) -> str | None:
        await talk(task)
        await asyncio.sleep(60)
        return "43"

    episode = play(slow, episode_timeout_s=2.0)
    assert (episode.outcome, episode.stop_reason) == (Outcome.SCORED, "deadline")
    assert episode.reward == 1.0


def test_the_engines_time_is_not_the_agents(play: Play, make_engine: Any) -> None:
    engine = make_engine(solves)
    generate = engine.generate

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(1.0)
        return await generate(*arguments)

    engine.generate = slowly
    episode = play(talk, engine, episode_timeout_s=1.5)
    assert (episode.stop_reason, episode.reward) == ("answer", 1.0)
    assert episode.timings["generate"] > 2.0 > 1.5 > episode.timings["agent"]


def test_an_environment_that_cannot_take_a_conversation_over_says_so(play: Play) -> None:
    class Steps(Env):
        async def areset(self, *, seed: Any = None, options: Any = None) -> Any:
            return SUM.messages, {"tools": ()}

        async def ascore(self, stop_reason: str) -> Score:
            return Score(value=1.0)

    async def agent(task: AgentTask) -> str | None:
        async with client_of(task) as client:
            await client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": "?"}]
            )
        return None

    episode = play(agent, env=Steps())
    assert (episode.outcome, episode.cause) == (Outcome.FAILED, "env")
    assert "Steps cannot judge an episode that an agent program played" in episode.detail


def test_a_program_in_a_process_of_its_own_is_an_agent(play: Play, tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(
        textwrap.dedent(
            """
            import json, sys, openai
            task = json.load(sys.stdin)
            client = openai.OpenAI()  # finds the episode in its environment
            answer = client.chat.completions.create(
                model="any", messages=task["messages"], tools=task["tools"]
            )
            call = answer.choices[0].message.tool_calls[0]
            given = json.loads(call.function.arguments)
            print(given["a"] + given["b"])
            """
        )
    )
    episode = play(AgentProgram([sys.executable, str(program)]))
    assert (episode.outcome, episode.reward, len(episode.turns)) == (Outcome.SCORED, 1.0, 1)


def test_the_other_apis_record_the_same_episode(play: Play) -> None:
    import anthropic

    async def responses(task: AgentTask) -> str | None:
        async with client_of(task) as client:
            tools: Any = [{"type": "function", "strict": None, **task.tools[0]["function"]}]
            items: list[Any] = list(task.messages)
            text = ""
            for _ in range(2):
                answer = await client.responses.create(model="any", input=items, tools=tools)
                text = answer.output_text
                items += answer.output
                items += [
                    {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
                    for item in answer.output
                    if item.type == "function_call"
                ]
            return text

    async def messages(task: AgentTask) -> str | None:
        tool = task.tools[0]["function"]
        tools: Any = [
            {
                "name": tool["name"],
                "description": tool["description"],
                "input_schema": tool["parameters"],
            }
        ]
        said: list[Any] = list(task.messages)
        text = ""
        async with anthropic.AsyncAnthropic(
            base_url=task.anthropic_base_url, api_key=task.api_key
        ) as client:
            for _ in range(2):
                answer = await client.messages.create(
                    model="any", max_tokens=100, messages=said, tools=tools
                )
                text = "".join(block.text for block in answer.content if block.type == "text")
                results = [
                    {"type": "tool_result", "tool_use_id": block.id, "content": "42"}
                    for block in answer.content
                    if block.type == "tool_use"
                ]
                said += [
                    {"role": "assistant", "content": answer.content},
                    {"role": "user", "content": results},
                ]
        return text

    ids = [turn.prompt_ids for turn in play(talk).turns]
    for agent in (responses, messages):
        episode = play(agent)
        assert episode.reward == 1.0, episode.detail
        assert [turn.prompt_ids for turn in episode.turns] == ids
        assert [turn.parent for turn in episode.turns] == [None, 0]
