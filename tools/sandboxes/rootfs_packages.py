"""Packages of PyPI, installed into a root file system by the pip (or uv) of this environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Their tests are megabytes, and nothing else in them imports those.
_TESTS_LEFT_OUT = ("numpy", "pandas", "sympy")


def install_packages(
    packages: Sequence[str], site_packages: Path, scripts: Path, *, constraints: Path | None = None
) -> None:
    """Install packages and what they require, for an interpreter of this one's version.

    Modules go into `site_packages`; commands go into `scripts` and call /usr/local/bin/python3.

    Raises:
        ValueError: one cannot be installed.
    """
    for name in packages:
        if not name.strip() or name.startswith("-"):
            raise ValueError(f'"{name}" is not a package of PyPI: give names such as "numpy"')
    command = [*_installer(), "--target", str(site_packages)]
    if constraints is not None:
        command += ["--constraint", str(constraints.absolute())]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PIP_USER", None)  # pip refuses it beside --target
    result = subprocess.run(
        [*command, "--", *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        umask=0o022,
        env=environment,
    )
    if result.returncode != 0:
        raise ValueError(
            f"cannot install {', '.join(packages)} for sandboxes: {_reason(result.stderr)}: check "
            "the names, the network and the index that pip uses, or ask for fewer packages"
        )
    _move_scripts(site_packages / "bin", scripts)
    for name in _TESTS_LEFT_OUT:
        for tests in [*(site_packages / name).rglob("tests")]:
            if tests.is_dir():
                shutil.rmtree(tests)
    for origin in site_packages.glob("*.dist-info/direct_url.json"):
        origin.unlink()  # it names a folder of this host


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
        return [*pip, "--progress-bar", "off", "--prefer-binary"]
    if uv := shutil.which("uv"):
        # Links to files in uv's cache would share their modes.
        python = ["--python", sys.executable, "--link-mode", "copy"]
        return [uv, "pip", "install", "--quiet", "--no-progress", *python]
    raise ValueError(
        "sandboxes with packages need pip (python -m ensurepip) or uv, and this environment has "
        "neither: install one, or ask for packages=()"
    )


def _reason(stderr: str) -> str:
    """The line of an installer's complaint that says what is wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["it says nothing"])[0].rstrip(".")


def _move_scripts(installed: Path, scripts: Path) -> None:
    """Give commands the sandbox's interpreter in place of this environment's."""
    if not installed.is_dir():
        return
    for file in installed.iterdir():
        content = file.read_bytes()
        first, _, rest = content.partition(b"\n")
        if first == b"#!/bin/sh" and rest.startswith(b"'''exec' "):
            # How installers write an interpreter's path that is too long for a first line.
            first, rest = b"#!python", rest.split(b"\n", 2)[2]
        if first.startswith(b"#!") and b"python" in first:
            content = b"#!/usr/local/bin/python3\n" + rest
        (scripts / file.name).write_bytes(content)
        (scripts / file.name).chmod(0o755)
    shutil.rmtree(installed)
