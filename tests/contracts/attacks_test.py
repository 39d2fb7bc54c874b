"""The laws of attacks on inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evaluation import judge
from spax.norms import norm as norm_of
from tests.contracts.attack_cases import ATTACKS, BOUNDS, QUICK_TO_COMPILE
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(3)


# Case by case, so that one worker compiles a case once for all of its laws.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            case,
            id=f"{name}-{case.norm}{'-targeted' if case.targeted else ''}",
            marks=() if i == 0 and name in QUICK_TO_COMPILE else pytest.mark.slow,
        )
        for name, cases in ATTACKS.items()
        for i, case in enumerate(cases)
    ],
)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def bounded(case):
    if case.eps is None:
        pytest.skip("the law is about a radius")
    return case


@functools.cache
def model():
    """A smooth small network, with a batch that has entries at the bounds and inside them."""
    rng = np.random.default_rng(5)
    params = (
        jnp.asarray(rng.normal(size=(6, 16)), jnp.float32),
        jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    )
    low, high = BOUNDS
    x = low + (high - low) * np.clip(rng.uniform(-0.2, 1.2, size=(6, 3, 2)), 0, 1)
    x = jnp.asarray(np.clip(x, low, high), jnp.float32)
    return params, x, jnp.argmax(apply_fn(params, x), axis=1)


def apply_fn(params, x):
    w, v = (p.astype(x.dtype) for p in params)
    return jnp.tanh((x.reshape(x.shape[0], 6) - 0.5) @ w) @ v


def batch(case):
    """Inputs, and the labels that the attack is given."""
    _, x, y = model()
    return x, (y + 1) % 3 if case.targeted else y


class Compiled:
    """An attack on the network, its radius an argument where it has one; counts its traces."""

    def __init__(self, case):
        self.case, self.traces = case, 0
        self.run = jax.jit(self._run, compiler_options=QUICK)

    def _run(self, params, x, y, key, eps):
        self.traces += 1
        return plain(self.case, params, x, y, key, eps)

    def __call__(self, x, y, key=KEY, eps=None):
        eps = self.case.eps if eps is None else eps
        return self.run(model()[0], x, y, key, eps)


def plain(case, params, x, y, key, eps):
    radius = {} if case.eps is None else {"eps": eps}
    return case.run(functools.partial(apply_fn, params), x, y, key=key, **radius)


@pytest.fixture(scope="module")
def attack(case):
    return Compiled(case)


def inside(x):
    """Within bounds, which are those of each channel."""
    low, high = (jnp.asarray(b, x.dtype)[None, None, :] for b in BOUNDS)
    return ((x >= low) & (x <= high)).all()


def judged(case, x_adv, rows=slice(None)):
    x, y = batch(case)
    f = functools.partial(apply_fn, model()[0])
    found = judge(f, x[rows], x_adv, y[rows], norm=case.norm, targeted=case.targeted, bounds=BOUNDS)
    return np.asarray(found.success), np.asarray(found.distance)


def assert_same(case, one, other, rows=slice(None)):
    """The same verdicts and distances; entries up to rounding, amplified in a few by a sign."""
    (success, near), (success_too, near_too) = (judged(case, z, rows) for z in (one, other))
    np.testing.assert_array_equal(success, success_too)
    np.testing.assert_allclose(near, near_too, atol=1e-5)
    # What a search for the nearest point finds moves along the boundary more than away from it.
    apart = np.abs(np.asarray(one) - np.asarray(other)) > (1e-4 if case.eps is None else 1e-6)
    assert apart.sum() <= max(1, 0.001 * apart.size)


def test_the_result_stays_in_the_ball_and_in_the_bounds_of_each_channel(case, attack):
    x, y = batch(case)
    x_adv = attack(x, y)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert jnp.isfinite(x_adv).all()
    assert inside(x_adv)
    assert (x_adv[..., 1] < 0).any()
    assert (x_adv[..., 1] > 1).any()
    if case.eps is not None:
        assert (norm_of(x_adv - x, case.norm) <= case.eps + 1e-6).all()
    assert (x_adv != x).any()


def test_bfloat16_stays_bfloat16_and_in_the_ball(case, attack):
    x, y = batch(case)
    x = x.astype(jnp.bfloat16)
    x_adv = attack(x, y)
    assert x_adv.dtype == jnp.bfloat16
    assert inside(x_adv)
    if case.eps is not None:
        moved = x_adv.astype(jnp.float32) - x.astype(jnp.float32)
        assert (norm_of(moved, case.norm) <= case.eps + 1e-6).all()


def test_the_same_key_gives_the_same_bits(case, attack):
    x, y = batch(case)
    np.testing.assert_array_equal(attack(x, y), attack(x, y))
    if case.needs_key:
        assert (attack(x, y) != attack(x, y, jax.random.key(4))).any()


def test_one_trace_serves_all_values(case, attack):
    x, y = batch(case)
    attack(x, y)
    before = attack.traces
    eps = None if case.eps is None else case.eps / 2
    attack(x * 0.9, (y + 1) % 3, jax.random.key(9), eps)
    assert attack.traces == before


def test_jit_equals_eager(case, attack):
    x, y = batch(case)
    eager = plain(case, model()[0], x, y, KEY, case.eps)
    assert_same(case, eager, attack(x, y))


def test_vmap_equals_a_loop(case, attack):
    x, y = batch(case)
    stacked = jnp.stack([x, x[::-1]]), jnp.stack([y, y[::-1]])
    radii = None if case.eps is None else jnp.array([case.eps, case.eps / 2])
    mapped = jax.vmap(attack.run, (None, 0, 0, None, None if radii is None else 0))
    together = mapped(model()[0], *stacked, KEY, radii)
    for i, rows in enumerate((slice(None), slice(None, None, -1))):
        alone = attack(stacked[0][i], stacked[1][i], eps=None if radii is None else radii[i])
        assert_same(case, together[i], alone, rows)


def test_radii_may_differ_by_example(bounded, attack):
    x, y = batch(bounded)
    radii = jnp.linspace(0, bounded.eps, x.shape[0])
    each = attack(x, y, eps=radii)
    assert (norm_of(each - x, bounded.norm) <= radii + 1e-6).all()
    assert_same(bounded, each[-1:], attack(x, y)[-1:], slice(-1, None))
    for unmoved in (each[0], attack(x, y, eps=0.0)[0], attack(x, y, eps=-1.0)[0]):
        np.testing.assert_array_equal(unmoved, x[0])


def test_an_example_does_not_see_its_neighbours(case, attack):
    x, y = batch(case)
    together, first = attack(x, y), slice(0, 1)
    assert_same(case, attack(x[:1], y[:1]), together[:1], first)
    others = jnp.concatenate([x[:1], x[:0:-1]]), jnp.concatenate([y[:1], y[:0:-1]])
    assert_same(case, attack(*others)[:1], together[:1], first)


def test_empty_batches_stay_empty(case, attack):
    x, y = batch(case)
    assert attack(x[:0], y[:0]).shape == (0, 3, 2)


def test_sharded_equals_unsharded(case, attack):
    x, y = batch(case)
    rows = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    assert_same(case, attack(jax.device_put(x, rows), jax.device_put(y, rows)), attack(x, y))


def test_inside_shard_map_each_shard_is_a_batch_of_its_own(case, attack):
    x, y = batch(case)
    mesh, rows = jax.make_mesh((2,), ("data",)), jax.P("data")

    def local(params, x, y, key):
        return plain(case, params, x, y, key, case.eps)

    program = jax.shard_map(
        local, mesh=mesh, in_specs=(jax.P(), rows, rows, jax.P()), out_specs=rows
    )
    place = jax.NamedSharding(mesh, rows)
    together = np.asarray(
        jax.jit(program, compiler_options=QUICK)(
            model()[0], jax.device_put(x, place), jax.device_put(y, place), KEY
        )
    )
    half = len(x) // 2
    for part in (slice(None, half), slice(half, None)):
        assert_same(case, together[part], attack(x[part], y[part]), part)


def test_a_failed_minimum_norm_attack_returns_the_input(case):
    if case.eps is not None:
        pytest.skip("the law is about the smallest perturbation")
    x, y = batch(case)

    def steadfast(x):
        return 10 * jax.nn.one_hot(y, 3) + 0 * x.reshape(x.shape[0], -1)[:, :3]

    np.testing.assert_array_equal(case.run(steadfast, x, y, key=KEY), x)
