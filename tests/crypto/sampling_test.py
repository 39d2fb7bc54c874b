import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spax.crypto import ChaChaKey
from spax.crypto.sampling import discrete_gaussian, residues, ternary, uniform_mod

KEY = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))
COUNT = 200_000


def fair(observed, expected):
    """A chi-square test that passes two bad and two too good samples in ten thousand each."""
    return 1e-4 < stats.chisquare(observed, expected).pvalue < 1 - 1e-4


def test_ternary_is_uniform():
    x = np.asarray(ternary(KEY, (COUNT,)))
    assert fair(np.bincount(x + 1, minlength=3), np.full(3, COUNT / 3))


def test_the_gaussian_has_its_distribution():
    x = np.asarray(discrete_gaussian(KEY, (COUNT,)))
    support = np.arange(-9, 10)
    weights = np.exp(-(np.arange(-40, 41) ** 2) / (2 * 3.2**2))
    inner = weights[31:50] / weights.sum()
    observed = np.array([(x == k).sum() for k in support])
    rest, expected = COUNT - observed.sum(), COUNT * inner
    assert fair(np.append(observed, rest), np.append(expected, COUNT - expected.sum()))
    assert abs(x).max() <= 32
    assert abs(x.mean()) < 4 * 3.2 / COUNT**0.5
    assert abs(x.var() / 3.2**2 - 1) < 0.02


def test_residues_are_uniform_modulo_each_prime():
    x = np.asarray(uniform_mod(KEY, (2, COUNT // 2), (97, 1073692673)))
    assert fair(np.bincount(x[0], minlength=97), np.full(97, COUNT / 2 / 97))
    top = np.bincount((x[1].astype(np.int64) * 64) // 1073692673, minlength=64)
    assert fair(top, np.full(64, COUNT / 2 / 64))


def test_uniform_words_are_96_bits_reduced():
    from spax.crypto import bits

    words = np.asarray(bits(KEY, (3, 1, 5))).astype(object)
    value = (words[0] << 64) + (words[1] << 32) + words[2]
    np.testing.assert_array_equal(uniform_mod(KEY, (1, 5), (97,)), value % 97)


def test_signed_numbers_as_residues():
    got = residues(jnp.array([-1, 0, 3]), (97, 101))
    np.testing.assert_array_equal(got, [[96, 0, 3], [100, 0, 3]])


@pytest.mark.parametrize("draw", [ternary, discrete_gaussian])
def test_keys_that_are_no_secrets_are_refused(draw):
    with pytest.raises(TypeError, match="ChaChaKey"):
        draw(jax.random.key(0), (4,))
    with pytest.raises(TypeError, match="ChaChaKey"):
        uniform_mod(jax.random.key(0), (1, 4), (97,))


def test_a_width_without_a_table_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        discrete_gaussian(KEY, (4,), sigma=0.0)
