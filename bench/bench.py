"""Baton and Patroni on one machine, in one run, under the same writer.

Write gap: the longest interval around the fault without any acknowledged write, over all
connections. `planned` is each system's own switchover; `crash` is SIGKILL to everything of the
primary side, at once. Prints the table of README.md; every number's source is kept in --out."""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

import zones
from baton import Baton
from patroni import Patroni
from processes import wait_until
from runs import measure, show_gaps

KINDS = ("planned", "crash")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baton", required=True, help="the program")
    parser.add_argument("--bin-dir", required=True, help="PostgreSQL's programs")
    parser.add_argument("--runs", type=int, default=5, help="of each kind and system (default 5)")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3, help="of writing before a fault")
    parser.add_argument("--load-seconds", type=int, default=60, help="of full CPU load")
    parser.add_argument("--zones", action="store_true", help="two sites: loss of one, after a slow line too")
    parser.add_argument("--only", choices=("baton", "patroni"), help="leave the other out")
    parser.add_argument("--out", default="out/bench", help="where all reports go")
    return parser.parse_args()


def main():
    load = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    shutil.rmtree(load.out, ignore_errors=True)
    os.makedirs(load.out)
    # on a disk, both of them: in memory, PostgreSQL's syncs would cost nothing
    scratch = tempfile.mkdtemp(prefix="baton-bench-", dir="/var/tmp")
    os.chmod(scratch, 0o755)
    systems = {"Baton": zones.baton, "Patroni": zones.patroni} if load.zones else {"Baton": baton, "Patroni": patroni}
    found = {}
    try:
        for name, of_system in systems.items():
            if load.only in (None, name.lower()):
                found[name] = of_system(load, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    with open(f"{load.out}/bench.json", "w") as file:
        json.dump(found, file, indent=1)
    (zones.show if load.zones else show)(found, load)
    failed = [r for f in found.values() for rs in f["reports"].values() for r in rs if not r["passed"]]
    return bool(failed) or found.get("Baton", {}).get("false_takeovers", 0) > 0


def baton(load, scratch):
    with Baton(f"{scratch}/lab", load.baton) as lab:
        found = {"reports": measure(lab, KINDS, load)}
        lab.settle()
        found["resident_kib"] = lab.resident_kib()
        found["false_takeovers"], found["loaded"] = full_load(lab, load)
        return found


def patroni(load, scratch):
    with Patroni(f"{scratch}/patroni", load.bin_dir, load.baton) as cluster:
        return {"reports": measure(cluster, KINDS, load), "resident_kib": cluster.resident_kib()}


def full_load(lab, load):
    """Twice as many busy processes as cores, beside the writers: changes of ownership, and the
    writers' report."""
    _, before = wait_until(lab.active, 60, "an active member")
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * os.cpu_count())]
    try:
        command = [load.baton, "drill", "measure", "--ledger", f"{load.out}/load-ledger"]
        command += ["--connections", str(load.connections), "--fault", f"sleep {load.load_seconds}"]
        for server in lab.servers():
            command += ["--server", server]
        report = json.loads(subprocess.run(command, stdout=subprocess.PIPE).stdout)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    _, after = wait_until(lab.active, 60, "an active member")
    return after - before, report


def show(found, load):
    show_gaps(found, KINDS, load)
    if "Baton" in found:
        show_phases(found["Baton"]["reports"])
        show_rest(found, load)


def show_phases(reports):
    print("\nWhere Baton's time goes, median start and duration in ms after the fault:\n")
    for kind in KINDS:
        print(f"| {kind} | member | start | took |\n|---|---|---:|---:|")
        phases = {}
        for report in reports[kind]:
            for phase in report["phases"]:
                phases.setdefault(phase["name"], []).append((phase, report["phases"][0]["member"]))
        for name, seen in phases.items():
            start = statistics.median(phase["start_ms"] for phase, _ in seen)
            took = statistics.median(phase["duration_ms"] for phase, _ in seen)
            old = kind == "planned" and seen[0][0]["member"] == seen[0][1]
            print(f"| {name} | {'old active' if old else 'new active'} | {start:.0f} | {took:.0f} |")
        print()


def show_rest(found, load):
    member, bridge = found["Baton"]["resident_kib"]
    print(f"Resident memory: member {member / 1024:.1f} MiB, bridge {bridge / 1024:.1f} MiB", end="")
    if "Patroni" in found:
        print(f"; Patroni {found['Patroni']['resident_kib'] / 1024:.1f} MiB", end="")
    loaded = found["Baton"]["loaded"]
    print(f".\nFull CPU load for {load.load_seconds} s, twice as many busy processes as cores: "
          f"{found['Baton']['false_takeovers']} take-overs; longest write gap {loaded['write_gap_ms']} ms.")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
