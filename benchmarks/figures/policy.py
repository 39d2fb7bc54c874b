"""What is left of policies under attack: Catch, 10x5 pixels, learned by deep Q-learning."""

import functools

import jax
import jax.numpy as jnp
import optax

import spax
from spax import evasion
from tests.evasion.environments import CATCH, CATCH_STEPS, catch_reset, catch_step

NET = spax.nets.MLP(hidden=(64, 64), num_classes=3)
UPDATES, EPISODES = 2500, 300
EPS = 0.1
SEEDS = (0, 1, 2)


def measure():
    """Mean returns, from -1 to 1, of policies attacked while they act and while they learn."""
    params = trained(CATCH, SEEDS)
    found = [returns(params, i, (i + 1) % len(SEEDS)) for i in range(len(SEEDS))]
    acting = {name: mean([each[name] for each in found]) for name in found[0]}
    return {"acting": {"eps": EPS, **acting}, "learning": induction()}


def mean(values):
    return round(float(jnp.mean(jnp.asarray(values))), 2)


def agent(env, observe=None):
    """The learner: the same for victims, adversaries and replicas."""
    return evasion.dqn(
        env,
        NET.apply,
        optax.adam(1e-3),
        exploration=optax.linear_schedule(1.0, 0.05, UPDATES // 2),
        capacity=8192,
        batch_size=64,
        warmup=512,
        target_every=100,
        environments=8,
        observe=observe,
    )


def start(env, key):
    key_params, key_state = jax.random.split(key)
    return agent(env).init(NET.init(key_params, jnp.zeros((1, 10, 5))), key_state)


def trained(env, seeds):
    """Parameters after deep Q-learning, one set a seed, stacked."""

    def run(seed):
        key_start, key_steps = jax.random.split(jax.random.key(seed))
        keys = jax.random.split(key_steps, UPDATES)
        state = start(env, key_start)
        state, _ = jax.lax.scan(lambda s, k: agent(env).update(s, k)[::-1], state, keys)
        return state.learner.params

    return jax.jit(jax.vmap(run))(jnp.asarray(seeds))


def one(params, i):
    """The network of one seed, as a function of observations."""
    return functools.partial(NET.apply, jax.tree.map(lambda v: v[i], params))


def rollout(policy, attack=None, episodes=EPISODES):
    """Mean return of a policy on Catch."""
    return evasion.attacked_rollout(
        *CATCH, policy, attack, key=jax.random.key(9), steps=CATCH_STEPS, episodes=episodes
    ).mean()


def noise(logits_fn, x, y, *, key, eps=EPS):
    """Random signs, of the size of the attack."""
    return jnp.clip(x + eps * jax.random.rademacher(key, x.shape, x.dtype), 0, 1)


def returns(params, i, j, eps=EPS):
    """Mean returns of policy i, unharmed and under attack; by transfer from policy j."""

    @jax.jit
    def run(params):
        victim, other = one(params, i), one(params, j)
        fgsm = functools.partial(evasion.policy_fgsm, eps=eps)
        return {
            "clean": rollout(victim),
            "noise": rollout(victim, functools.partial(noise, eps=eps)),
            "transfer": rollout(victim, lambda f, x, y, *, key: fgsm(other, x)),
            "transfer_l1": rollout(victim, lambda f, x, y, *, key: fgsm(other, x, norm="l1")),
            **{n: rollout(victim, functools.partial(fgsm, norm=n)) for n in ("linf", "l2", "l1")},
        }

    return {name: float(value) for name, value in run(params).items()}


def losing_step(state, action, key):
    """Catch for the adversary, who wants the ball to be missed."""
    state, x, reward, done = catch_step(state, action, key)
    return state, x, -reward, done


def induction(seeds=SEEDS, eps=0.3):
    """Policy induction from the first step: a replica learns along from what the victim sees.

    Returns of the victims at the end, under attack and on what is really there, and how often a
    victim did what the adversary would have done.
    """
    adversary = trained((catch_reset, losing_step), (77,))
    attack = functools.partial(evasion.policy_fgsm, eps=eps, targeted=True)

    def run(adversary, seed):
        key_victim, key_replica, key_steps = jax.random.split(jax.random.key(100 + seed), 3)
        wanted = one(adversary, 0)

        def craft(replica, x):
            policy = functools.partial(NET.apply, replica.params)
            return evasion.induced_observation(policy, wanted, x, attack=attack)

        def step(carry, key):
            victim, replica = carry
            key_victim, key_replica = jax.random.split(key)
            attacked = agent(CATCH, observe=lambda x, key, step: craft(replica, x))
            _, victim = attacked.update(victim, key_victim)
            _, replica = attacked.learn(replica, victim.replay, key_replica)
            return (victim, replica), None

        carry = start(CATCH, key_victim), start(CATCH, key_replica).learner
        keys = jax.random.split(key_steps, UPDATES)
        (victim, replica), _ = jax.lax.scan(step, carry, keys)
        policy = functools.partial(NET.apply, victim.learner.params)
        # Does the victim, shown an altered observation, do what the adversary wants of it?
        xs = sights(jax.random.key(5))
        same = NET.apply(victim.learner.params, craft(replica, xs)).argmax(1)
        return {
            "clean": rollout(policy),
            "attacked": rollout(policy, lambda f, x, y, *, key: craft(replica, x)),
            "induced": (same == wanted(xs).argmax(1)).mean(),
        }

    found = jax.jit(jax.vmap(run, (None, 0)))(adversary, jnp.asarray(seeds))
    return {
        "eps": eps,
        "clean": mean(found["clean"]),
        "attacked": mean(found["attacked"]),
        "induced": round(100 * float(found["induced"].mean())),
    }


def sights(key, episodes=64):
    """Observations of a random player."""

    def step(state, key):
        action = jax.random.randint(key, (), 0, 3)
        state, x, _, _ = catch_step(state, action, key)
        return state, x

    def play(key):
        key_reset, key_steps = jax.random.split(key)
        keys = jax.random.split(key_steps, CATCH_STEPS - 1)
        return jax.lax.scan(step, catch_reset(key_reset)[0], keys)[1]

    return jax.vmap(play)(jax.random.split(key, episodes)).reshape(-1, 10, 5)
