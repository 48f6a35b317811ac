"""Runs of one system, and what they have in common for a table."""

import statistics
import sys


def measure(system, kinds, load):
    """Every kind of fault as often as was asked for; their reports by kind."""
    reports = {}
    for kind in kinds:
        reports[kind] = []
        for run in range(load.runs):
            system.settle()
            report = system.run(kind, load, f"{load.out}/{system.name.lower()}-{kind}-{run}")
            reports[kind].append(report)
            print(f"{system.name} {kind} {run + 1}/{load.runs}: {report['write_gap_ms']} ms"
                  + "".join(f"; {failure}" for failure in report["failures"]), file=sys.stderr)  # fmt: skip
    return reports


def show_gaps(found, kinds, load):
    """The table of the write gaps, one line a kind."""
    print(f"\nWrite gap, median (least–most) of {load.runs} runs, {load.connections} connections:\n")
    systems = list(found)
    ratio = len(systems) == 2
    print("| | " + " | ".join(systems) + (" | ratio |" if ratio else " |"))
    print("|---|" + "---:|" * (len(systems) + ratio))
    for kind in kinds:
        row = [spread(gaps(found, system, kind)) for system in systems]
        if ratio:
            medians = [statistics.median(gaps(found, system, kind)) for system in systems]
            row.append(f"{medians[1] / max(medians[0], 1):.1f}")
        print(f"| {kind} | " + " | ".join(row) + " |")


def spread(values):
    return f"{statistics.median(values):.0f} ms ({min(values)}–{max(values)})"


def gaps(found, system, kind):
    return [report["write_gap_ms"] for report in found[system]["reports"][kind]]
