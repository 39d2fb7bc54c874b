"""spax's iterative attacks, and a model that counts how often they ask it and differentiate it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import victim
from benchmarks.systems import Job
from spax import evasion
from spax.gradients import canonical_convolutions

PACKAGES = ("spax", "jax", "jaxlib", "numpy")

# What each is called with: structure and numbers; ``target`` where it needs one.
ATTACKS = {
    "fgsm": partial(evasion.fgsm, eps=0.1),
    "mi_fgsm": partial(evasion.mi_fgsm, eps=0.1, steps=40),
    "pgd": partial(evasion.pgd, eps=0.1, steps=40),
    "apgd": partial(evasion.apgd, eps=0.1, steps=100),
    "apgd_targeted": partial(evasion.apgd_targeted, eps=0.1, steps=100),
    "carlini_wagner": partial(evasion.carlini_wagner, steps=200, search_steps=2),
    "ead": partial(evasion.ead, steps=200, search_steps=2),
    "deepfool": partial(evasion.deepfool, steps=50),
    "fab": partial(evasion.fab, norm="linf", steps=50, restarts=1),
    "square": partial(evasion.square, eps=0.1, steps=1000),
    "jsma": partial(evasion.jsma, theta=1.0, gamma=0.05),
}
TARGETED = ("jsma",)
WITHOUT_KEY = ("fgsm", "mi_fgsm", "carlini_wagner", "ead", "deepfool", "jsma")


def _call(name, logits_fn, x, y, key):
    attack = ATTACKS[name]
    labels = (y + 1) % victim.CLASSES if name in TARGETED else y
    return attack(logits_fn, x, labels, **({} if name in WITHOUT_KEY else {"key": key}))


def run_attack(path, *, attack, batch_size, **_) -> Job:
    params, x, y = jax.device_put(victim.load(path, batch_size))

    @jax.jit
    def compiled(params, x, y, key):
        return _call(attack, lambda x: victim.apply_fn(params, x), x, y, key)

    key = jax.random.key(0)  # always the same, so that the counts hold

    return Job(
        lambda _: compiled(params, x, y, key).block_until_ready(),
        lambda out: {"x_adv": np.asarray(out)},
    )


def counts(path, *, attack, batch_size, **_) -> Job:
    """How often the model was evaluated, and pulled back through, in batches: never timed."""
    params, x, y = jax.device_put(victim.load(path, batch_size))
    seen = {"forwards": 0.0, "backwards": 0.0}

    def note(what, rows):
        seen[what] += rows / batch_size

    @jax.custom_vjp
    def counted(x):
        return forward(x)[0]

    def forward(x):
        jax.debug.callback(lambda _: note("forwards", len(x)), x[0].sum())
        return victim.apply_fn(params, x), x

    def backward(x, g):
        jax.debug.callback(lambda _: note("backwards", len(x)), g[0].sum())
        return jax.vjp(lambda x: victim.apply_fn(params, x), x)[1](g)

    counted.defvjp(forward, backward)

    @jax.jit
    def compiled(x, y, key):
        return _call(attack, counted, x, y, key)

    def run(_):
        seen.update(forwards=0.0, backwards=0.0)
        return jax.block_until_ready(compiled(x, y, jax.random.key(0)))

    def read(out):
        jax.effects_barrier()
        return {what: np.asarray(number) for what, number in seen.items()}

    return Job(run, read)


def limit(path, *, batch_size, forwards, backwards, **_) -> Job:
    """As many evaluations and pullbacks, one after another in a loop, and nothing else."""
    params, x, y = jax.device_put(victim.load(path, batch_size))
    seeds = jax.nn.one_hot(y, victim.CLASSES)

    @jax.jit
    def compiled(params, x, seeds):
        def f(x):
            return victim.apply_fn(params, x)

        def look(_, x):
            # Depends on the step before, and changes nothing that matters.
            return x + 1e-12 * f(x).sum()

        def gradient(_, x):
            return x + 1e-12 * jax.grad(lambda x: (f(x) * seeds).sum())(x)

        both = min(forwards, backwards)
        x = lax.fori_loop(0, both, canonical_convolutions(gradient), x)
        if backwards > both:

            def pull(_, g):
                return g + 1e-12 * jnp.tanh(pullback(g)[0].sum())

            _, pullback = jax.vjp(f, x)
            pulled = lax.fori_loop(0, backwards - both, canonical_convolutions(pull), seeds)
            x = x + 1e-12 * pulled.sum()
        return lax.fori_loop(0, forwards - both, canonical_convolutions(look), x)

    return Job(lambda _: compiled(params, x, seeds).block_until_ready(), lambda _: {})
