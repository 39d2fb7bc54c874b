"""Measures every claim again, one after another, and renders the tables.

python -m benchmarks.run
"""

import sys

from benchmarks import (
    autoattack,
    carlini_wagner_l2,
    convolutions_in_loops,
    eps_sweep,
    import_time,
    pgd_linf,
    render,
)

CLAIMS = (import_time, convolutions_in_loops, pgd_linf, eps_sweep, carlini_wagner_l2, autoattack)


def main(argv=None):
    for claim in CLAIMS:
        claim.main(argv)
    return render.main([])


if __name__ == "__main__":
    sys.exit(main())
