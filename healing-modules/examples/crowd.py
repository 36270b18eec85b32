#!/usr/bin/env python3
"""A healing module outside of the monitor: too many processes of one name.

Ends what a user has too many of: of the processes whose command name fits `pattern`, each user may have `limit`. The
oldest of them live, the younger ones end. Unlike the module `forkbomb` it leaves a user's other processes out of the
count, so that a database with its hundred workers does not hide twenty browsers that should not be there.

    [[target.repair.module]]
    command = ["/usr/lib/backdoors/crowd.py"]
    sensors = ["tasks"]
    settings = { pattern = "chrom(e|ium)", limit = 20 }

How it speaks with the monitor is told in docs/guide/own-modules.md. Needs nothing but python3.
"""

import json
import re
import sys
from collections import defaultdict

# The rows of processes, and their flags.
PID, PARENT, UID, COMM, START_NS, DEPTH, RSS_PAGES, FLAGS, SWAP_PAGES = range(9)
KERNEL_THREAD, EXITING = 1, 2


def say(line):
    print(json.dumps(line, separators=(",", ":")), flush=True)


class Crowd:
    def __init__(self, hello):
        settings = hello["settings"]
        self.pattern = re.compile(settings["pattern"])
        self.limit = int(settings["limit"])
        # No plan may touch these: one that does is refused as a whole.
        self.spare_uids = set(hello["spare_uids"])
        self.spare_comms = set(hello["spare_comms"])
        self.blast_cap = hello["blast_cap"]

    def counts(self, process):
        is_some_user_s = process[UID] is not None and process[UID] not in self.spare_uids
        is_alive = not process[FLAGS] & (KERNEL_THREAD | EXITING) and process[PID] > 1
        is_named = process[COMM] not in self.spare_comms and self.pattern.fullmatch(process[COMM])
        return is_some_user_s and is_alive and is_named

    def diagnose(self, now):
        crowds = defaultdict(list)
        for process in now["processes"]:
            if self.counts(process):
                crowds[process[UID]].append(process)
        if not crowds:
            return None
        # One user at a time, the worst first: after each cure the monitor asks again.
        uid, crowd = max(crowds.items(), key=lambda item: (len(item[1]), item[0]))
        if len(crowd) <= self.limit:
            return None
        crowd.sort(key=lambda process: (process[START_NS], process[PID]))
        young = crowd[self.limit:][:self.blast_cap]
        return {
            "policy": "CROWD",
            "proof": f"user {uid} has {len(crowd)} processes like {self.pattern.pattern[:80]!a}, {self.limit} may be",
            "culprits": [[process[PID], process[START_NS]] for process in young],
        }


def main():
    hello = json.loads(sys.stdin.readline())["hello"]
    if hello["version"] != 1:
        sys.exit(f"crowd.py speaks version 1 and not {hello['version']}")
    crowd = Crowd(hello)
    say({"hello": {"version": 1}})
    # The end of the input is the end of the monitor, and of this.
    for line in sys.stdin:
        question = json.loads(line)
        plan = crowd.diagnose(question["now"])
        if plan:
            print(plan["proof"], file=sys.stderr, flush=True)  # goes to the monitor's log
            say({"answer": question["ask"], "plan": plan})
        else:
            say({"answer": question["ask"], "healthy": True})


if __name__ == "__main__":
    main()
