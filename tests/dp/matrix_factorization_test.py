"""Correlated noise: factorisations, sensitivities by brute force, and known errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from spax import dp
from spax.crypto import ChaChaKey
from spax.dp.accounting import rdp

KEY = jax.random.key(0)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))


def dense(coeffs, n):
    """The lower triangular Toeplitz matrix with this first column."""
    column = np.zeros(n)
    column[: len(coeffs)] = coeffs
    return scipy.linalg.toeplitz(column, np.zeros(n))


def drawn(noise, n, width):
    """All noises ``[n, width]``, in one scan."""

    @jax.jit
    def run(state):
        def step(state, i):
            out, state = noise.update(state, key=jax.random.fold_in(KEY, i))
            return state, out

        return jax.lax.scan(step, state, jnp.arange(n))[1]

    return np.asarray(run(noise.init(jnp.zeros(width))), np.float64)


def test_the_square_root_squares_to_running_sums():
    c = dense(dp.toeplitz_sqrt(40), 40)
    np.testing.assert_allclose(c @ c, np.tril(np.ones((40, 40))), atol=1e-12)


# Known errors at n = 1024: the square root, its truncations, and no correlation at all.
@pytest.mark.parametrize(
    ("bands", "error"), [(None, 3.109790), (4, 12.6696), (16, 7.2184), (64, 4.3765)]
)
def test_errors_of_the_square_root_are_the_known_ones(bands, error):
    coeffs = dp.toeplitz_sqrt(1024, bands=bands)
    assert dp.factorization_error(coeffs, steps=1024) == pytest.approx(error, rel=2e-5)


def test_errors_in_closed_form_and_against_the_tree():
    assert dp.toeplitz_sensitivity(dp.toeplitz_sqrt(1024), steps=1024) == pytest.approx(
        1.809020, rel=1e-6
    )
    independent = dp.factorization_error(np.ones(1), steps=1024)
    assert independent == pytest.approx(np.sqrt(1025 / 2), rel=1e-6)
    # The tree: sqrt(11) times the root of the mean number of binary digits that are 1.
    digits = np.mean([t.bit_count() for t in range(1, 1025)])
    tree = np.sqrt(11 * digits)
    assert tree == pytest.approx(7.4169, rel=1e-4)
    root = dp.factorization_error(dp.toeplitz_sqrt(1024), steps=1024)
    assert root < tree < independent


@pytest.mark.parametrize("bands", [2, 4, 16])
def test_optimised_bands_err_less_than_truncated_ones(bands):
    n = 128
    best = dp.optimize_banded(n, bands=bands)
    assert best.shape == (bands,)
    error = dp.factorization_error(best, steps=n)
    assert error < dp.factorization_error(dp.toeplitz_sqrt(n, bands=bands), steps=n)
    # No small move makes it better.
    for i in range(1, bands):
        for move in (-1e-3, 1e-3):
            moved = best.copy()
            moved[i] += move
            assert dp.factorization_error(moved, steps=n) >= error * (1 - 1e-7)
    # The error by its definition.
    c = dense(best, n)
    running = np.linalg.solve(c.T, np.tril(np.ones((n, n))).T).T
    definition = np.linalg.norm(running) * np.linalg.norm(c, axis=0).max() / np.sqrt(n)
    assert error == pytest.approx(definition, rel=1e-6)


def test_one_band_is_independent_noise():
    np.testing.assert_array_equal(dp.optimize_banded(10, bands=1), [1.0])


def brute_force(c, participations, separation):
    """The largest ``|sum_i C e_i u_i|`` over patterns and signs: enough in one dimension."""
    n, found = c.shape[0], 0.0
    for k in range(1, participations + 1):
        for pattern in itertools.combinations(range(n), k):
            if all(b - a >= separation for a, b in itertools.pairwise(pattern)):
                for signs in itertools.product((-1, 1), repeat=k):
                    found = max(found, np.linalg.norm(c[:, pattern] @ signs))
    return found


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("separation", [1, 2, 3])
@pytest.mark.parametrize("participations", [1, 2, 3])
def test_the_sensitivity_is_that_of_the_worst_pattern(n, separation, participations):
    rng = np.random.default_rng(0)
    tried = 0
    for coeffs in (
        dp.toeplitz_sqrt(n),
        dp.toeplitz_sqrt(n, bands=3),
        np.array([1.0, 0.9, 0.9, 0.1]),
        np.array([1.0, -0.7]),
        np.array([0.5, 0.8, -0.3])[:n],
        rng.normal(size=3) + np.array([3.0, 0, 0]),
    ):
        exact = brute_force(dense(coeffs, n), participations, separation)
        try:
            found = dp.toeplitz_sensitivity(
                coeffs, steps=n, participations=participations, min_separation=separation
            )
        except ValueError:
            assert len(coeffs) > separation
            continue
        tried += 1
        assert found >= exact
        assert found == pytest.approx(exact, rel=1e-6)
    assert tried >= 3


def test_what_is_added_is_the_inverse_times_independent_noise():
    """``C y`` is white again, and is the draw of each step."""
    n, width = 12, 5
    coeffs = np.array([1.0, 0.6, -0.2, 0.3])
    noise = dp.banded_noise(coeffs, steps=n, noise_multiplier=1.0, l2_clip_norm=1.0)
    scale = np.linalg.norm(coeffs)
    y = drawn(noise, n, width)
    white = np.stack(
        [
            np.asarray(dp.add_noise(jax.random.fold_in(KEY, i), jnp.zeros(width), 1.0))
            for i in range(n)
        ]
    )
    c = dense(coeffs, n)
    np.testing.assert_allclose(c @ np.linalg.inv(c), np.eye(n), atol=1e-12)
    np.testing.assert_allclose(y, scale * np.linalg.inv(c) @ white, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["banded", "tree"])
def test_its_covariance_is_that_of_the_factorisation(kind):
    n, width = 8, 40_000
    if kind == "banded":
        coeffs = dp.optimize_banded(n, bands=3)
        noise = dp.banded_noise(coeffs, steps=n, noise_multiplier=2.0, l2_clip_norm=0.5)
        inverse = np.linalg.inv(dense(coeffs, n))
        expected = np.sum(coeffs**2) * inverse @ inverse.T
    else:
        noise = dp.tree_noise(steps=n, noise_multiplier=2.0, l2_clip_norm=0.5)
        # Running sums share the nodes at common leading digits.
        nodes = [
            {(t >> level, level) for level in range(4) if t >> level & 1} for t in range(1, n + 1)
        ]
        shared = np.array([[len(a & b) for b in nodes] for a in nodes], float)
        difference = np.eye(n) - np.eye(n, k=-1)
        expected = 4 * difference @ shared @ difference.T
    y = drawn(noise, n, width)
    found = y @ y.T / width
    # Of a product of normals: its variance is at most twice that of the largest square.
    assert np.abs(found - expected).max() < 6 * np.sqrt(2 / width) * np.diag(expected).max()


@pytest.mark.slow
def test_the_receipt_is_that_of_one_gaussian_release():
    for noise in (
        dp.banded_noise(
            dp.toeplitz_sqrt(20, bands=4),
            steps=20,
            noise_multiplier=3.0,
            l2_clip_norm=1.0,
            participations=5,
            min_separation=4,
        ),
        dp.tree_noise(steps=20, noise_multiplier=3.0, l2_clip_norm=1.0),
    ):
        state = noise.init(jnp.zeros(3))
        exact = rdp.update(rdp.init(), noise_multiplier=3.0)[1]
        for _ in range(2):
            assert float(rdp.epsilon(state.spent, 1e-5)) == float(rdp.epsilon(exact, 1e-5))
            _, state = noise.update(state, key=KEY)


def test_more_participations_need_more_noise():
    settings = {"steps": 12, "noise_multiplier": 1.0, "l2_clip_norm": 1.0}
    once = dp.banded_noise(np.ones(1), **settings)
    often = dp.banded_noise(np.ones(1), **settings, participations=4, min_separation=3)
    first, second = (n.update(n.init(jnp.zeros(9)), key=KEY)[0] for n in (once, often))
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)


def test_steps_that_were_not_paid_for_are_destroyed():
    noise = dp.tree_noise(steps=3, noise_multiplier=1.0, l2_clip_norm=1.0)
    y = drawn(noise, 5, 2)
    assert np.isfinite(y[:3]).all()
    assert np.isnan(y[3:]).all()


def test_a_secure_key_and_a_tree_of_arrays():
    noise = dp.banded_noise(
        dp.toeplitz_sqrt(6, bands=2), steps=6, noise_multiplier=1.0, l2_clip_norm=1.0
    )
    state = noise.init({"w": jnp.zeros((2, 3)), "b": jnp.zeros(())})
    out, state = noise.update(state, key=SECRET)
    assert out["w"].shape == (2, 3)
    assert out["b"].shape == ()
    assert state.buffer["w"].shape == (1, 2, 3)


def test_training_with_correlated_noise_beats_independent_noise():
    """One pass over a regression in a fixed order, the same receipt."""
    rng = np.random.default_rng(0)
    n, width = 128, 16
    truth = rng.normal(size=width)
    x = rng.normal(size=(n, width)) / np.sqrt(width)
    y = x @ truth

    def error(coeffs):
        noise = dp.banded_noise(coeffs, steps=n, noise_multiplier=0.3, l2_clip_norm=1.0)

        @jax.jit
        def run(key):
            def step(carry, given):
                w, state = carry
                a, b, i = given
                g = a * (a @ w - b)
                g = g * jnp.minimum(1.0, 1 / jnp.linalg.norm(g))
                z, state = noise.update(state, key=jax.random.fold_in(key, i))
                return (w - 0.5 * (g + z), state), None

            given = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), jnp.arange(n)
            (w, _), _ = jax.lax.scan(step, (jnp.zeros(width), noise.init(jnp.zeros(width))), given)
            return jnp.linalg.norm(w - truth)

        return float(jnp.mean(jax.vmap(run)(jax.random.split(KEY, 10))))

    assert error(dp.optimize_banded(n, bands=16)) < 0.75 * error(np.ones(1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dp.toeplitz_sqrt(0), ValueError, "steps"),
        (lambda: dp.toeplitz_sqrt(4, bands=5), ValueError, "got bands=5"),
        (lambda: dp.optimize_banded(4, bands=2.5), TypeError, "bands"),
        (lambda: dp.toeplitz_sensitivity(np.ones(9), steps=4), ValueError, "coeffs"),
        (lambda: dp.toeplitz_sensitivity(np.array([0.0, 1.0]), steps=4), ValueError, "coeffs"),
        (
            lambda: dp.toeplitz_sensitivity(np.ones(1), steps=4, participations=2),
            ValueError,
            "min_separation",
        ),
        (
            lambda: dp.toeplitz_sensitivity(
                np.array([1.0, -0.5]), steps=4, participations=2, min_separation=1
            ),
            ValueError,
            "must not increase",
        ),
        (
            lambda: dp.tree_noise(steps=4, noise_multiplier=-1.0, l2_clip_norm=1.0),
            ValueError,
            "noise_multiplier",
        ),
        (
            lambda: dp.banded_noise(np.ones(1), steps=4, noise_multiplier=1.0, l2_clip_norm=0.0),
            ValueError,
            "l2_clip_norm",
        ),
    ],
)
def test_bad_numbers_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_update_needs_a_key():
    noise = dp.tree_noise(steps=4, noise_multiplier=1.0, l2_clip_norm=1.0)
    with pytest.raises(ValueError, match="key"):
        noise.update(noise.init(jnp.zeros(2)), key=None)
