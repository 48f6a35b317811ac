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


class Place:
    """Where a member runs, and who reaches it there."""

    def __init__(self, enter=(), listen="127.0.0.1", clients="127.0.0.1", peers="127.0.0.1", etcd="127.0.0.1"):
        self.enter = enter  # what its command begins with
        self.listen = listen
        self.clients = clients  # its address for clients
        self.peers = peers  # its address for the other member
        self.etcd = etcd  # etcd's address for it


class Patroni:
    """One cluster in one directory; `with` starts it and leaves nothing behind."""

    name = "Patroni"

    def __init__(self, directory, bin_dir, writer):
        self.directory = directory
        self.bin_dir = bin_dir
        self.writer = writer  # Baton's program, for the writer that both are measured with
        self.places = {"a": Place(), "b": Place()}
        self.members = {}  # name -> configuration file, place, ports, process
        self.etcd = None

    def __enter__(self):
        os.makedirs(self.directory, exist_ok=True)
        subprocess.run(["chown", USER, self.directory], check=True)
        try:
            client, peer = free_port(), free_port()
            self.start_etcd(client, peer)
            for name in self.places:
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

    def spawn(self, name, command, enter=()):
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        with open(f"{self.directory}/{name}.log", "ab") as log:
            return subprocess.Popen(
                [*enter, *user, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            )  # fmt: skip

    def start_etcd(self, client, peer):
        addresses = sorted({"127.0.0.1", *(place.etcd for place in self.places.values())})
        clients = ",".join(f"http://{address}:{client}" for address in addresses)
        client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.etcd = self.spawn("etcd", [
            "etcd", "--name", "bench", "--data-dir", f"{self.directory}/etcd",
            "--listen-client-urls", clients, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"bench={peer}",
        ])  # fmt: skip
        wait_until(lambda: get(f"{client}/health")[0] == 200, 30, "the start of etcd")

    def configure(self, name, etcd):
        """JSON is YAML too. Only what Patroni demands is set: all timings are its defaults."""
        rest, port, place = free_port(), free_port(), self.places[name]
        trust = [
            f"host {database} all {network} trust"
            for database in ("all", "replication") for network in ("127.0.0.1/32", "198.18.0.0/15")
        ]  # fmt: skip
        config = {
            "scope": "bench", "name": name,
            # the address that etcd itself tells is not everybody's
            "etcd3": {"host": f"{place.etcd}:{etcd}", "use_proxies": True},
            "restapi": {"listen": f"{place.listen}:{rest}", "connect_address": f"{place.peers}:{rest}"},
            "bootstrap": {
                "dcs": {"synchronous_mode": True, "postgresql": {"use_pg_rewind": True}},
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"{place.listen}:{port}", "connect_address": f"{place.peers}:{port}",
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
        rest = f"http://{place.clients}:{rest}"
        return {"config": path, "place": place, "rest": rest, "port": port, "data": f"{self.directory}/{name}"}

    def start_member(self, name):
        member = self.members[name]
        member["process"] = self.spawn(name, ["patroni", member["config"]], member["place"].enter)

    def role(self, name):
        status, body = get(f"{self.members[name]['rest']}/patroni")
        return json.loads(body).get("role") if status else None

    def primary(self):
        for name, member in self.members.items():
            if get(f"{member['rest']}/primary")[0] == 200:
                return name
        return None

    def settle(self):
        """Waits for a primary and a synchronous standby; restarts a member that was killed."""
        for name, member in self.members.items():
            if member["process"].poll() is not None:
                self.start_member(name)

        def settled():
            up = [get(f"{m['rest']}/sync")[0] for m in self.members.values()]
            return self.primary() and 200 in up

        wait_until(settled, 180, "a synchronous standby")

    def run(self, kind, load, out):
        """One fault under the writer; gives its report."""
        os.makedirs(out)
        command = [self.writer, "drill", "measure", "--ledger", f"{out}/ledger", *self.fault(kind, out)]
        command += ["--connections", str(load.connections), "--before", str(load.seconds)]
        for server in self.servers():
            command += ["--server", server]
        with open(f"{out}/log", "w") as log:
            report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=log).stdout)
        with open(f"{out}/report.json", "w") as file:
            json.dump(report, file)
        return report

    def fault(self, kind, _out):
        """What the writer is told of the fault."""
        return ["--fault", {"planned": self.planned, "crash": self.crash}[kind]()]

    def servers(self):
        addresses = ((m["place"].clients, m["port"]) for m in self.members.values())
        return [f"host={host} port={port} user=postgres dbname=postgres" for host, port in addresses]

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
