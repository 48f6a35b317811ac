"""Processes that the benchmark starts: always in trees of its own, always ended by their ids."""

import os
import random
import signal
import socket
import subprocess
import time


def free_port():
    """Below Linux's range for outgoing connections, from which one may take the port of a server
    that is down for a moment, or even connect to itself."""
    while True:
        port = random.randrange(15000, 30000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def descendants(pid):
    """The ids of a process's children and theirs, itself first."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        found.append(parent)
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as children:
                    todo += [int(child) for child in children.read().split()]
        except OSError:
            pass  # it has just ended: so have its claims to children
    return found


def kill_trees(roots):
    """SIGKILL to whole trees. Found first and killed together: a parent that dies orphans its
    children, who could then not be found any more."""
    for pid in [pid for root in roots for pid in descendants(root)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def stop(process, timeout=30):
    """SIGTERM to a child of ours, SIGKILL to its tree if that does not help."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            kill_trees([process.pid])
            process.wait()


def wait_until(condition, timeout, what):
    """Polls a condition of a foreign program that offers nothing to wait on."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what} took longer than {timeout} s")


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0
