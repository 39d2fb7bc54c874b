"""The laws of attacks on inputs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evaluation import judge
from spax.norms import norm as norm_of
from tests.contracts.cases import ATTACKS

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(3)
CASES = [
    pytest.param(case, id=f"{name}-{case.norm}{'-targeted' if case.targeted else ''}")
    for name, cases in ATTACKS.items()
    for case in cases
]


@functools.cache
def model():
    """A smooth small network, with a batch that has pixels at the box and inside it."""
    rng = np.random.default_rng(5)
    params = (
        jnp.asarray(rng.normal(size=(6, 16)), jnp.float32),
        jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    )
    x = np.clip(rng.uniform(-0.2, 1.2, size=(6, 3, 2)), 0, 1).astype(np.float32)

    def apply_fn(params, x):
        w, v = (p.astype(x.dtype) for p in params)
        return jnp.tanh((x.reshape(x.shape[0], 6) - 0.5) @ w) @ v

    return apply_fn, params, jnp.asarray(x), jnp.argmax(apply_fn(params, x), axis=1)


def labels(case, y):
    return (y + 1) % 3 if case.targeted else y


@functools.cache
def jitted(case):
    apply_fn = model()[0]

    def run(params, x, y, key):
        return case.run(functools.partial(apply_fn, params), x, y, key=key)

    return jax.jit(run)


def attack(case, x, y, key=KEY):
    return jitted(case)(model()[1], x, y, key)


def assert_same(a, b, case):
    """Up to rounding, which a sign step can amplify in a few entries (0.1 %, one at least)."""
    apart = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)) > (
        1e-6 if case.eps is not None else 1e-4
    )
    assert apart.sum() <= max(1, 0.001 * apart.size)


@pytest.mark.parametrize("case", CASES)
def test_the_result_stays_in_the_ball_and_the_bounds(case):
    *_, x, y = model()
    x_adv = attack(case, x, labels(case, y))
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert jnp.isfinite(x_adv).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    if case.eps is not None:
        assert (norm_of(x_adv - x, case.norm) <= case.eps + 1e-6).all()
    assert (x_adv != x).any()


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_stays_bfloat16_and_in_the_ball(case):
    *_, x, y = model()
    x = x.astype(jnp.bfloat16)
    x_adv = attack(case, x, labels(case, y))
    assert x_adv.dtype == jnp.bfloat16
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    if case.eps is not None:
        moved = x_adv.astype(jnp.float32) - x.astype(jnp.float32)
        assert (norm_of(moved, case.norm) <= case.eps + 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_the_same_key_gives_the_same_bits(case):
    *_, x, y = model()
    y = labels(case, y)
    np.testing.assert_array_equal(attack(case, x, y), attack(case, x, y))
    if case.needs_key:
        assert (attack(case, x, y) != attack(case, x, y, jax.random.key(4))).any()


@pytest.mark.parametrize("case", CASES)
def test_jit_equals_eager(case):
    apply_fn, params, x, y = model()
    y = labels(case, y)
    f = functools.partial(apply_fn, params)
    eager = case.run(f, x, y, key=KEY)
    assert_same(eager, attack(case, x, y), case)
    for x_adv in (eager, attack(case, x, y)):
        assert judge(f, x, x_adv, y, norm=case.norm, targeted=case.targeted).success.shape == (6,)
    verdicts = [
        judge(f, x, x_adv, y, norm=case.norm, targeted=case.targeted).success
        for x_adv in (eager, attack(case, x, y))
    ]
    np.testing.assert_array_equal(*verdicts)


@pytest.mark.parametrize("case", CASES)
def test_vmap_equals_a_loop(case):
    *_, x, y = model()
    y = labels(case, y)
    stacked = jnp.stack([x, x[::-1]]), jnp.stack([y, y[::-1]])
    together = jax.vmap(lambda x, y: attack(case, x, y))(*stacked)
    for i in range(2):
        assert_same(together[i], attack(case, stacked[0][i], stacked[1][i]), case)


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].eps is not None])
def test_radii_can_be_traced_and_differ_by_example(case):
    apply_fn, params, x, y = model()
    y = labels(case, y)
    f = functools.partial(apply_fn, params)
    radii = jnp.linspace(0, case.eps, x.shape[0])
    run = jax.jit(lambda eps: case.run(f, x, y, key=KEY, eps=eps))
    each = run(radii)
    assert (norm_of(each - x, case.norm) <= radii + 1e-6).all()
    np.testing.assert_array_equal(each[0], x[0])
    swept = jax.vmap(run)(jnp.array([0.0, case.eps]))
    np.testing.assert_array_equal(swept[0], x)
    assert_same(swept[1], attack(case, x, y), case)


@pytest.mark.parametrize("case", CASES)
def test_an_example_does_not_see_its_neighbours(case):
    *_, x, y = model()
    y = labels(case, y)
    assert_same(attack(case, x, y)[:1], attack(case, x[:1], y[:1]), case)


@pytest.mark.parametrize("case", CASES)
def test_one_trace_serves_all_values(case):
    apply_fn, params, x, y = model()

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, x, y, key):
        return case.run(functools.partial(apply_fn, params), x, y, key=key)

    for i in range(2):
        run(params, x * (1 - 0.1 * i), labels(case, y), jax.random.key(i))


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].eps is None])
def test_a_failed_minimum_norm_attack_returns_the_input(case):
    *_, x, y = model()

    def steadfast(x):
        never = jnp.zeros((x.shape[0], 3)) + jax.nn.one_hot(y, 3) * 10
        return never + 0 * x.reshape(x.shape[0], -1)[:, :3]

    np.testing.assert_array_equal(case.run(steadfast, x, labels(case, y), key=KEY), x)


@pytest.mark.parametrize("case", CASES)
def test_empty_batches_stay_empty(case):
    *_, x, y = model()
    assert attack(case, x[:0], y[:0]).shape == (0, 3, 2)


@pytest.mark.parametrize("case", CASES)
def test_sharded_equals_unsharded(case):
    _, params, x, y = model()
    y = labels(case, y)
    x, y = x[:4], y[:4]
    mesh = jax.make_mesh((2,), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    sharded = jitted(case)(params, jax.device_put(x, rows), jax.device_put(y, rows), KEY)
    assert_same(sharded, attack(case, x, y), case)
