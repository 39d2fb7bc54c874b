"""What the hooks recover where a defence hides the gradient."""

import functools

import spax
from benchmarks.figures.common import mnist, remaining
from spax.gradients import bpda, eot
from spax.typing import lift


def measure():
    """What the hooks recover where a defence hides the gradient, and estimates without any."""
    resized = functools.partial(spax.defenses.randomized_resize, low=24, high=28, out=28)
    mild = functools.partial(spax.evasion.pgd, eps=0.1, step_size=0.01, steps=100)
    free = functools.partial(spax.evasion.pgd, eps=0.3, step_size=0.03, steps=20)

    return {
        "data": mnist()[3],
        "one_bit": quantised(1),
        "four_bits": quantised(4),
        "randomized_resize": {
            "clean": remaining(lambda f, x, y, key: x, judged=resized)[0],
            "unaware": remaining(mild, judged=resized)[0],
            "eot": remaining(
                functools.partial(mild, gradient=eot(20)), through=resized, judged=resized
            )[0],
        },
        "nes": {
            "left": remaining(functools.partial(free, gradient=spax.gradients.nes(50, 0.01)))[0]
        },
        "spsa": {"left": remaining(functools.partial(free, gradient=spax.gradients.spsa(50)))[0]},
    }


def quantised(bits):
    """What PGD leaves of a quantised model, and what BPDA then takes."""
    hard = functools.partial(spax.defenses.bit_depth, bits=bits)
    straight = bpda(functools.partial(spax.defenses.quantize, bits=bits))
    attack = functools.partial(spax.evasion.pgd, eps=0.3, step_size=0.02, steps=40)
    return {
        "clean": remaining(lambda f, x, y, key: x, judged=hard)[0],
        "plain": remaining(attack, through=hard, judged=hard)[0],
        "bpda": remaining(attack, through=functools.partial(lift, straight), judged=hard)[0],
    }
