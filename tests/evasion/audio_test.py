import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import audio_cw, distortion_db
from spax.losses import cross_entropy, ctc, decodes_to, hits
from spax.typing import Stochastic

pytestmark = pytest.mark.slow  # compiles for long

KEY = jax.random.key(0)
FRAMES, SYMBOLS = 6, 3


def listener(x):
    """Three symbols in six frames: the samples themselves, louder."""
    return 40 * x.reshape(x.shape[0], FRAMES, SYMBOLS)


@functools.cache
def speech():
    """Waves of 16 bits that are transcribed as 1 2, and texts to attack towards."""
    rng = np.random.default_rng(0)
    path = np.array([0, 1, 1, 0, 2, 0])
    waves = 0.2 * np.eye(SYMBOLS)[path][None] + rng.uniform(-0.05, 0.05, (4, FRAMES, SYMBOLS))
    x = np.round(waves.reshape(4, -1) * 32768) / 32768
    texts = np.array([[2, 1], [2, 2], [1, 1], [1, 0]])
    lengths = np.array([2, 2, 2, 1])
    y = jnp.asarray(texts), jnp.asarray(lengths), jnp.full(4, FRAMES)
    return jnp.asarray(x, jnp.float32), y


@functools.cache
def compiled(**static):
    run = jax.jit(lambda x, y, **numbers: audio_cw(listener, x, y, **static, **numbers))

    def call(x, y, *, tau=0.3, lengths=18):
        numbers = {"tau": jnp.broadcast_to(jnp.float32(tau), 4), "step_size": 0.01}
        return run(x, y, lengths=jnp.broadcast_to(jnp.int32(lengths), 4), **numbers)

    return call


def test_texts_are_reached_on_the_grid_of_16_bits_within_tau():
    x, y = speech()
    assert not decodes_to(listener(x), y).any()
    with jax.numpy_dtype_promotion("strict"):
        x_adv = compiled(steps=150)(x, y)
    as_file = np.round(np.asarray(x_adv, np.float64) * 32768)
    np.testing.assert_array_equal(as_file / 32768, x_adv)
    assert as_file.max() <= 32767
    assert decodes_to(listener(x_adv), y).all()
    assert (jnp.abs(x_adv - x).max(1) <= 0.3 + 2.0**-16).all()
    check_peaks(x, x_adv, 1.3)


def check_peaks(x, x_adv, factor):
    """No path costs less than half its largest gap; what was found is within a factor of that."""
    frames, heard = (np.asarray(v, np.float64).reshape(4, FRAMES, SYMBOLS) for v in (x, x_adv))
    own = np.take_along_axis(frames, heard.argmax(2)[..., None], axis=2)[..., 0]
    least = (frames.max(2) - own).max(1) / 2
    peaks = np.abs(np.asarray(x_adv) - np.asarray(x)).max(1)
    assert (least <= peaks + 1e-6).all()
    assert (peaks <= factor * least + 2.0**-15).all()
    return peaks


def test_a_lower_tau_is_kept_and_one_too_low_returns_the_wave():
    x, y = speech()
    taus = jnp.array([0.0, 0.01, 0.3, -1.0])
    x_adv = compiled(steps=150)(x, y, tau=taus)
    success = decodes_to(listener(x_adv), y)
    np.testing.assert_array_equal(success, [False, False, True, False])
    np.testing.assert_array_equal(x_adv[jnp.array([0, 1, 3])], x[jnp.array([0, 1, 3])])


def test_keeping_the_alignment_finds_about_the_quietest_wave_of_its_path():
    x, y = speech()
    x_adv = compiled(steps=20, align_steps=150)(x, y)
    assert decodes_to(listener(x_adv), y).all()
    check_peaks(x, x_adv, 1.15)
    # What was not found has no alignment: it stays.
    none = compiled(steps=20, align_steps=150)(x, y, tau=0.001)
    np.testing.assert_array_equal(none, x)


def test_padding_is_left_alone():
    x, y = speech()
    lengths = jnp.array([15, 18, 18, 12])
    x_adv = compiled(steps=150)(x, y, lengths=lengths)
    beyond = np.arange(18)[None] >= np.asarray(lengths)[:, None]
    np.testing.assert_array_equal(np.asarray(x_adv)[beyond], np.asarray(x)[beyond])
    assert (x_adv != x).any(axis=1)[:3].all()


def test_a_wave_that_says_it_already_is_not_changed():
    x, _ = speech()
    y = jnp.array([[1, 2]] * 4), jnp.full(4, 2), jnp.full(4, FRAMES)
    assert decodes_to(listener(x), y).all()
    np.testing.assert_array_equal(compiled(steps=150)(x, y), x)


def test_distortion_is_the_ratio_of_peaks():
    x = jnp.array([[0.5, -1.0], [0.5, 0.25], [0.0, 0.0], [0.1, 0.1]])
    d = jnp.array([[0.01, 0.1], [-0.5, 0.0], [0.1, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(distortion_db(x, d), [-20, 0, np.inf, -np.inf], atol=1e-4)
    with pytest.raises(ValueError, match="shape of x"):
        distortion_db(x, d[:1])


def test_other_models_losses_and_criteria_enter(linear):
    apply_fn, params, x, y = linear
    noisy = Stochastic(lambda x, key: apply_fn(params, x) + 0 * jax.random.normal(key, (1, 4)))
    run = functools.partial(
        audio_cw, noisy, tau=0.5, step_size=0.02, steps=60, loss=cross_entropy, criterion=hits
    )
    wanted = (y + 1) % 4
    x_adv = jax.jit(lambda x, y: run(x, y, key=KEY))(x, wanted)
    moved = (x_adv != x).any(axis=1)
    np.testing.assert_array_equal(hits(apply_fn(params, x_adv), wanted), moved)
    assert moved.sum() >= 6
    with pytest.raises(ValueError, match="random key"):
        run(x, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targeted": False}, "targeted form"),
        ({"tau": -0.1}, "tau"),
        ({"decay": 1.0}, "decay"),
        ({"decay": 0.0}, "decay"),
        ({"const": 0.0}, "const"),
        ({"step_size": 0.0}, "step_size"),
        ({"steps": 0}, "steps"),
        ({"align_steps": -1}, "align_steps"),
        ({"bits": 1}, "bits"),
        ({"bits": 32}, "bits"),
        ({"bounds": (-2.0, 2.0)}, "bits=None"),
        ({"bounds": (1.0, -1.0)}, "low < high"),
        ({"lengths": jnp.array([3])}, "lengths"),
        ({"lengths": jnp.full(4, 19)}, "lengths"),
        ({"lengths": jnp.full(4, 3.0)}, "integers"),
        ({"x": jnp.full((4, 18), 2.0)}, "bounds"),
        ({"x": jnp.full((4, 18), jnp.nan)}, "finite"),
        ({"x": jnp.zeros((4, 18), jnp.int16)}, "floating"),
        ({"x": jnp.zeros((3, 18))}, "one entry per example"),
        # 1 1 1 1 needs seven frames: a blank between the same symbols.
        ({"y": (jnp.ones((4, 4), int), jnp.full(4, 4), jnp.full(4, 6))}, "needs more frames"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    x, y = speech()
    given = {"x": x, "y": y, "steps": 1, **change}
    with pytest.raises(ValueError, match=message):
        audio_cw(listener, given.pop("x"), given.pop("y"), **given)


def test_the_second_stage_needs_frames(linear):
    apply_fn, params, x, y = linear
    f = functools.partial(apply_fn, params)
    hooks = {"loss": cross_entropy, "criterion": hits}
    with pytest.raises(ValueError, match="B, F, V"):
        jax.eval_shape(lambda x: audio_cw(f, x, y, steps=1, align_steps=1, **hooks), x)


def test_the_ctc_loss_is_the_sum_over_all_alignments():
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 3)), jnp.float32)
    p = np.asarray(jax.nn.softmax(logits[0].astype(jnp.float32)), np.float64)
    total = 0.0
    for path in np.ndindex(3, 3, 3, 3):
        merged = [s for s, before in zip(path, (0, *path), strict=False) if s and s != before]
        total += np.prod(p[np.arange(4), path]) if merged == [1, 2] else 0.0
    y = jnp.array([[1, 2]]), jnp.array([2]), jnp.array([4])
    np.testing.assert_allclose(ctc(logits, y)[0], -np.log(total), rtol=1e-5)


def test_spoken_digits_are_transcribed_as_others(spax_data):
    from benchmarks import spoken_digits
    from benchmarks.figures import audio

    data = spoken_digits.load(spax_data)
    params, right = audio.victim(data)
    assert right.mean() >= 0.75
    x, one, _ = audio.tasks(data, right, clips=20)
    found = audio.attacked(params, x, one, steps=300)
    assert found["success"] >= 90
    assert found["mean_db"] <= -15
