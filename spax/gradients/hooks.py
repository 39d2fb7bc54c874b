"""How an attack takes the gradient of its objective: the ``gradient=`` hook.

A hook is ``gradient(fn, x, key) -> (value [B], grad [B, ...], aux)``. The objective to ascend is
``fn(x) -> (value [B], aux)``, or a `spax.typing.Stochastic` of ``fn(x, key)``; ``aux`` is a pytree
of float arrays with leading B that rides along (attacks pass the verdict of their criterion, so
that no second forward pass is needed). Hooks that draw average it over their draws.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spax import loops
from spax.checks import check_count, check_key, check_number
from spax.norms import example_keys
from spax.typing import Array, Gradient, Key, Number, PyTree, call, expand

__all__ = ["eot", "exact", "nes", "spsa"]


def exact(fn: Any, x: Array, key: Key | None = None) -> tuple[Array, Array, PyTree]:
    """The gradient itself, by reverse mode; for a Stochastic objective, that of one draw.

    Args:
      fn: ``x -> (value [B], aux)``, plain or Stochastic. Values are summed before differentiating,
        so that no example's gradient depends on the size of the batch.
      x: ``[B, ...]``.
      key: consumed if ``fn`` draws.

    Returns:
      ``(value [B], grad [B, ...], aux)``.

    Raises:
      ValueError: if ``fn`` is Stochastic and there is no key.

    Example:
      >>> import jax.numpy as jnp
      >>> value, grad, _ = exact(lambda x: (jnp.sum(x**2, axis=1), None), jnp.array([[3.0]]))
      >>> grad.tolist()
      [[6.0]]
    """

    def total(x: Array) -> tuple[Array, tuple[Array, PyTree]]:
        value, aux = call(fn, x, key)
        return jnp.sum(value), (value, aux)

    grad, (value, aux) = jax.grad(total, has_aux=True)(x)
    return value, grad, aux


def _mean_over_draws(one: Callable[[Key], PyTree], key: Key, n: int) -> PyTree:
    """The mean of ``one(key_i)`` over n keys, one at a time: memory does not grow with n."""
    keys = jax.random.split(key, n)

    def add(total: PyTree, key: Key) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, one(key)), None

    total, _ = loops.scan(add, one(keys[0]), keys[1:])
    return jax.tree.map(lambda v: v / n, total)


def eot(n: int = 30) -> Gradient:
    """Expectation over transformation: the mean gradient over n draws of a Stochastic model.

    What is followed is the expected loss itself, not the loss of the mean output.

    Args:
      n: number of draws, static.

    Returns:
      A ``gradient=`` hook; it needs a key, and costs n forward and backward passes.

    Raises:
      ValueError: if ``n < 1``, or at the call without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from spax.typing import Stochastic
      >>> fn = Stochastic(lambda x, key: (x[:, 0] * jax.random.normal(key), None))
      >>> _, grad, _ = eot(8)(fn, jnp.ones((1, 1)), jax.random.key(0))
      >>> grad.shape
      (1, 1)

    References:
      A. Athalye, L. Engstrom, A. Ilyas, K. Kwok, Synthesizing robust adversarial examples, 2017,
      arXiv:1707.07397, Section 2.2.
    """
    check_count("n", n)

    def gradient(fn: Any, x: Array, key: Key | None) -> tuple[Array, Array, PyTree]:
        return _mean_over_draws(lambda k: exact(fn, x, k), check_key(key, "gradient=eot"), n)

    return gradient


def _finite_differences(
    n: int, step: Number, draw: Callable[[Key, tuple[int, ...], Any], Array], name: str
) -> Gradient:
    def gradient(fn: Any, x: Array, key: Key | None) -> tuple[Array, Array, PyTree]:
        key_value, key_draws = jax.random.split(check_key(key, f"gradient={name}"))

        def slope(key: Key) -> Array:
            key_u, key_f = jax.random.split(key)
            u = jax.vmap(lambda k: draw(k, x.shape[1:], x.dtype))(example_keys(key_u, x))
            # The same draw of the model on both sides: its noise cancels.
            above, below = call(fn, x + step * u, key_f)[0], call(fn, x - step * u, key_f)[0]
            return expand((above - below) / (2 * step), x) * u

        value, aux = call(fn, x, key_value)
        return value, _mean_over_draws(slope, key_draws, n), aux

    return gradient


def nes(n: int = 50, sigma: Number = 1e-3) -> Gradient:
    """Natural evolution strategies: the gradient from values alone, along Gaussian directions.

    Estimates ``E[(f(x + sigma u) - f(x - sigma u)) / (2 sigma) u]`` with ``u ~ N(0, I)``, drawn
    for each example on its own.

    Args:
      n: number of antithetic pairs, static: ``2 n + 1`` evaluations a gradient.
      sigma: search width, > 0, in the units of x. Below the quantum of a quantised model the
        estimate is zero.

    Returns:
      A ``gradient=`` hook; it needs a key.

    Raises:
      ValueError: if ``n < 1`` or ``sigma <= 0``, or at the call without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> fn = lambda x: (jnp.sum(x, axis=1), None)
      >>> _, grad, _ = nes(200, 0.1)(fn, jnp.zeros((1, 2)), jax.random.key(0))
      >>> bool((abs(grad - 1) < 0.5).all())
      True

    References:
      A. Ilyas, L. Engstrom, A. Athalye, J. Lin, Black-box adversarial attacks with limited queries
      and information, 2018, arXiv:1804.08598, Algorithm 1.
    """
    check_count("n", n)
    check_number("sigma", sigma, low=0, low_open=True)
    return _finite_differences(n, sigma, jax.random.normal, "nes")


def spsa(n: int = 256, delta: Number = 0.01) -> Gradient:
    """Simultaneous perturbation: the gradient from values alone, along random signs.

    Estimates ``E[(f(x + delta u) - f(x - delta u)) / (2 delta) u]`` with u of random signs, drawn
    for each example on its own.

    Args:
      n: number of antithetic pairs, static: ``2 n + 1`` evaluations a gradient.
      delta: step of the differences, > 0, in the units of x.

    Returns:
      A ``gradient=`` hook; it needs a key.

    Raises:
      ValueError: if ``n < 1`` or ``delta <= 0``, or at the call without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> fn = lambda x: (jnp.sum(x, axis=1), None)
      >>> _, grad, _ = spsa(200)(fn, jnp.zeros((1, 2)), jax.random.key(0))
      >>> bool((abs(grad - 1) < 0.5).all())
      True

    References:
      J. Uesato, B. O'Donoghue, A. van den Oord, P. Kohli, Adversarial risk and the dangers of
      evaluating against weak attacks, 2018, arXiv:1802.05666, Algorithm 1.
    """
    check_count("n", n)
    check_number("delta", delta, low=0, low_open=True)
    return _finite_differences(n, delta, jax.random.rademacher, "spsa")
