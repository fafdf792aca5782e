"""Global mean warming of one emissions pathway, by FaIR: one line of CSV a year on standard output.

    python model.py [PATHWAY] [ECS] [TCR]

PATHWAY is rcp26, rcp45, rcp60 or rcp85 (default rcp45); ECS and TCR, in kelvin, say how sensitive the climate is (3.0 and 1.8).
"""

import importlib
import sys

import numpy as np
from fair.forward import fair_scm

PATHWAYS = ("rcp26", "rcp45", "rcp60", "rcp85")


def main(pathway="rcp45", ecs="3.0", tcr="1.8"):
    if pathway not in PATHWAYS:
        sys.exit(f"model.py: no pathway '{pathway}': {', '.join(PATHWAYS)}")
    emissions = importlib.import_module(f"fair.RCPs.{pathway}").Emissions
    _, _, warming = fair_scm(emissions=emissions.emissions, tcrecs=np.array([float(tcr), float(ecs)]))
    print("year,kelvin")
    for year, kelvin in zip(emissions.year.astype(int), warming):
        print(f"{year},{kelvin:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
