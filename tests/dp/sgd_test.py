"""DP-SGD: sensitivity, noise and receipt, and that the receipt survives every optimizer."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from spax import dp
from spax.crypto import ChaChaKey
from spax.dp.accounting import rdp

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))
SAMPLING = dp.Poisson(rate=0.5, capacity=8, num_records=16)
C, SIGMA = 0.5, 2.0


def loss_fn(params, example, key):
    x, y = example
    return (x @ params["w"] + params["b"] - y) ** 2, None


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    batch = dp.Batch(
        (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)), jnp.arange(8) % 4 > 0
    )
    return {"w": jnp.ones(3), "b": jnp.zeros(())}, batch


@pytest.fixture(scope="module")
def steps():
    """Compiled private steps by noise multiplier."""
    make = partial(dp.private_grad, loss_fn, l2_clip_norm=C, sampling=SAMPLING)
    return {noise: jax.jit(make(noise_multiplier=noise)) for noise in (0.0, SIGMA)}


def flat(tree):
    return np.concatenate([np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(tree)])


def start():
    return dp.init_privacy(SAMPLING)


def test_without_noise_it_is_the_clipped_sum_over_the_expected_size(problem, steps):
    params, batch = problem
    out, privacy = steps[0.0](params, batch, start(), key=KEY)
    total, info = dp.clipped_grad(loss_fn, l2_clip_norm=C)(params, batch)
    np.testing.assert_allclose(flat(out.grads), flat(total) / 8, rtol=1e-6)  # 0.5 x 16, not 6
    assert float(out.diagnostics.size) == float(info.size) == 6
    assert np.isinf(dp.epsilon(privacy, 1e-5))


def test_one_record_moves_the_gradient_by_at_most_the_bound(problem, steps):
    params, batch = problem
    for row in range(8):
        outs = [
            steps[0.0](
                params, dp.Batch(batch.data, batch.mask.at[row].set(there)), start(), key=KEY
            )
            for there in (True, False)
        ]
        moved = flat(outs[0][0].grads) - flat(outs[1][0].grads)
        assert 0 < np.linalg.norm(moved) <= C / SAMPLING.expected_size


@pytest.mark.parametrize("kind", ["jax.random", "ChaCha20"])
def test_the_noise_is_gaussian_and_of_the_promised_size(kind):
    key = KEY if kind == "jax.random" else SECRET
    wide = {"a": jnp.zeros((200, 100)), "b": jnp.zeros(5000)}
    sampling = dp.Poisson(rate=0.25, capacity=2, num_records=8)
    step = dp.private_grad(
        lambda p, e, k: (0.0 * (p["a"].sum() + p["b"].sum()), None),
        l2_clip_norm=3.0,
        noise_multiplier=1.5,
        sampling=sampling,
    )
    batch = dp.Batch(jnp.zeros(2), jnp.ones(2, bool))
    out, _ = step(wide, batch, dp.init_privacy(sampling), key=key)
    noise = flat(out.grads) * sampling.expected_size / (1.5 * 3.0)
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    first, second = (np.asarray(out.grads[name]).ravel()[:5000] for name in ("a", "b"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(5000)


def test_the_noise_of_a_jax_random_key_has_long_tails(monkeypatch):
    """jax.random.normal in float32 ends at 5.42, and privacy with it where delta is small."""
    words = jnp.zeros((2, 3), jnp.uint32).at[0, 1].set(2**31)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: words)
    noise = np.sort(dp.add_noise(KEY, jnp.zeros(3), 1.0))
    np.testing.assert_allclose(noise[[0, 2]], stats.norm.ppf(2.0**-65) * np.array([1, -1]), 1e-5)


def test_many_states_are_mapped_over():
    many = jax.tree.map(lambda v: jnp.stack([v, v]), covering(1e-9))
    with pytest.raises(ValueError, match="vmap"):
        dp.epsilon(many, 1e-5)
    with pytest.raises(ValueError, match="vmap"):
        rdp.epsilon(many.spent, 1e-5)
    with pytest.raises(ValueError, match="scalar"):
        rdp.epsilon(covering(0).spent, jnp.array([1e-5, 1e-6]))
    found = jax.vmap(dp.epsilon, (0, None))(many, 1e-5)
    np.testing.assert_allclose(found, dp.epsilon(covering(1e-9), 1e-5), rtol=1e-6)


@pytest.mark.parametrize("key", [KEY, SECRET], ids=["jax.random", "ChaCha20"])
def test_the_same_key_gives_the_same_bits_and_another_other_noise(problem, steps, key):
    params, batch = problem
    first, again = (steps[SIGMA](params, batch, start(), key=key)[0].grads for _ in range(2))
    np.testing.assert_array_equal(flat(first), flat(again))
    other_key = jax.random.key(1) if key is KEY else ChaChaKey(jnp.arange(1, 9, dtype=jnp.uint32))
    other = steps[SIGMA](params, batch, start(), key=other_key)[0].grads
    assert (flat(first) != flat(other)).all()


def test_noise_and_the_losss_draws_do_not_share_a_key():
    """A loss that draws from its key must not see the noise."""

    def draws(params, example, key):
        return params @ jax.random.normal(key, (4,)), None

    sampling = dp.Poisson(rate=1.0, capacity=1, num_records=1)
    step = dp.private_grad(draws, l2_clip_norm=1e6, noise_multiplier=1e-6, sampling=sampling)
    batch = dp.Batch(jnp.zeros(1), jnp.ones(1, bool))
    out, _ = step(jnp.zeros(4), batch, dp.init_privacy(sampling), key=KEY)
    drawn_by_itself = np.asarray(jax.random.normal(KEY, (4,)))
    assert not np.allclose(out.grads, drawn_by_itself, atol=0.1)


def test_the_receipt_is_the_accountants(problem, steps):
    params, batch = problem
    privacy = start()
    for i in range(5):
        _, privacy = steps[SIGMA](params, batch, privacy, key=jax.random.fold_in(KEY, i))
    _, exact = rdp.update(rdp.init(), noise_multiplier=SIGMA, sampling_rate=0.5, steps=5)
    assert int(privacy.steps) == 5
    assert float(privacy.overflow) >= 5 * SAMPLING.overflow
    assert float(privacy.overflow) == pytest.approx(5 * SAMPLING.overflow, rel=1e-5)
    np.testing.assert_allclose(privacy.spent.total, exact.total, rtol=1e-6)


def covering(overflow, steps=3):
    """A state after some steps, with a probability of overflow put in by hand."""
    _, spent = rdp.update(rdp.init(), noise_multiplier=SIGMA, sampling_rate=0.5, steps=steps)
    return dataclasses.replace(
        start(), spent=spent, overflow=jnp.float32(overflow), steps=jnp.int32(steps)
    )


@pytest.mark.parametrize("under_jit", [False, True])
def test_overflow_is_paid_for_on_both_data_sets(under_jit):
    """(epsilon, d)-privacy without the cut is (epsilon, d + (1 + e^epsilon) p) with it."""
    epsilon = jax.jit(dp.epsilon) if under_jit else dp.epsilon
    delta, free = 1e-5, float(rdp.epsilon(covering(0).spent, 1e-5))
    assert float(epsilon(covering(0.0), delta)) == pytest.approx(free, rel=1e-5)
    previous = free
    for overflow in (1e-12, 1e-9, 1e-8, 5e-8):
        found = float(epsilon(covering(overflow), delta))
        assert found >= previous * (1 - 1e-6)
        spent = float(rdp.delta(covering(0).spent, found))
        assert spent + (1 + np.exp(found)) * overflow <= delta * (1 + 1e-5)
        previous = found
    assert np.isinf(epsilon(covering(1e-5), delta))
    assert float(epsilon(start(), delta)) == 0


@pytest.mark.parametrize("wrapper", ["apply_if_finite", "MultiSteps"])
def test_updates_that_are_thrown_away_are_releases_all_the_same(problem, steps, wrapper):
    params, batch = problem
    if wrapper == "MultiSteps":
        optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=4).gradient_transformation()
    else:
        optimizer = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=100)
    opt_state, privacy = optimizer.init(params), start()
    for i in range(8):
        out, privacy = steps[SIGMA](params, batch, privacy, key=jax.random.fold_in(KEY, i))
        grads = out.grads
        if wrapper == "apply_if_finite" and i % 2:
            grads = jax.tree.map(lambda g: g * jnp.nan, grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    assert int(privacy.steps) == 8
    _, exact = rdp.update(rdp.init(), noise_multiplier=SIGMA, sampling_rate=0.5, steps=8)
    np.testing.assert_allclose(privacy.spent.total, exact.total, rtol=1e-6)


def test_a_training_in_one_scan_with_adam():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(256, 3)), jnp.float32)
    truth = jnp.array([1.0, -2.0, 0.5])
    data = (x, x @ truth)
    sampling = dp.Poisson(rate=0.5, capacity=dp.capacity_for(256, 0.5, 100), num_records=256)
    gradient = dp.private_grad(
        lambda w, e, key: ((e[0] @ w - e[1]) ** 2, None),
        l2_clip_norm=1.0,
        noise_multiplier=2.0,
        sampling=sampling,
    )
    optimizer = optax.adam(0.1)

    @jax.jit
    def run(data, key):
        def step(carry, key):
            w, opt_state, privacy = carry
            key_batch, key_noise = jax.random.split(key)
            batch = dp.sample(key_batch, data, sampling)
            out, privacy = gradient(w, batch, privacy, key=key_noise)
            updates, opt_state = optimizer.update(out.grads, opt_state)
            return (optax.apply_updates(w, updates), opt_state, privacy), out.diagnostics.size

        w = jnp.zeros(3)
        carry = w, optimizer.init(w), dp.init_privacy(sampling)
        return jax.lax.scan(step, carry, jax.random.split(key, 100))

    (w, _, privacy), sizes = run(data, KEY)
    np.testing.assert_allclose(w, truth, atol=0.3)
    assert int(privacy.steps) == 100
    assert len(set(np.asarray(sizes))) > 5  # Poisson batches differ in size
    exact = rdp.update(rdp.init(), noise_multiplier=2.0, sampling_rate=0.5, steps=100)[1]
    assert float(dp.epsilon(privacy, 1e-5)) == pytest.approx(
        float(rdp.epsilon(exact, 1e-5)), rel=1e-3
    )


def test_the_noise_multiplier_may_be_traced(problem, steps):
    params, batch = problem

    @jax.jit
    def one(noise):
        step = dp.private_grad(loss_fn, l2_clip_norm=C, noise_multiplier=noise, sampling=SAMPLING)
        out, privacy = step(params, batch, start(), key=KEY)
        return out.grads, dp.epsilon(privacy, 1e-3)

    grads, epsilon = one(jnp.float32(SIGMA))
    out, privacy = steps[SIGMA](params, batch, start(), key=KEY)
    np.testing.assert_allclose(flat(grads), flat(out.grads), rtol=1e-5, atol=1e-7)
    assert float(epsilon) == pytest.approx(float(dp.epsilon(privacy, 1e-3)), rel=1e-5)
    assert np.isinf(one(jnp.float32(0))[1])


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_sharded_equals_unsharded_with_the_noise_added_once(
    problem, steps, noise, chunk_size, check_vma
):
    params, batch = problem
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step = MAKE(noise_multiplier=noise, chunk_size=chunk_size, axis_name="data")

    def local(params, batch, privacy):
        return step(params, batch, privacy, key=KEY)

    specs = (P(), P("data"), P())
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    out, privacy = jax.jit(sharded)(params, batch, start())
    alone, alone_privacy = steps[noise](params, batch, start(), key=KEY)
    np.testing.assert_allclose(flat(out.grads), flat(alone.grads), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(flat(out.diagnostics), flat(alone.diagnostics), rtol=1e-6)
    np.testing.assert_array_equal(flat(privacy), flat(alone_privacy))


@pytest.mark.slow
def test_sharded_with_a_secret_key_and_over_a_vmapped_axis(problem, steps):
    params, batch = problem
    step = MAKE(noise_multiplier=SIGMA, axis_name="data")
    alone, _ = steps[SIGMA](params, batch, start(), key=SECRET)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(params, batch, privacy, key):
        return step(params, batch, privacy, key=key)[0].grads

    specs = (P(), P("data"), P(), P())
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    found = jax.jit(sharded)(params, batch, start(), SECRET)
    np.testing.assert_allclose(flat(found), flat(alone.grads), rtol=1e-5, atol=1e-7)
    rows = jax.tree.map(lambda v: v.reshape(4, 2, *v.shape[1:]), batch)
    lanes = jax.vmap(local, (None, 0, None, None), axis_name="data")
    found = jax.tree.map(lambda v: v[3], lanes(params, rows, start(), SECRET))
    np.testing.assert_allclose(flat(found), flat(alone.grads), rtol=1e-5, atol=1e-7)


def test_low_precision_parameters_get_gradients_of_their_type(problem, steps):
    params, batch = problem
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    out, _ = dp.private_grad(loss_fn, l2_clip_norm=C, noise_multiplier=SIGMA, sampling=SAMPLING)(
        low, batch, start(), key=KEY
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(out.grads)} == {jnp.dtype(jnp.bfloat16)}


def test_the_transformation_adds_the_same_noise_and_divides():
    sums = {"w": jnp.zeros(20_000)}
    tx = dp.noised_sums(l2_clip_norm=2.0, noise_multiplier=1.5, expected_batch_size=30)
    updates, _ = tx.update(sums, tx.init(sums), key=KEY)
    assert stats.kstest(flat(updates) * 30 / 3.0, "norm").pvalue > 1e-4
    shifted, _ = tx.update({"w": jnp.full(20_000, 60.0)}, tx.init(sums), key=KEY)
    np.testing.assert_allclose(flat(shifted) - flat(updates), 2.0, rtol=1e-5)


MAKE = partial(dp.private_grad, loss_fn, l2_clip_norm=C, noise_multiplier=SIGMA, sampling=SAMPLING)


def test_a_step_made_while_tracing_can_be_kept(problem):
    params, batch = problem
    kept = []

    @jax.jit
    def first(params):
        kept.append(MAKE())
        return kept[0](params, batch, start(), key=KEY)[0].grads

    inside, outside = first(params), kept[0](params, batch, start(), key=KEY)[0].grads
    np.testing.assert_allclose(flat(inside), flat(outside), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, b: MAKE(noise_multiplier=-1.0), ValueError, "noise_multiplier"),
        (lambda p, b: MAKE(l2_clip_norm=0.0), ValueError, "l2_clip_norm"),
        (lambda p, b: MAKE(l2_clip_norm=np.array([1.0, 100.0])), ValueError, "scalar"),
        (lambda p, b: MAKE(noise_multiplier=np.ones(2)), ValueError, "scalar"),
        (lambda p, b: dp.Poisson(np.array([0.5, 0.1]), 8, 16), ValueError, "scalar"),
        (lambda p, b: dp.add_noise(KEY, p, np.ones(3)), ValueError, "scalar"),
        (
            lambda p, b: dp.noised_sums(
                l2_clip_norm=np.ones(2), noise_multiplier=1.0, expected_batch_size=4
            ),
            ValueError,
            "scalar",
        ),
        (lambda p, b: MAKE(sampling=0.5), TypeError, "Poisson"),
        (lambda p, b: dp.init_privacy(0.5), TypeError, "Poisson"),
        (lambda p, b: MAKE()(p, b, start(), key=None), ValueError, "key"),
        (
            lambda p, b: MAKE()(p, b, dp.init_privacy(dp.Poisson(0.4, 8, 16)), key=KEY),
            ValueError,
            "another sampling",
        ),
        (
            lambda p, b: MAKE()(p, jax.tree.map(lambda v: v[:5], b), start(), key=KEY),
            ValueError,
            r"capacity=8 rows in all \(got 5\)",
        ),
        (lambda p, b: dp.epsilon(start(), 0.0), ValueError, "delta"),
        (lambda p, b: dp.epsilon(start(), 1.0), ValueError, "delta"),
        (lambda p, b: dp.add_noise(KEY, p, -1.0), ValueError, "stddev"),
        (lambda p, b: dp.add_noise(None, p, 1.0), ValueError, "key"),
        (
            lambda p, b: dp.noised_sums(
                l2_clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=0
            ),
            ValueError,
            "expected_batch_size",
        ),
    ],
)
def test_misuse_and_mismatched_receipts_are_refused(problem, call, error, message):
    with pytest.raises(error, match=message):
        call(*problem)


@pytest.mark.slow
def test_a_private_network_reads_digits(digits):
    """The default audit's private model: at least 85 % at its epsilon, on several seeds."""
    from spax import evaluation
    from spax.audit import defaults, progress

    for seed in range(2):
        models = defaults.train(digits, key=jax.random.key(seed), progress=progress.Silent())
        model = models["private"]
        share = evaluation.accuracy(model.logits_fn, digits.x_test, digits.y_test)
        assert share.value >= 0.85
        assert 1 < float(dp.epsilon(model.privacy, 1e-5)) < 5
