"""CartPole by gymnax, and a policy for it found by evolution strategies."""

import functools

import gymnax
import jax
import jax.numpy as jnp

from spax.evasion import attacked_rollout

STEPS = 200
BOUNDS = (-5.0, 5.0)  # no observation of an episode that goes on lies outside
HIDDEN, POPULATION, GENERATIONS, SIGMA, RATE = 16, 64, 40, 0.2, 0.3

_ENV, _PARAMS = gymnax.make("CartPole-v1")


def reset(key):
    observation, state = _ENV.reset(key, _PARAMS)
    return state, observation


def step(state, action, key):
    observation, state, reward, done, _ = _ENV.step_env(key, state, action, _PARAMS)
    return state, jnp.clip(observation, *BOUNDS), reward, done


def policy(weights, x):
    """Scores of both actions, ``[B, 2]``, by one hidden layer; ``weights`` is one vector."""
    first, second = weights[: 5 * HIDDEN], weights[5 * HIDDEN :]
    x = jnp.tanh(jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1) @ first.reshape(5, HIDDEN))
    return x @ second.reshape(HIDDEN, 2)


def returns(weights, attack=None, *, key, episodes):
    """Steps that the pole stayed up, of so many episodes."""
    act = functools.partial(policy, weights)
    return attacked_rollout(reset, step, act, attack, key=key, steps=STEPS, episodes=episodes)


@jax.jit
def trained(key):
    """Weights after ascending the mean return along normalised ranks of antithetic perturbations.

    T. Salimans et al., Evolution strategies as a scalable alternative to reinforcement learning,
    2017, arXiv:1703.03864, Algorithm 1.
    """

    def generation(weights, key):
        key_noise, key_play = jax.random.split(key)
        noise = jax.random.normal(key_noise, (POPULATION // 2, weights.size))
        noise = jnp.concatenate([noise, -noise])
        score = jax.vmap(lambda e: returns(weights + SIGMA * e, key=key_play, episodes=4).mean())(
            noise
        )
        rank = jnp.argsort(jnp.argsort(score)) / (POPULATION - 1) - 0.5
        return weights + RATE * rank @ noise / (POPULATION * SIGMA), score.mean()

    key_start, key_steps = jax.random.split(key)
    start = 0.1 * jax.random.normal(key_start, (7 * HIDDEN,))
    return jax.lax.scan(generation, start, jax.random.split(key_steps, GENERATIONS))
