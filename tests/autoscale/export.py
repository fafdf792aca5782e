#!/usr/bin/env python3
"""Writes the fixture of the planner's scenarios: `export.py simulate.py > core/tests/planner/fixtures/scenarios.txt`.

`simulate.py` is the reference simulation of autoscaling policies; it is not part of this repository and is only needed to make
the fixture anew. Everything random comes from its own generators with its own seeds: the task lists from `scen`, the start times
from the generator that `Sim` gives its workers theirs with, in order of creation. The `wwb` rows are what its own windowed work
balance came to on them. Times are rounded to whole milliseconds. The format:

    starts SEED ms...                    start time of the first, second, ... worker that a policy creates, of every scenario
    scenario NAME                        the scenario of the lines below
    room N                               how many workers the cluster has room for; without it, for all
    seed SEED                            the list of one seed follows
    class NAME                           of the tasks below
    [N*][GAP:]DURATION ...               N tasks (1) that arrive GAP ms (0) after the one before and last DURATION ms, in queue order
    wwb MAKESPAN_S WORKER_S RERUN        the reference's result for this seed
"""
import importlib.util
import sys

SEEDS = 5
STARTS = 600


def milliseconds(seconds):
    return int(round(seconds * 1000))


def load(path):
    spec = importlib.util.spec_from_file_location("simulate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens(tasks):
    """Runs of equal (gap, duration) tokens; a change of class starts a new line."""
    lines, line, klass, before = [], [], None, 0
    for arrival, duration, name in tasks:
        if name != klass:
            line, klass = [], name
            lines.append((name, line))
        gap, before = milliseconds(arrival) - before, milliseconds(arrival)
        if line and gap == 0 and line[-1][1:] == [0, milliseconds(duration)]:
            line[-1][0] += 1
        else:
            line.append([1, gap, milliseconds(duration)])
    for name, line in lines:
        yield name, [("%d*" % n if n > 1 else "") + ("%d:" % gap if gap else "") + str(ms) for n, gap, ms in line]


def main():
    simulate = load(sys.argv[1])
    print("# Made by tests/autoscale/export.py, which describes the format. Times in milliseconds unless said otherwise.")
    for seed in range(1, SEEDS + 1):
        source = simulate.Sim("wwb", [], seed=seed)
        print("starts", seed, *[milliseconds(source.rng.uniform(*source.startup)) for _ in range(STARTS)])
    for name in simulate.S:
        print("scenario", name)
        for seed in range(1, SEEDS + 1):
            tasks, options = simulate.scen(name, seed)
            if seed == 1 and "room" in options:
                print("room", options["room"])
            print("seed", seed)
            # The simulation sorts its list, so equal arrivals queue shortest first.
            for klass, line in tokens(sorted(tasks)):
                print("class", klass)
                print(*line)
            run = simulate.Sim("wwb", tasks, seed=seed, **options).run()
            assert run["ok"], (name, seed)
            print("wwb", run["makespan"], round(run["worker_h"] * 3600), run["rerun"])


if __name__ == "__main__":
    main()
