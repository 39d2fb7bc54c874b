"""Transfer between small networks of the CIFAR-10 subset that look through a retina."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.figures.physical import cifar, network
from benchmarks.figures.universal import share
from spax import evasion

ANIMALS, VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)


def measure():
    """Crafted on two networks, scored on a third of another width and seed."""
    shapes = (24, 32, 48), (16, 32, 64), (24, 48, 48)
    return {"human": human([network(i, shape, epochs=2) for i, shape in enumerate(shapes)])}


def human(nets):
    """Animals against vehicles: crafted on two networks through a retina, scored on the third."""
    *_, x_test, y_test = cifar()
    x = x_test[:300]
    y = jnp.isin(y_test[:300], jnp.array(VEHICLES)).astype(jnp.int32)
    (p1, f1), (p2, f2), (p3, f3) = nets
    retina = functools.partial(evasion.retinal_blur, slope=0.05)

    @jax.jit
    def run(p1, p2, p3, x, y):
        sources = [functools.partial(f1, p1), functools.partial(f2, p2)]
        groups = (ANIMALS, VEHICLES)
        x_adv = evasion.human_transfer_attack(
            sources, x, 1 - y, eps=32 / 255, steps=10, groups=groups, retina=retina
        )
        flipped = jnp.clip(x + (x_adv - x)[:, ::-1], 0, 1)
        held_out = evasion.coarse_logits(functools.partial(f3, p3), groups)
        right = jnp.argmax(held_out(x), 1) == y
        wrong = lambda z: (right & (jnp.argmax(held_out(z), 1) != y)).sum() / right.sum()  # noqa: E731
        return wrong(x_adv), wrong(flipped), right.mean()

    fooled, control, accuracy = run(p1, p2, p3, x, y)
    return {"fooled": share(fooled), "flipped": share(control), "accuracy": share(accuracy)}
