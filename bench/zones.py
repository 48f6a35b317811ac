"""Two zones, each with its own storage, and the line between them; clients reach both, and so does
the store of leases (Baton) or keys (Patroni, etcd), which lies outside both.

`zone-loss` is SIGKILL to everything of the primary's zone, at once. `zone-latency` is the same after
a slow line, at the worst moment: much is under way, and a failover has just been safe. Both systems
have the same line (Baton's), the same writer and the same course: src/drill/zones/course.rs, slow.py."""

import json
import os
import shlex
import shutil
import subprocess
import sys

from baton import Baton
from patroni import Patroni, Place
from processes import stop
from runs import measure, show_gaps

KINDS = ("zone-loss", "zone-latency")
INSERT_TIMEOUT = 12  # seconds, that of the drills: over a slow line a commit takes seconds
WITHIN = 90  # seconds until a zone that is still not promoted has refused


def baton(load, scratch):
    with Baton(f"{scratch}/lab", load.baton, sites=2) as lab:
        reports = measure(lab, KINDS, load)
    for report in (report for of_kind in reports.values() for report in of_kind):
        before, after = report["zones"]["primary"]
        report["outcome"] = "promoted" if before != after else f"refused: {'; '.join(report['failures'])}"
        report["notes"] = report["zones"]["notes"]
    return {"reports": reports}


def patroni(load, scratch):
    with ZonePatroni(f"{scratch}/patroni", load.bin_dir, load.baton) as cluster:
        return {"reports": measure(cluster, KINDS, load)}


class Line:
    """Both zones' networks and the line between them: `baton lab line`, which takes shapes from a
    named pipe and ends with its last writer, however that ends."""

    def __init__(self, directory, program):
        self.pipe = f"{directory}/line"
        os.mkfifo(self.pipe)
        self.writer = os.open(self.pipe, os.O_RDWR)  # which does not wait for the reader
        reader = os.open(self.pipe, os.O_RDONLY)
        command = [program, "lab", "line", "--dir", directory]
        # not by the terminal's signal: the networks must outlive what runs there
        self.process = subprocess.Popen(command, stdin=reader, stdout=subprocess.PIPE, start_new_session=True)
        os.close(reader)
        told = self.process.stdout.readline()
        if not told:
            self.close()
            raise RuntimeError("the zones' networks could not be made")
        self.sites = json.loads(told)

    def set(self, delay_ms=0, loss=0.0):
        shape(self.writer, delay_ms, loss)

    def close(self):
        os.close(self.writer)
        stop(self.process)


def shape(pipe, delay_ms, loss):
    """What the line does to frames from now on, in each direction."""
    what = {"delay_ms": delay_ms, "jitter_ms": 0, "loss": loss, "cut": False}
    os.write(pipe, (json.dumps(what) + "\n").encode())


class ZonePatroni(Patroni):
    """A member in each zone; etcd where the clients are."""

    line = None

    def __enter__(self):
        os.makedirs(self.directory)
        try:
            self.line = Line(self.directory, self.writer)
            self.places = {name: self.place(site) for name, site in self.line.sites.items()}
            return super().__enter__()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        super().__exit__()
        if self.line:
            self.line.close()
            self.line = None

    def place(self, site):
        enter = ["nsenter", f"--net={site['namespace']}"]
        return Place(enter, "0.0.0.0", clients=site["address"], peers=site["line"], etcd=site["clients"])

    def settle(self):
        self.line.set()
        super().settle()

    def fault(self, kind, out):
        told = ["--fault", self.crash(), "--insert-timeout", str(INSERT_TIMEOUT), "--within", str(WITHIN)]
        if kind == "zone-latency":
            slow = [sys.executable, f"{os.path.dirname(__file__)}/slow.py", self.line.pipe, out]
            slow += [member["rest"] for member in self.members.values()]
            told += ["--prelude", shlex.join(slow)]
        return told

    def run(self, kind, load, out):
        before = self.primary()
        try:
            report = super().run(kind, load, out)
        except json.JSONDecodeError:  # the writer ended without a server that could be asked
            report = {"passed": False, "write_gap_ms": WITHIN * 1000, "writes": {"lost": None}}
            report["failures"] = [last_line(f"{out}/log")]
        after = self.primary()
        survivor = next(name for name in self.members if name != before)
        refused = f"refused: {last_line(f'{self.directory}/{survivor}.log')}"
        for name in self.members:
            shutil.copy(f"{self.directory}/{name}.log", out)
        report["outcome"] = "promoted" if after == survivor else refused
        try:
            with open(f"{out}/notes.json") as file:
                report["notes"] = json.load(file)
        except FileNotFoundError:
            report["notes"] = []
        return report


def last_line(path):
    with open(path) as file:
        return ([""] + file.read().splitlines())[-1]


def show(found, load):
    show_gaps(found, KINDS, load)
    print("\n| | outcome | acknowledged writes lost |\n|---|---|---:|")
    for kind in KINDS:
        for system, of_system in found.items():
            for report in of_system["reports"][kind]:
                print(f"| {system}, {kind} | {report['outcome']} | {report['writes']['lost']} |")
    for system, of_system in found.items():
        for report in of_system["reports"]["zone-latency"]:
            print("".join(f"\n{system}: {note}" for note in report["notes"]))
