"""Ray: two cpus on this machine. A worker is a process of one cpu, so `four` means four cpus."""

import logging
import os
import random
import time

os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from common import BLOCK, edges, main


def begin(cpus=2):
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, address="local")


@ray.remote
def noop(i, *_):
    return i


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def make(_):
    return bytes(BLOCK)


@ray.remote
def consume(*blocks):
    return sum(len(block) for block in blocks)


@ray.remote
def command(_):
    pid = os.posix_spawn("/bin/true", ["/bin/true"], os.environ)
    assert os.waitpid(pid, 0)[1] == 0


def dag(n):
    tasks = []
    for i, parents in enumerate(edges(n)):
        tasks.append(noop.remote(i, *[tasks[p] for p in parents]))
    ray.get(tasks)


def chain(n):
    task = noop.remote(0)
    for _ in range(n - 1):
        task = noop.remote(task)
    assert ray.get(task) == 0


def tree(n):
    level = [noop.remote(1) for _ in range((n + 1) // 2)]
    leaves = len(level)
    while len(level) > 1:
        level = [add.remote(a, b) for a, b in zip(level[::2], level[1::2])]
    assert ray.get(level[0]) == leaves


def results(n):
    done = [consume.remote(make.remote(i)) for i in range(n)]
    assert sum(ray.get(done)) == n * BLOCK


def exchange(n):
    made = [make.remote(i) for i in range(64)]
    ray.wait(made, num_returns=len(made))
    choose = random.Random(1)
    began = time.perf_counter()
    assert sum(ray.get([consume.remote(*choose.sample(made, 2)) for _ in range(n)])) == 2 * n * BLOCK
    return time.perf_counter() - began


def with_ray(row, cpus=2):
    def cell(bench):
        begin(cpus)
        return row(bench)
    return cell


def start(bench):
    def once():
        began = time.perf_counter()
        begin()
        took = (time.perf_counter() - began) * 1e3
        ray.shutdown()
        return took
    return bench.repeat("start", once, note="without the import of its modules and without a worker process")


if __name__ == "__main__":
    main({
        "noop_array": with_ray(lambda bench: bench.rate("noop_array", lambda n: ray.get([noop.remote(i) for i in range(n)]))),
        "noop_dag": with_ray(lambda bench: bench.rate("noop_dag", dag)),
        "rtt": with_ray(lambda bench: bench.round_trips(lambda: ray.get(noop.remote(1)))),
        "chain": with_ray(lambda bench: bench.chain(chain)),
        "tree": with_ray(lambda bench: bench.tree(tree)),
        "results.host": with_ray(lambda bench: bench.blocks("results.host", results, 1)),
        "results.host.four": with_ray(lambda bench: bench.blocks("results.host.four", results, 1), cpus=4),
        "exchange.host": with_ray(lambda bench: bench.blocks("exchange.host", exchange, 2), cpus=4),
        "command": with_ray(lambda bench: bench.rate("command", lambda n: ray.get([command.remote(i) for i in range(n)]), 6000)),
        "start": start,
    })
