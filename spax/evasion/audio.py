"""Carlini and Wagner's attack on speech recognition: a wave that is transcribed as a given text."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_number, is_concrete
from spax.evasion.adam import Moments, adam, no_moments
from spax.gradients.convolutions import canonical_convolutions
from spax.gradients.hooks import exact
from spax.losses import ctc, decodes_to
from spax.norms import box
from spax.norms import norm as norm_of
from spax.typing import (
    Array,
    Bounds,
    Criterion,
    Gradient,
    Key,
    Model,
    Number,
    PerExampleLoss,
    PyTree,
    Stochastic,
    call,
    each_row,
    expand,
    wide,
)

__all__ = ["audio_cw", "distortion_db"]


class _Search(NamedTuple):
    d: Array  # the perturbation, not rounded
    moments: Moments
    tau: Array  # [B]
    weights: Array  # [B, F] of the frames; [B, 0] in the first stage
    x: Array  # the best wave
    distance: Array  # its largest change; inf: none found


def distortion_db(x: Array, d: Array) -> Array:
    """Loudness of a perturbation relative to the wave, by their peaks, in decibels.

    ``20 log10 max|d| - 20 log10 max|x|``: the lower, the quieter.

    Args:
      x: waves ``[B, ...]``.
      d: perturbations of the same shape.

    Returns:
      ``[B]``; -inf where d is zero, inf where only x is.

    Raises:
      ValueError: if the shapes differ, or without a batch dimension.
      TypeError: if x is not an array.

    Example:
      >>> import jax.numpy as jnp
      >>> distortion_db(jnp.array([[0.5, -1.0]]), jnp.array([[0.01, 0.1]])).round(3).tolist()
      [-20.0]

    References:
      N. Carlini, D. Wagner, Audio adversarial examples: targeted attacks on speech-to-text, 2018,
      arXiv:1801.01944, Section II.
    """
    check_batch(x)
    if jnp.shape(d) != x.shape:
        raise ValueError(f"d must have the shape of x, {x.shape} (got {jnp.shape(d)})")
    change, wave = (norm_of(v, "linf").astype(wide(x)) for v in (d, x))
    level = 20 * (jnp.log10(change) - jnp.log10(wave))
    return jnp.where(change == 0, -jnp.inf, level).astype(x.dtype)


def _hinges(outputs: Array, path: Array, frames: Array) -> Array:
    """How far each frame ``[B, F]`` is from preferring its symbol of the path, 0 if it does."""
    symbols = jnp.arange(outputs.shape[2], dtype=path.dtype)
    wanted = path[:, :, None] == symbols[None, None, :]
    lowest = jnp.array(-jnp.inf, outputs.dtype)
    other = jnp.max(jnp.where(wanted, lowest, outputs), axis=2)
    own = jnp.max(jnp.where(wanted, outputs, lowest), axis=2)
    heard = jnp.arange(outputs.shape[1])[None, :] < frames[:, None]
    return jnp.where(heard, jnp.maximum(other - own, 0), 0)


def audio_cw(
    logits_fn: Model,
    x: Array,
    y: PyTree,
    *,
    key: Key | None = None,
    tau: Number = 2000 / 32768,
    decay: Number = 0.8,
    const: Number = 1.0,
    step_size: Number = 10 / 32768,
    lengths: Array | None = None,
    steps: int = 1000,
    align_steps: int = 0,
    bits: int | None = 16,
    targeted: bool = True,
    bounds: Bounds = (-1.0, 1.0),
    loss: PerExampleLoss = ctc,
    criterion: Criterion = decodes_to,
    gradient: Gradient = exact,
) -> Array:
    """Audio attack: the quietest perturbation of a wave that is transcribed as the wanted text.

    Minimises ``|d|^2 + const loss(f(x + d), y)`` over ``|d|_inf <= tau`` by Adam with clipping. At
    each success the perturbation is recorded and tau falls to ``decay`` times its peak. A second
    stage of ``align_steps`` keeps the frame-by-frame path that the first has reached and asks of
    each frame only to prefer its symbol, ``sum_i c_i max(max_{k != p_i} f_ik - f_ip_i, 0)``; c_i
    shrinks at each success where frame i already does, and grows where it does not.

    Args:
      logits_fn: the model from the wave, ``[B, T] -> [B, F, V]``, plain or Stochastic.
      x: waves ``[B, T]``, floating, within ``bounds``; any trailing shape.
      y: the wanted texts, ``(labels [B, N], label lengths [B], frame counts [B])`` as
        `spax.losses.ctc` takes them, the frame counts being the model's own; or whatever ``loss``
        and ``criterion`` take.
      key: a random key, for a Stochastic model or a sampling ``gradient``.
      tau: largest change at first, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      decay: factor of tau at a success, in (0, 1), scalar or ``[B]``.
      const: weight of the loss, > 0, scalar or ``[B]``.
      step_size: Adam's at the first tau, > 0, scalar or ``[B]``; it shrinks along with tau.
      lengths: samples of each wave, int ``[B]``: what is padded after them along the second
        dimension stays as it is. None: all of it may change.
      steps: gradient steps of the first stage, static, >= 1.
      align_steps: gradient steps of the second, static, >= 0; it needs outputs ``[B, F, V]`` and y
        as for `spax.losses.ctc`.
      bits: width of the samples of the file that the wave will be kept in, static, 2 to 24: the
        model hears every candidate rounded to it (and gradients pass through the rounding), so a
        success survives being written. None: no rounding.
      targeted: True; this attack has no other form.
      bounds: valid range of the samples, within [-1, 1] where ``bits`` is given.
      loss: ``(outputs, y) -> [B]``, lowered.
      criterion: ``(outputs, y) -> bool [B]``, success.
      gradient: how the gradient is taken.

    Returns:
      The successful wave of smallest peak change over all steps, and ``x`` itself, not rounded,
      where there was none.

    Guarantees:
      Within ``bounds``, and within tau of ``x``, up to half a rounding step, ``2**-bits``. A
      returned success is on the grid of ``bits`` (for float32 or wider, which hold it exactly).

    Raises:
      ValueError: on a wrong shape or dtype, concrete inputs that are not finite or out of bounds,
        a number out of its range, texts that do not fit into the frames, ``targeted=False``; if
        something draws and key is None.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> frames = lambda x: 50 * x.reshape(x.shape[0], 4, 2)  # two symbols: blank and 1
      >>> attack = jax.jit(lambda x, y: audio_cw(frames, x, y, tau=0.1, step_size=0.01, steps=60))
      >>> x = jnp.array([[0.05, 0.0, 0.3, 0.0, 0.3, 0.0, 0.3, 0.0]])
      >>> y = jnp.array([[1]]), jnp.array([1]), jnp.array([4])
      >>> x_adv = attack(x, y)
      >>> bool(decodes_to(frames(x_adv), y)[0]), round(float(abs(x_adv - x).max()), 2)
      (True, 0.03)

    References:
      N. Carlini, D. Wagner, Audio adversarial examples: targeted attacks on speech-to-text, 2018,
      arXiv:1801.01944, Sections II and III. Deviations: success is looked for at every step; each
      candidate is rounded before it is judged, not after the search.
    """
    check_batch(x, y, bounds)
    check_number("tau", tau, low=0)
    check_number("decay", decay, low=0, high=1, low_open=True, high_open=True)
    check_number("const", const, low=0, low_open=True)
    check_number("step_size", step_size, low=0, low_open=True)
    check_count("steps", steps)
    check_count("align_steps", align_steps, 0)
    if targeted is not True:
        raise ValueError(f"audio_cw exists only in targeted form (got targeted={targeted!r})")
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")
    _check_file(bits, bounds)

    dtype = wide(x)
    origin = x.astype(dtype)
    low, high = (b.astype(dtype) for b in box(bounds, x))
    weight, rate = expand(const, origin), expand(step_size, origin)
    shrink = jnp.broadcast_to(jnp.asarray(decay, dtype), x.shape[:1])
    first = jnp.broadcast_to(jnp.maximum(jnp.asarray(tau, dtype), 0), x.shape[:1])
    free = _free(x, lengths)

    def heard(d: Array) -> Array:
        """The wave with a perturbation, as the file holds it."""
        z = jnp.clip(origin + d, low, high)
        if bits is not None:
            levels = 2.0 ** (bits - 1)
            z = jnp.clip(jnp.round(z * levels), -levels, levels - 1) / levels
        return jnp.where(free, jnp.clip(z, low, high), origin).astype(x.dtype)

    def descend(i: Array, s: _Search, shift: int, look: Callable[..., Any]) -> _Search:
        z = heard(s.d)
        step_key = None if key is None else jax.random.fold_in(key, i + shift)
        _, grad, (success, hinges) = look(z, s.weights, step_key)
        delta = z.astype(dtype) - origin
        peak = norm_of(delta, "linf")
        success = success > 0.5  # an eot hook reports a share of its draws
        nearer = success & (peak < s.distance)
        best = jnp.where(each_row(nearer, x), z, s.x)

        g = 2 * delta - weight * grad.astype(dtype)
        g = jnp.where(free, g, 0)
        direction, moments = adam(s.moments, g)

        new_tau = jnp.where(success, jnp.minimum(s.tau, peak) * shrink, s.tau)
        size = expand(new_tau / jnp.where(first > 0, first, 1), origin) * rate
        radius = expand(new_tau, origin)
        d = jnp.clip(s.d - size * direction, -radius, radius)
        return _Search(
            jnp.clip(d, low - origin, high - origin),
            moments,
            new_tau,
            jnp.where(
                success[:, None],
                s.weights * jnp.where(hinges > 0, 1 / _EASE, _EASE).astype(dtype),
                s.weights,
            ),
            best,
            jnp.where(nearer, peak, s.distance),
        )

    def stage(state: _Search, steps: int, shift: int, score: Callable[..., Any]) -> _Search:
        """Gradient steps on ``score(outputs, weights) -> (value [B], hinges)``, lowered."""

        def goal(weights: Array) -> Any:
            def evaluate(z: Array, key: Key | None = None) -> tuple[Array, Any]:
                outputs = call(logits_fn, z, key)
                value, hinges = score(outputs, weights)
                return -value, (criterion(outputs, y).astype(dtype), hinges.astype(dtype))

            return Stochastic(evaluate) if isinstance(logits_fn, Stochastic) else evaluate

        look = canonical_convolutions(lambda z, weights, k: gradient(goal(weights), z, k))
        return loops.fori_loop(0, steps, lambda i, s: descend(i, s, shift, look), state)

    nothing = jnp.zeros((x.shape[0], 0), dtype)
    far = jnp.full(x.shape[:1], jnp.inf, dtype)
    zero = jnp.zeros_like(origin)
    state = _Search(zero, no_moments(zero), first, nothing, x, far)
    state = stage(state, steps, 0, lambda outputs, _: (loss(outputs, y), nothing))
    if not align_steps:
        return state.x

    final_key = None if key is None else jax.random.fold_in(key, steps + align_steps)
    outputs = call(logits_fn, state.x, final_key)
    if outputs.ndim != 3:
        raise ValueError(f"align_steps needs outputs [B, F, V] (got shape {outputs.shape})")
    path = jnp.argmax(outputs, axis=2)
    restart = _Search(
        state.x.astype(dtype) - origin,
        no_moments(zero),
        # Its first look, at the best wave, lowers tau. Where nothing was found there is no path to
        # keep: the wave stays as it is.
        jnp.where(jnp.isfinite(state.distance), state.distance, 0),
        jnp.ones(outputs.shape[:2], dtype),
        state.x,
        state.distance,
    )

    def by_frame(outputs: Array, weights: Array) -> tuple[Array, Array]:
        hinges = _hinges(outputs, path, y[2])
        return jnp.sum(weights.astype(hinges.dtype) * hinges, axis=1), hinges

    return stage(restart, align_steps, steps, by_frame).x


_EASE = 0.9  # factor of a frame's weight when it prefers its symbol


def _free(x: Array, lengths: Array | None) -> Array:
    """Which samples may change, bool, ready to broadcast against ``x``."""
    if lengths is None:
        return jnp.ones((1,) * x.ndim, bool)
    if x.ndim < 2 or jnp.shape(lengths) != x.shape[:1]:
        raise ValueError(
            f"lengths must have one entry per wave, shape {x.shape[:1]} of x [B, T] "
            f"(got lengths.shape={jnp.shape(lengths)}, x.shape={x.shape})"
        )
    if not jnp.issubdtype(jnp.asarray(lengths).dtype, jnp.integer):
        raise ValueError(f"lengths must be integers (got {jnp.asarray(lengths).dtype})")
    check_number("lengths", lengths, low=0, high=x.shape[1])
    places = jnp.arange(x.shape[1], dtype=jnp.asarray(lengths).dtype)
    free = places[None, :] < jnp.asarray(lengths)[:, None]
    return free.reshape(free.shape + (1,) * (x.ndim - 2))


def _check_file(bits: int | None, bounds: Bounds) -> None:
    if bits is None:
        return
    check_count("bits", bits, 2)
    if bits > 24:
        raise ValueError(f"bits must be at most 24, what float32 holds (got bits={bits})")
    if is_concrete(bounds) and any((np.abs(np.asarray(b)) > 1).any() for b in bounds):
        raise ValueError(
            f"a file of whole numbers holds samples within [-1, 1]: pass bits=None (got {bounds})"
        )
