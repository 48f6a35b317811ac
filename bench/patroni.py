"""Patroni with etcd on this machine: two members, local disks, default timings, synchronous mode."""

import json
import os
import shlex
import subprocess
import sys
import urllib.error
import urllib.request

from processes import descendants, free_port, kill_trees, resident_kib, stop, wait_until

USER = "postgres"


class Patroni:
    """One cluster in one directory; `with` starts it and leaves nothing behind."""

    name = "Patroni"

    def __init__(self, directory, bin_dir, writer):
        self.directory = directory
        self.bin_dir = bin_dir
        self.writer = writer  # Baton's program, for the writer that both are measured with
        self.members = {}  # name -> configuration file, ports, process
        self.etcd = None

    def __enter__(self):
        os.makedirs(self.directory)
        subprocess.run(["chown", USER, self.directory], check=True)
        try:
            client, peer = free_port(), free_port()
            self.start_etcd(client, peer)
            for name in ("a", "b"):
                self.members[name] = self.configure(name, client)
                self.start_member(name)
                wait_until(lambda: self.role(name), 90, f"the start of member {name}")
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for member in self.members.values():
            if member.get("process"):
                stop(member["process"])
            postmaster = self.postmaster(member)
            if postmaster:
                kill_trees([postmaster])
        if self.etcd:
            stop(self.etcd)

    def spawn(self, name, command):
        log = open(f"{self.directory}/{name}.log", "ab")
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            user=USER, group=USER, extra_groups=[],
        )  # fmt: skip

    def start_etcd(self, client, peer):
        client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.etcd = self.spawn("etcd", [
            "etcd", "--name", "bench", "--data-dir", f"{self.directory}/etcd",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"bench={peer}",
        ])  # fmt: skip
        wait_until(lambda: get(f"{client}/health")[0] == 200, 30, "the start of etcd")

    def configure(self, name, etcd):
        """JSON is YAML too. Only what Patroni demands is set: all timings are its defaults."""
        rest, port = free_port(), free_port()
        trust = [f"host {database} all 127.0.0.1/32 trust" for database in ("all", "replication")]
        config = {
            "scope": "bench", "name": name,
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "restapi": {"listen": f"127.0.0.1:{rest}", "connect_address": f"127.0.0.1:{rest}"},
            "bootstrap": {
                "dcs": {"synchronous_mode": True, "postgresql": {"use_pg_rewind": True}},
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}", "connect_address": f"127.0.0.1:{port}",
                "data_dir": f"{self.directory}/{name}", "bin_dir": self.bin_dir,
                "pgpass": f"{self.directory}/{name}.pgpass",
                "authentication": {
                    "superuser": {"username": "postgres", "password": "bench"},
                    "replication": {"username": "replicator", "password": "bench"},
                },
                "pg_hba": ["local all all trust", *trust],
                "parameters": {"unix_socket_directories": self.directory},
            },
        }  # fmt: skip
        path = f"{self.directory}/{name}.yml"
        with open(path, "w") as file:
            json.dump(config, file, indent=1)
        return {"config": path, "rest": rest, "port": port, "data": f"{self.directory}/{name}"}

    def start_member(self, name):
        member = self.members[name]
        member["process"] = self.spawn(name, ["patroni", member["config"]])

    def role(self, name):
        status, body = get(f"http://127.0.0.1:{self.members[name]['rest']}/patroni")
        return json.loads(body).get("role") if status else None

    def primary(self):
        for name, member in self.members.items():
            if get(f"http://127.0.0.1:{member['rest']}/primary")[0] == 200:
                return name
        return None

    def settle(self):
        """Waits for a primary and a synchronous standby; restarts a member that was killed."""
        for name, member in self.members.items():
            if member["process"].poll() is not None:
                self.start_member(name)

        def settled():
            up = [get(f"http://127.0.0.1:{m['rest']}/sync")[0] for m in self.members.values()]
            return self.primary() and 200 in up

        wait_until(settled, 180, "a synchronous standby")

    def run(self, kind, load, out):
        """One fault under the writer; gives its report."""
        os.makedirs(out)
        fault = {"planned": self.planned, "crash": self.crash}[kind]()
        command = [self.writer, "drill", "measure", "--ledger", f"{out}/ledger", "--fault", fault]
        command += ["--connections", str(load.connections), "--before", str(load.seconds)]
        for server in self.servers():
            command += ["--server", server]
        with open(f"{out}/log", "w") as log:
            report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=log).stdout)
        with open(f"{out}/report.json", "w") as file:
            json.dump(report, file)
        return report

    def servers(self):
        ports = (member["port"] for member in self.members.values())
        return [f"host=127.0.0.1 port={port} user=postgres dbname=postgres" for port in ports]

    def planned(self):
        """The shell command of a planned switchover."""
        here = self.primary()
        there = next(name for name in self.members if name != here)
        config = shlex.quote(self.members[here]["config"])
        return f"patronictl -c {config} switchover bench --leader {here} --candidate {there} --force"

    def crash(self):
        """The shell command that kills the whole primary side."""
        member = self.members[self.primary()]
        roots = [member["process"].pid, self.postmaster(member)]
        command = [sys.executable, f"{os.path.dirname(__file__)}/kill.py", *map(str, roots)]
        return shlex.join(command)

    def postmaster(self, member):
        """The id of its live postmaster, which is no child of Patroni."""
        try:
            with open(f"{member['data']}/postmaster.pid") as file:
                pid = int(file.readline())
            with open(f"/proc/{pid}/cmdline") as cmdline:
                return pid if member["data"] in cmdline.read() else None
        except (OSError, ValueError):
            return None

    def resident_kib(self):
        """Memory of Patroni itself, without PostgreSQL, on the primary."""
        root = self.members[self.primary()]["process"].pid
        return sum(resident_kib(pid) for pid in descendants(root))


def get(url):
    """Status and body; (None, "") without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return None, ""
