"""Strict settings for every test: promotion, ranks, warnings; several devices; the data."""

import os

# Before jax is imported: several CPU devices, so that shard_map runs on a laptop.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()
os.environ.setdefault("MPLBACKEND", "agg")

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """The default tests compile more than they compute; the slow ones run optimised code."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.fixture
def strict():
    """Strict dtype promotion around spax's own calls (optax's Adam fails under it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def spax_data() -> pathlib.Path:
    """The folder of the larger data sets, by the variable SPAX_DATA."""
    folder = os.environ.get("SPAX_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("needs the MNIST and CIFAR files: set SPAX_DATA to their folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, split: x in [0, 1], [n, 8, 8, 1]."""
    import spax.datasets

    return spax.datasets.digits()


@pytest.fixture(scope="session")
def linear():
    """A linear model with a batch that it classifies correctly: (apply_fn, params, x, y)."""
    rng = np.random.default_rng(0)
    params = rng.normal(size=(6, 4)).astype(np.float32)
    x = rng.uniform(0.2, 0.8, size=(8, 6)).astype(np.float32)
    y = np.argmax((x - 0.5) @ params, axis=1).astype(np.int32)

    def apply_fn(params, x):
        return (x - 0.5) @ params.astype(x.dtype)

    return apply_fn, jax.numpy.asarray(params), jax.numpy.asarray(x), jax.numpy.asarray(y)
