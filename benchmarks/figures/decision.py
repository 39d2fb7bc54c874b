"""Attacks that only ask: for decisions (HopSkipJump, Boundary, substitutes) or scores (SPSA)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spax
from benchmarks import victim
from benchmarks.figures.common import KEY, mnist

IMAGES = 25


def _asked(attack, ball, eps=None, **settings):
    """The verdict on an attack, and the rows that it asked of the model for each image."""
    params, x, y, _ = mnist()
    x, y = x[:IMAGES], y[:IMAGES]

    @jax.jit
    def run(params, x, y, key):
        f = functools.partial(victim.apply_fn, params)
        radius = {} if eps is None else {"eps": eps}
        return attack(f, x, y, key=key, return_info=True, **radius, **settings)

    x_adv, info = run(params, x, y, KEY)
    f = functools.partial(victim.apply_fn, params)
    verdict = spax.evaluation.judge(f, x, x_adv, y, norm=ball, eps=eps)
    return verdict, np.asarray(info.queries)


def _median(attack, ball, **settings):
    verdict, queries = _asked(attack, ball, **settings)
    assert queries.max() <= settings["max_queries"]
    return round(float(np.median(verdict.distance)), 3)


def _substitute():
    """Agreement of a substitute with the network, in per cent, and what its attacks do to it."""
    params, *_ = mnist()
    with np.load(victim.prepare(quick=False)) as stored:
        x = jnp.asarray(stored["x"])
    start, rest = x[:150], x[150:]

    def oracle(x):
        return victim.apply_fn(params, x)

    def apply_fn(params, x, *, train, key):
        return victim.apply_fn(params, x)

    copy = spax.evasion.substitute(oracle, apply_fn, optax.adam(1e-3), rounds=6, epochs=10)
    state, update = copy.init(victim.init(jax.random.key(5)), start), jax.jit(copy.update)
    for i in range(6):
        learnt, state = update(state, jax.random.fold_in(KEY, i))
    labels = jnp.argmax(oracle(rest), axis=1)
    agreement = (jnp.argmax(victim.apply_fn(learnt, rest), axis=1) == labels).mean()
    x_adv = jax.jit(
        lambda p, x, y: spax.evasion.fgsm(lambda x: victim.apply_fn(p, x), x, y, eps=0.3)
    )(learnt, rest, labels)
    fooled = spax.losses.misclassified(oracle(x_adv), labels).mean()
    return {
        "agreement": round(100 * float(agreement), 1),
        "fooled": round(100 * float(fooled), 1),
        "queries": int(state.queries),
    }


def measure():
    """Every attack on the same network."""
    hops, evasion = spax.evasion.hop_skip_jump, spax.evasion
    spsa, queries = _asked(evasion.spsa_attack, "linf", eps=0.3, n=64, steps=40)
    return {
        "data": mnist()[3],
        "images": IMAGES,
        "hop_skip_jump": {
            "l2_at_1000": _median(hops, "l2", max_queries=1000),
            "l2_at_5000": _median(hops, "l2", max_queries=5000),
        },
        "boundary": {
            "l2_at_5000": _median(evasion.boundary, "l2", max_queries=5000, steps=5000),
        },
        "spsa_attack": {
            "remaining": round(100 * float(1 - spsa.success.mean()), 1),
            "median_queries": int(np.median(queries)),
        },
        "substitute": _substitute(),
    }
