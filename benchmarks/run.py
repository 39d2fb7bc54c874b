"""Measures every claim again, one after another, and renders the tables.

python -m benchmarks.run
"""

import sys

from benchmarks import (
    accounting,
    autoattack,
    carlini_wagner_l2,
    clipping,
    convolutions_in_loops,
    decision,
    elastic_net,
    eps_sweep,
    import_time,
    limits,
    minimum_norm,
    pgd_linf,
    render,
    saliency_map,
)

CLAIMS = (
    import_time,
    convolutions_in_loops,
    pgd_linf,
    eps_sweep,
    carlini_wagner_l2,
    minimum_norm,
    elastic_net,
    saliency_map,
    decision,
    autoattack,
    accounting,
    clipping,
    limits,
)


def main(argv=None):
    for claim in CLAIMS:
        claim.main(argv)
    return render.main([])


if __name__ == "__main__":
    sys.exit(main())
