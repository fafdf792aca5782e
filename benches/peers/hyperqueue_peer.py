"""HyperQueue: the server and a worker of two cpus that its wheel carries, each on a thread of one process beside this one."""

import os
import subprocess
import sys
import time

from common import edges, main, resident_bytes, thread_cpu_seconds

HERE = os.path.abspath(__file__)


def threads():
    return set(os.listdir("/proc/self/task"))


class Server:
    """In this process. `hyperqueue.client` asks for the end of a job once a second, so the end is taken from a last task's file."""

    def __init__(self, cpus=2):
        from hyperqueue.cluster import LocalCluster, WorkerConfig

        with open(os.devnull, "w") as null:
            # It prints a table.
            kept = os.dup(1)
            os.dup2(null.fileno(), 1)
            before = threads()
            self.cluster = LocalCluster(os.path.abspath("server"))
            self.threads = threads() - before
            if cpus:
                self.cluster.start_worker(WorkerConfig(cores=cpus))
            os.dup2(kept, 1)
        self.client = self.cluster.client()
        self.jobs = 0

    def cpu_seconds(self):
        return sum(thread_cpu_seconds(thread) for thread in self.threads)

    def submit(self, n, graph=None, distinct=False):
        from hyperqueue import Job

        self.jobs += 1
        job, quiet = Job(), {"stdout": None, "stderr": None}
        tasks = []
        for i in range(n):
            deps = [tasks[p] for p in graph[i]] if graph else ()
            arguments = ["/bin/true", str(i)] if distinct else ["/bin/true"]
            tasks.append(job.program(arguments, deps=deps, **quiet))
        return job, tasks

    def run(self, n, graph=None):
        """The time from submit to the end of the last task."""
        job, tasks = self.submit(n, graph)
        done = os.path.abspath(f"done.{self.jobs}")
        job.program(["/usr/bin/touch", done], deps=tasks, stdout=None, stderr=None)
        begin = time.perf_counter()
        self.client.submit(job)
        while not os.path.exists(done):
            time.sleep(0.001)
        return time.perf_counter() - begin


def command(bench):
    server = Server()
    n = bench.largest(server.run, 6000, first=500)
    values = [n / server.run(n) for _ in range(bench.runs)]
    return {"values": {"command": values}, "n": n, "note": "to the end of a last task that waits for all"}


def scheduler_cpu(row, graph):
    def cell(bench):
        server = Server()
        n = bench.largest(lambda n: server.run(n, graph(n)), 100_000, first=500)

        def once():
            before = server.cpu_seconds()
            server.run(n, graph(n))
            return (server.cpu_seconds() - before) * 1e6 / n
        return bench.repeat(row, once, n, note="the server's thread")
    return cell


def scheduler_bytes(row, distinct):
    """Tasks that wait because there is no worker, in a process that only serves: the descriptions are made by another."""
    def cell(bench):
        n = 20_000
        server = Server(cpus=0)

        def once():
            made = subprocess.run(
                [sys.executable, HERE, "--submit", server.cluster.cluster.server_dir, str(n), str(int(distinct))],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            assert made.returncode == 0, made.stderr[-200:]

        def grown():
            before = resident_bytes(os.getpid())
            once()
            return (resident_bytes(os.getpid()) - before) / n
        grown()
        return bench.repeat(row, grown, n)
    return cell


def submit_from_outside(directory, n, distinct):
    from hyperqueue import Client, Job

    job = Job()
    for i in range(n):
        job.program(["/bin/true", str(i)] if distinct else ["/bin/true"], stdout=None, stderr=None)
    Client(directory).submit(job)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--submit"]:
        submit_from_outside(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")
    else:
        main({
            "command": command,
            "scheduler_cpu": scheduler_cpu("scheduler_cpu", lambda n: None),
            "scheduler_cpu.dag": scheduler_cpu("scheduler_cpu.dag", edges),
            "scheduler_bytes": scheduler_bytes("scheduler_bytes", False),
            "scheduler_bytes.distinct": scheduler_bytes("scheduler_bytes.distinct", True),
        })
