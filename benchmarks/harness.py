"""Measures spax and a peer in turn, each in a process of its own, and keeps what was seen.

A script makes a `Claim`, starts `Worker`s and lets the claim alternate them in pairs, one
repetition of each. Ratios are taken within pairs, so that whatever else the machine does weighs on
both, and the median ratio is reported.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "benchmarks" / ".cache" / "quick"


# Each with its file in systems/.
PEERS = {
    "foolbox-jax": "foolbox_jax",
    "foolbox-torch": "foolbox_torch",
    "torchattacks": "torchattacks_attacks",
    "art": "art_attacks",
}


class Missing(RuntimeError):
    """A system that is not installed where it was looked for."""


def arguments(description, argv=None, *, images=None):
    """The options that all scripts have; ``images``, the default of one that few have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it runs")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        default=list(PEERS),
        help="the peers to measure (default: all; those not installed are left out)",
    )
    parser.add_argument(
        "--python",
        default=os.environ.get("SPAX_BENCH_PYTHON", sys.executable),
        help="the interpreter that has the peers (default: SPAX_BENCH_PYTHON, or this one)",
    )
    parser.add_argument("--repetitions", type=int, default=30, help="of a pair, at most")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of a pair")
    if images is not None:
        parser.add_argument("--images", type=int, default=images, help="attacked, at most")
    parser.add_argument("--out", type=pathlib.Path, help="the folder of the results")
    options = parser.parse_args(argv)
    if options.quick:
        options.repetitions, options.seconds = min(options.repetitions, 2), 1.0
    if options.out is None:
        options.out = QUICK_RESULTS if options.quick else RESULTS
    return options


class Worker:
    """A system, ready to run one task, in a process of its own.

    Args:
      warm_up: how often it runs before anything is measured; what runs for minutes and compiles
        nothing needs none.

    Raises:
      Missing: if the system is not installed there.
      RuntimeError: if it fails in any other way.
    """

    def __init__(self, name, system, task, victim, *, python=sys.executable, warm_up=2, **settings):
        self.name = name
        self.first_run = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, open as long as the process
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-m", "benchmarks.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            answer = self._ask(
                do="prepare", system=system, task=task, victim=str(victim), settings=settings
            )
            self.versions = answer["versions"]
            # Compiles, and warms the caches; none of it is in any figure but this one.
            for seed in range(warm_up):
                seconds = self.run(seed)["wall"]
                self.first_run = self.first_run or seconds
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended without an answer"}
        if "error" in answer:
            self._log.seek(0)
            log = "" if answer.get("missing") else "\n" + self._log.read()[-2000:]
            kind = Missing if answer.get("missing") else RuntimeError
            raise kind(f"{self.name}: {answer['error']}{log}")
        return answer

    def run(self, seed):
        """One repetition: its seconds, {"wall": ..., "cpu": ...}."""
        return self._ask(do="run", seed=seed)

    def read(self):
        """The arrays of the last repetition."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "output.npz"
            self._ask(do="read", path=str(path))
            with np.load(path, allow_pickle=False) as file:
                return dict(file)


def alternate(run_ours, run_theirs, options):
    """Pairs of repetitions, in turn: the figures of a comparison.

    ``run_ours(i)`` and ``run_theirs(i)`` return {"wall": seconds, "cpu": seconds}. Ends after
    ``options.repetitions`` pairs, or once the quicker of the two has had ``options.seconds``, or
    the slower ten times as many, and there are three pairs (fewer, where the quicker takes twenty
    times as long).
    """
    ours, theirs = [], []
    while len(ours) < options.repetitions:
        i = len(ours)
        # Who goes first changes, so that neither always runs on the other's warm machine.
        if i % 2:
            theirs.append(run_theirs(i))
            ours.append(run_ours(i))
        else:
            ours.append(run_ours(i))
            theirs.append(run_theirs(i))
        spent, slower = sorted(sum(r["wall"] for r in runs) for runs in (ours, theirs))
        enough = spent >= options.seconds or slower >= 10 * options.seconds
        if enough and (len(ours) >= 3 or spent >= 20 * options.seconds):
            break
    figures = {"pairs": len(ours)}
    for clock in ("wall", "cpu"):
        a, b = ([run[clock] for run in runs] for runs in (ours, theirs))
        figures[f"ours_{clock}_s"] = statistics.median(a)
        figures[f"theirs_{clock}_s"] = statistics.median(b)
        ratios = [p / q for p, q in zip(a, b, strict=True)]
        figures[f"{clock}_ratio"] = statistics.median(ratios)
        quarter, three_quarters = np.quantile(ratios, (0.25, 0.75))
        figures[f"{clock}_ratio_quartiles"] = [float(quarter), float(three_quarters)]
    return figures


def environment():
    """The machine, as far as it matters to a time."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(li.split(":")[1].strip() for li in lines if li.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
    }


class Claim:
    """What one script measures and finds; `write` stores it for `render.py`.

    Args:
      name: of the file.
      options: from `arguments`.
      title: the heading of its tables.
      about: a sentence or two on what is measured.
      settings: what the figures depend on.
    """

    def __init__(self, name, options, *, title, about, settings):
        self.options = options
        self._path = options.out / f"{name}.json"
        self._result = {
            "title": title,
            "about": about,
            "quick": options.quick,
            "environment": environment(),  # before anything else runs
            "versions": {},
            "settings": settings,
            "comparisons": {},
            "facts": {},
        }

    def record(self, ours, theirs, figures, *, at_most=None):
        """Keeps the figures of `alternate` under the names of the two.

        ``at_most``, if any, is what the ratio of wall times, ours to theirs, must not exceed.
        """
        figures = {"ours": ours, "theirs": theirs} | figures
        if at_most is not None:
            figures |= _claimed(figures["wall_ratio"], at_most)
        self._result["comparisons"][slug(theirs)] = figures
        print(f"{ours} / {theirs}: {figures['wall_ratio']:.3f}", file=sys.stderr)

    def compare(self, ours, theirs, *, at_most=None):
        """Alternates two `Worker`s, ours being spax, and keeps the figures."""
        self._result["versions"] |= {ours.name: ours.versions, theirs.name: theirs.versions}
        figures = alternate(ours.run, theirs.run, self.options)
        figures |= {"ours_first_run_s": ours.first_run, "theirs_first_run_s": theirs.first_run}
        self.record(ours.name, theirs.name, figures, at_most=at_most)

    def peers(self, peers, ours, task, victim, *, label="", at_most=None, **settings):
        """Compares with every peer asked for; what is not installed is left out, and said so.

        Args:
          peers: those that have the attack.
          label: added to their names.

        Yields:
          (peer, its Worker) after each comparison, for the figures that are not times.
        """
        for peer in peers:
            if peer not in self.options.peers:
                continue
            name, python = f"{peer}{label}", self.options.python
            try:
                worker = Worker(name, PEERS[peer], task, victim, python=python, **settings)
            except Missing as missing:
                print(f"left out: {missing}", file=sys.stderr)
                continue
            with worker:
                self.compare(ours, worker, at_most=at_most)
                yield peer, worker

    def fact(self, about, value, *, at_most=None):
        """Keeps a figure that is not a time, and the claim on it, if any."""
        found = {"about": about, "value": value}
        if at_most is not None:
            found |= _claimed(value, at_most)
        self._result["facts"][slug(about)] = found

    def write(self):
        """Stores everything; returns the path."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._result, indent=2) + "\n")
        print(self._path, file=sys.stderr)
        return self._path


def _claimed(value, at_most):
    return {"at_most": at_most, "holds": bool(value <= at_most)}


def slug(name):
    """The key of a name: a word that a path of dots can hold."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
