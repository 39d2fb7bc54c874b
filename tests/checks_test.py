import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import checks, losses


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-0.1, {"low": 0}, r"eps must be >= 0 \(got eps=-0.1\)"),
        (float("nan"), {}, r"eps must be a number \(got eps=nan\)"),
        (0.0, {"low": 0, "low_open": True}, r"eps must be > 0 \(got eps=0\)"),
        (1.0, {"low": 0, "high": 1, "high_open": True}, r"eps must be >= 0 and < 1 \(got eps=1\)"),
        (np.array([0.1, -2.0]), {"low": 0}, r"got eps=-2\)"),
    ],
)
def test_numbers_out_of_range_raise_with_what_was_got(value, limits, message):
    with pytest.raises(ValueError, match=message):
        checks.check_number("eps", value, **limits)


@pytest.mark.parametrize("value", ["0.1", None, True, 1j, [0.1]])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="real number"):
        checks.check_number("eps", value)


def test_traced_values_pass():
    @jax.jit
    def run(eps, x):
        checks.check_number("eps", eps, low=0)
        checks.check_batch(x, None, (0.0, 1.0))
        return eps

    assert run(-1.0, jnp.full((2, 3), 7.0)) == -1.0


@pytest.mark.parametrize("value", [0, -3])
def test_counts_have_a_minimum(value):
    with pytest.raises(ValueError, match=rf"steps must be >= 1 \(got steps={value}\)"):
        checks.check_count("steps", value)


@pytest.mark.parametrize("value", [1.0, "3", True, None])
def test_counts_are_static_ints(value):
    with pytest.raises(TypeError, match="static int"):
        checks.check_count("steps", value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.array(0.5), r"batch dimension \(got x.shape=\(\)\)"),
        (jnp.zeros((2, 3), jnp.uint8), r"floating point.*got x.dtype=uint8"),
        (jnp.array([[np.nan]]), "finite"),
        (jnp.array([[np.inf]]), "finite"),
        (jnp.array([[1.5]]), r"within bounds.*x.max\(\)=1.5"),
        (jnp.array([[-0.1]]), r"within bounds.*x.min\(\)=-0.1"),
    ],
)
def test_bad_batches_raise(x, message):
    with pytest.raises(ValueError, match=message):
        checks.check_batch(x, None, (0.0, 1.0))


def test_bounds_may_be_arrays_a_channel():
    bounds = (0.0, jnp.array([1.0, 2.0]))
    checks.check_batch(jnp.array([[1.0, 2.0]]), None, bounds)
    with pytest.raises(ValueError, match="within bounds"):
        checks.check_batch(jnp.array([[2.0, 1.0]]), None, bounds)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, 0.0), 1.0, (0.0, 1.0, 2.0), (np.nan, 1.0)])
def test_bad_bounds_raise(bounds):
    with pytest.raises(ValueError, match="bounds must"):
        checks.check_bounds(bounds)


@pytest.mark.parametrize("shape", [(3,), (5, 1, 2)])
def test_bounds_that_do_not_fit_say_so(shape):
    with pytest.raises(ValueError, match=r"bounds must .*got a bound of shape .*x.shape=\(1, 2\)"):
        checks.check_batch(jnp.zeros((1, 2)), None, (0.0, np.ones(shape)))


def test_a_model_that_returns_its_state_too_is_told():
    pair = (jnp.zeros((2, 3)), {"mean": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"logits alone .got a tuple.*has_state=True"):
        checks.check_logits(pair, jnp.array([0, 1]))
    with pytest.raises(ValueError, match=r"logits alone .got a tuple"):
        losses.kl_divergence(pair, jnp.zeros((2, 3)))


def test_labels_go_with_the_batch():
    x = jnp.zeros((3, 2))
    checks.check_batch(x, (jnp.zeros(3), jnp.zeros((3, 5))))
    with pytest.raises(ValueError, match=r"leading dimension 3 \(got y.shape=\(2,\)\)"):
        checks.check_batch(x, jnp.zeros(2))


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (jnp.zeros((2, 3)), jnp.array([0, 3]), r"\[0, 3\).*got labels from 0 to 3"),
        (jnp.zeros((2, 3)), jnp.array([-1, 0]), "labels from -1 to 0"),
        (jnp.zeros((2, 3)), jnp.zeros(2), "integers"),
        (jnp.zeros((2, 1)), jnp.zeros(2, int), "K >= 2"),
        (jnp.zeros(2), jnp.zeros(2, int), r"\[B, K\]"),
        (jnp.zeros((2, 3)), jnp.zeros(3, int), r"y must have shape \[2\]"),
    ],
)
def test_labels_and_logits_are_checked(logits, y, message):
    with pytest.raises(ValueError, match=message):
        checks.check_logits(logits, y)


def test_a_missing_key_says_what_draws():
    with pytest.raises(ValueError, match="random_start=True needs a random key"):
        checks.check_key(None, "random_start=True")
