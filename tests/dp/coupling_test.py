"""A loss that couples examples is found out, and one that does not passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.dp import check_per_example

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
W = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}


def mean_loss(params, x, key):
    return jnp.mean(jnp.sum(jnp.tanh(x @ params["w"]) ** 2, axis=-1)), None


def one_loss(params, x, key):
    return jnp.sum(jnp.tanh(x @ params["w"]) ** 2), None


def batch_normed(params, x, key):
    h = x @ params["w"]
    return jnp.mean(
        jnp.sum(jnp.tanh((h - h.mean(0, keepdims=True)) / (h.std(0, keepdims=True) + 0.1)), axis=-1)
    )


def test_a_mean_over_rows_passes():
    check_per_example(mean_loss, one_loss, W, X)
    check_per_example(mean_loss, None, W, X, key=jax.random.key(0))


@pytest.mark.parametrize("loss_fn", [None, one_loss])
def test_batch_normalisation_is_explained(loss_fn):
    with pytest.raises(ValueError, match="normalisation in training mode"):
        check_per_example(batch_normed, loss_fn, W, X)


def test_gradients_that_differ_under_equal_losses_are_found():
    """The value is that of the mean, the gradient goes through the batch's own mean."""

    def coupled(params, x, key):
        h = jnp.tanh(x @ params["w"])
        shared = jnp.sum(h.mean(0))
        return mean_loss(params, x, key)[0] + shared - jax.lax.stop_gradient(shared)

    with pytest.raises(ValueError, match="gradients of"):
        check_per_example(coupled, one_loss, W, X)


def test_a_sum_and_a_single_row_are_refused():
    with pytest.raises(ValueError, match="sum in the place of a mean"):
        check_per_example(lambda p, x, k: 6 * mean_loss(p, x, k)[0], one_loss, W, X)
    with pytest.raises(ValueError, match="two rows"):
        check_per_example(mean_loss, one_loss, W, X[:1])
