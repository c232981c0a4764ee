import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palestra.tools.sandboxes.folder_cache import build_once, cache_folder, cached, remove_unused

# Builds a folder, notes in a log that it did, and takes its time over it.
BUILDER = """
import sys, time
from pathlib import Path
from palestra.tools.sandboxes.folder_cache import build_once

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (folder / "half").touch()
    time.sleep(float(sys.argv[3]))
    (folder / "whole").touch()

print(build_once(Path(sys.argv[1]), build))
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def start(folder: Path, log: Path, duration_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(duration_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "made", tmp_path / "log"
    processes = [start(folder, log, 0.3) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in processes] == [str(folder)] * 4
    assert log.read_text() == "built\n"
    assert (folder / "whole").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"made", "log"}


def test_threads_at_once_build_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)

    def ask() -> None:
        build_once(tmp_path / "made", build)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_killed_build_is_not_taken_for_ready_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, log = tmp_path / "made", tmp_path / "log"
    killed = start(folder, log, 1000)
    wait_for(tmp_path / ".made.partial" / "half")
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not folder.exists()
    start(folder, log, 0).communicate()
    assert (folder / "whole").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"made", "log"}


def test_a_failed_build_is_removed_and_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists() and not (tmp_path / ".made.partial").exists()
    assert build_once(tmp_path / "made", lambda folder: None) == tmp_path / "made"


def test_the_cache_is_where_the_environment_says_and_open_to_all(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALESTRA_CACHE", str(public_folder / "a" / "b"))
    mask = os.umask(0o077)
    try:
        folder = cache_folder("rootfs")
    finally:
        os.umask(mask)
    assert folder == public_folder / "a" / "b" / "rootfs"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o755, 0o755]


def test_a_cache_that_cannot_be_made_is_an_error_with_the_remedy(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (public_folder / "file").touch()
    monkeypatch.setenv("PALESTRA_CACHE", str(public_folder / "file"))
    with pytest.raises(ValueError, match=r"cannot make the cache .*set PALESTRA_CACHE"):
        cache_folder("rootfs")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's sandboxes run as somebody else")
def test_a_cache_out_of_reach_of_the_users_of_sandboxes_is_an_error(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (public_folder / "private").mkdir(mode=0o700)
    monkeypatch.setenv("PALESTRA_CACHE", str(public_folder / "private"))
    with pytest.raises(ValueError, match=rf"out of reach .*chmod o\+x {public_folder}/private,"):
        cache_folder("rootfs")


# Uses the cached folder "used", then waits until its standard input closes.
USER = """
import sys
from palestra.tools.sandboxes.folder_cache import cached

print(cached("rootfs", "used", lambda folder: None), flush=True)
sys.stdin.read()
"""


def use(cache: Path) -> subprocess.Popen[str]:
    user = subprocess.Popen(
        [sys.executable, "-c", USER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PALESTRA_CACHE": str(cache)},
    )
    assert user.stdout is not None
    assert user.stdout.readline().strip() == str(cache / "rootfs/used")
    return user


def test_what_nobody_has_used_for_weeks_is_removed(public_folder: Path) -> None:
    use(public_folder).communicate()
    rootfs = public_folder / "rootfs"
    assert remove_unused(rootfs) == []
    a_month_ago = time.time() - 31 * 86_400
    os.utime(rootfs / ".used.used", (a_month_ago, a_month_ago))
    assert remove_unused(rootfs) == [rootfs / "used"]
    assert list(rootfs.iterdir()) == []


def test_what_a_process_holds_is_not_removed_however_old(public_folder: Path) -> None:
    rootfs = public_folder / "rootfs"
    user = use(public_folder)
    assert remove_unused(rootfs, days=0) == []
    assert (rootfs / "used").is_dir()
    user.communicate()
    assert remove_unused(rootfs, days=0) == [rootfs / "used"]


def test_a_folder_that_was_removed_is_built_again(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALESTRA_CACHE", str(public_folder))
    built: list[Path] = []
    folder = cached("rootfs", "mine", built.append)
    assert cached("rootfs", "mine", built.append) == folder
    assert len(built) == 1
    shutil.rmtree(folder)
    assert cached("rootfs", "mine", built.append) == folder
    assert folder.is_dir()
    assert len(built) == 2
