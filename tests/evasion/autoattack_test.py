import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import datasets, nets
from spax.evaluation import judge, worst_of
from spax.evasion import apgd, autoattack
from spax.evasion.autoattack import _chunks, _padded
from spax.losses import cross_entropy, dlr, margin, misclassified
from spax.typing import Stochastic
from tests.contracts.cases import QUICK

pytestmark = pytest.mark.slow  # compiles for long

KEY = jax.random.key(0)
EPS = 0.1
SETTINGS = {"steps": 10, "queries": 30, "n_targets": 2, "return_info": True}


@pytest.fixture(scope="module")
def model():
    """A small network on digits: (apply_fn, params, x, y), of images it may get wrong."""
    data = datasets.digits()
    net = nets.MLP(hidden=(32,))
    x, y = jnp.asarray(data.x_train[:1000]), jnp.asarray(data.y_train[:1000])
    params = net.init(KEY, x[:1])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def train(params, x, y):
        def descend(_, params):
            slope = jax.grad(lambda p: cross_entropy(net.apply(p, x), y).mean())(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, slope)

        return jax.lax.fori_loop(0, 150, descend, params)

    params = train(params, x, y)
    return net.apply, params, jnp.asarray(data.x_test[:40]), jnp.asarray(data.y_test[:40])


def pack(model, eps):
    apply_fn, params, x, y = model
    f = jax.tree_util.Partial(apply_fn, params)
    return autoattack(f, x, y, key=KEY, eps=eps, batch_size=16, **SETTINGS)


@pytest.fixture(scope="module")
def packed(model):
    """What the eager form finds: compiled for batches of 16, in which survivors are packed."""
    return pack(model, EPS)


@pytest.fixture(scope="module")
def masked(model):
    apply_fn, params, x, y = model
    attack = jax.jit(
        lambda p, x, y, key: autoattack(
            functools.partial(apply_fn, p), x, y, key=key, eps=EPS, **SETTINGS
        ),
        compiler_options=QUICK,
    )
    return attack(params, x, y, KEY)


def test_survivors_are_packed_into_few_sizes():
    assert [_padded(n, 200) for n in (1, 16, 17, 64, 65, 129, 200)] == [
        16,
        16,
        32,
        64,
        128,
        200,
        200,
    ]
    rows = np.arange(45)
    chunks = list(_chunks(rows, 20))
    assert [(len(rows), count) for rows, count in chunks] == [(20, 20), (20, 20), (16, 5)]
    np.testing.assert_array_equal(np.concatenate([r[:n] for r, n in chunks]), rows)


def test_packing_changes_nothing(packed, masked):
    """The same verdicts, by the same attacks, at the same cost: keys follow the examples."""
    for one, other in zip(packed.info[:1], masked.info[:1], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(packed.info.margin, masked.info.margin, atol=1e-3)
    apart = np.abs(np.asarray(packed.x_adv) - np.asarray(masked.x_adv)) > 1e-5
    assert apart.mean() < 0.01


def test_the_report_says_who_broke_what_and_at_what_cost(model, packed):
    apply_fn, params, x, y = model
    x_adv, info = packed
    clean = misclassified(apply_fn(params, x), y)
    broken = misclassified(apply_fn(params, x_adv), y)
    np.testing.assert_array_equal(info.broken_by == 0, clean)
    np.testing.assert_array_equal(x_adv[clean], x[clean])
    np.testing.assert_array_equal(info.broken_by >= 0, broken)
    np.testing.assert_allclose(info.margin, margin(apply_fn(params, x_adv), y), atol=1e-4)
    assert 0.2 < broken.mean() < 0.9
    # What fell to APGD-CE took at most its 11 gradients; what nothing broke met everything.
    assert (info.gradients[info.broken_by == 0] == 0).all()
    assert (info.gradients[info.broken_by == 1] <= 11).all()
    assert (info.gradients[info.broken_by == -1] == 3 * 11 + 2 * 10).all()
    assert (info.queries[info.broken_by == -1] == 30).all()
    assert (info.queries[(info.broken_by >= 0) & (info.broken_by < 4)] == 0).all()
    # Survivors get the point of the largest margin, not the input.
    left = info.broken_by == -1
    assert (info.margin[left] > margin(apply_fn(params, x), y)[left]).all()


def test_every_point_is_in_the_ball_and_the_box(model, packed):
    apply_fn, params, x, y = model
    f = functools.partial(apply_fn, params)
    found = judge(f, x, packed.x_adv, y, norm="linf", eps=EPS)
    np.testing.assert_array_equal(found.success, packed.info.broken_by >= 0)
    assert (jnp.abs(packed.x_adv - x) <= EPS + 1e-6).all()
    assert ((packed.x_adv >= 0) & (packed.x_adv <= 1)).all()


def test_it_is_no_weaker_than_its_first_member(model, packed):
    apply_fn, params, x, y = model
    alone = jax.jit(
        lambda p, x, y: apgd(functools.partial(apply_fn, p), x, y, key=KEY, eps=EPS, steps=10),
        compiler_options=QUICK,
    )(params, x, y)
    member = misclassified(apply_fn(params, alone), y).mean()
    assert (packed.info.broken_by >= 0).mean() >= member
    assert (packed.info.broken_by == 1).sum() > 0


def test_eps_zero_returns_x(model, packed):
    x_adv, info = pack(model, 0.0)
    np.testing.assert_array_equal(x_adv, model[2])
    np.testing.assert_array_equal(info.broken_by, np.where(packed.info.broken_by == 0, 0, -1))


def warned(f, x, y):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autoattack(f, x, y, key=KEY, eps=0.0, steps=1, queries=1, n_targets=1)
    return " ".join(str(one.message) for one in caught)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda f: lambda x: jax.nn.softmax(f(x)), "probabilities, not logits"),
        (lambda f: lambda x: f(jnp.round(4 * x) / 4), "no gradient"),
        (lambda f: Stochastic(lambda x, key: f(x)), "Stochastic"),
    ],
)
def test_what_makes_a_verdict_worth_less_is_said(linear, wrap, message):
    apply_fn, w, x, y = linear
    # Wrong labels: nothing is left to attack, and nothing but the inputs is looked at.
    y = (y + 1) % 4
    assert message in warned(wrap(functools.partial(apply_fn, w)), x, y)
    assert not warned(functools.partial(apply_fn, w), x, y)


def test_the_random_version_is_the_worst_of_two_bound_attacks(linear):
    apply_fn, w, x, y = linear
    noisy = Stochastic(lambda x, key: apply_fn(w, x) + 0.01 * jax.random.normal(key, (8, 4)))
    few = functools.partial(apgd, eps=0.2, steps=3)
    attack = worst_of([few, functools.partial(few, loss=dlr)])
    run = jax.jit(lambda x, key: attack(noisy, x, y, key=key), compiler_options=QUICK)
    assert misclassified(apply_fn(w, run(x, KEY)), y).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "norm must be one of"),
        ({"norm": "l2"}, r"needs images \[B, H, W, C\]"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"queries": 0}, "queries must be >= 1"),
        ({"n_targets": 0}, "n_targets must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"key": None}, "autoattack needs a random key"),
        ({"bounds": (0.4, 0.6)}, "x must lie within bounds"),
    ],
)
def test_bad_arguments_are_refused(linear, arguments, message):
    apply_fn, w, x, y = linear
    with pytest.raises(ValueError, match=message):
        autoattack(functools.partial(apply_fn, w), x, y, **{"eps": 0.1, "key": KEY} | arguments)


def test_bad_labels_and_too_few_classes_are_refused(linear):
    apply_fn, w, x, y = linear
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        autoattack(functools.partial(apply_fn, w), x, y + 4, key=KEY, eps=0.1)
    with pytest.raises(ValueError, match="K >= 2"):
        autoattack(lambda x: x[:, :1], x, y, key=KEY, eps=0.1)


def test_on_mnist_it_is_no_weaker_than_any_member(spax_data):
    from benchmarks import victim

    params, x, y = victim.load(victim.prepare(quick=False), 100)
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    f = jax.tree_util.Partial(victim.apply_fn, params)
    eps = 0.1
    x_adv, info = autoattack(f, x, y, key=KEY, eps=eps, queries=500, return_info=True)
    np.testing.assert_array_equal(
        judge(f, x, x_adv, y, norm="linf", eps=eps).success, info.broken_by >= 0
    )
    for loss in (cross_entropy, dlr):
        member = jax.jit(
            lambda p, x, y, loss=loss: apgd(
                lambda x: victim.apply_fn(p, x), x, y, key=KEY, eps=eps, loss=loss
            )
        )(params, x, y)
        assert misclassified(f(member), y).mean() <= (info.broken_by >= 0).mean() + 0.005
