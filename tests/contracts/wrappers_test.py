"""The laws of model wrappers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import pgd
from spax.gradients import eot
from spax.typing import Stochastic, call
from tests.contracts.cases import WRAPPERS

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(1)
CASES = [pytest.param(case, id=name) for name, cases in WRAPPERS.items() for case in cases]


def linear_model(shape):
    size = int(np.prod(shape))
    w = jax.random.normal(jax.random.key(0), (size, 3))
    return lambda x: x.reshape(x.shape[0], size) @ w.astype(x.dtype)


def batch(case, dtype=jnp.float32):
    return jax.random.uniform(jax.random.key(2), (4, *case.shape)).astype(dtype)


@pytest.mark.parametrize("case", CASES)
def test_it_is_marked_stochastic_exactly_if_it_or_the_model_draws(case):
    plain = linear_model(case.inner)
    assert isinstance(case.wrap(plain), Stochastic) == case.draws
    assert isinstance(case.wrap(Stochastic(lambda x, key: plain(x))), Stochastic)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_shape_and_dtype_are_those_of_the_model(case, dtype):
    out = call(case.wrap(linear_model(case.inner)), batch(case, dtype), KEY)
    assert out.shape == (4, 3)
    assert out.dtype == dtype


@pytest.mark.parametrize("case", CASES)
def test_the_same_key_gives_the_same_bits_and_another_other_ones(case):
    model, x = case.wrap(linear_model(case.inner)), batch(case)
    np.testing.assert_array_equal(call(model, x, KEY), call(model, x, KEY))
    assert (call(model, x, KEY) != call(model, x, jax.random.key(9))).any() == case.draws


@pytest.mark.parametrize("case", CASES)
def test_jit_equals_eager_with_one_trace(case):
    chex.clear_trace_counter()
    model = case.wrap(linear_model(case.inner))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, key):
        return call(model, x, key)

    for key in (KEY, jax.random.key(2)):
        np.testing.assert_allclose(
            run(batch(case), key), call(model, batch(case), key), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES)
def test_an_example_does_not_see_its_neighbours(case):
    model, x = case.wrap(linear_model(case.inner)), batch(case)
    np.testing.assert_allclose(
        call(model, x, KEY)[:1], call(model, x[:1], KEY), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_every_attack_takes_it(case):
    model, x = case.wrap(linear_model(case.inner)), batch(case)
    y = jnp.zeros(4, int)
    hook = {"gradient": eot(2)} if case.draws else {}
    attack = functools.partial(pgd, eps=0.1, steps=2, **hook)
    x_adv = jax.jit(lambda x, key: attack(model, x, y, key=key))(x, KEY)
    assert (jnp.abs(x_adv - x) <= 0.1 + 1e-6).all()
