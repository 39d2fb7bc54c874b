"""Each rule keeps the sum within C, and scales as its paper says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.dp import Batch, automatic, clipped_grad, flat, normalised, per_layer

C = 0.7


def loss_fn(params, x, key):
    return x[:2] @ params["a"] + x[2:4] @ params["b"] + x[4:] @ params["c"], None


PARAMS = {"a": jnp.zeros(2), "b": jnp.zeros(2), "c": jnp.zeros(2)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)) * [[1e-3], [0.1], [1], [30], [1e3]])


def one(rule, i, bound=C):
    batch = Batch(X.astype(jnp.float32), jnp.arange(5) == i)
    total, info = RUN[rule.name](batch, bound)
    return np.concatenate([np.asarray(v, np.float64) for v in total.values()]), info


TWO = per_layer({"a": 0, "b": 0, "c": 1}, shares={0: 3, 1: 4})
RULES = {r.name: r for r in (flat, TWO, automatic(), normalised)}
RUN = {
    name: jax.jit(
        lambda batch, bound, rule=rule: clipped_grad(loss_fn, l2_clip_norm=bound, rule=rule)(
            PARAMS, batch
        )
    )
    for name, rule in RULES.items()
}


@pytest.mark.parametrize("name", list(RULES))
def test_no_example_is_longer_than_the_bound(name):
    for i in range(5):
        assert np.linalg.norm(one(RULES[name], i)[0]) <= C


@pytest.mark.parametrize("name", list(RULES))
def test_scales_are_those_of_the_papers(name):
    for i in range(5):
        g = np.asarray(X[i], np.float64)
        norm = np.linalg.norm(g)
        first, second = np.linalg.norm(g[:4]), np.linalg.norm(g[4:])
        expected = {
            "flat": g * min(1, C / norm),
            "per layer": np.concatenate(
                [g[:4] * min(1, 0.6 * C / first), g[4:] * min(1, 0.8 * C / second)]
            ),
            "automatic, gamma 0.01": g * C / (norm + 0.01),
            "normalised": g * C / norm,
        }[name]
        found, info = one(RULES[name], i)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        longer = first > 0.6 * C or second > 0.8 * C if name == "per layer" else norm > C
        assert bool(info.clipped) == longer


def test_every_array_is_a_layer_by_default():
    groups, shares = per_layer().groups(PARAMS)
    assert groups == [0, 1, 2]
    np.testing.assert_allclose(shares, 3**-0.5)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_sensitivities(rule):
    fn = clipped_grad(loss_fn, l2_clip_norm=C, rule=rule)
    assert (fn.sensitivity("add_remove"), fn.sensitivity("replace")) == (C, 2 * C)
    with pytest.raises(ValueError, match="adjacency"):
        fn.sensitivity("zero_out")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: automatic(0.0), ValueError, "gamma"),
        (lambda: per_layer(shares={"a": -1.0}), ValueError, "shares"),
        (lambda: per_layer(shares={"a": 1.0}).groups(PARAMS), ValueError, "shares must be"),
        (lambda: clipped_grad(loss_fn, l2_clip_norm=C, rule="flat"), TypeError, "rule"),
    ],
)
def test_misuse_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
