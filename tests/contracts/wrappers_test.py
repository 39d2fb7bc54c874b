"""The laws of model wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import pgd
from spax.gradients import eot
from spax.typing import Stochastic, call
from tests.contracts.cases import QUICK, WRAPPERS

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(1)


# Case by case, so that one worker compiles a case once for all of its laws.
@pytest.fixture(
    scope="module",
    params=[pytest.param(case, id=name) for name, cases in WRAPPERS.items() for case in cases],
)
def case(request):
    return request.param


def linear_model(shape):
    size = int(np.prod(shape))
    w = jax.random.normal(jax.random.key(0), (size, 3))
    return lambda x: x.reshape(x.shape[0], size) @ w.astype(x.dtype)


def batch(case, dtype=jnp.float32):
    return jax.random.uniform(jax.random.key(2), (4, *case.shape)).astype(dtype)


def test_it_is_marked_stochastic_exactly_if_it_or_the_model_draws(case):
    plain = linear_model(case.inner)
    assert isinstance(case.wrap(plain), Stochastic) == case.draws
    assert isinstance(case.wrap(Stochastic(lambda x, key: plain(x))), Stochastic)


@functools.cache
def compiled(case):
    """The wrapped model, and a list that grows with its traces."""
    model, traces = case.wrap(linear_model(case.inner)), []

    def run(x, key):
        traces.append(x.shape)
        return call(model, x, key)

    return jax.jit(run, compiler_options=QUICK), traces


def outputs(case, x, key=KEY):
    return compiled(case)[0](x, key)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_are_those_of_the_model(case, dtype):
    out = outputs(case, batch(case, dtype))
    assert out.shape == (4, 3)
    assert out.dtype == dtype


def test_the_same_key_gives_the_same_bits_and_another_other_ones(case):
    x = batch(case)
    np.testing.assert_array_equal(outputs(case, x), outputs(case, x))
    assert (outputs(case, x) != outputs(case, x, jax.random.key(9))).any() == case.draws


def test_one_trace_serves_all_values(case):
    x = batch(case)
    outputs(case, x)
    before = len(compiled(case)[1])
    outputs(case, x / 2, jax.random.key(2))
    assert len(compiled(case)[1]) == before


def test_jit_equals_eager(case):
    eager = call(case.wrap(linear_model(case.inner)), batch(case), KEY)
    np.testing.assert_allclose(outputs(case, batch(case)), eager, rtol=1e-4, atol=1e-5)


def test_vmap_equals_a_loop(case):
    x, keys = batch(case), jax.random.split(KEY, 2)
    together = jax.vmap(compiled(case)[0])(jnp.stack([x, x[::-1]]), keys)
    for i, one in enumerate((x, x[::-1])):
        np.testing.assert_allclose(together[i], outputs(case, one, keys[i]), rtol=1e-4, atol=1e-5)


def test_sharded_equals_unsharded(case):
    x = batch(case)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    np.testing.assert_allclose(outputs(case, sharded), outputs(case, x), rtol=1e-4, atol=1e-5)


def test_an_example_does_not_see_its_neighbours(case):
    x = batch(case)
    np.testing.assert_allclose(outputs(case, x)[:1], outputs(case, x[:1]), rtol=1e-4, atol=1e-5)


def test_every_attack_takes_it(case):
    model, x = case.wrap(linear_model(case.inner)), batch(case)
    y = jnp.zeros(4, int)
    hook = {"gradient": eot(2)} if case.draws else {}
    attack = functools.partial(pgd, eps=0.1, steps=2, **hook)
    run = jax.jit(lambda x, key: attack(model, x, y, key=key), compiler_options=QUICK)
    x_adv = run(x, KEY)
    assert (jnp.abs(x_adv - x) <= 0.1 + 1e-6).all()
