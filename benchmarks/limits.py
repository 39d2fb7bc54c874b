"""Every iterative attack against the evaluations and pullbacks of the model that it makes.

python -m benchmarks.limits
"""

from benchmarks import victim
from benchmarks.harness import Claim, Worker, arguments

NAMES = (
    "mi_fgsm",
    "pgd",
    "apgd",
    "apgd_targeted",
    "carlini_wagner",
    "ead",
    "deepfool",
    "fab",
    "square",
    "jsma",
)


def main(argv=None):
    options = arguments(__doc__, argv)
    path = victim.prepare(options.quick)
    size = {"batch_size": 8 if options.quick else 256}
    claim = Claim(
        "limits",
        options,
        title="Attacks against their limit",
        about="A model that counts tells how often an attack evaluates it on the batch and how "
        "often it pulls back a cotangent; the limit is as many of both, one after another in a "
        "loop of convolutions as fast as alone, and nothing else.",
        settings=size | {"victim": path.stem},
    )
    for name in NAMES[:3] if options.quick else NAMES:
        with Worker(
            name, "spax_counted", "counts", path, attack=name, warm_up=1, **size
        ) as counter:
            counts = {what: round(float(n)) for what, n in counter.read().items()}
        claim.fact(f"evaluations by {name}", counts["forwards"])
        claim.fact(f"pullbacks by {name}", counts["backwards"])
        with (
            Worker(name, "spax_counted", "run_attack", path, attack=name, **size) as ours,
            Worker(f"limit of {name}", "spax_counted", "limit", path, **counts, **size) as limit,
        ):
            claim.compare(ours, limit, at_most=1.1)
            compiling = ours.first_run - ours.run(2)["wall"]
            claim.fact(f"seconds to compile {name}", compiling, at_most=5.0)
    return claim.write()


if __name__ == "__main__":
    main()
