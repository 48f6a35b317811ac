"""Baton's lab: two members, one volume over NVMe/TCP, or two sites of that. Timings are the defaults, but for a shorter
keep-alive and quiesce time: so long does a crashed owner wait until it is ready again, and no gap does."""

import json
import os
import subprocess

from processes import descendants, resident_kib, wait_until


class Baton:
    """One lab in one directory; `with` starts it and leaves nothing behind."""

    name = "Baton"

    def __init__(self, directory, program, sites=1):
        self.directory = directory
        self.sites = sites
        self.program = os.path.abspath(program)

    def __enter__(self):
        try:
            self.lab("up", "--sites", str(self.sites)).check_returncode()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.lab("down")

    def lab(self, command, *more):
        command = [self.program, "lab", command, "--dir", self.directory, *more]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False)

    def settle(self):
        """Waits until one member serves and the other is ready: after a crash, when the last commands
        of its former life are over for certain."""
        wait_until(lambda: self.lab("status").returncode == 0, 90, "a ready standby")

    def run(self, kind, load, out):
        """One drill, with all its checks; gives its report, also where it failed."""
        command = [self.program, "drill", "run", kind, "--lab", self.directory, "--report", out]
        command += ["--connections", str(load.connections), "--seconds", str(load.seconds)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        with open(f"{out}/report.json") as file:
            return json.load(file)

    def record(self, name):
        with open(f"{self.directory}/{name}.json") as file:
            return json.load(file)

    def servers(self):
        members = self.record("lab")["members"].values()
        ports = (member["postgres_port"] for member in members)
        return [f"host=127.0.0.1 port={port} user=postgres dbname=postgres" for port in ports]

    def active(self):
        """Name and epoch of the member that serves."""
        for name in ("a", "b"):
            socket = f"{self.directory}/{name}/control.sock"
            command = [self.program, "status", "--socket", socket, "--output", "json"]
            answer = subprocess.run(command, capture_output=True, check=False)
            status = json.loads(answer.stdout) if answer.stdout else {}
            if status.get("serving"):
                return name, status["members"][0]["epoch"]
        return None

    def resident_kib(self):
        """Memory of the active member itself, and of its bridge; without PostgreSQL."""
        name, _ = wait_until(self.active, 60, "an active member")
        root = self.record("processes")["members"][name]["process"]["pid"]
        bridges = (pid for pid in descendants(root) if "bridge" in arguments(pid))
        return resident_kib(root), sum(map(resident_kib, bridges))


def arguments(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")
