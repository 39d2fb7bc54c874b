"""One system in a process of its own: JSON lines in, JSON lines out.

    {"do": "prepare", "system": ..., "task": ..., "victim": path, "settings": {...}}
    {"do": "run", "seed": i}        -> {"wall": seconds, "cpu": seconds}
    {"do": "read", "path": path}    -> the last output, as an npz file

The answer to anything that fails is {"error": the exception, "missing": whether a module is}.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback

import numpy as np


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return getattr(importlib.import_module(package), "__version__", "unknown")


class _Session:
    job = None
    output = None

    def prepare(self, system, task, victim, settings):
        module = importlib.import_module(f"benchmarks.systems.{system}")
        self.job = getattr(module, task)(victim, **settings)
        versions = {package: _version(package) for package in getattr(module, "PACKAGES", ())}
        return {"versions": {"python": platform.python_version(), **versions}}

    def run(self, seed):
        # process_time counts the seconds of all threads.
        wall, cpu = time.perf_counter(), time.process_time()
        self.output = self.job.run(seed)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    def read(self, path):
        np.savez(path, **self.job.read(self.output))
        return {}


def main():
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = _Session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {
                "error": "".join(traceback.format_exception_only(error)).strip(),
                "missing": isinstance(error, ImportError),
            }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
