import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.crypto.modular import (
    add_mod,
    check_primes,
    is_prime,
    mul_mod,
    neg_mod,
    ntt_primes,
    reduce_int,
    sub_mod,
)
from spax.crypto.ntt import exponents, intt, ntt

# Widths from 14 to 30 bits, all 1 modulo 128.
Q = (*ntt_primes(64, 30, 2), *ntt_primes(64, 26, 1), *ntt_primes(64, 20, 1), 12289)


@pytest.fixture(scope="module")
def residues():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, q, (2, 3, 64)) for q in Q]
    for row, q in zip(rows, Q, strict=True):  # the corners too
        row[:, 0, :3] = [0, 1, q - 1]
    x, y = np.stack(rows, axis=2).astype(np.uint32)
    return jnp.asarray(x), jnp.asarray(y)


def test_arithmetic_is_that_of_wide_integers(residues):
    x, y = residues
    q = np.array(Q, np.uint64)[:, None]
    a, b = np.asarray(x, np.uint64), np.asarray(y, np.uint64)
    np.testing.assert_array_equal(mul_mod(x, y, Q), a * b % q)
    np.testing.assert_array_equal(add_mod(x, y, Q), (a + b) % q)
    np.testing.assert_array_equal(sub_mod(x, y, Q), (a + q - b) % q)
    np.testing.assert_array_equal(neg_mod(x, Q), (q - a) % q)


def test_the_same_under_jit_and_without_64_bit_types(residues):
    x, y = residues
    product = jax.jit(mul_mod, static_argnums=2)(x, y, Q)
    assert product.dtype == jnp.uint32
    np.testing.assert_array_equal(product, mul_mod(x, y, Q))
    text = str(jax.make_jaxpr(lambda x: ntt(mul_mod(x, x, Q), Q))(x))
    assert "64[" not in text


def test_the_transform_undoes_itself_and_multiplies_polynomials(residues):
    x, y = residues
    np.testing.assert_array_equal(intt(ntt(x, Q), Q), x)
    product = np.asarray(intt(mul_mod(ntt(x, Q), ntt(y, Q), Q), Q))
    for i, q in enumerate(Q):  # by the schoolbook, X^64 = -1
        full = np.convolve(*(np.asarray(z[1, i]).astype(object) for z in (x, y)))
        full = np.append(full, 0)
        np.testing.assert_array_equal(product[1, i], (full[:64] - full[64:]) % q)


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 1024, 4096, 8192, 32768])
def test_the_transform_at_every_degree(n):
    q = ntt_primes(n, 30, 2)
    rng = np.random.default_rng(n)
    x = jnp.asarray(np.stack([rng.integers(0, p, n) for p in q]).astype(np.uint32))
    np.testing.assert_array_equal(intt(ntt(x, q), q), x)
    # X^k times x is x, turned, with a sign.
    k = n // 3
    monomial = jnp.zeros((2, n), jnp.uint32).at[:, k].set(1)
    product = intt(mul_mod(ntt(x, q), ntt(monomial, q), q), q)
    turned = jnp.concatenate([neg_mod(x[:, -k:], q), x[:, :-k]], axis=1)
    np.testing.assert_array_equal(product, turned)


def test_values_stand_at_the_powers_that_exponents_names():
    q = Q[:1]
    x = np.zeros((1, 64), np.uint32)
    x[0, 1] = 1  # the polynomial X, whose values are the points
    values, e = np.asarray(ntt(jnp.asarray(x), q))[0], exponents(64)
    root = int(values[list(e).index(1)])
    assert pow(root, 64, q[0]) == q[0] - 1
    assert [pow(root, int(k), q[0]) for k in e] == list(values)


def test_primes_are_those_of_trial_division():
    sieve = [p for p in range(2, 2000) if all(p % d for d in range(2, int(p**0.5) + 1))]
    assert [p for p in range(2000) if is_prime(p)] == sieve
    assert not is_prime(3215031751)  # a strong pseudoprime to the bases 2, 3, 5 and 7
    assert ntt_primes(8192, 30, 3) == (1073692673, 1073643521, 1073479681)
    assert ntt_primes(8192, 26, 3) == (67043329, 66994177, 66961409)


def test_reduction_of_large_and_negative_integers():
    got = reduce_int([-1, 2**400, 5], Q)
    np.testing.assert_array_equal(got, [[q - 1, 2**400 % q, 5] for q in Q])


def test_bad_moduli_and_shapes_are_refused():
    with pytest.raises(ValueError, match="primes below"):
        check_primes((15,))
    with pytest.raises(ValueError, match="different"):
        check_primes((97, 97))
    with pytest.raises(ValueError, match="1 modulo 2n"):
        check_primes((97,), 64)
    with pytest.raises(ValueError, match="power of two"):
        ntt_primes(12, 20, 1)
    with pytest.raises(ValueError, match="only 5 primes"):
        ntt_primes(8192, 20, 6)
    with pytest.raises(ValueError, match="a row for each modulus"):
        ntt(jnp.zeros((3, 64), jnp.uint32), Q[:2])
    with pytest.raises(ValueError, match="uint32"):
        mul_mod(jnp.zeros((1, 64), jnp.int32), jnp.zeros((1, 64), jnp.int32), Q[:1])
    with pytest.raises(ValueError, match="power of two"):
        ntt(jnp.zeros((1, 12), jnp.uint32), Q[:1])
