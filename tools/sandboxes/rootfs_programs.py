"""The host's programs that go into a root file system: shell, coreutils, git and their like."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from palestra.tools.sandboxes.shared_libraries import is_elf

# What an agent expects to find; one that the host lacks is left out, but for these.
_REQUIRED = {
    "bash": "bash",
    "cat": "coreutils",
    "find": "findutils",
    "git": "git",
    "grep": "grep",
    "sed": "sed",
    "sh": "dash",
    "tar": "tar",
}
_PROGRAMS = """
[ arch awk b2sum base32 base64 basename basenc bash bc bunzip2 bzcat bzip2 cat chgrp chmod chown
cksum clear cmp column comm cp csplit cut date dd df diff diff3 dir dirname du echo ed egrep env
expand expr factor false fgrep find fmt fold free getopt git grep groups gunzip gzip head hexdump
hostid hostname id install join jq kill less link ln logname ls make md5sum mkdir mkfifo mktemp
more mv nice nl nohup nproc numfmt od paste patch pathchk pgrep pkill pr printenv printf ps ptx
pwd readlink realpath rev rg rm rmdir sdiff sed seq sh sha1sum sha224sum sha256sum sha384sum
sha512sum shred shuf sleep sort split sqlite3 stat stdbuf stty sum sync tac tail tar tee test time
timeout touch tput tr tree true truncate tsort tty uname unexpand uniq unlink unxz unzip users
vdir wc which who whoami xargs xxd xz xzcat yes zcat zip zstd
"""
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"

_GIT_CONFIG = """\
[safe]
	directory = *
[user]
	name = agent
	email = agent@localhost
[init]
	defaultBranch = main
"""


def copy_programs(root: Path) -> list[Path]:
    """Copy the programs to /usr/bin; returns those of the host that are ELF files."""
    copied: dict[Path, str] = {}
    for name in _PROGRAMS.split():
        found = shutil.which(name, path=SYSTEM_PATH)
        if found is None:
            if name in _REQUIRED:
                raise ValueError(
                    f"sandboxes need the program {name}, and this host has none (Debian: apt-get "
                    f"install {_REQUIRED[name]})"
                )
            continue
        file = Path(found).resolve()
        target = root / "usr/bin" / name
        if file in copied:
            target.symlink_to(copied[file])  # a program that looks at the name it is called by
        elif is_elf(file) or _is_shell_script(file):
            shutil.copyfile(file, target)
            target.chmod(0o755)
            copied[file] = name
    return [file for file in copied if is_elf(file)]


def _is_shell_script(file: Path) -> bool:
    with file.open("rb") as stream:
        return re.match(rb"#! ?(/usr)?/bin/(ba|da)?sh\b", stream.readline(64)) is not None


def copy_git(root: Path) -> list[Path]:
    """Copy what git runs and reads; its network helpers stay. Returns ELF files of the host."""
    git = Path(shutil.which("git", path=SYSTEM_PATH) or "git")
    shown = subprocess.run([git, "--exec-path"], check=True, capture_output=True, text=True)
    core = Path(shown.stdout.strip())
    target = root / str(core).lstrip("/")
    target.mkdir(parents=True)
    program = root / "usr/bin/git"
    helper = core / "git-sh-i18n--envsubst"
    for file in core.iterdir():
        if file.is_dir():
            continue
        if file.name == "git" or file.resolve() in (git.resolve(), core / "git"):
            (target / file.name).symlink_to(os.path.relpath(program, target))
        elif file == helper or _is_shell_script(file) or file.name.startswith("git-sh-"):
            shutil.copy(file, target / file.name)
    templates = Path("usr/share/git-core/templates")
    if ("/" / templates).is_dir():
        shutil.copytree("/" / templates, root / templates)
    # Its configuration is in /etc for a git in /usr, else below its prefix.
    prefix = git.parent.parent
    config = root / ("etc" if prefix == Path("/usr") else f"{prefix}/etc".lstrip("/")) / "gitconfig"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(_GIT_CONFIG)
    return [helper] if helper.exists() and is_elf(helper) else []
