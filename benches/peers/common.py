"""What the peers' scripts share: arguments, the largest number of tasks that ends in time, five runs, one JSON line."""

import argparse
import json
import sys
import time
import traceback

#: Where a table's row has a fixed number of tasks, it is this.
NOOPS = 1_000_000
LINKS = 1000
TREE_TASKS = 32_767
FILES = 2000
ROUND_TRIPS = 200
BLOCK = 1 << 20


def percentile(values, p):
    values = sorted(values)
    rank = max(1, -int(-p * len(values) // 1))
    return values[min(rank, len(values)) - 1]


def edges(n, seed=1):
    """One to three earlier tasks for each task but the first: the same random graph in every language."""
    state = seed
    graph = [[]]
    for i in range(1, n):
        parents = []
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        for _ in range(1 + (state >> 33) % 3):
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            parents.append((state >> 33) % i)
        graph.append(sorted(set(parents)))
    return graph


def cpu_seconds(pid):
    """CPU time of a process so far, its threads together."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def thread_cpu_seconds(thread):
    """CPU time of a thread of this process so far."""
    with open(f"/proc/self/task/{thread}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def seconds_of(said, begin):
    """What a run took: as it says where it returns seconds, else since it began."""
    return said if isinstance(said, float) else time.perf_counter() - begin


class Bench:
    """One row of one peer."""

    def __init__(self, seconds, runs):
        self.seconds = seconds
        self.runs = runs
        self.begin = time.perf_counter()

    def largest(self, run, most, first=16, fit=int):
        """The largest number of tasks for which `run(n)` ends in the seconds of a run, found by growing it."""
        n = fit(min(first, most))
        run(n)
        while True:
            begin = time.perf_counter()
            took = seconds_of(run(n), begin)
            if n >= fit(most):
                return n
            if took >= self.seconds / 5:
                # Some cost grows faster than the number: what is left stays free.
                return max(fit(first), fit(min(most, n * self.seconds * 0.85 / took)))
            n = fit(min(most, max(n * 2, n * self.seconds / 4 / max(took, 1e-4))))

    def timed(self, row, run, most, value, first=16, fit=int, note=""):
        """Runs of the largest n; `value(n, seconds)` is the figure of one run. A run that returns seconds is taken at its word."""
        n = self.largest(run, most, first, fit)
        values = []
        for _ in range(self.runs):
            begin = time.perf_counter()
            took = seconds_of(run(n), begin)
            values.append(value(n, took))
        return {"values": {row: values}, "n": n, "note": note}

    def rate(self, row, run, most=NOOPS, **more):
        """Tasks a second."""
        return self.timed(row, run, most, lambda n, seconds: n / seconds, **more)

    def round_trips(self, one):
        """Percentiles of single tasks, one at a time, µs."""
        for _ in range(20):
            one()
        begin = time.perf_counter()
        one()
        n = max(20, min(ROUND_TRIPS * 5, int(self.seconds / (time.perf_counter() - begin))))
        medians, tails = [], []
        for _ in range(self.runs):
            micros = []
            for _ in range(n):
                begin = time.perf_counter()
                one()
                micros.append((time.perf_counter() - begin) * 1e6)
            medians.append(percentile(micros, 0.5))
            tails.append(percentile(micros, 0.99))
        return {"values": {"rtt": medians, "rtt.p99": tails}, "n": n}

    def chain(self, run):
        """µs a link."""
        return self.timed("chain", run, LINKS, lambda n, seconds: seconds * 1e6 / n, first=50)

    def tree(self, run):
        """Seconds of the whole tree; a smaller one is scaled by its number of tasks, which favours the peer."""
        def fit(n):
            power = 2
            while power * 2 - 1 <= n:
                power *= 2
            return power - 1
        note = f"scaled to {TREE_TASKS} tasks"
        return self.timed("tree", run, TREE_TASKS, lambda n, seconds: seconds * TREE_TASKS / n, first=63, fit=fit, note=note)

    def blocks(self, row, run, blocks_per_task):
        """MiB a second, blocks of 1 MiB."""
        return self.timed(row, run, 1000, lambda n, seconds: n * blocks_per_task / seconds, first=8)

    def repeat(self, row, once, n=1, note=""):
        """Runs of something that has no number of tasks to find."""
        return {"values": {row: [once() for _ in range(self.runs)]}, "n": n, "note": note}


def main(rows):
    """Runs the row that the command line names; `rows` maps it to a function of a Bench that returns the cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row", choices=sorted(rows))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    try:
        cell = rows[options.row](Bench(options.seconds, options.runs))
    except Exception as error:  # noqa: BLE001: whatever it is, the cell says so
        traceback.print_exc()
        cell = {"failed": f"failed: {type(error).__name__}: {str(error)[:200]}"}
    print(json.dumps(cell), flush=True)
    sys.stdout.flush()
