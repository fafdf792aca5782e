"""Summarises the ensemble: median and 5 to 95 % range of warming in 2100 for each pathway, as a table and a plot.

Takes a file that lists the members' series, one path a line, and writes a directory:

    warming.csv   the table: pathway, members, p5, median, p95
    warming.png   the plot; warming.svg is the same without pixels
    summary.txt   the table for people, and everything it rests on
    inputs.json   what it rests on, for programs
"""

import argparse
import csv
import json
import os
import sys
from importlib.metadata import version

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

LABELS = {"rcp26": "RCP 2.6", "rcp45": "RCP 4.5", "rcp60": "RCP 6.0", "rcp85": "RCP 8.5"}
# Pathway colours of IPCC AR5.
COLOURS = {"rcp26": "#1f4e9c", "rcp45": "#4aa3d8", "rcp60": "#e0872e", "rcp85": "#c4262e"}
INK, QUIET, GRID, HISTORY = "#22272e", "#6b7480", "#e6e9ed", "#4a525c"
# Where the pathways part: RCP emissions are historical up to here.
LAST_HISTORICAL_YEAR = 2005
BASELINE = "mean of 1850 to 1900"
QUANTILES = (5, 50, 95)


def read(path):
    """One member: the lines that say where it comes from, years, warming."""
    origin = {}
    with open(path, newline="") as file:
        for line in file:
            if not line.startswith("# "):
                break
            name, value = line[2:].strip().split(": ", 1)
            origin[name] = value
        rows = [(int(year), float(kelvin)) for year, kelvin in csv.reader(file)]
    years, kelvin = zip(*rows)
    return origin, np.array(years), np.array(kelvin)


def single(origins, name):
    """The one value that all members share; mixed ensembles are refused."""
    values = sorted({origin[name] for origin in origins})
    if len(values) != 1:
        sys.exit(f"members do not agree on {name}: {', '.join(values)}; an ensemble is made in one piece")
    return values[0]


def gather(paths):
    """Members by pathway, years, and what all of them rest on."""
    pathways, origins, years = {}, [], None
    for path in paths:
        origin, member_years, kelvin = read(path)
        if years is None:
            years = member_years
        if not np.array_equal(years, member_years):
            sys.exit(f"{path} has other years than the members before it")
        origins.append(origin)
        pathways.setdefault(origin["pathway"], []).append(kelvin)
    if not origins:
        sys.exit("no member to summarise")
    inputs = {
        "model": "FaIR " + single(origins, "fair"),
        "emissions": "RCP " + ", ".join(LABELS[p][4:] for p in sorted(pathways)) + ", as carried by FaIR",
        "baseline": BASELINE,
        "members": len(origins),
        "members_per_pathway": {pathway: len(members) for pathway, members in sorted(pathways.items())},
        "seed": int(single(origins, "seed")),
        "sampling": "ECS and TCR log-normal, 5 to 95 % are 2 to 5 K and 1.2 to 2.4 K (IPCC AR6 WG1, very likely), correlation 0.8",
        "versions": {
            "fair": single(origins, "fair"),
            "numpy": single(origins, "numpy"),
            "scipy": version("scipy"),
            "matplotlib": version("matplotlib"),
            "python": single(origins, "python"),
        },
    }
    return {pathway: np.array(members) for pathway, members in sorted(pathways.items())}, years, inputs


def write_table(path, table):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["pathway", "members", "p5", "median", "p95"])
        rows.writerows((pathway, count, *(f"{value:.4f}" for value in quantiles)) for pathway, count, quantiles in table)


def summary_text(table, inputs, last_year):
    lines = [f"Warming in {last_year} above the {inputs['baseline']}", "", "  pathway    median    5 - 95 %          members"]
    for pathway, count, (low, middle, high) in table:
        lines.append(f"  {LABELS[pathway]:<9}{middle:6.2f} K    {low:.2f} - {high:.2f} K{count:12,}")
    versions = ", ".join(f"{name} {number}" for name, number in inputs["versions"].items())
    lines += [
        "",
        f"model      {inputs['model']}, emissions {inputs['emissions']}",
        f"ensemble   {inputs['members']:,} members, seed {inputs['seed']}",
        f"sampling   {inputs['sampling']}",
        f"versions   {versions}",
        "",
    ]
    return "\n".join(lines)


def spread(positions, gap):
    """Moves label positions apart until neighbours are at least `gap` from each other, keeping their order and their mean."""
    order = sorted(range(len(positions)), key=lambda at: positions[at])
    moved = list(positions)
    for _ in range(200):
        for low, high in zip(order, order[1:]):
            lacking = gap - (moved[high] - moved[low])
            if lacking > 0:
                moved[low] -= lacking / 2
                moved[high] += lacking / 2
    return moved


def plot(directory, pathways, years, table, inputs):
    plt.rcParams.update(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
            "font.size": 11,
            "axes.edgecolor": QUIET,
            "axes.labelcolor": INK,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "text.color": INK,
            "svg.fonttype": "none",
            "svg.hashsalt": "scalable",
        }
    )
    figure, (series, bars) = plt.subplots(
        1, 2, figsize=(11.5, 6.6), dpi=160, sharey=True, gridspec_kw={"width_ratios": [5, 1.75], "wspace": 0.0}
    )
    figure.subplots_adjust(left=0.07, right=0.985, top=0.845, bottom=0.125)

    everything = np.concatenate(list(pathways.values()))
    past = years <= LAST_HISTORICAL_YEAR
    future = years >= LAST_HISTORICAL_YEAR
    low, middle, high = np.percentile(everything[:, past], QUANTILES, axis=0)
    series.fill_between(years[past], low, high, color=HISTORY, alpha=0.18, linewidth=0)
    series.plot(years[past], middle, color=HISTORY, linewidth=1.8)
    # The widest plume lies at the back so that every band stays visible.
    for pathway in reversed(list(pathways)):
        low, middle, high = np.percentile(pathways[pathway][:, future], QUANTILES, axis=0)
        series.fill_between(years[future], low, high, color=COLOURS[pathway], alpha=0.15, linewidth=0)
        series.plot(years[future], middle, color=COLOURS[pathway], linewidth=2.4, solid_capstyle="round")

    top = max(quantiles[2] for _, _, quantiles in table)
    ceiling = np.ceil(top * 1.06)
    floor = min(-0.5, np.floor(everything.min() * 2) / 2)
    series.set_ylim(floor, ceiling)
    series.set_xlim(years[0], years[-1])
    series.set_xticks(range(1850, int(years[-1]) + 1, 50))
    series.set_yticks(np.arange(0, ceiling + 0.1, 1))
    series.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f} K" if value else "0 K")
    series.grid(axis="y", color=GRID, linewidth=0.9)
    series.axhline(0, color=QUIET, linewidth=0.9)
    series.set_axisbelow(True)
    series.axvline(LAST_HISTORICAL_YEAR, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
    series.text(LAST_HISTORICAL_YEAR - 3, ceiling - 0.12, "historical", ha="right", va="top", color=QUIET, fontsize=10)
    series.text(LAST_HISTORICAL_YEAR + 3, ceiling - 0.12, "pathways", ha="left", va="top", color=QUIET, fontsize=10)
    for axes in (series, bars):
        axes.tick_params(length=0, pad=7)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)

    # The right-hand panel is the table: one bar a pathway on the same scale, 5 to 95 % with the median marked.
    labels_at = spread([quantiles[1] for _, _, quantiles in table], (ceiling - floor) * 0.085)
    for at, ((pathway, _, (low, middle, high)), label_at) in enumerate(zip(table, labels_at)):
        x = 0.30 + 0.36 * at
        bars.fill_between([x - 0.09, x + 0.09], low, high, color=COLOURS[pathway], alpha=0.28, linewidth=0)
        bars.plot([x - 0.09, x + 0.09], [middle, middle], color=COLOURS[pathway], linewidth=3, solid_capstyle="butt")
        bars.plot([x + 0.11, 1.66], [middle, label_at], color=COLOURS[pathway], linewidth=0.6, alpha=0.45)
        bars.text(1.70, label_at, f"{middle:+.1f} K", color=COLOURS[pathway], weight="bold", va="bottom", fontsize=12)
        bars.text(1.70, label_at - 0.02, f"{LABELS[pathway]}  {low:.1f} to {high:.1f}", color=COLOURS[pathway], va="top", fontsize=9)
    bars.set_xlim(0, 3.05)
    bars.set_xticks([])
    bars.spines["bottom"].set_visible(False)
    bars.axhline(0, xmax=1.60 / 3.05, color=QUIET, linewidth=0.9)
    bars.text(0.30 + 0.36 * 1.5, floor, f"in {years[-1]}", ha="center", va="bottom", color=QUIET, fontsize=10)

    figure.text(0.02, 0.955, "How much the world warms, by emissions pathway", fontsize=17, weight="bold", va="center")
    figure.text(
        0.02,
        0.905,
        f"Global mean surface temperature above the {inputs['baseline']}: median and 5–95 % range of {inputs['members']:,} members",
        color=QUIET,
        fontsize=11.5,
        va="center",
    )
    versions = inputs["versions"]
    figure.text(
        0.02,
        0.03,
        f"FaIR {versions['fair']}, seed {inputs['seed']}. Equilibrium sensitivity and transient response sampled from the very likely ranges of IPCC AR6 WG1.",
        color=QUIET,
        fontsize=9,
        va="center",
    )
    figure.savefig(os.path.join(directory, "warming.png"))
    figure.savefig(os.path.join(directory, "warming.svg"), metadata={"Date": None})


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("directory", help="where the report is written; made when it is not there")
    arguments.add_argument("list", help="file with the path of one member's series a line")
    options = arguments.parse_args()
    with open(options.list) as file:
        paths = [line.rstrip("\n") for line in file if line.strip()]
    pathways, years, inputs = gather(paths)
    table = [(pathway, len(members), np.percentile(members[:, -1], QUANTILES)) for pathway, members in pathways.items()]
    os.makedirs(options.directory, exist_ok=True)
    write_table(os.path.join(options.directory, "warming.csv"), table)
    with open(os.path.join(options.directory, "inputs.json"), "w") as file:
        json.dump(inputs, file, indent=2)
        file.write("\n")
    text = summary_text(table, inputs, years[-1])
    with open(os.path.join(options.directory, "summary.txt"), "w") as file:
        file.write(text)
    plot(options.directory, pathways, years, table, inputs)
    print(text, end="")


if __name__ == "__main__":
    main()
