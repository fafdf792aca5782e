"""One member of the ensemble: FaIR driven by one pathway's emissions with one pair (ECS, TCR).

Writes global mean surface warming for every year from 1850 to 2100, relative to the mean of 1850 to 1900. Figures are written
with all their digits, so that the summary works on what FaIR said.
"""

import argparse
import csv
import importlib
import sys
from importlib.metadata import version

import numpy as np
from fair.forward import fair_scm

FIRST_YEAR, LAST_YEAR = 1850, 2100
BASELINE = (1850, 1900)
PATHWAYS = ("rcp26", "rcp45", "rcp60", "rcp85")


def warming(pathway, ecs, tcr):
    """Years and warming in kelvin above the baseline."""
    emissions = importlib.import_module(f"fair.RCPs.{pathway}").Emissions
    _, _, temperature = fair_scm(emissions=emissions.emissions, tcrecs=np.array([tcr, ecs]))
    in_baseline = (emissions.year >= BASELINE[0]) & (emissions.year <= BASELINE[1])
    wanted = (emissions.year >= FIRST_YEAR) & (emissions.year <= LAST_YEAR)
    return emissions.year[wanted].astype(int), (temperature - temperature[in_baseline].mean())[wanted]


def row(table, member):
    """The member's row of the parameter table."""
    with open(table, newline="") as file:
        for candidate in csv.DictReader(file):
            if int(candidate["member"]) == member:
                return candidate
    sys.exit(f"{table} has no row for member {member}: was it made for a smaller ensemble?")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("pathway", choices=PATHWAYS)
    arguments.add_argument("member", type=int)
    arguments.add_argument("table", help="parameters, as prepare.py writes them")
    arguments.add_argument("series", help="series to write: year,warming after lines that say where it comes from")
    options = arguments.parse_args()
    parameters = row(options.table, options.member)
    years, kelvin = warming(options.pathway, float(parameters["ecs"]), float(parameters["tcr"]))
    if not np.isfinite(kelvin).all():
        sys.exit(f"FaIR gave a warming that is not a number for {options.pathway} with {parameters}")
    origin = {
        "pathway": options.pathway,
        "member": options.member,
        "seed": parameters["seed"],
        "ecs": parameters["ecs"],
        "tcr": parameters["tcr"],
        "fair": version("fair"),
        "numpy": version("numpy"),
        "python": sys.version.split()[0],
    }
    with open(options.series, "w", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in origin.items())
        rows = csv.writer(file)
        rows.writerow(["year", "warming"])
        rows.writerows((year, repr(float(value))) for year, value in zip(years, kelvin))
    print(f"{options.pathway} member {options.member}: {kelvin[-1]:.2f} K in {years[-1]}")


if __name__ == "__main__":
    main()
