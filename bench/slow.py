"""The slow line between two zones of Patroni, up to the moment before the primary's zone is lost: the
course of Baton's drill `zone-latency` (src/drill/zones/course.rs), with its times. Arguments: the
line's pipe, the run's directory with the writer's ledger, the addresses of Patroni's API."""

import json
import os
import sys
import time

from patroni import get
from processes import wait_until
from zones import shape

SLOW, BAD = (300, 0.0), (2000, 0.05)  # milliseconds and share of lost frames, in each direction
SLOW_FOR, WORSE_FOR, SAFE_WITHIN = 12, 1, 90  # seconds
LOOK = 0.1  # seconds


def main(pipe, out, *members):
    pipe = os.open(pipe, os.O_WRONLY)
    notes = []
    for delay, loss in (SLOW, BAD):
        shape(pipe, delay, loss)
        before = acknowledged(out)
        safe, looks = sample(members)
        notes.append(f"line with {delay} ms and {100 * loss:g} % loss: {acknowledged(out) - before} writes; "
                     f"a synchronous standby was named {safe} times of {looks}")  # fmt: skip
    shape(pipe, *SLOW)
    try:
        wait_until(lambda: all(map(is_safe, members)), SAFE_WITHIN, "a synchronous standby")
    except TimeoutError as late:
        notes.append(str(late))
    shape(pipe, *BAD)
    time.sleep(WORSE_FOR)
    notes.append(f"at the loss of the zone a synchronous standby was {'' if is_safe(members[0]) else 'not '}named")
    with open(f"{out}/notes.json", "w") as file:
        json.dump(notes, file)


def sample(members):
    """How often Patroni named a synchronous standby, which it may fail over to, and of how many looks."""
    safe, looks, until = 0, 0, time.monotonic() + SLOW_FOR
    while time.monotonic() < until:
        for member in members:
            safe, looks = safe + is_safe(member), looks + 1
        time.sleep(LOOK)
    return safe, looks


def is_safe(member):
    status, body = get(f"{member}/cluster")
    roles = [other["role"] for other in json.loads(body)["members"]] if status else []
    return "sync_standby" in roles


def acknowledged(out):
    with open(f"{out}/ledger") as ledger:
        return sum(line.startswith("A") for line in ledger)


if __name__ == "__main__":
    main(*sys.argv[1:])
