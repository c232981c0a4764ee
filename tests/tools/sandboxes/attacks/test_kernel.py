"""Rows 35 to 47: the kernel's rarely needed doors are shut."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox, SandboxDied

Attack = Callable[..., PythonResult]


@pytest.mark.row(35)
def test_nothing_can_be_mounted(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    home = os.environ["HOME"].encode()
    attempt("tmpfs", lambda: libc.mount(b"none", home, b"tmpfs", 0, None) == 0)
    attempt("proc", lambda: libc.mount(b"proc", home, b"proc", 0, None) == 0)
    attempt("bind", lambda: libc.mount(b"/", home, None, 4096, None) == 0)
    attempt("remount", lambda: libc.mount(None, b"/", None, 32 | 4096, None) == 0)
    attempt("umount", lambda: libc.umount2(b"/proc", 2) == 0)
    attempt("fsopen", lambda: call("fsopen", b"tmpfs", 0) not in REFUSED)
    attempt("open_tree", lambda: call("open_tree", -100, b"/", 1) not in REFUSED)
    attempt("pivot_root", lambda: call("pivot_root", b".", b".") == 0)
    attempt("chroot", lambda: libc.chroot(b"/usr") == 0)
    breaches"""
    assert attack(sandbox, code).value == "[]"
    assert sandbox.sync.run("mount -t tmpfs none /tmp").exit_code != 0


@pytest.mark.row(36)
def test_no_namespace_can_be_made(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    kinds = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000,
             "ipc": 0x8000000, "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}
    for name, flag in kinds.items():
        attempt("unshare " + name, lambda: call("unshare", flag) == 0)
        def clone():
            pid = call("clone", flag | 17, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            return pid > 0
        if name != "time":  # its bit is part of the signal's number there
            attempt("clone " + name, clone)
    # clone3 takes its flags from memory, where no filter can look.
    arguments = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
    def clone3():
        pid = call("clone3", ctypes.byref(arguments), 64)
        if pid == 0:
            os._exit(0)
        return pid > 0
    attempt("clone3 user", clone3)
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(37)
def test_nobody_becomes_anybody_else(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    me = os.getuid()
    for number in (0, 1, 65534):
        if number == me:
            continue
        for name in ("setuid", "setgid", "seteuid", "setegid", "setfsuid"):
            attempt((name, number), lambda: getattr(libc, name)(number) == 0 and name != "setfsuid")
        attempt(("setresuid", number), lambda: libc.setresuid(number, number, number) == 0)
    attempt("setgroups", lambda: os.setgroups([0]) or True)
    attempt("uid", lambda: os.getuid() == 0 or os.geteuid() == 0)
    import stat
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if top != "/" or name not in ("proc", "sys")]
        for name in files:
            path = os.path.join(top, name)
            def is_privileged():
                mode = os.lstat(path).st_mode
                return stat.S_ISREG(mode) and mode & 0o6000
            attempt("set-id " + path, is_privileged)
    attempt("no_new_privs", lambda: libc.prctl(39, 0, 0, 0, 0) != 1)
    for capability in range(41):  # of the ambient set: what an exec would keep
        attempt(("ambient", capability), lambda: libc.prctl(47, 1, capability, 0, 0) == 1)
    held = (ctypes.c_uint32 * 6)()
    call("capget", ctypes.byref((ctypes.c_uint32 * 2)(0x20080522, 0)), ctypes.byref(held))
    attempt("capabilities", lambda: any(held) and list(held))
    breaches"""
    assert attack(sandbox, code, timeout_s=60).value == "[]"


@pytest.mark.row(38)
def test_no_namespace_can_be_entered(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    def enter(path):
        fd = os.open(path, os.O_RDONLY)
        return call("setns", fd, 0) == 0
    for pid in (1, os.getppid(), host["pid"], host["victim"]):
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            attempt((pid, kind), lambda: enter(f"/proc/{pid}/ns/{kind}"))
    def enter_by_pidfd(pid):
        fd = call("pidfd_open", pid, 0)
        return fd >= 0 and call("setns", fd, 0x20000) == 0
    for pid in (1, host["pid"], host["victim"]):
        attempt(("pidfd", pid), lambda: enter_by_pidfd(pid))
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(39)
def test_no_process_can_be_traced(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    child = os.fork()
    if child == 0:
        import time
        time.sleep(60)
        os._exit(0)
    for pid in (child, os.getppid(), 1):
        attempt(("attach", pid), lambda: call("ptrace", 16, pid, 0, 0) == 0)
        attempt(("seize", pid), lambda: call("ptrace", 0x4206, pid, 0, 0) == 0)
    attempt("traceme", lambda: call("ptrace", 0, 0, 0, 0) == 0)
    os.kill(child, 9)
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(40)
def test_no_process_of_the_host_can_be_signalled(
    sandbox: Sandbox, attack: Attack, host: Any
) -> None:
    code = """
    import signal
    for pid in (host["victim"], host["pid"]):
        attempt(("kill 0", pid), lambda: os.kill(pid, 0) or True)
        attempt(("tgkill", pid), lambda: call("tgkill", pid, pid, 0) == 0)
        attempt(("queue", pid), lambda: call("rt_sigqueueinfo", pid, 0, bytes(128)) == 0)
        def by_pidfd():
            fd = call("pidfd_open", pid, 0)
            return fd >= 0 and call("pidfd_send_signal", fd, 0, 0, 0) == 0
        attempt(("pidfd", pid), by_pidfd)
        attempt(("priority", pid), lambda: os.setpriority(0, pid, 19) or True)
        attempt(("affinity", pid), lambda: os.sched_setaffinity(pid, {0}) or True)
        attempt(("limit", pid), lambda: call("prlimit64", pid, 7, 0, bytes(16)) == 0)
    attempt("victim", lambda: os.kill(host["victim"], signal.SIGKILL) or True)
    breaches"""
    assert attack(sandbox, code).value == "[]"
    assert host.victim.poll() is None


@pytest.mark.row(40)
def test_signals_to_everyone_reach_only_its_own(
    sandbox: Sandbox, attack: Attack, host: Any
) -> None:
    with contextlib.suppress(SandboxDied):
        attack(sandbox, "os.kill(-1, 15)\nos.killpg(0, 0)", timeout_s=5)
        sandbox.sync.run("kill -9 -1", timeout_s=5)
    assert host.victim.poll() is None


@pytest.mark.row(41)
def test_no_keyring(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    attempt("add_key", lambda: call("add_key", b"user", b"name", b"data", 4, -3) not in REFUSED)
    attempt("request_key", lambda: call("request_key", b"user", b"a", None, -3) not in REFUSED)
    attempt("keyctl", lambda: call("keyctl", 0, -3, 1) not in REFUSED)
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(42)
def test_no_bpf_perf_or_userfaultfd(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    space = ctypes.create_string_buffer(256)
    arguments = {"bpf": (0, space, 128), "perf_event_open": (space, 0, -1, -1, 0),
                 "userfaultfd": (1,), "fanotify_init": (0, 0), "kcmp": (1, 1, 0, 0, 0),
                 "kexec_load": (0, 0, None, 0), "init_module": (space, 0, space),
                 "finit_module": (0, space, 0), "delete_module": (b"x", 0), "reboot": (0, 0, 0, 0),
                 "open_by_handle_at": (-100, space, 0), "name_to_handle_at": (-100, b"/", space,
                 space, 0), "swapon": (b"x", 0), "acct": (b"x",), "quotactl": (0, b"x", 0, 0),
                 "lookup_dcookie": (0, space, 1), "move_pages": (1, 0, 0, 0, 0, 0),
                 "process_vm_writev": (1, 0, 0, 0, 0, 0), "settimeofday": (space, None),
                 "clock_settime": (0, space), "adjtimex": (space,), "vhangup": ()}
    for name, values in arguments.items():
        if name in host["numbers"]:
            def refused():
                result = call(name, *values)
                return result not in REFUSED and errno.errorcode.get(-result, result)
            attempt(name, refused)
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(43)
def test_no_io_uring(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    space = ctypes.create_string_buffer(256)
    attempt("setup", lambda: call("io_uring_setup", 4, space) not in REFUSED)
    attempt("enter", lambda: call("io_uring_enter", 0, 0, 0, 0, 0, 0) not in REFUSED)
    attempt("register", lambda: call("io_uring_register", 0, 0, 0, 0) not in REFUSED)
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(44)
def test_no_device_but_the_harmless(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    import stat
    home = os.environ["HOME"]
    devices = {"null": (1, 3), "mem": (1, 1), "kmsg": (1, 11), "vda": (254, 0), "sda": (8, 0)}
    for name, (major, minor) in devices.items():
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            path = f"{home}/{name}-{kind}"
            def make():
                os.mknod(path, kind | 0o666, os.makedev(major, minor))
                os.close(os.open(path, os.O_RDWR))
                return True
            attempt((name, kind), make)
    names = "mem kmem port kvm kmsg vda sda nvme0n1 fuse net/tun vhost-net vhost-vsock vsock loop0"
    names += " loop-control mapper/control uinput input/event0 snapshot hpet rtc0 dri/card0 nvidia0"
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    def opens(path):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return True
    for name in names.split():
        attempt(name, lambda: opens("/dev/" + name))
    for top, folders, files in os.walk("/dev"):
        for name in files:
            path = os.path.join(top, name)
            if not os.path.islink(path) and name not in harmless and "/pts" not in path:
                attempt("found " + path, lambda: not stat.S_ISREG(os.lstat(path).st_mode)
                        and opens(path))
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(45)
def test_no_control_group_can_be_changed(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    found = []
    for top in ("/sys/fs/cgroup", "/sys"):
        for folder, _, files in os.walk(top):
            if os.access(folder, os.W_OK):
                found.append(folder)
            for name in files:
                if name in ("release_agent", "notify_on_release", "cgroup.procs", "tasks"):
                    def opens():
                        os.close(os.open(os.path.join(folder, name), os.O_WRONLY))
                        return True
                    attempt(os.path.join(folder, name), opens)
    def make():
        os.mkdir("/sys/fs/cgroup/palestra-was-here")
        return True
    attempt("mkdir", make)
    found + breaches"""
    assert attack(sandbox, code, timeout_s=60).value == "[]"


@pytest.mark.row(46)
def test_no_terminal_can_be_typed_into(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    import fcntl, termios
    def type_into(fd):
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
        return True
    for fd in range(3):
        attempt(fd, lambda: os.isatty(fd) or type_into(fd))
    attempt("/dev/tty", lambda: type_into(os.open("/dev/tty", os.O_RDWR)))
    attempt("console", lambda: type_into(os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)))
    breaches"""
    assert attack(sandbox, code).value == "[]"
    assert sandbox.sync.run("tty; test -t 0 || test -t 1 || echo none").stdout.endswith("none\n")


@pytest.mark.row(47)
def test_the_kernel_s_log_is_not_told_and_no_core_is_dumped(
    sandbox: Sandbox, attack: Attack
) -> None:
    code = """
    space = ctypes.create_string_buffer(1 << 16)
    attempt("syslog", lambda: call("syslog", 3, space, 1 << 16) > 0 and space.value[:100])
    attempt("size", lambda: call("syslog", 10, None, 0) > 0)
    def read(path):
        with open(path, "rb", buffering=0) as file:
            os.set_blocking(file.fileno(), False)
            return file.read(100)
    for path in ("/dev/kmsg", "/proc/kmsg", "/proc/kcore", "/var/log/kern.log"):
        attempt(path, lambda: read(path))
    import resource
    attempt("core", lambda: resource.getrlimit(resource.RLIMIT_CORE) != (0, 0))
    breaches"""
    assert attack(sandbox, code).value == "[]"
    sandbox.sync.run("ulimit -c unlimited; kill -SEGV $$")
    assert "core" not in sandbox.sync.run("ls . /tmp").stdout
