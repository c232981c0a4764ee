"""What `palestra serve` takes on the command line; imports nothing that is slow."""

from __future__ import annotations

import argparse
from pathlib import Path

from palestra.cli_numbers import AT_LEAST_ONE, NOT_NEGATIVE, PORT, POSITIVE


def add_serve(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a model folder, hub id or smollm2")
    parser.add_argument(
        "--engine",
        choices=["hf", "vllm", "sglang"],
        metavar="ENGINE",
        default="hf",
        help="what samples: hf, in this process (default), or a vllm or sglang that is started",
    )
    parser.add_argument(
        "--engine-url",
        action="append",
        default=[],
        metavar="URL",
        help="a vLLM or SGLang server of the same model that runs already; may be repeated",
    )
    parser.add_argument(
        "--engine-python", metavar="PATH", help="the interpreter that has vLLM or SGLang"
    )
    parser.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="for the server's own command line, as --engine-arg=--tensor-parallel-size=2; "
        "may be repeated",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument(
        "--port", type=PORT, default=8000, help="default: 8000; 0 takes one that is free"
    )
    parser.add_argument(
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="what requests call the model (default: its id, or its folder's name); repeatable",
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the API key"
    )
    parser.add_argument(
        "--api-keys-file", type=Path, metavar="FILE", help="a file of API keys, one a line"
    )
    parser.add_argument("--no-api-key", action="store_true", help="let everybody in, on any --host")
    parser.add_argument(
        "--rate-limit", type=AT_LEAST_ONE, metavar="N", help="requests a minute for each key"
    )
    parser.add_argument(
        "--max-concurrent",
        type=AT_LEAST_ONE,
        default=1024,
        metavar="REQUESTS",
        help="beyond it clients are told to come later (default: 1024)",
    )
    parser.add_argument(
        "--max-body-mb", type=POSITIVE, default=16, metavar="MB", help="of a request (default: 16)"
    )
    parser.add_argument(
        "--max-batch",
        type=AT_LEAST_ONE,
        metavar="REPLIES",
        help="that the engine samples at once (default: 16, for servers 256)",
    )
    parser.add_argument(
        "--context-length",
        type=AT_LEAST_ONE,
        metavar="TOKENS",
        help="prompt and reply together (default: the model's, up to 4096)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        metavar="DTYPE",
        default="auto",
        help="float32, bfloat16, float16 or auto: float32 in this process, else the model's own",
    )
    parser.add_argument(
        "--device", default="auto", help="for --engine hf: auto (default), cpu, cuda, ..."
    )
    parser.add_argument(
        "--gateway",
        metavar="ENV",
        help="record episodes of agents in this environment: an id, or module:Name-v0",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="of the episodes, one JSON line each"
    )
    parser.add_argument(
        "--split", default="train", help="of the environment's tasks (default: train)"
    )
    parser.add_argument(
        "--temperature",
        type=NOT_NEGATIVE,
        default=1.0,
        help="of recorded episodes, whatever clients ask for (default: 1)",
    )
    parser.add_argument(
        "--max-tokens",
        type=AT_LEAST_ONE,
        default=512,
        metavar="TOKENS",
        help="of a reply in a recorded episode (default: 512)",
    )
    parser.add_argument(
        "--max-turns",
        type=AT_LEAST_ONE,
        default=16,
        metavar="REPLIES",
        help="of a recorded episode (default: 16)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=NOT_NEGATIVE,
        default=30.0,
        metavar="SECONDS",
        help="for requests in progress when a signal ends the server (default: 30)",
    )

    def run(arguments: argparse.Namespace) -> int:
        from palestra import cli_serve

        options = cli_serve.ServeOptions(
            model=arguments.model,
            engine=arguments.engine,
            engine_urls=tuple(arguments.engine_url),
            engine_python=arguments.engine_python,
            engine_args=tuple(arguments.engine_arg),
            host=arguments.host,
            port=arguments.port,
            names=tuple(arguments.served_model_name),
            api_key_env=arguments.api_key_env,
            api_keys_file=arguments.api_keys_file,
            no_api_key=arguments.no_api_key,
            rate_limit=arguments.rate_limit,
            max_concurrent=arguments.max_concurrent,
            max_body_mb=arguments.max_body_mb,
            max_batch=arguments.max_batch,
            context_length=arguments.context_length,
            dtype=arguments.dtype,
            device=arguments.device,
            drain_timeout_s=arguments.drain_timeout,
            gateway=arguments.gateway,
            record=arguments.record,
            split=arguments.split,
            temperature=arguments.temperature,
            max_tokens=arguments.max_tokens,
            max_turns=arguments.max_turns,
        )
        return cli_serve.run_serve(options)

    parser.set_defaults(run=run)
