"""Adversarial objectives: values by hand, constants where promised, modes, state, loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from spax.defenses import (
    adversarial_loss,
    mixed_adversarial_loss,
    trades_loss,
    truncated_normal_eps,
)
from spax.evasion import bim, fgsm, pgd
from spax.gradients import canonical_convolutions
from spax.losses import cross_entropy, dlr, margin, misclassified
from spax.nets import CNN
from spax.typing import Stochastic

KEY = jax.random.key(0)
WIDE = (-10.0, 10.0)  # bounds that never clip


@pytest.fixture
def apply_fn(linear):
    """The linear model as training sees it."""
    return lambda params, x, *, train, key: linear[0](params, x)


@pytest.fixture
def batch(linear):
    return linear[2], linear[3]


@pytest.fixture
def binary():
    """A logistic model ``[B, 3] -> [-z / 2, z / 2]`` with z = x w, its weights and a batch."""
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=3).astype(np.float32), rng.uniform(size=(6, 3)).astype(np.float32)

    def apply_fn(w, x, *, train, key):
        z = x @ w
        return jnp.stack([-z / 2, z / 2], axis=1)

    return apply_fn, jnp.asarray(w), (jnp.asarray(x), jnp.array([0, 1, 1, 0, 1, 0]))


def uphill(logits_fn, x, y, *, key=None):
    """An attack that depends smoothly on the parameters: what leaks through it would show."""
    return x + 0.1 * jax.grad(lambda x: cross_entropy(logits_fn(x), y).sum())(x)


def close(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), a, b)


# ------------------------------------------------------------------------ Goodfellow, Madry


def test_fgsm_on_a_logistic_model_is_the_papers_closed_form(binary, strict):
    # Section 5 of the paper: the attack lowers each margin s z by exactly eps |w|_1.
    model, w, (x, y) = binary
    eps = 0.1
    loss_fn = adversarial_loss(model, functools.partial(fgsm, eps=eps, bounds=WIDE), alpha=0.25)
    value, terms = jax.jit(loss_fn)(w, (x, y), KEY)
    s, z = 2.0 * np.asarray(y) - 1, np.asarray(x @ w, np.float64)
    clean = np.logaddexp(0, -s * z).mean()
    attacked = np.logaddexp(0, eps * np.abs(w).sum() - s * z).mean()
    np.testing.assert_allclose(terms.clean_loss, clean, rtol=1e-5)
    np.testing.assert_allclose(terms.adversarial_loss, attacked, rtol=1e-5)
    np.testing.assert_allclose(value, 0.25 * clean + 0.75 * attacked, rtol=1e-5)
    np.testing.assert_allclose(terms.clean_accuracy, (s * z > 0).mean())
    np.testing.assert_allclose(terms.adversarial_accuracy, (s * z > eps * np.abs(w).sum()).mean())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_no_gradient_flows_through_the_attack(apply_fn, linear, batch, alpha, strict):
    model, params, x, y = linear
    x_adv = uphill(lambda x: model(params, x), x, y)  # a constant from here on

    def by_hand(params):
        clean, attacked = (cross_entropy(model(params, v), y).mean() for v in (x, x_adv))
        return alpha * clean + (1 - alpha) * attacked

    wanted = jax.value_and_grad(by_hand)(params)

    @jax.jit
    def run(params, traced):
        def value_and_grad(alpha):
            loss_fn = adversarial_loss(apply_fn, uphill, alpha=alpha)
            (value, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, KEY)
            return value, grads

        return value_and_grad(alpha), value_and_grad(traced)

    for got in run(params, jnp.float32(alpha)):
        close(got, wanted, rtol=1e-5, atol=1e-6)


def test_madrys_form_leaves_out_the_clean_pass(apply_fn, linear, batch):
    seen = []

    def spy(params, x, *, train, key):
        seen.append((x.shape[0], train))
        return apply_fn(params, x, train=train, key=key)

    loss_fn = adversarial_loss(spy, uphill, alpha=0.0)
    _, terms = jax.eval_shape(loss_fn, linear[1], batch, KEY)
    assert seen == [(8, False), (8, True)]
    assert terms.clean_loss is None
    assert terms.clean_accuracy is None
    seen.clear()
    jax.eval_shape(adversarial_loss(spy, uphill), linear[1], batch, KEY)
    assert seen == [(8, False), (16, True)]  # one pass over both: one update of the statistics


def test_the_same_key_gives_the_same_bits_and_another_key_another_start(apply_fn, linear, batch):
    attack = functools.partial(pgd, eps=0.1, steps=1)
    loss_fn = jax.jit(adversarial_loss(apply_fn, attack))
    first, again, other = (loss_fn(linear[1], batch, jax.random.key(i))[0] for i in (0, 0, 1))
    assert first == again
    assert first != other


def test_low_precision_stays_low(apply_fn, linear, strict):
    _, params, x, y = linear
    half, batch = params.astype(jnp.bfloat16), (x.astype(jnp.bfloat16), y)
    for loss_fn in (
        adversarial_loss(apply_fn, functools.partial(pgd, eps=0.1, steps=2)),
        mixed_adversarial_loss(apply_fn, fgsm, k=3),
        trades_loss(apply_fn, eps=0.1, steps=2),
    ):
        value, terms = jax.eval_shape(loss_fn, half, batch, KEY)
        assert {leaf.dtype for leaf in jax.tree.leaves((value, terms))} == {jnp.dtype("bfloat16")}


# -------------------------------------------------------------------------------- Kurakin


def constant_eps(key, x):
    return jnp.full(x.shape[0], 0.1)


@pytest.mark.slow
def test_kurakins_mixture_weighs_by_hand(apply_fn, linear, batch, strict):
    model, params, x, y = linear
    loss_fn = mixed_adversarial_loss(apply_fn, fgsm, k=3, lam=0.3, eps_sampler=constant_eps)
    value, terms = jax.jit(loss_fn)(params, batch, KEY)
    attacked = fgsm(lambda x: model(params, x), x[:3], y[:3], eps=0.1)
    adversarial = np.asarray(cross_entropy(model(params, attacked), y[:3]))
    clean = np.asarray(cross_entropy(model(params, x[3:]), y[3:]))
    wanted = (clean.sum() + 0.3 * adversarial.sum()) / (5 + 0.3 * 3)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(terms.clean_loss, clean.mean(), rtol=1e-5)
    np.testing.assert_allclose(terms.adversarial_loss, adversarial.mean(), rtol=1e-5)


def test_kurakin_on_a_doubled_batch_is_goodfellow(apply_fn, linear, batch):
    x, y = batch
    doubled = jnp.concatenate([x, x]), jnp.concatenate([y, y])
    mixed = mixed_adversarial_loss(apply_fn, fgsm, k=8, lam=1.0, eps_sampler=constant_eps)
    plain = adversarial_loss(apply_fn, functools.partial(fgsm, eps=0.1), alpha=0.5)
    one, other = (
        jax.jit(jax.grad(loss_fn, has_aux=True))(linear[1], data, KEY)[0]
        for loss_fn, data in ((mixed, doubled), (plain, batch))
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_kurakin_without_attacked_or_clean_examples(apply_fn, linear, batch):
    model, params, x, y = linear
    value, terms = jax.jit(mixed_adversarial_loss(apply_fn, fgsm, k=0))(params, batch, KEY)
    np.testing.assert_allclose(value, cross_entropy(model(params, x), y).mean(), rtol=1e-6)
    assert terms.adversarial_loss is None
    value, terms = jax.jit(mixed_adversarial_loss(apply_fn, fgsm, k=8))(params, batch, KEY)
    np.testing.assert_allclose(value, terms.adversarial_loss, rtol=1e-6)
    assert terms.clean_loss is None


def test_radii_follow_the_truncated_normal_of_the_paper(strict):
    x = jnp.zeros((4000, 1))
    eps = np.asarray(truncated_normal_eps(8 / 255, 16 / 255)(KEY, x))
    law = scipy.stats.truncnorm(0, 2, scale=8 / 255)
    assert scipy.stats.kstest(eps, law.cdf).pvalue > 0.01
    # an example's radius does not depend on how many others there are
    np.testing.assert_array_equal(truncated_normal_eps()(KEY, x[:5]), eps[:5])


# --------------------------------------------------------------------------------- TRADES


def test_trades_maximises_and_differentiates_the_divergence_by_hand(binary):
    # Of a logistic model, KL(p(x) || p(x')) is convex in z' = x' w, which the ball confines to
    # z +- eps |w|_1: PGD ends at one of the two ends.
    model, w, (x, y) = binary
    eps, beta = 0.1, 3.0

    def by_hand(w, ends):
        x_adv = x + ends[:, None] * eps * jnp.sign(jax.lax.stop_gradient(w))[None, :]
        log_p, log_q = (
            jax.nn.log_softmax(model(w, v, train=True, key=None), axis=1) for v in (x, x_adv)
        )
        entropy = -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()
        return entropy + beta * (jnp.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()

    @jax.jit
    def ours(w, x, y):
        loss_fn = trades_loss(model, eps=eps, beta=beta, steps=5, bounds=WIDE)
        return jax.value_and_grad(loss_fn, has_aux=True)(w, (x, y), KEY)

    (value, terms), grads = ours(w, x, y)
    table = np.array(np.meshgrid(*[[-1.0, 1.0]] * 6)).reshape(6, -1).T.astype(np.float32)
    values, slopes = jax.vmap(jax.value_and_grad(by_hand), (None, 0))(w, jnp.asarray(table))
    match = np.argmin(np.abs(values - value) + np.abs(slopes - grads[None]).sum(1))
    np.testing.assert_allclose(values[match], value, rtol=1e-5)
    np.testing.assert_allclose(slopes[match], grads, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, terms.clean_loss + beta * terms.adversarial_loss, rtol=1e-6)


def test_trades_without_a_ball_or_a_weight_is_cross_entropy(apply_fn, linear, batch, strict):
    model, params, x, y = linear
    plain = cross_entropy(model(params, x), y).mean()
    run = jax.jit(lambda eps, beta: trades_loss(apply_fn, eps=eps, beta=beta)(params, batch, KEY))
    value, terms = run(0.1, 0.0)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    assert terms.adversarial_loss > 0
    value, terms = run(0.0, 6.0)  # the start is projected onto x itself
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(terms.adversarial_loss, 0, atol=1e-7)


def test_trades_finds_a_direction_although_the_gradient_at_x_is_zero(apply_fn, linear, batch):
    loss_fn = jax.jit(trades_loss(apply_fn, eps=0.2, steps=10))
    _, terms = loss_fn(linear[1], batch, KEY)
    # more than the start alone could do: 0.001 against 0.2, and the divergence is quadratic
    assert terms.adversarial_loss > 0.01


# ------------------------------------------------------------------------- modes and state


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["goodfellow", "kurakin", "trades"])
def test_the_attack_sees_the_mode_it_is_told(apply_fn, linear, batch, train, kind):
    modes, models = [], []

    def stateful(params, x, *, train, key):
        modes.append(train)
        return apply_fn(params, x, train=train, key=key), {"seen": jnp.zeros(x.shape[0])}

    def attack(logits_fn, x, y, *, key, eps=0.1):
        models.append(logits_fn)
        return bim(logits_fn, x, y, key=key, eps=eps, steps=1)

    options = {"has_state": True, "attack_in_train_mode": train}
    loss_fn = {
        "goodfellow": lambda: adversarial_loss(stateful, attack, **options),
        "kurakin": lambda: mixed_adversarial_loss(stateful, attack, k=2, **options),
        "trades": lambda: trades_loss(stateful, eps=0.1, steps=1, **options),
    }[kind]()
    _, terms = jax.eval_shape(loss_fn, linear[1], batch, KEY)
    *inside, last = modes
    assert last is True
    assert set(inside) == {train}
    assert all(isinstance(model, Stochastic) is train for model in models)
    # the state is that of the one pass in training, not the attack's
    assert terms.state["seen"].shape == (8 if kind == "kurakin" else 16,)


def linen_model():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(32)(x.reshape(x.shape[0], -1))
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.Dropout(0.2, deterministic=not train)(x)
            return nn.Dense(10)(x)

    net = Net()
    variables = jax.jit(functools.partial(net.init, train=False))(KEY, jnp.zeros((1, 8, 8, 1)))

    def bind(stats):
        def apply_fn(params, x, *, train, key):
            variables = {"params": params, "batch_stats": stats}
            rngs = {"dropout": key}
            logits, new = net.apply(variables, x, train=train, rngs=rngs, mutable=["batch_stats"])
            return logits, new["batch_stats"]

        return apply_fn

    return bind, variables["params"], variables["batch_stats"]


def nnx_model():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(64, 32, rngs=rngs)
            self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
            self.dropout = nnx.Dropout(0.2)
            self.out = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x, rngs):
            x = nnx.relu(self.norm(self.hidden(x.reshape(x.shape[0], -1))))
            return self.out(self.dropout(x, rngs=rngs))

    graph, params, stats = nnx.split(Net(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    def bind(stats):
        def apply_fn(params, x, *, train, key):
            # a copy: the attack's gradient may not write into this function's variables
            net = nnx.merge(graph, params, stats, copy=True)
            net.train() if train else net.eval()
            logits = net(x, nnx.Rngs(dropout=key))
            return logits, nnx.state(net, nnx.BatchStat)

        return apply_fn

    return bind, params, stats


OBJECTIVES = {
    "madry": lambda f, eps: adversarial_loss(
        f, functools.partial(pgd, eps=eps, steps=2), alpha=0.0, has_state=True
    ),
    "kurakin": lambda f, eps: mixed_adversarial_loss(
        f, fgsm, k=32, has_state=True, attack_in_train_mode=True
    ),
    "trades": lambda f, eps: trades_loss(f, eps=eps, steps=2, has_state=True),
}


@pytest.mark.parametrize(
    ("model", "name"),
    [(linen_model, "madry"), (linen_model, "trades"), (nnx_model, "madry"), (nnx_model, "kurakin")],
)
def test_training_loop_with_batch_norm_and_dropout(digits, model, name):
    bind, params, stats = model()
    optimizer = optax.adam(1e-2)
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)

    def step(carry, key):
        params, stats, state = carry
        key_batch, key_loss = jax.random.split(key)
        i = jax.random.choice(key_batch, x.shape[0], (64,), replace=False)
        loss_fn = OBJECTIVES[name](bind(stats), 0.05)
        grads, terms = jax.grad(loss_fn, has_aux=True)(params, (x[i], y[i]), key_loss)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), terms.state, state), terms._replace(
            state=None
        )

    @jax.jit
    def train(params, stats):
        carry = (params, stats, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(KEY, 100))

    (params, new_stats, _), terms = train(params, stats)
    accuracy = terms.adversarial_accuracy
    assert accuracy[-10:].mean() > 0.8 > 0.5 > accuracy[:3].mean()
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), stats, new_stats)
    assert all(jax.tree.leaves(moved))
    # the running statistics serve in evaluation: clean digits are classified
    logits, _ = bind(new_stats)(params, jnp.asarray(digits.x_test), train=False, key=KEY)
    assert (np.argmax(logits, axis=1) == digits.y_test).mean() > 0.85


# ------------------------------------------------------------------------------ robustness


def train_cnn(net, objective, digits, *, epochs):
    """Digits, one scan: Adam with a cosine schedule from 6e-3, batches of 64, a ramp of eps."""
    x, y = jnp.asarray(digits.x_train), jnp.asarray(digits.y_train)
    per_epoch = len(x) // 64
    total = epochs * per_epoch
    optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, total))

    @jax.jit
    def train(x, y, key):
        key_init, key_order, key_steps = jax.random.split(key, 3)
        params = net.init(key_init, x[:1])
        orders = jax.vmap(lambda k: jax.random.permutation(k, len(x)))(
            jax.random.split(key_order, epochs)
        )
        batches = orders[:, : per_epoch * 64].reshape(total, 64)

        def step(carry, now):
            params, state = carry
            i, rows, key = now
            ramp = jnp.minimum(1, (i + 1) / (0.25 * total))
            grad = canonical_convolutions(jax.grad(objective(ramp), has_aux=True))
            grads, terms = grad(params, (x[rows], y[rows]), key)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), terms

        now = jnp.arange(total, dtype=jnp.float32), batches, jax.random.split(key_steps, total)
        return jax.lax.scan(step, (params, optimizer.init(params)), now)[0][0]

    return train(x, y, KEY)


def robust_accuracies(net, params, digits, eps, restarts=2):
    """Clean accuracy, and what FGSM, PGD and the worst of three PGDs leave of it."""
    x, y = jnp.asarray(digits.x_test), jnp.asarray(digits.y_test)

    @jax.jit
    def measure(params, x, y, key):
        model = functools.partial(net.apply, params)
        attack = functools.partial(pgd, eps=eps, steps=50, restarts=restarts)
        points = [x, fgsm(model, x, y, eps=eps)] + [
            attack(model, x, y, key=key, loss=loss) for loss in (cross_entropy, margin, dlr)
        ]
        wrong = jnp.stack([misclassified(model(v), y) for v in points])
        return 1 - wrong[:3].mean(axis=1), 1 - wrong.any(axis=0).mean()

    single, worst = measure(params, x, y, jax.random.key(9))
    return dict(zip(("clean", "fgsm", "pgd"), single.tolist(), strict=True)) | {
        "worst": float(worst)
    }


@pytest.mark.slow
def test_adversarial_training_makes_a_cnn_robust(digits):
    net, eps = CNN((32, 64), 64), 0.15

    def apply_fn(params, x, *, train, key):
        return net.apply(params, x)

    def madry(ramp):
        return adversarial_loss(
            apply_fn, functools.partial(pgd, eps=eps * ramp, steps=5), alpha=0.0
        )

    def trades(ramp):
        return trades_loss(apply_fn, eps=eps * ramp, beta=6.0, steps=5)

    objectives = {
        "plain": (lambda _: adversarial_loss(apply_fn, lambda f, x, y, *, key: x, alpha=0.0), 20),
        "madry": (madry, 40),
        "trades": (trades, 40),
    }
    found = {}
    for name, (objective, epochs) in objectives.items():
        params = train_cnn(net, objective, digits, epochs=epochs)
        found[name] = robust_accuracies(net, params, digits, eps, restarts=3)
        print(name, {k: round(v, 3) for k, v in found[name].items()})
    assert found["plain"]["clean"] > 0.97
    for name in ("madry", "trades"):
        assert found[name]["clean"] > 0.97
        assert found[name]["pgd"] > found["plain"]["pgd"] + 0.3
        assert found[name]["worst"] > found["plain"]["worst"] + 0.3
        # no masking: one step does not beat many
        assert found[name]["fgsm"] >= found[name]["pgd"]


@pytest.mark.slow
def test_the_honest_figure_of_one_step_training(digits):
    # Trained on FGSM alone the network resists FGSM, and PGD much less.
    net, eps = CNN((32, 64), 64), 0.25

    def apply_fn(params, x, *, train, key):
        return net.apply(params, x)

    def objective(ramp):
        return adversarial_loss(apply_fn, functools.partial(fgsm, eps=eps * ramp), alpha=0.5)

    params = train_cnn(net, objective, digits, epochs=40)
    found = robust_accuracies(net, params, digits, eps)
    print({k: round(v, 3) for k, v in found.items()})
    assert found["fgsm"] > found["pgd"] + 0.3


# ---------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: adversarial_loss(f, fgsm, alpha=1.5), r"got alpha=1\.5"),
        (lambda f: mixed_adversarial_loss(f, fgsm, k=-1), r"got k=-1"),
        (lambda f: mixed_adversarial_loss(f, fgsm, k=1, lam=-0.1), r"got lam=-0\.1"),
        (lambda f: trades_loss(f, eps=0.1, beta=-1.0), r"got beta=-1"),
        (lambda f: trades_loss(f, eps=-0.1), r"got eps=-0\.1"),
        (lambda f: truncated_normal_eps(0.0), r"got scale=0"),
    ],
)
def test_bad_settings_raise_when_bound(apply_fn, make, message):
    with pytest.raises(ValueError, match=message):
        make(apply_fn)


def test_bad_calls_raise(apply_fn, linear, batch):
    params = linear[1]
    with pytest.raises(ValueError, match="got k=9"):
        mixed_adversarial_loss(apply_fn, fgsm, k=9)(params, batch, KEY)
    with pytest.raises(ValueError, match="got lam=0"):
        mixed_adversarial_loss(apply_fn, fgsm, k=8, lam=0.0)(params, batch, KEY)
    with pytest.raises(ValueError, match="random key"):
        adversarial_loss(apply_fn, uphill)(params, batch, None)
    with pytest.raises(ValueError, match="pair"):
        adversarial_loss(apply_fn, uphill, has_state=True)(params, batch, KEY)
    with pytest.raises(ValueError, match="x must be finite"):
        trades_loss(apply_fn, eps=0.1)(params, (batch[0] * jnp.nan, batch[1]), KEY)
    with pytest.raises(TypeError, match=r"k=2\.0"):
        mixed_adversarial_loss(apply_fn, fgsm, k=2.0)
