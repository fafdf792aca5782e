"""Dask: a scheduler and workers, all processes of their own, on loopback. Two slots are two workers of one thread."""

import atexit
import os
import random
import subprocess
import sys
import time

from distributed import Client, LocalCluster, wait

from common import BLOCK, cpu_seconds, edges, main, resident_bytes


def noop(i, *_):
    return i


def add(a, b):
    return a + b


def make(_):
    return bytes(BLOCK)


def consume(*blocks):
    return sum(len(block) for block in blocks)


def command(_):
    pid = os.posix_spawn("/bin/true", ["/bin/true"], os.environ)
    assert os.waitpid(pid, 0)[1] == 0


class Cluster:
    """`dask scheduler` and `dask worker` as their users start them."""

    def __init__(self, workers=2, threads=1):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        dask = [sys.executable, "-m", "dask"]
        place = os.path.abspath("scheduler.json")
        shared = ["--scheduler-file", place]
        self.scheduler = subprocess.Popen(
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", ":0", *shared], **quiet
        )
        while not os.path.exists(place):
            assert self.scheduler.poll() is None, "dask scheduler has ended"
            time.sleep(0.01)
        self.worker = None
        if workers:
            self.worker = subprocess.Popen(
                [*dask, "worker", *shared, "--nworkers", str(workers), "--nthreads", str(threads), "--host", "127.0.0.1",
                 "--no-dashboard", "--local-directory", os.path.abspath("worker")],
                env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}, **quiet
            )
        self.client = Client(scheduler_file=place)
        if workers:
            self.client.wait_for_workers(workers)
            self.client.run(lambda: None)
        self.scheduler_pid = self.scheduler.pid
        atexit.register(self.end)

    def end(self):
        for process in (self.worker, self.scheduler):
            if process:
                process.terminate()


def array(client, n):
    client.gather(client.map(noop, range(n), pure=False))


def dag(client, n):
    graph = edges(n)
    tasks = []
    for i, parents in enumerate(graph):
        tasks.append(client.submit(noop, i, *[tasks[p] for p in parents], pure=False))
    client.gather(tasks)


def chain(client, n):
    task = client.submit(noop, 0, pure=False)
    for _ in range(n - 1):
        task = client.submit(noop, task, pure=False)
    assert task.result() == 0


def tree(client, n):
    level = client.map(noop, [1] * ((n + 1) // 2), pure=False)
    leaves = len(level)
    while len(level) > 1:
        level = client.map(add, level[::2], level[1::2], pure=False)
    assert level[0].result() == leaves


def results(client, n):
    made = client.map(make, range(n), pure=False)
    done = client.map(consume, made, pure=False)
    del made
    assert sum(client.gather(done)) == n * BLOCK


def blocks_of(client):
    """64 blocks, spread over the workers."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    made = [client.submit(make, i, workers=[workers[i % len(workers)]], pure=False) for i in range(64)]
    wait(made)
    return made


def exchange(client, n):
    # New ones each time: a copy that a worker has kept would make the next run shorter.
    made = blocks_of(client)
    choose = random.Random(1)
    begin = time.perf_counter()
    tasks = [client.submit(consume, *choose.sample(made, 2), pure=False) for _ in range(n)]
    assert sum(client.gather(tasks)) == 2 * n * BLOCK
    return time.perf_counter() - begin


def with_client(row, workers=2, threads=1):
    return lambda bench: row(bench, Cluster(workers, threads).client)


def scheduler_cpu(work, row):
    def cell(bench):
        cluster = Cluster()
        n = bench.largest(lambda n: work(cluster.client, n), 1_000_000)

        def once():
            before = cpu_seconds(cluster.scheduler_pid)
            work(cluster.client, n)
            return (cpu_seconds(cluster.scheduler_pid) - before) * 1e6 / n
        return bench.repeat(row, once, n)
    return cell


def scheduler_bytes(row, submit):
    """Tasks that wait because there is no worker."""
    def cell(bench):
        cluster = Cluster(workers=0)
        client, n = cluster.client, 10_000
        kept = []

        def once():
            before = resident_bytes(cluster.scheduler_pid)
            known = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            kept.append(submit(client, n))
            while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) < known + n:
                time.sleep(0.01)
            return (resident_bytes(cluster.scheduler_pid) - before) / n
        return bench.repeat(row, once, n)
    return cell


def start(bench):
    def once():
        begin = time.perf_counter()
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
        client = Client(cluster)
        client.wait_for_workers(2)
        took = (time.perf_counter() - begin) * 1e3
        client.close()
        cluster.close()
        return took
    return bench.repeat("start", once, note="without the import of its modules")


if __name__ == "__main__":
    main({
        "noop_array": with_client(lambda bench, client: bench.rate("noop_array", lambda n: array(client, n))),
        "noop_dag": with_client(lambda bench, client: bench.rate("noop_dag", lambda n: dag(client, n))),
        "rtt": with_client(lambda bench, client: bench.round_trips(lambda: client.submit(noop, 1, pure=False).result())),
        "chain": with_client(lambda bench, client: bench.chain(lambda n: chain(client, n))),
        "tree": with_client(lambda bench, client: bench.tree(lambda n: tree(client, n))),
        "results.net": with_client(lambda bench, client: bench.blocks("results.net", lambda n: results(client, n), 1), workers=1, threads=2),
        "results.net.four": with_client(
            lambda bench, client: bench.blocks("results.net.four", lambda n: results(client, n), 1), workers=4),
        "exchange.net": with_client(lambda bench, client: bench.blocks("exchange.net", lambda n: exchange(client, n), 2), workers=4),
        "command": with_client(
            lambda bench, client: bench.rate("command", lambda n: client.gather(client.map(command, range(n), pure=False)), 6000)),
        "scheduler_cpu": scheduler_cpu(array, "scheduler_cpu"),
        "scheduler_cpu.dag": scheduler_cpu(dag, "scheduler_cpu.dag"),
        "scheduler_bytes": scheduler_bytes("scheduler_bytes", lambda client, n: client.map(noop, range(n), pure=False)),
        "scheduler_bytes.distinct": scheduler_bytes(
            "scheduler_bytes.distinct", lambda client, n: [client.submit(noop, i, pure=False) for i in range(n)]),
        "start": start,
    })
