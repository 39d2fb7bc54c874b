"""What is left of policies for CartPole whose observations are attacked; needs the extra rl."""

import functools

import jax
import jax.numpy as jnp

from spax.evasion import policy_fgsm
from tests.evasion import cartpole

EPS, EPISODES, SEEDS = 0.05, 300, (0, 1, 2)


def measure():
    """Mean number of steps that the pole stays up, of 200, over policies and episodes."""

    def noise(logits_fn, x, y, *, key):
        return x + EPS * jax.random.rademacher(key, x.shape, x.dtype)

    def fgsm(norm):
        return functools.partial(policy_fgsm, eps=EPS, norm=norm, bounds=cartpole.BOUNDS)

    attacks = {"clean": None, "noise": noise, **{n: fgsm(n) for n in ("linf", "l2", "l1")}}
    key = jax.random.key(9)
    policies = [cartpole.trained(jax.random.key(seed))[0] for seed in SEEDS]
    found = {
        name: [cartpole.returns(w, attack, key=key, episodes=EPISODES).mean() for w in policies]
        for name, attack in attacks.items()
    }
    return {
        "acting": {"eps": EPS, "steps": cartpole.STEPS}
        | {name: round(float(jnp.mean(jnp.asarray(each)))) for name, each in found.items()}
    }
