"""Rows 28 to 34: no way out, over whatever the kernel calls a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

from palestra.tools.sandboxes import PythonResult, Sandbox

Attack = Callable[..., PythonResult]

CONNECT = """
def connect(family, kind, address):
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(address)
        client.sendall(b"hello")
        return client.recv(100) if kind == socket.SOCK_STREAM else True
"""


def nobody_heard(host: Any, *names: str) -> bool:
    time.sleep(0.2)
    return not set(names) & set(host.heard)


@pytest.mark.row(28)
def test_no_address_of_the_host_answers(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    code = """
    for address in host["addresses"]:
        target = (address, host["tcp_port"])
        attempt(target, lambda: connect(socket.AF_INET, socket.SOCK_STREAM, target))
    if host["tcp6_port"]:
        target = ("::1", host["tcp6_port"])
        attempt(target, lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, target))
    breaches"""
    assert attack(sandbox, CONNECT + dedent(code)).value == "[]"
    assert nobody_heard(host, "tcp", "tcp6")


@pytest.mark.row(28)
def test_no_datagram_reaches_the_host(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    code = """
    for address in host["addresses"]:
        target = (address, host["udp_port"])
        try:
            connect(socket.AF_INET, socket.SOCK_DGRAM, target)
        except OSError:
            pass"""
    attack(sandbox, CONNECT + dedent(code))
    assert nobody_heard(host, "udp")


@pytest.mark.row(29)
def test_no_unix_socket_of_the_host_can_be_reached(
    sandbox: Sandbox, attack: Attack, host: Any
) -> None:
    code = """
    for address in (host["abstract"], host["path"]):
        attempt(address, lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, address))
    for root in ("/proc/1/root", f"/proc/{host['pid']}/root", f"/proc/{host['victim']}/root"):
        attempt(root, lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, root + host["path"]))
    try:
        connect(socket.AF_UNIX, socket.SOCK_DGRAM, host["abstract"] + "-d")
    except OSError:
        pass
    breaches"""
    assert attack(sandbox, CONNECT + dedent(code)).value == "[]"
    assert nobody_heard(host, "abstract", "path", "datagram")


@pytest.mark.row(31)
def test_no_vsock(sandbox: Sandbox, attack: Attack, host: Any) -> None:
    code = """
    def reach(cid, port):
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            return client.connect_ex((cid, port)) == 0 or "opened"

    for cid in (0, 1, 2, 3):
        for port in {host["vsock_port"], 22, 1024}:
            attempt((cid, port), lambda: reach(cid, port))
    attempt("datagram", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM))
    breaches"""
    assert attack(sandbox, code).value == "[]"
    assert nobody_heard(host, "vsock")


@pytest.mark.row(32)
def test_no_raw_packets(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300))
    attempt("packet datagram", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x300))
    attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    attempt("raw ip", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
    attempt("raw 6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(33)
def test_no_netlink_nor_any_rare_family(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    for protocol in range(22):
        attempt(protocol, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
    for family in range(3, 46):
        if family not in (socket.AF_INET6, socket.AF_NETLINK):
            for kind in (1, 2, 3, 5):
                attempt((family, kind), lambda: socket.socket(family, kind))
    breaches"""
    assert attack(sandbox, code).value == "[]"


@pytest.mark.row(34)
def test_no_daemon_s_socket_is_there(sandbox: Sandbox, attack: Attack) -> None:
    code = """
    names = ["docker.sock", "containerd/containerd.sock", "podman/podman.sock", "crio/crio.sock"]
    names += ["dbus/system_bus_socket", "systemd/private", "systemd/notify", "snapd.socket"]
    paths = [top + name for top in ("/run/", "/var/run/") for name in names]
    for path in [*paths, host["docker"]]:
        attempt(path, lambda: path and connect(socket.AF_UNIX, socket.SOCK_STREAM, path))
        attempt("there: " + path, lambda: path and os.path.lexists(path))
    import stat
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if top != "/" or name not in ("proc", "sys")]
        for name in files:
            path = os.path.join(top, name)
            attempt("found " + path, lambda: stat.S_ISSOCK(os.lstat(path).st_mode))
    breaches"""
    assert attack(sandbox, CONNECT + dedent(code), timeout_s=60).value == "[]"
