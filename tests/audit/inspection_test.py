import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from spax.audit import AuditError, Model
from spax.audit.inspection import inspect
from spax.datasets import Dataset
from spax.typing import Stochastic
from tests.audit import linear

DATA, KEY = linear.data(), jax.random.key(0)


def test_every_model_is_looked_at():
    models = {"sound": Model(linear.logits_fn), "broken": Model(lambda x: x)}
    with pytest.raises(AuditError, match="'broken'"):
        inspect(models, DATA, KEY)


def refused(fn, data=DATA):
    """The message about a model that is not fit to be audited."""
    model = fn if isinstance(fn, Model) else Model(fn)
    with pytest.raises(AuditError) as error:
        inspect({"mine": model}, data, KEY)
    message = str(error.value)
    assert "\n" not in message
    assert "'mine'" in message
    return message


def noisy(x, key):
    return linear.logits_fn(x) + jax.random.normal(key, (len(x), 2))


@pytest.mark.parametrize(
    "fn",
    [
        linear.logits_fn,
        jax.jit(linear.logits_fn),
        Stochastic(noisy),
        lambda x: jax.nn.log_softmax(linear.logits_fn(x)),
        lambda x: linear.logits_fn(x).astype(jnp.bfloat16),
        # log(p) of a sure model
        lambda x: jnp.stack([-jnp.inf * jnp.ones(len(x)), x.sum((1, 2, 3))], 1),
        lambda x: 0.0 * linear.logits_fn(x),
        lambda x: jnp.pad(linear.logits_fn(x), ((0, 0), (0, 5))),
    ],
)
def test_a_sound_model_passes(fn):
    inspect({"mine": Model(fn)}, DATA, KEY)


def test_one_example_is_enough_to_look_at():
    one = Dataset(None, None, DATA.x_test[:1], DATA.y_test[:1], "one")
    inspect({"mine": Model(linear.logits_fn)}, one, KEY)


def unmarked(x):
    return linear.logits_fn(x) + np.random.default_rng().normal(size=(len(x), 2))  # traced once


def counting():
    calls = []

    def fn(x):
        jax.debug.callback(lambda: calls.append(None))
        count = jax.pure_callback(
            lambda: np.float32(len(calls)), jax.ShapeDtypeStruct((), jnp.float32)
        )
        return linear.logits_fn(x) + jax.lax.stop_gradient(count)

    return fn


@pytest.mark.parametrize("fn", [unmarked, counting()], ids=["drawn while traced", "drawn in each"])
def test_an_unmarked_draw_is_found_and_told_how_to_mark(fn):
    message = refused(fn)
    assert "not deterministic" in message
    assert "spax.typing.Stochastic(fn)" in message


@pytest.mark.parametrize(
    "hide", [lambda z: z + 1e5, lambda z: jnp.pad(z, ((0, 0), (0, 3)), constant_values=-1e9)]
)
def test_large_logits_hide_nothing(hide):
    message = refused(lambda x: hide(unmarked(x)))
    assert "not deterministic" in message
    assert "batch-dependent" in refused(lambda x: hide(normalised(train=True)(x)))
    inspect({"mine": Model(lambda x: hide(linear.logits_fn(x)))}, DATA, KEY)


class Normalised(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(2)(x.reshape(len(x), -1))
        return linen.BatchNorm(use_running_average=not train)(x)


def normalised(train):
    net = Normalised()
    variables = net.init(KEY, DATA.x_test[:2], False)
    return lambda x: net.apply(variables, x, train, mutable=["batch_stats"])[0]


def test_batch_normalisation_in_training_mode_is_found():
    message = refused(normalised(train=True))
    assert "batch-dependent" in message
    assert "evaluation mode" in message
    inspect({"mine": Model(normalised(train=False))}, DATA, KEY)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: linear.logits_fn(x) - linear.logits_fn(x).mean(0, keepdims=True),
        lambda x: linear.logits_fn(x) + linear.logits_fn(x[::-1]),
        lambda x: linear.logits_fn(x) * jnp.arange(len(x))[:, None],
        lambda x: linear.logits_fn(x) / len(x),
    ],
    ids=["mean", "partner", "place", "size"],
)
def test_examples_that_see_each_other_are_found(fn):
    assert "batch-dependent" in refused(fn)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(16, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x.reshape(len(x), -1)))


def test_an_nnx_module_enters_in_evaluation_mode_alone():
    net = Dropped(nnx.Rngs(0))
    assert "evaluation mode" in refused(net)
    net.eval()
    inspect({"mine": Model(net)}, DATA, KEY)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x: linear.logits_fn(x) * jnp.nan, "NaN for 8 of the first 8"),
        (lambda x: linear.logits_fn(x)[:, :1], "got shape (8, 1)"),
        (lambda x: linear.logits_fn(x)[:, 0], "got shape (8,)"),
        (lambda x: linear.logits_fn(x)[:, None], "got shape (8, 1, 2)"),
        (lambda x: linear.logits_fn(x)[:4], "got shape (4, 2)"),
        (lambda x: jnp.argmax(linear.logits_fn(x), 1), "an array of int32"),
        (lambda x: (linear.logits_fn(x), x), "got tuple"),
        (lambda x: {"logits": linear.logits_fn(x)}, "got dict"),
        (lambda x: None, "got NoneType"),
        (lambda x: x.reshape(len(x), 9), "inputs of shape (8, 4, 4, 1)"),
        (lambda x: linear.logits_fn(x.reshape(8, -1)), "inputs of shape (13, 4, 4, 1)"),
        (lambda x, key: linear.logits_fn(x), "spax.typing.Stochastic"),
        (lambda x: [][1], "IndexError"),
    ],
)
def test_outputs_that_are_no_logits_are_told_from_another(fn, said):
    assert said in refused(fn)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: np.asarray(x).reshape(len(x), -1)[:, :2],
        lambda x: np.dot(x.reshape(len(x), -1), np.ones((16, 2), np.float32)),
        lambda x: linear.logits_fn(x) if x.sum() > 0 else linear.logits_fn(-x),
        lambda x: linear.logits_fn(x)[: int(x.sum())],
        lambda x: linear.logits_fn(x) * float(x.sum()),
    ],
    ids=["asarray", "dot", "if", "int", "float"],
)
def test_what_jax_cannot_trace_is_said_to_be_so(fn):
    message = refused(fn)
    assert "cannot be traced by JAX" in message
    assert "jax.numpy" in message


def test_a_step_without_a_gradient_is_told_to_get_one():
    def through_numpy(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return linear.logits_fn(jax.pure_callback(np.round, shape, x))

    message = refused(through_numpy)
    assert "no gradient" in message
    assert "spax.gradients.bpda" in message


def test_labels_beyond_the_logits_are_found():
    x, y = DATA.x_test, DATA.y_test.copy()
    y[-1] = 7
    message = refused(linear.logits_fn, Dataset(None, None, x, y, "eight"))
    assert "go up to 7" in message
    assert "2 logits" in message
    # also where only a member has one
    message = refused(linear.logits_fn, Dataset(x, y, x, DATA.y_test, "members"))
    assert "go up to 7" in message


def test_a_model_for_small_batches_only_is_told_the_size():
    def small(x):
        if len(x) > 20:
            raise ValueError("too many")
        return linear.logits_fn(x)

    with pytest.raises(AuditError, match=r"fails on batches of 25 .*too many.*--batch-size"):
        inspect({"mine": Model(small)}, DATA, KEY, 25)
    inspect({"mine": Model(small)}, DATA, KEY, 20)
