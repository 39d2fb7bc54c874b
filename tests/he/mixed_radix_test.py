import math
import random

import jax.numpy as jnp
import numpy as np
import pytest

from spax.crypto.modular import ntt_primes, reduce_int
from spax.he.mixed_radix import (
    centred_digits,
    digits,
    log2_magnitude,
    to_float,
    to_residues,
)

Q = (*ntt_primes(64, 30, 3), *ntt_primes(64, 20, 2))
PRODUCT = math.prod(Q)


@pytest.fixture(scope="module")
def integers():
    draw = random.Random(0)
    values = [draw.randrange(-(PRODUCT // 2), PRODUCT // 2 + 1) for _ in range(50)]
    values += [draw.randrange(-(2**k), 2**k) for k in range(1, 100)]
    return [*values, 0, 1, -1, PRODUCT // 2, -(PRODUCT // 2)]


@pytest.fixture(scope="module")
def found(integers):
    return centred_digits(jnp.asarray(reduce_int(integers, Q)), Q)


def test_digits_and_signs_are_those_of_the_integers(integers, found):
    negative, magnitude = (np.asarray(a).astype(object) for a in found)
    radices = [math.prod(Q[:i]) for i in range(len(Q))]
    sizes = sum(radix * row for radix, row in zip(radices, magnitude, strict=True))
    assert [-s - 1 if n else s for n, s in zip(negative, sizes, strict=True)] == integers
    plain = np.asarray(digits(jnp.asarray(reduce_int(integers, Q)), Q)).astype(object)
    whole = sum(radix * row for radix, row in zip(radices, plain, strict=True))
    assert list(whole) == [v % PRODUCT for v in integers]


def test_residues_modulo_other_primes(integers, found):
    p = (97, 12289, 786433)
    np.testing.assert_array_equal(to_residues(*found, Q, p), reduce_int(integers, p))


def test_floats_and_logarithms(integers, found):
    got = to_float(*found, Q, 2.0**30)
    np.testing.assert_allclose(got, [v / 2**30 for v in integers], rtol=1e-15)
    bound = np.asarray(log2_magnitude(found[1], Q))
    exact = np.array([math.log2(max(abs(v), 1)) for v in integers])
    assert (bound >= exact - 1e-4).all()
    assert (bound <= exact + 1.01).all()
