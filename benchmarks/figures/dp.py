"""Private training and accounting."""

import spax
from benchmarks.figures.common import audit_models, digits, rounded_up


def measure():
    """DP-SGD on the digits, and the accountant in the setting of its paper."""
    _, _, x, y = digits()
    model = audit_models()["private"]
    paper = spax.dp.accounting.rdp
    _, spent = paper.update(paper.init(), noise_multiplier=4.0, sampling_rate=0.01, steps=10_000)
    return {
        "digits": {
            "accuracy": round(100 * spax.evaluation.accuracy(model.logits_fn, x, y).value, 1),
            "epsilon": rounded_up(spax.dp.epsilon(model.privacy, 1e-5)),
        },
        "accountant": {"epsilon": rounded_up(paper.epsilon(spent, 1e-5))},
    }
