"""Snakemake with two cores: a file for each job, by its own choice of scheduler and by the greedy one."""

import os
import shutil
import subprocess
import sys
import time

from common import FILES, main

SNAKEFILE = """
rule all:
    input: expand("out/{{i}}", i=range({n}))

rule touch:
    output: "out/{{i}}"
    shell: "touch {{output}}"
"""


def touch(n, *more):
    shutil.rmtree("out", ignore_errors=True)
    shutil.rmtree(".snakemake", ignore_errors=True)
    with open("Snakefile", "w") as file:
        file.write(SNAKEFILE.format(n=n))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *more]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["no output"])[-1]
    assert len(os.listdir("out")) == n


def row(*more):
    def cell(bench):
        # A run takes seconds to begin: shorter ones than this say nothing about a file.
        bench.seconds = max(bench.seconds, 3.0)
        starts = []
        for _ in range(3):
            begin = time.perf_counter()
            touch(1, *more)
            starts.append(time.perf_counter() - begin)
        start = min(starts)
        bench.seconds += start

        def scaled(n, seconds):
            return start + (seconds - start) * FILES / n
        note = f"start {start:.2f} s, the rest scaled to {FILES} files"
        return bench.timed("touch", lambda n: touch(n, *more), FILES, scaled, first=50, note=note)
    return cell


if __name__ == "__main__":
    main({"touch": row(), "touch.greedy": row("--scheduler", "greedy")})
