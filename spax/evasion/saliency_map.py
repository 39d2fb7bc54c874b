"""The Jacobian-based saliency map attack: few features, each changed by much."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spax import loops
from spax.checks import check_batch, check_count, check_key, check_logits, check_number
from spax.gradients.convolutions import canonical_convolutions
from spax.losses import hits
from spax.norms import box
from spax.typing import Array, Bounds, Key, Model, Stochastic, call, each_row, wide

__all__ = ["jsma"]

# Up to this many features all pairs are looked at; D^2 of them, 4 MB an example at most.
_ALL_PAIRS = 1024
# More than so many features that no two others surpass are rare: then all pairs are looked at.
_FEW = 96


class _State(NamedTuple):
    step: Array
    z: Array
    active: Array  # bool [B]
    hit: Array  # bool [B]


def _best_pair(a: Array, b: Array, free: Array, places: Array | None = None) -> tuple[Array, Array]:
    """The admissible pair of largest ``-(a_p + a_q)(b_p + b_q)`` among places, of one example.

    Args:
      a: ``[D]``, what each feature does for the target; raised by changing it where positive.
      b: ``[D]``, what it does for the other classes.
      free: bool ``[D]``, the search domain.
      places: features, int ``[P]``; one may be there twice. None: all.

    Returns:
      The two features, and whether there is an admissible pair.
    """
    if places is None:
        # As they are: a gather would not know its sharding.
        places = jnp.arange(a.shape[0], dtype=jnp.int32)
    else:
        a, b, free = a[places], b[places], free[places]
    total_a, total_b = a[:, None] + a[None, :], b[:, None] + b[None, :]
    admissible = (total_a > 0) & (total_b < 0) & free[:, None] & free[None, :]
    admissible &= places[:, None] != places[None, :]
    score = jnp.where(admissible, -total_a * total_b, -jnp.inf).reshape(-1)
    best = jnp.argmax(score)
    pair = jnp.stack([best // len(places), best % len(places)])
    # (Multiplied out, and not gathered, for the same reason.)
    chosen = (pair[:, None] == jnp.arange(len(places))[None, :]).astype(places.dtype)
    return chosen @ places, jnp.max(score) > -jnp.inf


def _ends(a: Array, b: Array, free: Array, count: int) -> Array:
    """Features with the largest a and with the smallest b, ``[2 count]``."""
    for_a = lax.top_k(jnp.where(free, a, -jnp.inf), count)[1]
    for_b = lax.top_k(jnp.where(free, -b, -jnp.inf), count)[1]
    return jnp.concatenate([for_a, for_b])


def _undominated(a: Array, b: Array, free: Array, count: int) -> tuple[Array, Array]:
    """All features that may be in the best pair, if they are few: (places ``[count]``, whether).

    The score of an admissible pair does not fall when p gives way to a feature that does no less
    for the target and no more for the others. So neither is one that two features surpass in both.
    """
    a, gain = jnp.where(free, a, -jnp.inf), jnp.where(free, -b, -jnp.inf)
    order = jnp.argsort(-a)
    sorted_gain = gain[order]

    def top_two(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        first, second = jnp.maximum(one[0], other[0]), jnp.minimum(one[0], other[0])
        return first, jnp.maximum(second, jnp.maximum(one[1], other[1]))

    nothing = jnp.full_like(sorted_gain, -jnp.inf)
    _, second = lax.associative_scan(top_two, (sorted_gain, nothing))
    # The second largest gain among those before it in the order.
    before = jnp.concatenate([nothing[:1], second[:-1]])
    may = (sorted_gain > before) | (jnp.arange(a.shape[0]) < 2)
    best = lax.top_k(may.astype(jnp.int32), count)[1]
    return order[best].astype(jnp.int32), may.sum() <= count


def _best_pairs(a: Array, b: Array, free: Array, candidates: int | None) -> tuple[Array, Array]:
    """`_best_pair` of every example ``[B, D]``, among so many features; None: among all."""
    if candidates is not None:
        return jax.vmap(_best_pair)(
            a, b, free, jax.vmap(partial(_ends, count=candidates))(a, b, free)
        )
    if a.shape[1] <= _FEW:
        return jax.vmap(_best_pair)(a, b, free)
    places, enough = jax.vmap(partial(_undominated, count=_FEW))(a, b, free)

    return lax.cond(
        enough.all(),
        lambda: jax.vmap(_best_pair)(a, b, free, places),
        lambda: jax.vmap(_best_pair)(a, b, free),
    )


def jsma(
    logits_fn: Model,
    x: Array,
    y: Array,
    *,
    key: Key | None = None,
    theta: float = 1.0,
    gamma: float = 0.145,
    candidates: int | None = None,
    use_logits: bool = True,
    targeted: bool = True,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """Jacobian-based saliency map attack (JSMA): towards a class by changing few entries.

    At every step the pair of entries that raises the target most while it lowers the sum of all
    other classes is moved by theta: among pairs (p, q) with ``A = a_p + a_q > 0`` and
    ``B = b_p + b_q < 0`` that of the largest ``-A B``, where a is the derivative of the target's
    output and b that of the sum of the others'. Entries at the end of their range leave the search.

    Args:
      logits_fn: the model, ``[B, ...] -> [B, K]``, plain or Stochastic.
      x: inputs ``[B, ...]``, floating, within ``bounds``.
      y: the wanted labels, int ``[B]`` in [0, K).
      key: a random key, for a Stochastic model.
      theta: what is added to an entry at a step, not 0, static; its sign says whether entries are
        raised or lowered.
      gamma: the largest share of the entries that may change, in (0, 1], static: there are
        ``floor(gamma D / 2)`` steps.
      candidates: static; the number of entries with the largest a, and of those with the smallest
        b, from which pairs are formed. None: all pairs for up to 1024 entries, 128 beyond.
      use_logits: static; whether outputs are the logits or, as in the paper's definition, the
        softmax, whose derivatives vanish where the model is sure.
      targeted: must be True: the attack has no other form.
      bounds: valid range of the inputs.

    Returns:
      ``x_adv``, of class ``y``; ``x`` itself where it is so already, or where no admissible pair
      or none of the allowed entries was left before it was.

    Guarantees:
      Within ``bounds``; at most ``gamma D`` entries differ from ``x``, all in the direction of
      theta. No example's result depends on its neighbours.

    Raises:
      ValueError: if targeted is False; on a wrong shape or dtype; if concrete inputs are not
        finite or out of bounds, a label is outside the classes, or theta, gamma or candidates out
        of range; if gamma allows no pair; if the model is Stochastic and key is None.
      TypeError: if theta or gamma is not a Python number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = jax.jit(lambda w, x, y: jsma(lambda x: x @ w, x, y, gamma=0.5))
      >>> w = jnp.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [9.0, 0.0]])
      >>> attack(w - w.sum(1, keepdims=True) / 2, jnp.array([[0.0, 0, 0, 0.4]]), jnp.array([1]))
      Array([[0. , 1. , 1. , 0.4]], dtype=float32)

    References:
      N. Papernot et al., The limitations of deep learning in adversarial settings, 2015,
      arXiv:1511.07528, Algorithms 2 and 3, Eq 8. There is one deviation: derivatives are those
      of the logits unless ``use_logits=False``.
    """
    if not targeted:
        raise ValueError("jsma exists in targeted form only (got targeted=False)")
    for name, value in (("theta", theta), ("gamma", gamma)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a Python number, it is static (got {value!r})")
    check_batch(x, y, bounds)
    check_number("gamma", gamma, low=0, high=1, low_open=True)
    if theta == 0 or math.isnan(theta):
        raise ValueError(f"theta must be a number other than 0 (got theta={theta})")
    size = math.prod(x.shape[1:])
    steps = math.floor(gamma * size / 2 + 1e-9)
    if steps < 1:
        raise ValueError(
            f"gamma * D must be >= 2, or no pair may change (got gamma={gamma}, D={size})"
        )
    if candidates is not None:
        check_count("candidates", candidates)
    elif size > _ALL_PAIRS:
        candidates = 128
    if candidates is not None:
        candidates = min(candidates, size)
    if isinstance(logits_fn, Stochastic):
        check_key(key, "an attack on a Stochastic model")

    sign = 1 if theta > 0 else -1
    low, high = box(bounds, x)
    end = high if theta > 0 else low

    def key_at(i: Array) -> Key | None:
        return None if key is None else jax.random.fold_in(key, i)

    def outputs_at(z: Array, key: Key | None) -> tuple[Array, Array]:
        logits = call(logits_fn, z, key)
        check_logits(logits, y)
        used = logits if use_logits else jax.nn.softmax(logits, axis=1)
        return used, hits(logits, y)

    def derivatives(z: Array, key: Key | None) -> tuple[Array, Array, Array]:
        """Of the target's output and of the sum of the others': two products, whatever K."""
        outputs, pull, hit = jax.vjp(lambda z: outputs_at(z, key), z, has_aux=True)
        target = jax.nn.one_hot(y, outputs.shape[1], dtype=outputs.dtype)
        both = jax.vmap(lambda cotangent: pull(cotangent)[0])(jnp.stack([target, 1 - target]))
        return both[0], both[1], hit

    look = canonical_convolutions(derivatives)

    def step(s: _State) -> _State:
        a, b, hit = look(s.z, key_at(s.step))
        hit = hit & s.active
        rows = x.shape[0], size
        a, b = (sign * jnp.where(jnp.isfinite(g), g, 0).astype(wide(x)) for g in (a, b))
        pair, found = _best_pairs(
            a.reshape(rows), b.reshape(rows), (s.z != end).reshape(rows), candidates
        )
        active = s.active & ~hit & found
        chosen = jnp.any(jnp.arange(size)[None, None, :] == pair[:, :, None], axis=1)
        chosen = (chosen & active[:, None]).reshape(x.shape)
        moved = jnp.clip(s.z + jnp.asarray(theta, x.dtype), low, high)
        return _State(s.step + 1, jnp.where(chosen, moved, s.z), active, s.hit | hit)

    everyone = jnp.ones(x.shape[:1], bool)
    state = loops.while_loop(
        lambda s: (s.step < steps) & jnp.any(s.active),
        step,
        _State(jnp.zeros((), jnp.int32), x, everyone, ~everyone),
    )
    hit = state.hit | (state.active & outputs_at(state.z, key_at(jnp.asarray(steps)))[1])
    return jnp.where(each_row(hit, x), state.z, x)
