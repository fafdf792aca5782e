"""Parsl: its high-throughput executor with two worker processes on loopback."""

import os
import time

import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from common import edges, main


def begin():
    executor = HighThroughputExecutor(
        label="two", address="127.0.0.1", max_workers_per_node=2, cores_per_worker=1, provider=LocalProvider(init_blocks=1, max_blocks=1)
    )
    parsl.load(Config(executors=[executor], strategy="none", usage_tracking=0, run_dir=os.path.abspath("runinfo")))
    noop(0).result()


@python_app
def noop(i, *_):
    return i


@python_app
def add(a, b):
    return a + b


@python_app
def command(_):
    import os

    pid = os.posix_spawn("/bin/true", ["/bin/true"], os.environ)
    assert os.waitpid(pid, 0)[1] == 0


def gather(tasks):
    return [task.result() for task in tasks]


def dag(n):
    tasks = []
    for i, parents in enumerate(edges(n)):
        tasks.append(noop(i, *[tasks[p] for p in parents]))
    gather(tasks)


def chain(n):
    task = noop(0)
    for _ in range(n - 1):
        task = noop(task)
    assert task.result() == 0


def tree(n):
    level = [noop(1) for _ in range((n + 1) // 2)]
    leaves = len(level)
    while len(level) > 1:
        level = [add(a, b) for a, b in zip(level[::2], level[1::2])]
    assert level[0].result() == leaves


def with_parsl(row):
    def cell(bench):
        begin()
        return row(bench)
    return cell


def start(bench):
    def once():
        began = time.perf_counter()
        begin()
        took = (time.perf_counter() - began) * 1e3
        parsl.dfk().cleanup()
        parsl.clear()
        return took
    return bench.repeat("start", once, note="without the import of its modules, to the first result")


if __name__ == "__main__":
    main({
        "noop_array": with_parsl(lambda bench: bench.rate("noop_array", lambda n: gather([noop(i) for i in range(n)]))),
        "noop_dag": with_parsl(lambda bench: bench.rate("noop_dag", dag)),
        "rtt": with_parsl(lambda bench: bench.round_trips(lambda: noop(1).result())),
        "chain": with_parsl(lambda bench: bench.chain(chain)),
        "tree": with_parsl(lambda bench: bench.tree(tree)),
        "command": with_parsl(lambda bench: bench.rate("command", lambda n: gather([command(i) for i in range(n)]), 6000)),
        "start": start,
    })
