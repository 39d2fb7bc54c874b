import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from spax.evasion import attacked_rollout, dqn, fgsm, induced_observation, policy_fgsm
from spax.typing import Stochastic
from tests.evasion.environments import CATCH, CATCH_STEPS, COLUMNS, ROWS

pytestmark = pytest.mark.slow  # compiles for long

KEY = jax.random.key(0)


def two_actions(w):
    """Logits whose margin is w.x - 1: the first action is preferred."""
    return lambda x: jnp.stack([jnp.ones(x.shape[0], x.dtype), x @ w], axis=1)


def catcher(x):
    """A policy that always catches: towards the column of the ball, by one pixel a step."""
    places = jnp.arange(COLUMNS, dtype=x.dtype)
    ball = x[:, : ROWS - 1].sum(1) @ places
    paddle = x[:, ROWS - 1] @ places
    return -jnp.abs(jnp.arange(-1, 2)[None, :] + (paddle - ball)[:, None])


@pytest.mark.usefixtures("strict")
def test_in_linf_it_is_fgsm_on_the_preferred_action(linear):
    apply_fn, params, x, y = linear
    f = functools.partial(apply_fn, params)
    own, given, wanted = jax.jit(
        lambda x, y: (
            policy_fgsm(f, x, eps=0.05),
            policy_fgsm(f, x, y, eps=0.05),
            fgsm(f, x, y, eps=0.05),
        )
    )(x, y)
    assert (wanted != x).any()
    np.testing.assert_array_equal(own, wanted)
    np.testing.assert_array_equal(given, wanted)


@functools.partial(jax.jit, static_argnames="norm")
def attacked(w, x, eps, norm):
    return policy_fgsm(two_actions(w), x, eps=eps, norm=norm)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_in_l1_it_solves_the_linear_programme_of_ball_and_box(eps):
    rng = np.random.default_rng(0)
    w = rng.normal(size=12)
    x = rng.uniform(size=(4, 12)).astype(np.float32)
    x_adv = attacked(jnp.asarray(w / 100, jnp.float32), x, eps, "l1")
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    moved = np.asarray(x_adv, np.float64) - x
    assert (np.abs(moved).sum(1) <= 12 * eps).all()
    for row, d in zip(x, moved, strict=True):
        # d = p - n with p, n >= 0: sum (p + n) <= D eps, within the box.
        best = scipy.optimize.linprog(
            np.concatenate([-w, w]),
            A_ub=np.ones((1, 24)),
            b_ub=[12 * eps],
            bounds=[(0, 1 - v) for v in row] + [(0, v) for v in row],
        )
        np.testing.assert_allclose(w @ d, -best.fun, rtol=1e-4)


@pytest.mark.usefixtures("strict")
def test_the_three_budgets_are_of_comparable_size():
    # Far from the box, on a linear margin: eps |w|_1, eps sqrt(D) |w|_2 and eps D |w|_inf.
    w = np.random.default_rng(1).normal(size=12).astype(np.float32) / 100
    x, eps, size = np.full((4, 12), 0.5, np.float32), 0.01, np.abs(w)
    gains = [np.asarray(attacked(w, x, eps, norm) - x)[0] @ w for norm in ("linf", "l2", "l1")]
    wanted = [eps * size.sum(), eps * np.sqrt(12) * np.sqrt((w**2).sum()), eps * 12 * size.max()]
    np.testing.assert_allclose(gains, wanted, rtol=1e-3)
    assert gains == sorted(gains)


@pytest.mark.usefixtures("strict")
def test_entries_of_no_influence_do_not_move_even_with_budget_left():
    w = np.zeros(12, np.float32)
    w[:2] = 0.1, -0.1
    x = np.full((4, 12), 0.3, np.float32)
    x_adv = attacked(w, x, 1.0, "l1")
    np.testing.assert_allclose(x_adv[:, :2], np.tile([1.0, 0.0], (4, 1)), atol=1e-6)
    np.testing.assert_array_equal(x_adv[:, 2:], x[:, 2:])


@pytest.mark.usefixtures("strict")
def test_a_stochastic_policy_needs_a_key():
    w = jnp.full(12, 0.1)
    draws = Stochastic(lambda x, key: two_actions(w)(x) + jax.random.normal(key, (1, 2)) / 100)
    x = jnp.full((4, 12), 0.5)
    with pytest.raises(ValueError, match="random key"):
        policy_fgsm(draws, x, eps=0.1)
    x_adv = jax.jit(lambda x: policy_fgsm(draws, x, key=KEY, eps=0.1))(x)
    np.testing.assert_allclose(x_adv, x + 0.1, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l0"}, "norm"),
        ({"eps": -0.1}, "eps"),
        ({"targeted": True}, "wanted actions"),
        ({"y": jnp.array([2])}, "labels"),
        ({"y": jnp.array([0, 1])}, "one entry per example"),
        ({"x": jnp.array([[2.0, 0.0]])}, "bounds"),
        ({"x": jnp.array([[jnp.nan, 0.0]])}, "finite"),
        ({"x": jnp.array([[1, 0]])}, "floating"),
        ({"logits_fn": lambda x: x[:, 0]}, "logits must have shape"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    given = {"logits_fn": lambda x: x, "x": jnp.array([[0.6, 0.4]]), "eps": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        policy_fgsm(given.pop("logits_fn"), given.pop("x"), **given)


def test_a_rollout_is_a_loop_over_observations():
    attack = functools.partial(policy_fgsm, eps=0.6, norm="l2")
    reset, step = CATCH
    play = functools.partial(
        attacked_rollout, *CATCH, catcher, key=KEY, steps=CATCH_STEPS, episodes=16
    )
    unharmed, ours = jax.jit(lambda: (play(), play(attack)))()
    np.testing.assert_array_equal(unharmed, np.ones(16))

    @jax.jit
    def advance(state, x):
        return jax.vmap(step)(state, catcher(attack(catcher, x)).argmax(1), jnp.zeros(16))

    state, x = jax.jit(jax.vmap(reset))(jax.random.split(jax.random.split(KEY)[0], 16))
    for _ in range(CATCH_STEPS):
        state, x, reward, _ = advance(state, x)
    np.testing.assert_array_equal(ours, reward)
    assert -1 <= ours.mean() < 0.5


def test_nothing_counts_after_the_end_and_the_attack_sees_the_preferred_actions():
    def reset(key):
        return jnp.zeros(()), jnp.array([0.2, 0.7])

    def step(t, action, key):
        return t + 1, jnp.array([0.2, 0.7]), 10.0**-t + 0 * action, t + 1 >= 3

    def attack(f, x, y, *, key):
        assert y.shape == (2,)
        # Any other action than 1 would make the observation, and with it the return, NaN.
        return jnp.where((y == 1)[:, None], x, jnp.nan)

    play = functools.partial(attacked_rollout, reset, step, key=KEY, episodes=2)
    np.testing.assert_allclose(play(lambda x: x, attack, steps=5), [1.11, 1.11], rtol=1e-5)
    np.testing.assert_allclose(play(lambda x: x, steps=2), [1.1, 1.1], rtol=1e-5)
    for change, message in (({"steps": 0}, "steps"), ({"steps": 1, "episodes": 0}, "episodes")):
        with pytest.raises(ValueError, match=message):
            attacked_rollout(reset, step, lambda x: x, **{"key": KEY, **change})
    with pytest.raises(ValueError, match="random key"):
        attacked_rollout(reset, step, lambda x: x, key=None, steps=1)


@pytest.mark.usefixtures("strict")
def test_induced_observations_fool_the_replica_or_are_the_true_ones(linear):
    apply_fn, params, x, y = linear
    replica = functools.partial(apply_fn, params)
    wanted = (y + 1) % 4

    def adversary(x):
        return jax.nn.one_hot(wanted, 4)

    attack = functools.partial(policy_fgsm, eps=0.15, targeted=True)
    shown = jax.jit(lambda x: induced_observation(replica, adversary, x, attack=attack))(x)
    moved = (shown != x).any(axis=1)
    assert 0 < moved.sum() < len(x)
    np.testing.assert_array_equal(replica(shown).argmax(1) == wanted, moved)
    assert (np.abs(shown - x) <= 0.15 + 1e-6).all()


# A chain: from place 0 action 1 leads to place 1, where action 1 pays 1 and ends; action 0 ends.
def _chain_reset(key):
    return jnp.zeros((), jnp.int32), jnp.array([1.0, 0.0])


def _chain_step(place, action, key):
    done = (action == 0) | (place == 1)
    reward = jnp.where((place == 1) & (action == 1), 1.0, 0.0)
    return place + 1, jnp.array([0.0, 1.0]), reward, done


CHAIN = (_chain_reset, _chain_step)


def learned(agent, updates, params):
    """The state before each update and the metrics of each, and the last state; all as NumPy."""

    @jax.jit
    def run(params):
        def step(state, key):
            metrics, after = agent.update(state, key)
            return after, (state._replace(replay=None), metrics)

        keys = jax.random.split(KEY, updates)
        return jax.lax.scan(step, agent.init(params, KEY), keys)

    last, (states, metrics) = jax.tree.map(np.asarray, run(params))
    return states, metrics, last


SMALL = {"capacity": 64, "warmup": 16, "batch_size": 32, "environments": 4, "target_every": 5}


@pytest.fixture(scope="module")
def history():
    agent = dqn(CHAIN, lambda w, x: x @ w, optax.sgd(0.5), discount=0.8, exploration=1.0, **SMALL)
    with jax.numpy_dtype_promotion("strict"):
        return learned(agent, 400, jnp.ones((2, 2)))


def test_it_learns_the_values_that_the_bellman_equation_has(history):
    _, metrics, last = history
    # Q(1, .) = (0, 1); Q(0, 1) = 0.8 max Q(1, .); Q(0, 0) = 0.
    np.testing.assert_allclose(last.learner.params, [[0.0, 0.8], [0.0, 1.0]], atol=0.01)
    assert last.steps == 400
    assert last.replay.added == 1600
    # A random player is paid in one episode of four.
    assert abs(metrics.rewards.sum() / metrics.dones.sum() - 0.25) < 0.05


def test_learning_waits_for_the_warmup_and_targets_for_their_turn(history):
    states, metrics, _ = history
    # 16 transitions are there within the fourth update, the first that learns.
    np.testing.assert_array_equal(states.learner.updates[:6], [0, 0, 0, 0, 1, 2])
    assert (states.learner.params[:4] == 1).all()
    assert (states.learner.params[4] != 1).any()
    assert (metrics.loss[:3] == 0).all()
    assert (metrics.loss[3] > 0).all()
    for i in range(3, 30):
        kept = states.learner.updates[i] // 5 * 5 + 3
        wanted = states.learner.params[kept] if kept > 3 else np.ones((2, 2))
        np.testing.assert_array_equal(states.learner.target[i], wanted)


def test_the_learner_acts_on_and_stores_what_it_is_shown():
    def observe(x, key, step):
        assert x.shape == (4, 2)
        return jnp.where(step >= 10, 1 - x, x)  # the places exchanged, from step 10 on

    # The greedy action is the place that is shown: at place 0 unharmed action 0, and so on.
    agent = dqn(
        CHAIN, lambda w, x: x @ w, optax.sgd(0.0), exploration=0.0, observe=observe, **SMALL
    )
    states, metrics, last = learned(agent, 20, jnp.eye(2))
    shown = states.observation
    assert (shown[:10] == [1, 0]).all()  # it always ends at place 0
    assert metrics.dones[:10].all()
    # Place 0 is shown as 1: it goes on to place 1, shown as 0, where action 0 ends without reward.
    places = np.arange(10) % 2
    np.testing.assert_array_equal(shown[10:, 0].argmax(1), 1 - places)
    np.testing.assert_array_equal(metrics.dones[10:, 0], places == 1)
    assert (metrics.rewards == 0).all()
    # 16 rows of four fit: the last four updates overwrote the first.
    order = [16, 17, 18, 19, *range(4, 16)]
    np.testing.assert_array_equal(last.replay.observations.reshape(16, 4, 2), shown[order])
    np.testing.assert_array_equal(last.replay.actions.reshape(16, 4), shown[order].argmax(2))
    then = np.concatenate([shown[1:], last.observation[None]])
    np.testing.assert_array_equal(last.replay.next_observations.reshape(16, 4, 2), then[order])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discount": 1.1}, "discount"),
        ({"exploration": -0.1}, "exploration"),
        ({"capacity": 0}, "capacity"),
        ({"batch_size": 0}, "batch_size"),
        ({"warmup": 0}, "warmup"),
        ({"target_every": 0}, "target_every"),
        ({"environments": 0}, "environments"),
        ({"capacity": 62}, "multiple"),
        ({"warmup": 65}, "at least warmup"),
    ],
)
def test_wrong_settings_of_learning_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dqn(CHAIN, lambda w, x: x @ w, optax.sgd(0.1), **{**SMALL, **change})


def test_learning_needs_keys():
    agent = dqn(CHAIN, lambda w, x: x @ w, optax.sgd(0.1), **SMALL)
    with pytest.raises(ValueError, match="random key"):
        agent.init(jnp.zeros((2, 2)), None)
    with pytest.raises(ValueError, match="random key"):
        agent.update(agent.init(jnp.zeros((2, 2)), KEY), None)


@pytest.mark.usefixtures("strict")
def test_reading_digits_as_observations_costs_agreement_most_in_l1(digits):
    # A ridge classifier of the embedded digits is a policy with ten actions.
    x = digits.x_train.reshape(len(digits.x_train), -1)
    a = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    w = np.linalg.solve(a.T @ a + np.eye(65), a.T @ np.eye(10)[digits.y_train])
    w = jnp.asarray(5 * w, jnp.float32)
    z = jnp.asarray(digits.x_test[:100])

    @jax.jit
    def kept(w, z):
        def f(x):
            return x.reshape(x.shape[0], 64) @ w[:-1] + w[-1][None]

        signs = 0.05 * jax.random.rademacher(KEY, z.shape, z.dtype)
        noisy = jnp.clip(z + signs, 0, 1)
        shown = [policy_fgsm(f, z, eps=0.05, norm=norm) for norm in ("linf", "l2", "l1")]
        return [(f(v).argmax(1) == f(z).argmax(1)).astype(w.dtype).mean() for v in (noisy, *shown)]

    noisy, linf, l2, l1 = map(float, kept(w, z))
    assert noisy - 0.1 > linf > l2 > l1  # the order of the paper, at budgets of comparable size


@pytest.fixture(scope="module")
def catch_policies():
    from benchmarks.figures import policy

    return policy.trained(CATCH, (0, 1))


def test_attacks_cost_a_trained_policy_its_return_and_noise_does_not(catch_policies):
    from benchmarks.figures import policy

    found = policy.returns(catch_policies, 0, 1)
    assert found["clean"] >= 0.9
    assert found["noise"] >= 0.9
    assert found["l1"] <= -0.5  # the worst of the three, as in the paper
    assert found["l1"] <= found["l2"] <= found["linf"] <= found["clean"]
    assert found["l1"] <= found["transfer_l1"] <= found["clean"]
    assert found["linf"] <= found["transfer"]


def test_actions_are_induced_while_it_learns():
    from benchmarks.figures import policy

    found = policy.induction(seeds=(0,))
    assert found["attacked"] <= found["clean"]
    assert found["induced"] > 34  # more than by chance, of three actions
