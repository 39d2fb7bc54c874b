import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax import losses

pytestmark = pytest.mark.usefixtures("strict")

LOGITS = jax.random.normal(jax.random.key(0), (6, 5)) * 3
Y = jnp.array([0, 1, 2, 3, 4, 0])


def test_cross_entropy_is_minus_log_softmax():
    wanted = -jax.nn.log_softmax(LOGITS)[jnp.arange(6), Y]
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, Y), wanted, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, Y).sum())(LOGITS)
    np.testing.assert_allclose(gradient, jax.nn.softmax(LOGITS) - jax.nn.one_hot(Y, 5), atol=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e20])
def test_cross_entropy_keeps_a_direction_where_the_softmax_saturates(scale):
    logits = jnp.array([[1.0, 0.5, 0.0]]) * scale
    plain = jax.grad(lambda z: -jax.nn.log_softmax(z)[0, 0])(logits)
    ours = jax.grad(lambda z: losses.cross_entropy(z, jnp.array([0])).sum())(logits)
    assert not plain.any()
    assert ours[0, 0] < 0 < ours[0, 1]


def test_cross_entropy_of_infinite_logits_is_not_nan():
    logits = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
    assert losses.cross_entropy(logits, jnp.array([0]))[0] == 0
    assert losses.cross_entropy(logits, jnp.array([1]))[0] == jnp.inf


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_losses_ignore_a_shift_of_the_logits_and_keep_the_dtype(loss):
    np.testing.assert_allclose(loss(LOGITS + 7.0, Y), loss(LOGITS, Y), rtol=1e-4, atol=1e-5)
    assert loss(LOGITS.astype(jnp.bfloat16), Y).dtype == jnp.bfloat16


def test_margin_is_positive_exactly_where_misclassified():
    np.testing.assert_array_equal(losses.margin(LOGITS, Y) > 0, losses.misclassified(LOGITS, Y))
    np.testing.assert_array_equal(losses.misclassified(LOGITS, Y), ~losses.hits(LOGITS, Y))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16, jnp.uint32])
def test_labels_narrower_than_the_classes_do_not_wrap_around(dtype):
    logits = jnp.zeros((1, 300)).at[0, 259].set(4.0)  # 259 is 3 modulo 256
    y, wide = jnp.array([3], dtype), jnp.array([3])
    assert losses.misclassified(logits, y)[0]
    assert not losses.hits(logits, y)[0]
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        np.testing.assert_array_equal(loss(logits, y), loss(logits, wide))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_traced_labels_outside_the_classes_have_no_loss(loss):
    value = jax.jit(loss)(LOGITS[:3], jnp.array([-1, 5, 2]))
    assert jnp.isnan(value).tolist() == [True, True, False]


def test_dlr_is_scale_free_and_matches_its_equation():
    np.testing.assert_allclose(losses.dlr(LOGITS * 100, Y), losses.dlr(LOGITS, Y), rtol=1e-4)
    z = np.asarray(LOGITS[0])
    top = np.sort(z)[::-1]
    wanted = -(z[0] - np.max(z[1:])) / (top[0] - top[2])
    np.testing.assert_allclose(losses.dlr(LOGITS, Y)[0], wanted, rtol=1e-5)


def test_targeted_dlr_matches_its_equation():
    z, t = np.asarray(LOGITS), np.array([1, 2, 3, 4, 0, 2])
    top = np.sort(z, axis=1)[:, ::-1]
    rows = np.arange(6)
    wanted = -(z[rows, Y] - z[rows, t]) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2)
    np.testing.assert_allclose(losses.dlr_targeted(LOGITS, (Y, jnp.asarray(t))), wanted, rtol=1e-5)


@pytest.mark.parametrize(("loss", "y", "k"), [(losses.dlr, Y, 3), (losses.dlr_targeted, (Y, Y), 4)])
def test_dlr_needs_enough_classes(loss, y, k):
    with pytest.raises(ValueError, match=f"K >= {k}"):
        loss(LOGITS[:, : k - 1], y)


def test_kl_divergence_is_zero_at_the_reference_and_matches_its_sum():
    log_p = jax.nn.log_softmax(LOGITS[::-1])
    p, log_q = jnp.exp(log_p), jax.nn.log_softmax(LOGITS)
    np.testing.assert_allclose(
        losses.kl_divergence(LOGITS, log_p), (p * (log_p - log_q)).sum(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.kl_divergence(LOGITS, jax.nn.log_softmax(LOGITS)), np.zeros(6), atol=1e-6
    )
    with pytest.raises(ValueError, match="same shape"):
        losses.kl_divergence(LOGITS, log_p[:, :3])


def test_a_nan_row_neither_fools_nor_hits():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])
    y = jnp.array([1, 1])
    assert losses.misclassified(logits, y).tolist() == [False, False]
    assert losses.hits(logits, y).tolist() == [False, True]


def _paths_that_read(label, frames, symbols):
    """All sequences of symbols that merge to the label, by enumeration."""
    for path in np.ndindex(*(symbols,) * frames):
        merged = [s for s, before in zip(path, (0, *path[:-1]), strict=True) if s and s != before]
        if merged == list(label):
            yield path


@pytest.mark.parametrize(("label", "frames"), [((1,), 3), ((1, 2), 3), ((1, 1), 4), ((), 2)])
def test_ctc_is_the_sum_over_all_paths(label, frames):
    logits = jax.random.normal(jax.random.key(2), (1, 5, 3))
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    paths = _paths_that_read(label, frames, 3)
    wanted = -np.log(sum(np.exp(log_p[np.arange(frames), list(p)].sum()) for p in paths))
    padded = jnp.array([[*label, *[2] * (3 - len(label))]])
    y = (padded, jnp.array([len(label)]), jnp.array([frames]))
    np.testing.assert_allclose(losses.ctc(logits, y)[0], wanted, rtol=1e-4)


def test_ctc_refuses_transcripts_that_do_not_fit():
    y = (jnp.array([[1, 1]]), jnp.array([2]), jnp.array([2]))  # 1, blank, 1: three frames
    with pytest.raises(ValueError, match=r"got 3 needed, 2 frames in example 0"):
        losses.ctc(jnp.zeros((1, 2, 3)), y)


@pytest.mark.parametrize(
    ("path", "label", "wanted"),
    [
        ([1, 1, 0, 1], [1, 1], True),
        ([1, 1, 1, 1], [1, 1], False),
        ([1, 0, 2, 2], [1, 2], True),
        ([0, 0, 0, 0], [], True),
        ([1, 2, 0, 0], [1], False),
    ],
)
def test_greedy_decoding_merges_repeats_and_drops_blanks(path, label, wanted):
    logits = jax.nn.one_hot(jnp.array([path]), 3)
    padded = jnp.array([[*label, *[0] * (2 - len(label))]])
    y = (padded, jnp.array([len(label)]), jnp.array([4]))
    assert losses.decodes_to(logits, y).tolist() == [wanted]


def test_frames_beyond_the_count_are_not_decoded():
    logits = jax.nn.one_hot(jnp.array([[1, 2]]), 3)
    y = (jnp.array([[1]]), jnp.array([1]), jnp.array([1]))
    assert losses.decodes_to(logits, y).tolist() == [True]


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_jit_and_vmap_change_nothing(loss):
    wanted = loss(LOGITS, Y)
    np.testing.assert_allclose(jax.jit(loss)(LOGITS, Y), wanted, rtol=1e-5, atol=1e-6)
    rows = jax.vmap(lambda z, y: loss(z[None], y[None])[0])(LOGITS, Y)
    np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)
