"""What models give away about their training data."""

import jax
import jax.numpy as jnp

import spax
from benchmarks.figures.common import (
    KEY,
    audit_models,
    digits,
    plain_objective,
    rounded_up,
    trained,
)


def measure():
    """Membership inference on an overfitted, a regularised and a private network.

    A fifth of all labels is wrong for the first two, so that there is something to learn by heart:
    500 digits are members and the other 1297 are not, enough for a false-positive rate of 1 %.
    """
    x, y, x_test, y_test = digits()
    images, labels = jnp.concatenate([x, x_test]), jnp.concatenate([y, y_test])
    _, noisy = spax.poisoning.flip_labels(images, labels, key=KEY, rate=0.2, num_classes=10)
    members, others = (images[:500], noisy[:500]), (images[500:], noisy[500:])
    private = audit_models()["private"]
    bound = spax.leakage.advantage_bound(spax.dp.epsilon(private.privacy, 1e-5), 1e-5)
    return {
        "yeom": {
            "overfitted": leaks(trained(plain_objective, 100, data=members), members, others),
            "regularised": leaks(trained(decayed_objective, 100, data=members), members, others),
        },
        "private": {
            **leaks(private.logits_fn, (x, y), (x_test, y_test)),
            "bound": rounded_up(100 * bound, 1),
        },
    }


def decayed_objective(apply_fn, progress, decay=0.03):
    """Cross-entropy and half the squared weights, weighed by ``decay``."""
    plain = plain_objective(apply_fn, progress)

    def loss_fn(params, batch, key):
        value, _ = plain(params, batch, key)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return value + decay / 2 * squares, None

    return loss_fn


def leaks(f, members, others):
    """Area under the ROC curve; in points: advantages and true positives, the gap in accuracy.

    The advantage is that of Yeom's threshold, the mean loss of the members; the best one is of the
    threshold that separates these very scores best.
    """
    scores = [spax.leakage.loss_threshold(f, *part) for part in (members, others)]
    share = [spax.evaluation.accuracy(f, *part).value for part in (members, others)]
    return {
        "auc": round(spax.leakage.auc(*scores).value, 3),
        "advantage": points(spax.leakage.advantage(*scores, threshold=scores[0].mean()).value),
        "best_advantage": points(spax.leakage.advantage(*scores).value),
        "tpr_at_1": points(spax.leakage.tpr_at_fpr(*scores, 0.01).value),
        "gap": points(share[0] - share[1]),
    }


def points(share):
    """A share in per cent; None where it was not measurable."""
    return None if share is None else round(100 * share, 1)
