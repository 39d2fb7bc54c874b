"""Adversarial transformation networks: a network that attacks in one forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from spax.checks import check_batch, check_bounds, check_labels, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.norms import box
from spax.typing import Array, Bounds, Key, Model, Number, PyTree, Stochastic, call, wide

__all__ = ["ATN", "ATNState", "ATNTerms", "aae", "atn", "atn_loss", "p_atn", "rerank"]

Generator: TypeAlias = Callable[[PyTree, Array], Array]


class ATNTerms(NamedTuple):
    """What a transformation network's objective is made of, means over the minibatch."""

    input: Array  # |g(x) - x|^2, summed over an example's entries
    output: Array  # |softmax f(g(x)) - r(softmax f(x))|^2, summed over the classes
    hit: Array  # the share that the model calls the target


class ATNState(NamedTuple):
    """The network's parameters, the optimizer's state, and the number of updates."""

    params: PyTree
    opt_state: PyTree
    steps: Array


class ATN(NamedTuple):
    """``init(params) -> state`` and ``update(state, batch, key=None) -> (terms, state)``."""

    init: Callable[[PyTree], ATNState]
    update: Callable[..., tuple[ATNTerms, ATNState]]


def rerank(probs: Array, target: Number, alpha: Number = 1.5) -> Array:
    """The probabilities that are aimed at: the target first, all else in its old order.

    ``r_alpha(y, t)``: entry t becomes ``alpha max(y)``, the others stay, and all are divided by
    their sum.

    Args:
      probs: ``[B, K]``.
      target: the class t, an int, or int ``[B]``.
      alpha: how far the target is ahead, >= 1 (a traced value below it does not put it first).

    Returns:
      ``[B, K]``, rows of sum 1.

    Raises:
      ValueError: if probs is not ``[B, K]``, a concrete target is not a class, or alpha < 1.

    Example:
      >>> import jax.numpy as jnp
      >>> rerank(jnp.array([[0.5, 0.25, 0.25]]), 2, alpha=2.5).tolist()
      [[0.25, 0.125, 0.625]]

    References:
      S. Baluja, I. Fischer, Adversarial transformation networks: learning to generate adversarial
      examples, 2017, arXiv:1703.09387, Eq 3.
    """
    if probs.ndim != 2:
        raise ValueError(f"probs must have shape [B, K] (got probs.shape={probs.shape})")
    check_number("alpha", alpha, low=1)
    check_labels(jnp.asarray(target), probs.shape[1])
    wanted = jnp.broadcast_to(jnp.asarray(target, jnp.int32), probs.shape[:1])
    chosen = wanted[:, None] == jnp.arange(probs.shape[1], dtype=jnp.int32)[None, :]
    top = jnp.asarray(alpha, probs.dtype) * jnp.max(probs, axis=1, keepdims=True)
    raised = jnp.where(chosen, top, probs)
    return raised / jnp.sum(raised, axis=1, keepdims=True)


def p_atn(
    net_fn: Callable[[PyTree, Array], Array], *, eps: Number, bounds: Bounds = (0.0, 1.0)
) -> Generator:
    """Perturbation ATN: the network says what to add, ``clip(x + eps tanh(net(x)))``.

    Args:
      net_fn: ``(params, x [B, ...]) -> [B, ...]``, the same shape.
      eps: linf radius, >= 0, a scalar or ``[B]``-broadcastable; 1 leaves it to the penalty.
      bounds: valid range of the inputs.

    Returns:
      ``generator_fn(params, x) -> x_adv``, in the shape and dtype of ``x``.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in linf.

    Raises:
      ValueError: if a concrete eps < 0; at the call, if the network's output has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> generator = p_atn(lambda params, x: params * x, eps=0.5)
      >>> generator(100.0, jnp.array([[0.25, 0.75]])).tolist()
      [[0.75, 1.0]]

    References:
      S. Baluja, I. Fischer, 2017, arXiv:1703.09387, Section 2 (P-ATN; the bound by tanh is ours).
    """
    check_number("eps", eps, low=0)
    check_bounds(bounds)

    def generator_fn(params: PyTree, x: Array) -> Array:
        dtype = wide(x)
        low, high = box(bounds, x.astype(dtype))
        moved = x.astype(dtype) + jnp.asarray(eps, dtype) * jnp.tanh(_shaped(net_fn, params, x))
        return jnp.clip(moved, low, high).astype(x.dtype)

    return generator_fn


def aae(net_fn: Callable[[PyTree, Array], Array], *, bounds: Bounds = (0.0, 1.0)) -> Generator:
    """Adversarial autoencoding: the network draws the input anew, ``sigmoid(net(x))``.

    Args:
      net_fn: ``(params, x [B, ...]) -> [B, ...]``, the same shape; usually an autoencoder.
      bounds: valid range of the inputs, onto which (0, 1) is mapped.

    Returns:
      ``generator_fn(params, x) -> x_adv``, in the shape and dtype of ``x``.

    Guarantees:
      Within ``bounds``; not near x but for the penalty it is trained with.

    Raises:
      ValueError: if bounds are not a pair; at the call, if the output has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> aae(lambda params, x: 0 * x)(None, jnp.array([[0.2, 0.9]])).tolist()
      [[0.5, 0.5]]

    References:
      S. Baluja, I. Fischer, 2017, arXiv:1703.09387, Section 2 (AAE).
    """
    check_bounds(bounds)

    def generator_fn(params: PyTree, x: Array) -> Array:
        low, high = box(bounds, x.astype(wide(x)))
        share = jax.nn.sigmoid(_shaped(net_fn, params, x))
        return jnp.clip(low + (high - low) * share, low, high).astype(x.dtype)

    return generator_fn


def _shaped(net_fn: Callable[[PyTree, Array], Array], params: PyTree, x: Array) -> Array:
    out = net_fn(params, x)
    if out.shape != x.shape:
        raise ValueError(f"net_fn must keep the shape of x, {x.shape} (got {out.shape})")
    return out.astype(wide(x))


def atn_loss(
    logits_fn: Model,
    generator_fn: Generator,
    target: Number,
    *,
    alpha: Number = 1.5,
    beta: Number = 0.005,
) -> Callable[[PyTree, PyTree, Key], tuple[Array, ATNTerms]]:
    """The objective of a transformation network: near the input, and ranked as wanted.

    ``beta |g(x) - x|^2 + |softmax f(g(x)) - r_alpha(softmax f(x), t)|^2``, both squares summed
    over the entries of an example (which is what fixes the meaning of beta) and averaged over the
    minibatch. The clean probabilities are constants.

    Args:
      logits_fn: the model under attack, ``[B, ...] -> [B, K]``, plain or Stochastic.
      generator_fn: ``(params, x) -> x_adv``: `p_atn`, `aae`, or any other.
      target: the class that all inputs are driven to; one network a target.
      alpha: of `rerank`, >= 1.
      beta: weight of the distance, >= 0; the paper tries 0.010, 0.005, 0.001.

    Returns:
      ``loss_fn(params, batch, key) -> (scalar, ATNTerms)``; ``batch`` is x, or a tuple that begins
      with it (labels are not needed), ``key`` is for a Stochastic model.

    Raises:
      ValueError: if a concrete number is out of its range; at the call, if the target is not a
        class, or the model is Stochastic and key is None.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = atn_loss(lambda x: x, lambda params, x: x + params, 1, beta=0.5)
      >>> value, terms = loss_fn(jnp.float32(0.1), jnp.array([[0.2, 0.8]]), None)
      >>> round(float(terms.input), 3)
      0.02

    References:
      S. Baluja, I. Fischer, Adversarial transformation networks: learning to generate adversarial
      examples, 2017, arXiv:1703.09387, Eqs 1 to 3.
    """
    check_number("alpha", alpha, low=1)
    check_number("beta", beta, low=0)

    def loss_fn(params: PyTree, batch: PyTree, key: Key) -> tuple[Array, ATNTerms]:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        check_batch(x)
        if isinstance(logits_fn, Stochastic) and key is None:
            raise ValueError("an ATN of a Stochastic model needs a random key (got key=None)")
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        dtype = wide(x)
        clean = jax.nn.softmax(call(logits_fn, x, keys[0]).astype(dtype), axis=1)
        wanted = jax.lax.stop_gradient(rerank(clean, target, alpha))
        x_adv = generator_fn(params, x)
        outputs = call(logits_fn, x_adv, keys[1]).astype(dtype)
        moved = (x_adv.astype(dtype) - x.astype(dtype)).reshape(x.shape[0], -1)
        near = jnp.mean(jnp.sum(jnp.square(moved), axis=1))
        ranked = jnp.mean(jnp.sum(jnp.square(jax.nn.softmax(outputs, axis=1) - wanted), axis=1))
        hit = jnp.argmax(outputs, axis=1) == jnp.asarray(target)
        terms = ATNTerms(near, ranked, jnp.mean(hit.astype(dtype)))
        return jnp.asarray(beta, dtype) * near + ranked, terms

    return loss_fn


def atn(
    logits_fn: Model,
    generator_fn: Generator,
    optimizer: Any,
    target: Number,
    *,
    alpha: Number = 1.5,
    beta: Number = 0.005,
) -> ATN:
    """Trains an adversarial transformation network; afterwards an attack is one forward pass.

    ``generator_fn(state.params, x)`` attacks. Score it on inputs whose class is not the target.

    Args:
      logits_fn: the model under attack, ``[B, ...] -> [B, K]``, plain or Stochastic.
      generator_fn: ``(params, x) -> x_adv``: `p_atn`, `aae`, or any other.
      optimizer: an optax gradient transformation.
      target: the class that all inputs are driven to.
      alpha: of `rerank`, >= 1.
      beta: weight of the distance, >= 0, see `atn_loss`.

    Returns:
      ``ATN(init, update)``: ``init(params) -> state`` from the network's first parameters;
      ``update(state, batch, key=None) -> (terms, state)``, one step on one minibatch.

    Raises:
      ValueError: as `atn_loss`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> generator = p_atn(lambda params, x: params[None, :] + 0 * x, eps=1.0)
      >>> attack = atn(lambda x: 9 * x, generator, optax.sgd(0.3), 1)
      >>> state = attack.init(jnp.zeros(2))
      >>> for _ in range(4):
      ...     terms, state = attack.update(state, jnp.array([[0.6, 0.4]]))
      >>> generator(state.params, jnp.array([[0.6, 0.4]])).argmax(1).tolist()
      [1]

    References:
      S. Baluja, I. Fischer, Adversarial transformation networks: learning to generate adversarial
      examples, 2017, arXiv:1703.09387.
    """
    loss_fn = atn_loss(logits_fn, generator_fn, target, alpha=alpha, beta=beta)

    def init(params: PyTree) -> ATNState:
        return ATNState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(state: ATNState, batch: PyTree, key: Key | None = None) -> tuple[ATNTerms, ATNState]:
        gradient = canonical_convolutions(jax.grad(loss_fn, has_aux=True))
        grads, terms = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # As optax.apply_updates, whose parameters keep their dtype.
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
        return terms, ATNState(params, opt_state, state.steps + 1)

    return ATN(init, update)
