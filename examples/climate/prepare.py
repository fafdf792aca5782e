"""Samples the ensemble's parameters: one row a member, the same rows for every pathway.

Equilibrium climate sensitivity (ECS) and transient climate response (TCR) are drawn from two log-normal distributions whose
5th and 95th percentiles are the "very likely" ranges of IPCC AR6 WG1 chapter 7 (ECS 2 to 5 K, TCR 1.2 to 2.4 K), correlated
with 0.8 in the logarithm. Pairs that FaIR's two-box temperature response cannot represent are drawn again.
"""

import argparse
import csv
import math

import numpy as np

ECS_VERY_LIKELY_K = (2.0, 5.0)
TCR_VERY_LIKELY_K = (1.2, 2.4)
CORRELATION = 0.8
# 95th percentile of the standard normal distribution.
Z95 = 1.6448536269514722
# With FaIR's response times of 239 and 4.1 years both boxes warm only for TCR/ECS between 0.133 and 0.941
# (Millar et al. 2017, equation 5); a little is kept clear of either end.
TCR_TO_ECS = (0.15, 0.92)


def log_normal(very_likely):
    """Mean and standard deviation of the logarithm for a 5 to 95 % range."""
    low, high = (math.log(value) for value in very_likely)
    return (low + high) / 2, (high - low) / (2 * Z95)


def sample(members, seed):
    """`members` pairs (ECS, TCR) in kelvin. The first n pairs of a seed are the same for every number of members."""
    random = np.random.Generator(np.random.PCG64(seed))
    (ecs_mean, ecs_sd), (tcr_mean, tcr_sd) = log_normal(ECS_VERY_LIKELY_K), log_normal(TCR_VERY_LIKELY_K)
    pairs = []
    while len(pairs) < members:
        first, second = random.standard_normal(2)
        ecs = math.exp(ecs_mean + ecs_sd * first)
        tcr = math.exp(tcr_mean + tcr_sd * (CORRELATION * first + math.sqrt(1 - CORRELATION**2) * second))
        if TCR_TO_ECS[0] < tcr / ecs < TCR_TO_ECS[1]:
            pairs.append((ecs, tcr))
    return pairs


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--members", type=int, required=True, help="rows to write")
    arguments.add_argument("--seed", type=int, required=True, help="the same seed gives the same rows")
    arguments.add_argument("--out", required=True, help="table to write: member,seed,ecs,tcr")
    options = arguments.parse_args()
    if options.members < 1:
        arguments.error(f"--members is {options.members}: an ensemble has at least one member")
    with open(options.out, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["member", "seed", "ecs", "tcr"])
        for member, (ecs, tcr) in enumerate(sample(options.members, options.seed)):
            rows.writerow([member, options.seed, repr(ecs), repr(tcr)])
    print(f"{options.members} members drawn with seed {options.seed}")


if __name__ == "__main__":
    main()
