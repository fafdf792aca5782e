"""Checks a finished ensemble against FaIR called by hand.

    .venv/bin/python check.py RUN_DIRECTORY [--sample N] [--busy SHARE]

Takes every k-th published series of the run, so that about N of them are looked at and every pathway is among them, calls
`fair_scm` here with the pathway and the parameters the series names, and compares warming in 2100. Then it makes medians and
ranges of all published series anew and compares them with the published table. Shares no code with what it checks. At the end it
says how busy the members kept the workers' cores, from the run's records; with --busy less than that share is a failure.
"""

import argparse
import csv
import datetime
import json
import pathlib
import sys

import numpy as np
from fair.forward import fair_scm
from fair.RCPs import rcp26, rcp45, rcp60, rcp85

MODULES = {"rcp26": rcp26, "rcp45": rcp45, "rcp60": rcp60, "rcp85": rcp85}
# The same libraries on the same machine give the same digits; a thousandth of a millikelvin allows for another machine's.
TOLERANCE_K = 1e-6
# The table is written with four digits after the point.
TABLE_TOLERANCE_K = 0.51e-4


def published(path):
    origin, last = {}, None
    for line in path.read_text().splitlines():
        if line.startswith("# "):
            name, value = line[2:].split(": ", 1)
            origin[name] = value
        else:
            last = line.split(",")
    if last[0] != "2100":
        sys.exit(f"{path} ends in {last[0]}, not in 2100")
    return origin, float(last[1])


def by_hand(pathway, ecs, tcr):
    emissions = MODULES[pathway].Emissions
    temperature = fair_scm(emissions=emissions.emissions, tcrecs=np.array([tcr, ecs]))[2]
    year = emissions.year
    return temperature[year == 2100][0] - np.mean([t for t, y in zip(temperature, year) if 1850 <= y <= 1900])


def instant(text):
    """Seconds of an RFC 3339 time in UTC with any number of digits behind the second."""
    return datetime.datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").timestamp() + float("0" + text[19:].rstrip("Z"))


def busy(run):
    """User and system time of the members' processes, as a share of all cores from the first start to the last end."""
    members = [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]
    members = [task for task in members if task["task_name"] == "simulate"]
    wall = max(instant(task["finished_at"]) for task in members) - min(instant(task["started_at"]) for task in members)
    cores = len({task["worker"] for task in members})
    return sum(task["user_s"] + task["system_s"] for task in members) / (cores * wall), cores, wall


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("run", type=pathlib.Path, help="directory of the run, .scalable/runs/run-…")
    arguments.add_argument("--sample", type=int, default=8, help="members to call FaIR for")
    arguments.add_argument("--busy", type=float, default=0.0, help="least share of the cores' time that the members must have used")
    options = arguments.parse_args()
    series = sorted(path for path in (options.run / "outputs" / "simulate").glob("*/series"))
    if not series:
        sys.exit(f"{options.run} has no series under outputs/simulate")

    warming = {}
    for path in series:
        origin, kelvin = published(path)
        warming.setdefault(origin["pathway"], []).append(kelvin)
        if f"pathway={origin['pathway']}" not in path.parent.name or f"member={origin['member']}" not in path.parent.name.split(","):
            sys.exit(f"{path} holds the series of {origin['pathway']} member {origin['member']}")
    if sorted(warming) != sorted(MODULES):
        sys.exit(f"pathways published: {sorted(warming)}, expected: {sorted(MODULES)}")

    checked, worst = set(), 0.0
    for path in series[:: max(1, len(series) // max(options.sample, 1))]:
        origin, kelvin = published(path)
        expected = by_hand(origin["pathway"], float(origin["ecs"]), float(origin["tcr"]))
        difference = abs(kelvin - expected)
        if not difference <= TOLERANCE_K:
            sys.exit(f"{path}: {kelvin} K in 2100, FaIR called by hand says {expected} K")
        worst = max(worst, difference)
        checked.add((origin["pathway"], origin["member"]))

    (table,) = (options.run / "outputs" / "summarise").glob("**/warming.csv")
    rows = {row["pathway"]: row for row in csv.DictReader(table.open(newline=""))}
    for pathway, members in warming.items():
        if int(rows[pathway]["members"]) != len(members):
            sys.exit(f"{table}: {rows[pathway]['members']} members of {pathway}, {len(members)} are published")
        for name, quantile in (("p5", 5), ("median", 50), ("p95", 95)):
            expected = np.percentile(members, quantile)
            if not abs(float(rows[pathway][name]) - expected) <= TABLE_TOLERANCE_K:
                sys.exit(f"{table}: {name} of {pathway} is {rows[pathway][name]} K, the members say {expected} K")
    for name in ("warming.png", "warming.svg", "summary.txt", "inputs.json"):
        if not (table.parent / name).stat().st_size:
            sys.exit(f"{table.parent / name} is empty")
    print(
        f"{len(checked)} of {len(series)} members are what FaIR gives when called by hand (largest difference {worst:.1e} K); "
        "the table is what the members say"
    )
    share, cores, wall = busy(options.run)
    print(f"members used {share:.1%} of {cores} cores for {wall:.1f} s")
    if share < options.busy:
        sys.exit(f"less than {options.busy:.0%}")


if __name__ == "__main__":
    main()
