"""What must work under the filter: real programs, in children that load it first."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.tools.sandboxes import kernel, seccomp
from palestra.tools.sandboxes.system_calls import NUMBERS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in NUMBERS,
    reason=f"no filter for {sys.platform} on {platform.machine()}",
)

LOADER = f"""{inspect.getsource(kernel)}
import signal, sys
load_filter(bytes.fromhex(sys.argv[1]))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_filtered(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOADER, seccomp.filter_program().hex(), *command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


THREADS = """
import threading, queue
from concurrent.futures import ThreadPoolExecutor
lock, total = threading.Lock(), [0]
def add(n):
    with lock:
        total[0] += n
with ThreadPoolExecutor(8) as pool:
    list(pool.map(add, range(100)))
print(total[0])
"""
SUBPROCESSES = """
import os, subprocess
done = subprocess.run(["sh", "-c", "cat; exit 3"], input=b"piped", capture_output=True)
pid = os.fork()
if pid == 0:
    os._exit(4)
print(done.stdout.decode(), done.returncode, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    subprocess.run(["sleep", "9"], timeout=0.1)
except subprocess.TimeoutExpired:
    print("timed out")
print(subprocess.run(["true"], preexec_fn=os.setpgrp, start_new_session=False).returncode)
"""
PROCESSES = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

def square(n):
    return n * n

def report(queue, n):
    queue.put(square(n))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        print(sum(pool.map(square, range(10))))
    with context.Pool(2) as pool:
        print(pool.map(square, [1, 2, 3]))
    queue = context.Queue()
    process = context.Process(target=report, args=(queue, 7))
    process.start()
    print(queue.get(timeout=60))
    process.join()
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[:4] = b"page"
    other = shared_memory.SharedMemory(block.name)
    print(bytes(other.buf[:4]))
    other.close()
    block.close()
    block.unlink()
"""
ASYNCIO = """
import asyncio, socket

async def main():
    async def echo(reader, writer):
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(echo, "localhost", 0, family=socket.AF_INET)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("localhost", port)
    writer.write(b"tcp")
    print(await reader.read(100))
    writer.close()
    server.close()
    process = await asyncio.create_subprocess_exec("echo", "child", stdout=asyncio.subprocess.PIPE)
    print((await process.communicate())[0], await asyncio.to_thread(sum, [1, 2]))
    a, b = socket.socketpair()
    a.send(b"pair")
    print(b.recv(9))

asyncio.run(main())
"""
ARRAYS = """
import numpy as np, pandas as pd
a = np.arange(250_000.0).reshape(500, 500)
print(int((a @ a.T).trace()), np.linalg.matrix_rank(np.eye(50)))
np.save("a.npy", a)
print(np.load("a.npy", mmap_mode="r")[1, 1])
frame = pd.DataFrame({"k": ["x", "y", "x"], "v": [1, 2, 3]})
frame.to_csv("f.csv", index=False)
print(pd.read_csv("f.csv").groupby("k")["v"].sum().to_dict())
"""
DATABASE = """
import sqlite3
connection = sqlite3.connect("data.db")
print(connection.execute("pragma journal_mode=wal").fetchone()[0])
connection.execute("create table t(a)")
connection.executemany("insert into t values(?)", [(n,) for n in range(10)])
connection.commit()
print(sqlite3.connect("data.db").execute("select sum(a) from t").fetchone()[0])
"""
SYSTEM = """
import ctypes, mmap, os, select, shutil, signal, socket, tempfile, time
with tempfile.TemporaryFile() as file:
    file.truncate(8192)
    mmap.mmap(file.fileno(), 8192)[:2] = b"ok"
    print(file.read(2))
open("one", "w").write("copied")
shutil.copy2("one", "two")
os.mkfifo("fifo")
print(open("two").read(), sorted(os.listdir(".")), os.path.exists("fifo"))
signal.signal(signal.SIGALRM, lambda *_: print("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.1)
callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)
print(callback(1), len(os.urandom(4)), os.pidfd_open(os.getpid()) > 0)
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except OSError as error:
    print(error.strerror)
"""
PYTHON = {
    "threads": (THREADS, "4950"),
    "subprocess": (SUBPROCESSES, "piped 3 4\ntimed out\n0"),
    "asyncio": (ASYNCIO, "b'tcp'\nb'child\\n' 3\nb'pair'"),
    "arrays": (ARRAYS, "5208302083375000 50\n501.0\n{'x': 4, 'y': 2}"),
    "sqlite3": (DATABASE, "wal\n45"),
    "system": (
        SYSTEM,
        "b'ok'\ncopied ['fifo', 'one', 'two'] True\nalarm\n2 4 True\n"
        "Address family not supported by protocol",
    ),
}
SHELL = {
    "bash": (
        "set -euo pipefail; coproc cat; echo hi >&${COPROC[1]}; read -r x <&${COPROC[0]}; echo $x; "
        "kill $COPROC_PID; wait; trap 'echo bye' EXIT; diff <(seq 2) <(printf '1\\n2\\n'); "
        "(exec sleep 5) & sleep 0.1; kill $!; wait $! || echo $?; timeout 0.1 sleep 5 || echo $?; "
        "ulimit -n 100; umask 077; echo {1..3} | tr ' ' '+' | tee a | wc -c; cat <<< here",
        "hi\n143\n124\n6\nhere\nbye",
    ),
    "coreutils": (
        "mkdir -p d/e; touch -d 2020-01-01 d/f; cp -a d c; mv c/f c/g; ln -s g c/h; ln c/g c/i; "
        "chmod 600 c/g; du -s c >/dev/null; df . >/dev/null; stat -c %a c/g; readlink c/h; "
        "ls -lR c >/dev/null; dd if=/dev/zero of=z bs=1k count=3 2>/dev/null; truncate -s 2k z; "
        "split -b 1k z; cat x* | sha256sum | cut -c1-8; rm -rf c d; mkfifo p; nproc >/dev/null; "
        "(echo fifo >p &) ; cat p; id -u >/dev/null; date -u -d @0 +%F; env -i printf ok",
        "600\ng\ne5a00aa9\nfifo\n1970-01-01\nok",
    ),
    "sort, find, tar, grep": (
        "seq 200000 -1 1 | sort -n -S 1M --parallel 2 | head -n 1 || true; mkdir t; "
        "for i in 1 2 3; do echo line $i >t/$i.txt; done; tar czf t.tgz t; rm -r t; tar xzf t.tgz; "
        "find t -name '*.txt' -newermt 2000-01-01 -exec grep -h 2 {} + | sed s/line/row/; "
        "find t -type f | xargs -P 2 -n 1 wc -l | awk '{ n += $1 } END { print n }'",
        "1\nrow 2\n3",
    ),
    "git": (
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1; git init -q -b main r; cd r; "
        "git config user.name A; git config user.email a@example.org; echo 1 >f; git add .; "
        "git commit -qm one; echo 2 >>f; git commit -qam two; git checkout -qb side; git gc -q; "
        "git log --format=%s; git diff --stat HEAD~1 | tail -n 1; cd ..; git clone -q r s; "
        "git -C s log --oneline | wc -l; git -C s stash list; git -C s status --short",
        "two\none\n 1 file changed, 1 insertion(+)\n2",
    ),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_works(name: str, tmp_path: Path) -> None:
    code, expected = PYTHON[name]
    done = run_filtered(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works(method: str, tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(PROCESSES)
    done = run_filtered(sys.executable, "squares.py", method, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("285\n[1, 4, 9]\n49\nb'page'\n", "")


def test_pytest_works(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(tmp_path, capfd):\n    (tmp_path / 'a').write_text('b')\n"
        "    print('c')\n    assert capfd.readouterr().out == 'c\\n'\n"
    )
    done = run_filtered(sys.executable, "-m", "pytest", "-q", cwd=tmp_path)
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("name", SHELL)
def test_shell_programs_work(name: str, tmp_path: Path) -> None:
    script, expected = SHELL[name]
    done = run_filtered("bash", "-c", script, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == (expected, "")
