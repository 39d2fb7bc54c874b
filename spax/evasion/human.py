"""Examples made to fool models that nobody has, built on what a human eye would pass on."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spax.checks import check_batch, check_count, check_number
from spax.evasion.fgsm import mi_fgsm
from spax.evasion.imaging import blur_variance, check_images, gaussian_blur
from spax.evasion.transfer import ensemble
from spax.typing import Array, Bounds, Key, Model, Number, Stochastic, call, lift, wide

__all__ = ["coarse_logits", "human_transfer_attack", "retinal_blur"]


def retinal_blur(
    x: Array,
    *,
    slope: Number,
    fixation: tuple[Number, Number] = (0.5, 0.5),
    foveal_sigma: Number = 0.0,
    levels: int = 5,
) -> Array:
    """Blurs images as an eye does: the farther from where it looks, the more.

    The standard deviation is ``foveal_sigma + slope r`` at distance r from the fixation, both in
    pixels. It is reached by mixing ``levels`` images blurred uniformly, the neighbouring two in
    each pixel, with weights that give the mixture the wanted variance.

    Args:
      x: images ``[B, H, W, C]``, floating.
      slope: growth of the standard deviation with the distance, >= 0, a scalar. Acuity halves
        about every 2 degrees of visual angle, so with a picture of W pixels that covers a degrees
        and a foveal resolution of p pixels, ``slope`` is about ``p a / (2 W)``.
      fixation: where the eye looks, (row, column) as shares of the image, in [0, 1].
      foveal_sigma: standard deviation at the fixation, >= 0; 0: nothing changes there.
      levels: number of blurred images, static, >= 2; their widths double from one to the next.

    Returns:
      ``[B, H, W, C]``, in the dtype of ``x``; linear in x.

    Guarantees:
      Constant images stay as they are, up to rounding; values stay within the image's range.

    Raises:
      ValueError: if x is not a batch of images, or a concrete number is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
      >>> y = retinal_blur(x, slope=0.2)
      >>> float(y[0, 4, 4, 0])
      1.0

    References:
      G. Elsayed et al., Adversarial examples that fool both computer vision and time-limited
      humans, 2018, arXiv:1802.08195, Section 3.1 (the retinal layer). The paper follows the
      eccentricity-dependent resolution of Geisler and Perry; here the blur is Gaussian, its width
      linear in the eccentricity.
    """
    check_batch(x)
    check_images(x)
    check_number("slope", slope, low=0)
    check_number("foveal_sigma", foveal_sigma, low=0)
    check_count("levels", levels, 2)
    for share in fixation:
        check_number("fixation", share, low=0, high=1)
    dtype = wide(x)
    height, width = x.shape[1:3]
    rows = jnp.arange(height, dtype=jnp.float32) - jnp.asarray(fixation[0]) * (height - 1)
    columns = jnp.arange(width, dtype=jnp.float32) - jnp.asarray(fixation[1]) * (width - 1)
    away = jnp.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2)
    variance = jnp.square(jnp.asarray(foveal_sigma, jnp.float32) + slope * away)

    widest = jnp.max(variance)
    sigmas = [jnp.sqrt(widest) / 2.0 ** (levels - 1 - i) for i in range(1, levels)]
    widths = [jnp.zeros(())] + [blur_variance(max(height, width), sigma) for sigma in sigmas]
    # How far each pixel is on its way from the level below to this one. The differences are the
    # weights of the levels: two of them at most, and 1 in total.
    ways = [jnp.ones_like(variance)]
    for below, here in itertools.pairwise(widths):
        gap = here - below
        way = jnp.clip((variance - below) / jnp.where(gap > 0, gap, 1), 0, 1)
        ways.append(jnp.where(gap > 0, way, 1))
    ways.append(jnp.zeros_like(variance))

    image = x.astype(dtype)
    blurred = (ways[0] - ways[1]).astype(dtype)[None, :, :, None] * image
    for i, sigma in enumerate(sigmas, start=1):
        weight = (ways[i] - ways[i + 1]).astype(dtype)[None, :, :, None]
        blurred = blurred + weight * gaussian_blur(image, sigma)
    return blurred.astype(x.dtype)


def coarse_logits(logits_fn: Model, groups: Sequence[Sequence[int]]) -> Any:
    """A model of coarse classes from one of fine ones: the log-odds of each group.

    ``log sum_{i in S} p_i - log sum_{i not in S} p_i`` for every group S.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      groups: two or more groups of fine classes, static; they need not cover all of them.

    Returns:
      The model ``[B, ...] -> [B, G]``; Stochastic if ``logits_fn`` is.

    Raises:
      ValueError: if there are fewer than two groups, or one is empty; at the call, if one names a
        class that does not exist, or all of them.

    Example:
      >>> import jax.numpy as jnp
      >>> coarse = coarse_logits(lambda x: jnp.log(x), [(0, 1), (2, 3)])
      >>> [round(float(z), 3) for z in coarse(jnp.array([[0.3, 0.3, 0.2, 0.2]]))[0]]
      [0.405, -0.405]

    References:
      G. Elsayed et al., Adversarial examples that fool both computer vision and time-limited
      humans, 2018, arXiv:1802.08195, Section 3.1 (coarse classes).
    """
    chosen = [sorted({int(i) for i in group}) for group in groups]
    if len(chosen) < 2 or not all(chosen):
        raise ValueError(f"groups must be two or more, none of them empty (got {groups!r})")

    def coarse(x: Array, key: Key | None = None) -> Array:
        logits = call(logits_fn, x, key)
        if logits.ndim != 2:
            raise ValueError(f"logits must have shape [B, K] (got logits.shape={logits.shape})")
        num = logits.shape[1]
        for group in chosen:
            if group[0] < 0 or group[-1] >= num or len(group) == num:
                raise ValueError(
                    f"a group must name some, not all, of the {num} classes (got {group})"
                )
        member = np.zeros((len(chosen), num), bool)
        for i, group in enumerate(chosen):
            member[i, group] = True
        z = logits[:, None, :]
        inside, outside = (
            jax.nn.logsumexp(jnp.where(m[None], z, -jnp.inf), axis=-1) for m in (member, ~member)
        )
        return inside - outside

    return Stochastic(coarse) if isinstance(logits_fn, Stochastic) else coarse


def human_transfer_attack(
    fns: Sequence[Model],
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    eps: Number = 32 / 255,
    step_size: Number | None = None,
    steps: int = 40,
    groups: Sequence[Sequence[int]],
    retina: Callable[..., Array] | Stochastic | None = None,
    targeted: bool = True,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """Crafts on an ensemble that looks through a retina, for models that were not in it.

    Sign steps on the cross-entropy of the coarse classes, whose log-odds are averaged over the
    models: ``P(S) / P(not S)`` of the ensemble is the geometric mean of the members'. Whether
    people are fooled is beyond a program: the paper showed its images to subjects for a fraction of
    a second. As a control, add the perturbation flipped upside down: it is as large, and should
    not fool.

    Args:
      fns: the models, each ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: wanted groups (or the inputs' own, when not targeted), int ``[B]`` in [0, G).
      key: a random key, for a Stochastic model or retina.
      eps: linf radius, >= 0, scalar or ``[B]``; a traced value below 0 means 0.
      step_size: length of a step, >= 0; None: eps / steps.
      steps: number of steps, static, >= 1.
      groups: the coarse classes, as of `coarse_logits`.
      retina: what each model sees through, ``x -> x'``: `retinal_blur` with its numbers bound;
        None: nothing.
      targeted: whether ``y`` are wanted groups.
      bounds: valid range of the inputs.

    Returns:
      The last iterate, in the shape and dtype of ``x``: the first that fools its own ensemble
      would transfer worse.

    Guarantees:
      Within ``bounds``, and within eps of ``x`` in linf.

    Raises:
      ValueError: as `spax.evasion.mi_fgsm`, `ensemble` and `coarse_logits`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.5, 0.4, 0.3]])
      >>> groups = [(0,), (1, 2)]
      >>> human_transfer_attack([lambda x: x], x, jnp.array([1]), eps=0.1, groups=groups).round(3)
      Array([[0.4, 0.5, 0.4]], dtype=float32)

    References:
      G. Elsayed et al., Adversarial examples that fool both computer vision and time-limited
      humans, 2018, arXiv:1802.08195, Section 3.1.
    """
    members = [coarse_logits(f if retina is None else lift(retina, f), groups) for f in fns]
    return mi_fgsm(
        ensemble(members),
        x,
        y,
        key=key,
        eps=eps,
        step_size=step_size,
        decay=0.0,
        steps=steps,
        targeted=targeted,
        return_last=True,
        bounds=bounds,
    )
