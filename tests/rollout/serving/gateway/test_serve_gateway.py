"""`palestra serve --gateway`: episodes of agents elsewhere, recorded by a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai

from palestra.rollout import read_episodes
from palestra.types import Outcome

COMMAND = str(Path(sys.executable).parent / "palestra")
KEY = "a-key-of-the-server"


def test_an_agent_elsewhere_plays_an_episode_and_it_is_recorded(
    model_folder: Path, tmp_path: Path
) -> None:
    record = tmp_path / "episodes.jsonl"
    arguments = ["--gateway", "palestra/Arithmetic-v0", "--record", str(record), "--port", "0"]
    arguments += ["--api-key-env", "SERVE_KEY", "--max-tokens", "4", "--context-length", "256"]
    with subprocess.Popen(
        [COMMAND, "serve", str(model_folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SERVE_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1].removesuffix("/v1")
            ours = {"Authorization": f"Bearer {KEY}"}
            assert httpx.post(f"{url}/episodes", json={}).status_code == 401
            opened = httpx.post(f"{url}/episodes", json={}, headers=ours).json()
            assert opened["base_url"] == f"{url}/episodes/{opened['key']}/v1"
            theirs = {"Authorization": f"Bearer {opened['key']}"}
            assert httpx.post(f"{url}/episodes", json={}, headers=theirs).status_code == 403
            with openai.OpenAI(base_url=opened["base_url"], api_key=opened["key"]) as client:
                reply = client.chat.completions.create(model="any", messages=opened["messages"])
            close = f"{url}/episodes/{opened['key']}/close"
            closed = httpx.post(close, json={"answer": "no idea"}, headers=ours).json()
            assert (closed["outcome"], closed["score"], closed["turns"]) == ("scored", 0.0, 1)
            assert httpx.post(close, json={}, headers=ours).json() == closed
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    (episode,) = read_episodes(record)
    assert episode.outcome is Outcome.SCORED
    assert episode.turns[0].message["content"] == (reply.choices[0].message.content or "")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(episode.turns[0].completion_ids) <= 4


def test_the_gateway_needs_a_file_and_an_environment_that_exists(
    model_folder: Path, tmp_path: Path
) -> None:
    def refusal(*arguments: str) -> str:
        done = subprocess.run(
            [COMMAND, "serve", str(model_folder), "--port", "0", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert "--gateway ENV and --record FILE belong together" in refusal("--gateway", "Add-v0")
    record = str(tmp_path / "episodes.jsonl")
    assert "Arithmetic" in refusal("--gateway", "Arithmetik-v0", "--record", record)
