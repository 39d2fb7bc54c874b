"""Adam for private gradients: the noise is taken out of the second moment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spax.checks import check_number
from spax.typing import Array, Number, PyTree

__all__ = ["AdamBiasCorrectedState", "adam_bias_corrected", "scale_by_adam_bias_corrected"]


class AdamBiasCorrectedState(NamedTuple):
    """The moments.

    Args:
      steps: int32 scalar: updates seen.
      mu: first moment, as the parameters.
      nu: second moment, as the parameters, with the noise still in it.
      noise: float32 scalar: the same moving average, of the noise's variance.
    """

    steps: Array
    mu: PyTree
    nu: PyTree
    noise: Array


def scale_by_adam_bias_corrected(
    *,
    noise_variance: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    floor: Number = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam's scaling without the bias that noise puts into the second moment.

    ``m / sqrt(max(v - Phi, floor))``, where v and Phi are moving averages, corrected for their
    start, of squared gradients and of the variance of their noise. (Noise of private gradients is
    mostly larger than the gradients: what Adam divides by is then the noise, the same for every
    parameter.) It is post-processing and costs no privacy.

    Args:
      noise_variance: of one entry of the gradient, >= 0:
        ``(noise_multiplier l2_clip_norm / expected_size)^2``. An argument of the same name of the
        update stands in for it, where the noise changes.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      floor: the least that the corrected second moment may be, > 0. Too small, and steps of
        parameters whose gradients are below the noise become large.

    Returns:
      An optax transformation; ``update(grads, state, params=None, *, noise_variance=None)``.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> tx = scale_by_adam_bias_corrected(noise_variance=0.0)
      >>> updates, _ = tx.update(jnp.full(2, 3.0), tx.init(jnp.zeros(2)))
      >>> updates.round(4).tolist()
      [1.0, 1.0]

    References:
      Q. Tang, F. Shpilevskiy, M. Lecuyer, DP-AdamBC: your DP-Adam is actually DP-SGD (unless you
      apply bias correction), 2023, arXiv:2312.14334, Algorithm 1.
    """
    check_number("noise_variance", noise_variance, low=0, scalar=True)
    check_number("b1", b1, low=0, high=1, high_open=True, scalar=True)
    check_number("b2", b2, low=0, high=1, high_open=True, scalar=True)
    check_number("floor", floor, low=0, low_open=True, scalar=True)
    default = noise_variance

    def init(params: PyTree) -> AdamBiasCorrectedState:
        def zeros() -> PyTree:
            return jax.tree.map(jnp.zeros_like, params)

        return AdamBiasCorrectedState(jnp.int32(0), zeros(), zeros(), jnp.float32(0))

    def update(
        updates: PyTree,
        state: AdamBiasCorrectedState,
        params: PyTree = None,
        *,
        noise_variance: Number | None = None,
        **_: Any,
    ) -> tuple[PyTree, AdamBiasCorrectedState]:
        variance = default if noise_variance is None else noise_variance
        check_number("noise_variance", variance, low=0, scalar=True)
        steps = optax.safe_increment(state.steps)

        def average(old: Array, new: Array, decay: float) -> Array:
            return decay * old + (1 - decay) * new.astype(old.dtype)

        mu = jax.tree.map(lambda m, g: average(m, g, b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: average(v, jnp.square(g), b2), state.nu, updates)
        noise = average(state.noise, jnp.asarray(variance, jnp.float32), b2)
        t = steps.astype(jnp.float32)
        first, second = 1 - jnp.float32(b1) ** t, 1 - jnp.float32(b2) ** t

        def scaled(m: Array, v: Array) -> Array:
            excess = (v.astype(jnp.float32) - noise) / second
            root = jnp.sqrt(jnp.maximum(excess, jnp.asarray(floor, jnp.float32)))
            return (m.astype(jnp.float32) / first / root).astype(m.dtype)

        return jax.tree.map(scaled, mu, nu), AdamBiasCorrectedState(steps, mu, nu, noise)

    return optax.GradientTransformationExtraArgs(init, update)


def adam_bias_corrected(
    learning_rate: optax.ScalarOrSchedule,
    *,
    noise_variance: Number,
    b1: float = 0.9,
    b2: float = 0.999,
    floor: Number = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """DP-AdamBC: `scale_by_adam_bias_corrected`, then the learning rate.

    Args:
      learning_rate: a number or an optax schedule.
      noise_variance: of one entry of the gradient, >= 0.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      floor: the least that the corrected second moment may be, > 0.

    Returns:
      An optax optimizer.

    Raises:
      ValueError: on concrete numbers out of range.

    Example:
      >>> optimizer = adam_bias_corrected(0.1, noise_variance=(1.1 * 1.0 / 256) ** 2)
      >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
      >>> [round(float(u), 4) for u in updates]
      [-0.1, -0.1]

    References:
      Q. Tang, F. Shpilevskiy, M. Lecuyer, 2023, arXiv:2312.14334, Algorithm 1.
    """
    scale = scale_by_adam_bias_corrected(noise_variance=noise_variance, b1=b1, b2=b2, floor=floor)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
