"""concurrent.futures with two processes: a floor, no scheduler."""

import os
from concurrent.futures import ProcessPoolExecutor

from common import main


def noop(i):
    return i


def command(_):
    pid = os.posix_spawn("/bin/true", ["/bin/true"], os.environ)
    assert os.waitpid(pid, 0)[1] == 0


def with_pool(row):
    def cell(bench):
        with ProcessPoolExecutor(2) as pool:
            return row(bench, pool)
    return cell


def array(function):
    return lambda bench, pool: bench.rate(
        "noop_array" if function is noop else "command",
        lambda n: list(pool.map(function, range(n))),
        most=1_000_000 if function is noop else 6000,
    )


if __name__ == "__main__":
    main({
        "noop_array": with_pool(array(noop)),
        "rtt": with_pool(lambda bench, pool: bench.round_trips(lambda: pool.submit(noop, 1).result())),
        "command": with_pool(array(command)),
    })
