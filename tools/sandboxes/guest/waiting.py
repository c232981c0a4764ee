"""`Waiting`: for file descriptors, while the host, the processes and their memory are watched."""

from __future__ import annotations

import select
import time

from palestra.tools.sandboxes.guest.children import Children
from palestra.tools.sandboxes.guest.frames import Gone
from palestra.tools.sandboxes.guest.memory import enforce_total, pids

TICK_S = 0.05
IDLE_TICK_S = 0.5  # while nothing is known to run, but a thread of the session may wake up
LONGEST_S = 3600.0


class HostGone(Gone):
    """The host has closed the connection."""


class OutOfMemory(Exception):
    """The processes held too much together; all have been killed."""


class Waiting:
    """Waits on behalf of the operation that is going on.

    `watched_mb` is what all processes may hold together, 0 where something else sees to that.
    """

    def __init__(self, host_fd: int, children: Children) -> None:
        self.host_fd = host_fd
        self.children = children
        self.watched_mb = 0
        self.others = 0  # processes beside the guest and its session, when last counted
        self._next_look = 0.0

    def watch_memory(self, limit_mb: int) -> None:
        """Look at it from now on, first after a tick; 0: not at all."""
        self.watched_mb = limit_mb
        self._next_look = time.monotonic() + TICK_S

    def wait(self, interest: dict[int, int], until: float) -> dict[int, int]:
        """The descriptors that are ready, with their events; none at the time `until`.

        Raises:
            HostGone, OutOfMemory: see there.
        """
        poll = select.poll()
        poll.register(self.host_fd, 0)  # POLLHUP comes unasked
        poll.register(self.children.ended_fd, select.POLLIN)
        for fd, events in interest.items():
            poll.register(fd, events)
        wait_s = min(max(0.0, until - time.monotonic()), LONGEST_S)
        if self.watched_mb:
            wait_s = min(wait_s, TICK_S)
        ready = dict(poll.poll(1000 * wait_s + 1))
        if self.host_fd in ready:
            raise HostGone
        if self.children.ended_fd in ready:
            self.children.reap()
        if self._has_to_look() and enforce_total(self.watched_mb):
            raise OutOfMemory
        return ready

    def _has_to_look(self) -> bool:
        now = time.monotonic()
        if not self.watched_mb or now < self._next_look:
            return False
        self._next_look = now + TICK_S
        return True

    def wait_for_host(self) -> None:
        """Until the host asks for something, or closes the connection."""
        poll = select.poll()
        poll.register(self.host_fd, select.POLLIN)
        poll.register(self.children.ended_fd, select.POLLIN)
        while True:
            tick_s = TICK_S if self.others else IDLE_TICK_S
            ready = dict(poll.poll(1000 * tick_s if self.watched_mb else None))
            if self.children.ended_fd in ready:
                self.children.reap()
            if self.host_fd in ready:
                return
            if self._has_to_look():
                enforce_total(self.watched_mb)
                self.others = max(0, len(pids()) - 2)
