"""What `import spax` and `spax --version` cost, in a new process each time.

python -m benchmarks.import_time
"""

import os
import subprocess
import sys
import time

from benchmarks.harness import ROOT, Claim, alternate, arguments


def main(argv=None):
    options = arguments(__doc__, argv)
    options.seconds = float("inf")  # all repetitions: each takes a second or so
    claim = Claim(
        "import_time",
        options,
        title="Start",
        about="A new process each time; its first run, which may write bytecode, is not counted.",
        settings={"repetitions": options.repetitions},
    )

    def process(*command):
        command = [sys.executable, *command]
        _timed(command)
        return lambda _: _timed(command)

    figures = alternate(process("-c", "import spax"), process("-c", "import jax, optax"), options)
    claim.record("import spax", "import jax, optax", figures, at_most=1.1)
    figures = alternate(
        process("-c", "import spax.evasion"), process("-c", "import jax, optax"), options
    )
    claim.record("import spax.evasion", "import jax, optax again", figures)
    figures = alternate(process("-m", "spax", "--version"), process("-c", "pass"), options)
    claim.record("spax --version", "python -c pass", figures)
    claim.fact("seconds of spax --version", figures["ours_wall_s"], at_most=0.5)
    return claim.write()


def _timed(command):
    """Seconds of a process, on the clock and of all its threads."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}


if __name__ == "__main__":
    main()
