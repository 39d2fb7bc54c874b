import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.typing import Stochastic, call, expand, lift, wide

pytestmark = pytest.mark.usefixtures("strict")


def test_call_dispatches_on_the_mark():
    noisy = Stochastic(lambda x, key: x + jax.random.normal(key, x.shape))
    key = jax.random.key(0)
    x = jnp.zeros(3)
    np.testing.assert_array_equal(call(noisy, x, key), jax.random.normal(key, (3,)))
    np.testing.assert_array_equal(call(lambda x: x + 1, x, key), np.ones(3))


def test_a_stochastic_model_needs_a_key():
    with pytest.raises(ValueError, match=r"needs a random key \(got key=None\)"):
        call(Stochastic(lambda x, key: x), jnp.zeros(3))


@pytest.mark.parametrize("random_step", [False, True])
@pytest.mark.parametrize("random_model", [False, True])
def test_lift_is_stochastic_if_either_is_and_draws_independently(random_step, random_model):
    def noise(x, key):
        return x + jax.random.normal(key, x.shape)

    step = Stochastic(noise) if random_step else lambda x: x
    model = Stochastic(noise) if random_model else lambda x: x
    lifted = lift(step, model)
    assert isinstance(lifted, Stochastic) == (random_step or random_model)
    out = call(lifted, jnp.zeros(1000), jax.random.key(1))
    np.testing.assert_allclose(np.var(out), random_step + random_model, atol=0.2)


def test_expand_broadcasts_scalars_and_rows_and_refuses_the_rest():
    x = jnp.zeros((2, 3, 4), jnp.bfloat16)
    assert expand(0.5, x).shape == (1, 1, 1)
    assert expand(jnp.ones(2), x).shape == (2, 1, 1)
    assert expand(0.5, x).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"one per example, of shape \(2,\) \(got shape \(3,\)\)"):
        expand(jnp.ones(3), x)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(jnp.bfloat16, "float32"), (jnp.float16, "float32"), (jnp.float32, "float32")],
)
def test_sums_are_taken_in_float32_at_least(dtype, wanted):
    assert wide(jnp.zeros(1, dtype)).name == wanted


def test_a_stochastic_model_is_a_function_of_its_key_under_jit():
    noisy = Stochastic(lambda x, key: x + jax.random.normal(key, x.shape))
    key = jax.random.key(3)
    np.testing.assert_allclose(jax.jit(noisy)(jnp.ones(2), key), noisy(jnp.ones(2), key), rtol=1e-6)
