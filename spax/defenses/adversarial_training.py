"""Adversarial training: objectives that put attacked examples into the loss.

Each is a factory that returns ``loss_fn(params, batch, key) -> (scalar, LossTerms)``, to be
differentiated with ``has_aux=True`` and given to any optimizer. The model enters as
``apply_fn(params, x, *, train, key) -> logits``, or ``-> (logits, new_state)`` with
``has_state=True``; it closes over its old state (batch statistics), so a factory is called anew,
at no cost, inside each training step. Clean and attacked examples go through one forward pass in
training mode, so that batch statistics cover both and are updated once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax.checks import check_batch, check_count, check_key, check_number, is_concrete
from spax.evasion.fgsm import pgd
from spax.losses import cross_entropy, hits, kl_divergence
from spax.norms import example_keys
from spax.typing import (
    Array,
    Attack,
    Bounds,
    Criterion,
    Key,
    LossFn,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
)

__all__ = [
    "LossTerms",
    "adversarial_loss",
    "mixed_adversarial_loss",
    "trades_loss",
    "truncated_normal_eps",
]


class LossTerms(NamedTuple):
    """What an adversarial objective reports beside its value; means over the batch.

    Attributes:
      clean_loss: loss on clean examples; None where the objective has none.
      adversarial_loss: loss on attacked examples, or the divergence of TRADES; None likewise.
      clean_accuracy: share of clean examples that ``correct`` holds for, in training mode.
      adversarial_accuracy: the same on attacked examples.
      state: the model's new state with ``has_state=True``, else None.
    """

    clean_loss: Array | None
    adversarial_loss: Array | None
    clean_accuracy: Array | None
    adversarial_accuracy: Array | None
    state: PyTree


def adversarial_loss(
    apply_fn: Callable[..., Any],
    attack: Attack,
    *,
    alpha: Number = 0.5,
    loss: PerExampleLoss = cross_entropy,
    correct: Criterion = hits,
    has_state: bool = False,
    attack_in_train_mode: bool = False,
) -> LossFn:
    """Goodfellow's mixture of clean and adversarial loss; Madry's objective at ``alpha=0``.

    ``J = alpha L(f(x), y) + (1 - alpha) L(f(x'), y)`` with ``x' = attack(f, x, y)`` made anew
    from the current parameters and then held constant: no gradient flows through the attack.

    Args:
      apply_fn: ``(params, x, *, train, key) -> logits``, or ``(logits, new_state)``. In evaluation
        mode it should not draw; what it returns as state is dropped there.
      attack: a bound attack, ``attack(logits_fn, x, y, *, key) -> x'``, such as
        ``partial(fgsm, eps=0.25)`` or ``partial(pgd, eps=8/255, steps=10)``.
      alpha: weight of the clean loss in [0, 1], may be traced. A plain 0 leaves out the clean pass
        altogether (batch statistics then see attacked examples alone, as in Madry's original).
      loss: ``(outputs, y) -> [B]``.
      correct: ``(outputs, y) -> bool [B]``, for the reported accuracies.
      has_state: whether ``apply_fn`` returns ``(logits, new_state)``.
      attack_in_train_mode: whether the attack sees the model in training mode, a fresh draw of
        dropout each gradient (as a Stochastic model), instead of evaluation mode.

    Returns:
      ``loss_fn(params, (x, y), key) -> (scalar, LossTerms)``; the key is consumed.

    Raises:
      ValueError: on a concrete alpha outside [0, 1]; at the call, without a key or on bad inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from functools import partial
      >>> from spax.evasion import pgd
      >>> apply_fn = lambda params, x, *, train, key: x @ params
      >>> loss_fn = adversarial_loss(apply_fn, partial(pgd, eps=0.1, steps=3), alpha=0.0)
      >>> batch = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> grads, terms = jax.jit(jax.grad(loss_fn, has_aux=True))(
      ...     jnp.eye(2), batch, jax.random.key(0))
      >>> grads.shape, float(terms.adversarial_loss) > 0.6
      ((2, 2), True)

    References:
      I. Goodfellow, J. Shlens, C. Szegedy, Explaining and harnessing adversarial examples, 2014,
      arXiv:1412.6572, Section 6. A. Madry et al., Towards deep learning models resistant to
      adversarial attacks, 2017, arXiv:1706.06083, Eq 2.1 (trained on attacked examples alone).
    """
    check_number("alpha", alpha, low=0, high=1)
    pure = is_concrete(alpha) and jnp.ndim(alpha) == 0 and float(alpha) == 0

    def loss_fn(params: PyTree, batch: PyTree, key: Key) -> tuple[Array, LossTerms]:
        x, y = batch
        check_batch(x, y)
        key_attack, key_model, key_loss = jax.random.split(check_key(key, "adversarial_loss"), 3)
        target = _target(apply_fn, params, key_model, has_state, attack_in_train_mode)
        x_adv = lax.stop_gradient(attack(target, x, y, key=key_attack))
        if pure:
            outputs, state = _forward(apply_fn, params, x_adv, key_loss, has_state)
            value, accuracy = _means(loss(outputs, y), correct(outputs, y))
            return value, LossTerms(None, value, None, accuracy, state)
        x_both, y_both = _stack(x, x_adv), jax.tree.map(_stack, y, y)
        outputs, state = _forward(apply_fn, params, x_both, key_loss, has_state)
        losses, right, n = loss(outputs, y_both), correct(outputs, y_both), x.shape[0]
        clean, clean_accuracy = _means(losses[:n], right[:n])
        adversarial, accuracy = _means(losses[n:], right[n:])
        weight = jnp.asarray(alpha, losses.dtype)
        value = weight * clean + (1 - weight) * adversarial
        return value, LossTerms(clean, adversarial, clean_accuracy, accuracy, state)

    return loss_fn


def truncated_normal_eps(
    scale: Number = 8 / 255, limit: Number = 16 / 255
) -> Callable[[Key, Array], Array]:
    """Random radii for adversarial training: ``|N(0, scale)|``, truncated to ``[0, limit]``.

    A model trained at many radii does not fit a single one.

    Args:
      scale: standard deviation before truncation, > 0.
      limit: the largest radius, > 0.

    Returns:
      ``sampler(key, x) -> eps [B]`` in the dtype of x; each example draws from a key of its own.

    Raises:
      ValueError: if a concrete scale or limit is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> eps = truncated_normal_eps()(jax.random.key(0), jnp.zeros((100, 4)))
      >>> bool((eps >= 0).all() and (eps <= 16 / 255).all())
      True

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial machine learning at scale, 2016,
      arXiv:1611.01236, Section 3.2 (scale 8, limit 16 of 255 grey levels).
    """
    check_number("scale", scale, low=0, low_open=True)
    check_number("limit", limit, low=0, low_open=True)

    def sampler(key: Key, x: Array) -> Array:
        sigma, top = jnp.asarray(scale, x.dtype), jnp.asarray(limit, x.dtype)

        def draw(key: Key) -> Array:
            return jax.random.truncated_normal(key, 0, top / sigma, dtype=x.dtype)

        return jnp.minimum(sigma * jax.vmap(draw)(example_keys(key, x)), top)

    return sampler


def mixed_adversarial_loss(
    apply_fn: Callable[..., Any],
    attack: Callable[..., Array],
    *,
    k: int,
    lam: Number = 0.3,
    eps_sampler: Callable[[Key, Array], Array] | None = None,
    loss: PerExampleLoss = cross_entropy,
    correct: Criterion = hits,
    has_state: bool = False,
    attack_in_train_mode: bool = False,
) -> LossFn:
    """Kurakin's mixture: the first k examples of each batch are replaced by attacked ones.

    ``J = (sum_clean L + lam sum_adv L) / ((m - k) + lam k)`` over a batch of m, each attacked
    example with a radius of its own. Against label leaking, craft a one-step attack with the least
    likely class: ``lambda f, x, y, *, key, eps: fgsm(f, x, least_likely(f, x), eps=eps,
    targeted=True)``.

    Args:
      apply_fn: as in `adversarial_loss`.
      attack: ``attack(logits_fn, x, y, *, key, eps) -> x'``, with eps ``[k]``.
      k: how many examples of a batch are replaced, static, 0 <= k <= m. Shuffle the batches.
      lam: relative weight of an attacked example, >= 0, may be traced. Must be positive if k = m.
      eps_sampler: ``(key, x [k, ...]) -> eps [k]``; None: `truncated_normal_eps` at the paper's
        8/255 and 16/255.
      loss: ``(outputs, y) -> [B]``.
      correct: ``(outputs, y) -> bool [B]``, for the reported accuracies.
      has_state: whether ``apply_fn`` returns ``(logits, new_state)``.
      attack_in_train_mode: as in `adversarial_loss`; True in the paper.

    Returns:
      ``loss_fn(params, (x, y), key) -> (scalar, LossTerms)``; the key is consumed.

    Raises:
      TypeError: if k is not an int.
      ValueError: on a concrete ``lam < 0``, ``k < 0``; at the call, if k exceeds the batch, nothing
        has weight, there is no key, or on bad inputs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from spax.evasion import fgsm
      >>> apply_fn = lambda params, x, *, train, key: x @ params
      >>> loss_fn = mixed_adversarial_loss(apply_fn, fgsm, k=1)
      >>> batch = jnp.array([[0.6, 0.5], [0.4, 0.5]]), jnp.array([0, 1])
      >>> value, terms = loss_fn(jnp.eye(2), batch, jax.random.key(0))
      >>> bool(terms.adversarial_loss > terms.clean_loss)
      True

    References:
      A. Kurakin, I. Goodfellow, S. Bengio, Adversarial machine learning at scale, 2016,
      arXiv:1611.01236, Eq 1 and Algorithm 1 (m = 32, k = 16, lam = 0.3).
    """
    check_count("k", k, minimum=0)
    check_number("lam", lam, low=0)
    draw_eps = truncated_normal_eps() if eps_sampler is None else eps_sampler

    def loss_fn(params: PyTree, batch: PyTree, key: Key) -> tuple[Array, LossTerms]:
        x, y = batch
        check_batch(x, y)
        m = x.shape[0]
        if k > m:
            raise ValueError(f"k must be at most the batch size {m} (got k={k})")
        if k == m:
            check_number("lam", lam, low=0, low_open=True)
        keys = jax.random.split(check_key(key, "mixed_adversarial_loss"), 4)
        key_attack, key_model, key_loss, key_eps = keys
        if k:
            target = _target(apply_fn, params, key_model, has_state, attack_in_train_mode)
            y_k = jax.tree.map(lambda v: v[:k], y)
            x_adv = attack(target, x[:k], y_k, key=key_attack, eps=draw_eps(key_eps, x[:k]))
            x = jnp.concatenate([lax.stop_gradient(x_adv), x[k:]])
        outputs, state = _forward(apply_fn, params, x, key_loss, has_state)
        losses, right = loss(outputs, y), correct(outputs, y)
        weight = jnp.asarray(lam, losses.dtype)
        total = jnp.sum(losses[k:]) + weight * jnp.sum(losses[:k])
        clean, clean_accuracy = _means(losses[k:], right[k:]) if k < m else (None, None)
        adversarial, accuracy = _means(losses[:k], right[:k]) if k else (None, None)
        terms = LossTerms(clean, adversarial, clean_accuracy, accuracy, state)
        return total / (m - k + weight * k), terms

    return loss_fn


def trades_loss(
    apply_fn: Callable[..., Any],
    *,
    eps: Number,
    step_size: Number | None = None,
    beta: Number = 6.0,
    steps: int = 10,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    has_state: bool = False,
    attack_in_train_mode: bool = False,
) -> LossFn:
    """TRADES: accuracy on clean examples plus smoothness of the prediction around them.

    ``J = CE(f(x), y) + beta max_{|x' - x| <= eps} KL(p(x) || p(x'))``. The maximiser is `pgd` on
    the divergence, from ``x + 0.001 N(0, I)``, since at x itself the gradient is zero. In the
    maximisation p(x) is a constant; in the outer loss it is differentiated.

    Deviations from the authors' code: the maximiser keeps its best point, not its last, and x and
    x' share one forward pass in training mode (theirs passes each on its own).

    Args:
      apply_fn: as in `adversarial_loss`; must return logits ``[B, K]``.
      eps: radius of the ball, >= 0, scalar or ``[B]``, may be traced.
      step_size: length of a step; None: 2.5 eps / steps, the paper's 2/255 at 8/255 in 10 steps.
      beta: weight of the divergence, >= 0, may be traced (the paper's 1 / lambda).
      steps: number of steps, static, >= 1.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      bounds: valid range of the inputs.
      has_state: whether ``apply_fn`` returns ``(logits, new_state)``.
      attack_in_train_mode: as in `adversarial_loss`; False in the authors' code.

    Returns:
      ``loss_fn(params, (x, y), key) -> (scalar, LossTerms)``; the key is consumed.

    Raises:
      ValueError: on a concrete ``beta < 0``; at the call, as `pgd`, or without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> apply_fn = lambda params, x, *, train, key: x @ params
      >>> loss_fn = trades_loss(apply_fn, eps=0.1, beta=1.0, steps=2)
      >>> batch = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> value, terms = jax.jit(loss_fn)(5 * jnp.eye(2), batch, jax.random.key(0))
      >>> bool(terms.adversarial_loss > 0)
      True

    References:
      H. Zhang et al., Theoretically principled trade-off between robustness and accuracy, 2019,
      arXiv:1901.08573, Eq 5 and Algorithm 1.
    """
    check_number("eps", eps, low=0)
    check_number("beta", beta, low=0)

    def loss_fn(params: PyTree, batch: PyTree, key: Key) -> tuple[Array, LossTerms]:
        x, y = batch
        check_batch(x, y, bounds)
        key = check_key(key, "trades_loss")
        key_start, key_clean, key_attack, key_model, key_loss = jax.random.split(key, 5)
        target = _target(apply_fn, params, key_model, has_state, attack_in_train_mode)
        clean = target(x, key_clean) if isinstance(target, Stochastic) else target(x)
        log_p = jax.nn.log_softmax(clean, axis=1)

        def noise(key: Key) -> Array:
            return jax.random.normal(key, x.shape[1:], x.dtype)

        x_adv = pgd(
            target,
            x,
            log_p,
            key=key_attack,
            eps=eps,
            step_size=step_size,
            steps=steps,
            norm=norm,
            start=x + 0.001 * jax.vmap(noise)(example_keys(key_start, x)),
            bounds=bounds,
            loss=kl_divergence,
            criterion=_never,
        )
        x_both = _stack(x, lax.stop_gradient(x_adv))
        logits, state = _forward(apply_fn, params, x_both, key_loss, has_state)
        natural, attacked = jnp.split(logits, 2)
        entropy, clean_accuracy = _means(cross_entropy(natural, y), hits(natural, y))
        divergence, accuracy = _means(
            kl_divergence(attacked, jax.nn.log_softmax(natural, axis=1)), hits(attacked, y)
        )
        value = entropy + jnp.asarray(beta, divergence.dtype) * divergence
        return value, LossTerms(entropy, divergence, clean_accuracy, accuracy, state)

    return loss_fn


def _target(
    apply_fn: Callable[..., Any], params: PyTree, key: Key, has_state: bool, train: bool
) -> Model:
    """The model as the attack sees it: parameters constant, state dropped."""
    # Stopping here, not only at the result, spares tracing the attack's own derivative.
    frozen = lax.stop_gradient(params)

    def outputs(x: Array, key: Key) -> Any:
        return _split_state(apply_fn(frozen, x, train=train, key=key), has_state)[0]

    return Stochastic(outputs) if train else lambda x: outputs(x, key)


def _forward(
    apply_fn: Callable[..., Any], params: PyTree, x: Array, key: Key, has_state: bool
) -> tuple[Any, PyTree]:
    """Outputs and new state in training mode."""
    return _split_state(apply_fn(params, x, train=True, key=key), has_state)


def _split_state(out: Any, has_state: bool) -> tuple[Any, PyTree]:
    """``(outputs, new state)``, None for a model without state."""
    if not has_state:
        return out, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(
            "with has_state=True, apply_fn must return a pair (logits, new_state) "
            f"(got {type(out).__name__})"
        )
    return out


def _stack(first: Array, second: Array) -> Array:
    return jnp.concatenate([first, second])


def _means(losses: Array, right: Array) -> tuple[Array, Array]:
    """Mean loss and share of right answers."""
    return jnp.mean(losses), jnp.mean(right.astype(losses.dtype))


def _never(outputs: Any, log_p: Array) -> Array:
    """No point counts as fooling, so that the best one is that of highest divergence."""
    return jnp.zeros(log_p.shape[:1], bool)
