"""A private step at the price of a plain one: lengths and sums without per-example gradients.

python -m benchmarks.clipping
"""

import sys

from benchmarks.harness import Claim, Missing, Worker, arguments

TASK = "private_step"
TITLES = {
    "mlp": "MLP 784-1024-1024-10, batch 256",
    "cnn": "MNIST CNN, batch 256",
    "transformer": "transformer, 2 layers, batch 64",
    "lstm": "LSTM, 100 steps, batch 64",
    "resnet": "group-norm ResNet, batch 64",
}
# Ratios to the plain step: without noise, and with it.
AT_MOST = {"mlp": (1.1, 1.4), "cnn": (1.25, 1.4), "transformer": (1.25, 1.4)}
# (name, system, settings, networks)
PEERS = (
    ("vmap", "private_steps", {"way": "vmap"}, tuple(TITLES)),
    ("jax-privacy", "jax_privacy_steps", {}, tuple(TITLES)),
    ("jax-privacy, microbatches of 32", "jax_privacy_steps", {"microbatch": 32}, tuple(TITLES)),
    ("opacus, hooks", "opacus_steps", {"way": "hooks"}, ("mlp", "cnn")),
    ("opacus, ghost", "opacus_steps", {"way": "ghost"}, ("mlp", "cnn")),
)


def main(argv=None):
    options = arguments(__doc__, argv)
    size = {"batch_size": 8} if options.quick else {}
    networks = ("cnn",) if options.quick else tuple(TITLES)
    steps = 1 if options.quick else 3
    claim = Claim(
        "clipping",
        options,
        title="Private training steps",
        about="The limit is the jitted step of the same network, optimizer (SGD with momentum) and "
        "donation, without privacy. Peers clip and add no noise; Opacus is measured where its "
        "layers are those of the network.",
        settings={"steps": steps, "noise_multiplier": 1.0},
    )
    common = {"steps": steps, **size}
    for network in networks:
        label = f", {TITLES[network]}"
        limits = AT_MOST.get(network, (None, None))

        def worker(name, system, *, network=network, label=label, python=None, **settings):
            place = {} if python is None else {"python": python}
            return Worker(f"{name}{label}", system, TASK, network, **place, **common, **settings)

        with worker("spax", "private_steps", way="spax") as ours:
            memory = int(ours.read()["temporary"])
            with worker("plain step", "private_steps", way="plain") as plain:
                claim.compare(ours, plain, at_most=limits[0])
                limit = int(plain.read()["temporary"])
                with worker("spax with noise", "private_steps", way="spax", noise=1.0) as noisy:
                    figures_of = worker("plain step beside noise", "private_steps", way="plain")
                    with figures_of as other:
                        claim.compare(noisy, other, at_most=limits[1])
            claim.fact(f"temporary memory, spax / plain step{label}", memory / limit, at_most=2.0)
            for name, system, settings, those in PEERS:
                if network not in those or (options.quick and system != "private_steps"):
                    continue
                python = None if system == "private_steps" else options.python
                try:
                    peer = worker(name, system, python=python, **settings)
                except Missing as missing:
                    print(f"left out: {missing}", file=sys.stderr)
                    continue
                with peer:
                    claim.compare(ours, peer, at_most=1.0)
        path = claim.write()  # after each, so that what was seen of others is kept
    return path


if __name__ == "__main__":
    main()
