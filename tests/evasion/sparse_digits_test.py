"""The attacks that change few entries, on scikit-learn's digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

from spax import norms
from spax.evasion import binary_saliency, carlini_wagner, ead, jsma
from spax.losses import hits, misclassified
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.slow  # compiles for long

COUNT = 24


def _apply(params, x):
    """The logits of scikit-learn's network; two where it has a single one."""
    (w, v), (b, c) = params
    z = jax.nn.relu(x.reshape(x.shape[0], -1) @ w + b[None, :]) @ v + c[None, :]
    return z if z.shape[1] > 1 else jnp.concatenate([jnp.zeros_like(z), z], axis=1)


def _network(x, y):
    net = MLPClassifier((32,), solver="lbfgs", alpha=0.1, max_iter=1000, random_state=0).fit(x, y)
    as_jax = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float32))
    return as_jax((net.coefs_, net.intercepts_))


@pytest.fixture(scope="module")
def ten(digits):
    """(params, x, y) of a network of ten classes, and digits that it knows."""
    params = _network(digits.x_train.reshape(-1, 64), digits.y_train)
    right = np.flatnonzero(np.argmax(_apply(params, digits.x_test), axis=1) == digits.y_test)
    assert len(right) >= 0.9 * len(digits.y_test)
    rows = right[:COUNT]
    return params, jnp.asarray(digits.x_test[rows]), jnp.asarray(digits.y_test[rows], jnp.int32)


@pytest.fixture(scope="module")
def found(ten):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def attack(params, x, y):
        f = functools.partial(_apply, params)
        settings = {"steps": 100, "initial_const": 0.1, "search_steps": 5}
        few = functools.partial(carlini_wagner, f, x, y, step_size=0.05, **settings)
        return {
            "l2": few(norm="l2"),
            "l0": few(norm="l0"),
            "linf": few(norm="linf"),
            "l1": ead(
                f, x, y, steps=100, initial_const=0.01, beta=0.01, search_steps=9, l1_rule=True
            ),
            "jsma": jsma(f, x, (y + 1) % 10, gamma=0.3),
        }

    return attack(*ten)


@pytest.mark.parametrize("norm", ["l0", "l1", "linf"])
def test_each_attack_is_nearest_in_its_own_norm(ten, found, norm):
    params, x, y = ten
    assert misclassified(_apply(params, found[norm]), y).all()
    near = {name: norms.norm(found[name] - x, norm) for name in ("l0", "l1", "l2", "linf")}
    for other in set(near) - {norm}:
        assert near[norm].mean() < near[other].mean()


def test_jsma_reaches_targets_by_few_entries(ten, found):
    params, x, y = ten
    hit = hits(_apply(params, found["jsma"]), (y + 1) % 10)
    changed = norms.norm(found["jsma"] - x, "l0")
    assert hit.mean() >= 0.8
    assert (changed[hit] > 0).all()
    assert (changed <= 0.3 * 64).all()
    np.testing.assert_array_equal(changed[~hit], 0)


def test_a_detector_of_eights_is_evaded_by_adding_bits(digits):
    def of(x, y):
        rows = np.isin(y, (3, 8))
        return (x[rows].reshape(-1, 64) > 0.5).astype(np.float32), (y[rows] == 8).astype(np.int32)

    params = _network(*of(digits.x_train, digits.y_train))
    x, y = (jnp.asarray(v) for v in of(digits.x_test, digits.y_test))
    known = ~misclassified(_apply(params, x), y)
    assert known.mean() > 0.9
    x, y = x[known], y[known]
    run = jax.jit(lambda params, x, y: binary_saliency(functools.partial(_apply, params), x, y))
    x_adv = run(params, x, 1 - y)
    hit = hits(_apply(params, x_adv), 1 - y)
    assert hit.mean() >= 0.8
    assert (x_adv >= x).all()
    assert (norms.norm(x_adv - x, "l0") <= 20).all()
