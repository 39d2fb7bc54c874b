"""The laws of dataset maps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.cases import DATASET_MAPS

pytestmark = pytest.mark.usefixtures("strict")

CASES = [pytest.param(case, id=name) for name, cases in DATASET_MAPS.items() for case in cases]
X = jax.random.uniform(jax.random.key(0), (24, 2))
Y = (X[:, 0] * 2.99).astype(jnp.int32)
KEY = jax.random.key(1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes_are_kept_and_labels_stay_labels(case, dtype):
    x, y = case.run(X.astype(dtype), Y, KEY)
    assert (x.shape, x.dtype) == (X.shape, dtype)
    assert (y.shape, y.dtype) == (Y.shape, Y.dtype)
    assert ((y >= 0) & (y < 3)).all()


@pytest.mark.parametrize("case", CASES)
def test_jit_equals_eager_with_one_trace_and_the_key_decides(case):
    eager = case.run(X, Y, KEY)
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(case.run, n=1))
    jitted = run(X, Y, KEY)
    for a, b in zip(eager, jitted, strict=True):
        np.testing.assert_array_equal(a, b)
    other = run(X, Y, jax.random.key(7))
    assert (other[1] != eager[1]).any() == case.draws


@pytest.mark.parametrize("case", CASES)
def test_the_inputs_are_left_alone(case):
    before = np.array(X), np.array(Y)
    case.run(X, Y, KEY)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Y, before[1])


@pytest.mark.parametrize("case", CASES)
def test_vmap_equals_a_loop(case):
    keys = jax.random.split(KEY, 2)
    run = jax.jit(case.run)
    together = jax.vmap(run, (None, None, 0))(X, Y, keys)
    for i in range(2):
        np.testing.assert_array_equal(together[1][i], run(X, Y, keys[i])[1])
