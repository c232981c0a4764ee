"""A server that answers every generation after a fixed time, on vLLM's token endpoint.

It says the same ids each time and computes nothing, so that what is lost beside it is the client's.
Prints its port; ends when its standard input does. benchmarks/rollout.py starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import orjson
from aiohttp import web


def make_app(reply_ids: list[int], latency_s: float) -> web.Application:
    answers: dict[int, bytes] = {}

    def answer(count: int) -> bytes:
        """The reply, cut to so many tokens."""
        ids = reply_ids[:count]
        choice = {
            "index": 0,
            "token_ids": ids,
            "finish_reason": "stop" if len(ids) == len(reply_ids) else "length",
            "logprobs": {
                "content": [{"token_id": token, "logprob": -0.5, "rank": 1} for token in ids]
            },
            "weight_versions": [{"version": "default", "start": 0, "end": len(ids)}],
        }
        return orjson.dumps({"choices": [choice]})

    async def generate(request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        due = loop.time() + latency_s
        body = orjson.loads(await request.read())
        assert body["token_ids"]
        count = min(body["sampling_params"]["max_tokens"], len(reply_ids))
        if count not in answers:
            answers[count] = answer(count)
        await asyncio.sleep(due - loop.time())
        return web.Response(body=answers[count], content_type="application/json")

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/inference/v1/generate", generate)
    return app


async def serve(reply_ids: list[int], latency_s: float, port: int) -> None:
    runner = web.AppRunner(make_app(reply_ids, latency_s), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", required=True, help="what every reply says, as a JSON list")
    parser.add_argument("--latency-s", type=float, required=True)
    parser.add_argument("--core", type=int, help="the only one to run on")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    asyncio.run(serve(json.loads(options.ids), options.latency_s, options.port))


if __name__ == "__main__":
    main()
