import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.audit import AuditError, Model
from spax.audit.model import bind, per_architecture
from spax.nets import MLP
from spax.typing import Stochastic, call
from tests.audit import linear


def noise(x, key):
    return jax.random.normal(key, (len(x), 2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None,), "logits_fn"),
        ((3,), "logits_fn must be a function"),
        ((None, "apply", 1), "apply_fn must be a function"),
        ((None, linear.apply_fn), "without params"),
        ((linear.logits_fn, None, 1), "without apply_fn"),
        ((linear.logits_fn, None, None, None, 7), "layers must be a function"),
    ],
)
def test_half_a_model_is_refused(arguments, said):
    with pytest.raises(AuditError, match=said):
        Model(*arguments)


def test_both_forms_are_the_same_model():
    x = linear.data().x_test[:3]
    bound, unbound = Model(linear.logits_fn), Model(None, linear.apply_fn, linear.W)
    expected = linear.logits_fn(x)
    for model in (bound, unbound):
        np.testing.assert_array_equal(model.logits_fn(x), expected)
        np.testing.assert_array_equal(bind(model.apply_fn, model.params)(x), expected)
        assert not model.draws


def test_a_stochastic_model_stays_one_in_both_forms():
    x, key = np.zeros((3, 1), np.float32), jax.random.key(0)
    bound = Model(Stochastic(noise))
    unbound = Model(None, Stochastic(lambda scale, x, key: scale * noise(x, key)), 2.0)
    for model, scale in ((bound, 1), (unbound, 2)):
        assert model.draws
        for fn in (model.logits_fn, bind(model.apply_fn, model.params)):
            assert isinstance(fn, Stochastic)
            np.testing.assert_allclose(call(fn, x, key), scale * noise(x, key), rtol=1e-6)


def test_models_of_one_architecture_are_traced_once():
    traced = []

    def apply_fn(w, x):
        traced.append(w)
        return linear.apply_fn(w, x)

    x = jnp.asarray(linear.data().x_test[:3])
    run = per_architecture(lambda logits_fn, x: logits_fn(x))
    for scale in (1.0, 2.0, 3.0):
        got = run(Model(None, apply_fn, jnp.asarray(scale * linear.W)), x)
        np.testing.assert_allclose(got, scale * linear.logits_fn(x), rtol=1e-5, atol=1e-6)
    assert len(traced) == 1


def test_a_bound_method_that_is_made_anew_is_traced_once():
    net, traced = MLP(hidden=(3,), num_classes=2), []

    def measure(logits_fn, x):
        traced.append(None)
        return logits_fn(x)

    run, x = per_architecture(measure), jnp.zeros((1, 4))
    for seed in range(2):
        run(Model(None, net.apply, net.init(jax.random.key(seed), x)), x)
    assert len(traced) == 1


def test_other_architectures_do_not_share_a_program():
    run = per_architecture(lambda logits_fn, x: logits_fn(x))
    x = jnp.ones((1, 2))
    assert [float(run(Model(lambda x, s=s: s * x), x)[0, 0]) for s in (1, 2, 3)] == [1, 2, 3]
    key = jax.random.key(0)
    drawn = per_architecture(lambda logits_fn, x, key: call(logits_fn, x, key))
    fn = lambda w, x, key=None: w * x if key is None else -w * x  # noqa: E731
    values = [drawn(Model(None, f, 1.0), x, key)[0, 0] for f in (fn, Stochastic(fn))]
    assert [float(v) for v in values] == [1, -1]
