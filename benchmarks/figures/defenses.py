"""What is left of trained networks under attack."""

import functools

import jax

import spax
from benchmarks.figures.common import KEY, digits, plain_objective, trained
from spax.losses import misclassified


def measure():
    """Training objectives and sanitisers on the digits; eps 0.15 in linf."""
    inner = functools.partial(spax.evasion.pgd, steps=5)

    def madry(apply_fn, progress):
        attack = functools.partial(inner, eps=0.15 * progress)
        return spax.defenses.adversarial_loss(apply_fn, attack, alpha=0.0)

    def goodfellow(apply_fn, progress):
        attack = functools.partial(spax.evasion.fgsm, eps=0.15 * progress)
        return spax.defenses.adversarial_loss(apply_fn, attack, alpha=0.5)

    def kurakin(apply_fn, progress):
        return spax.defenses.mixed_adversarial_loss(
            apply_fn,
            spax.evasion.fgsm,
            k=32,
            eps_sampler=spax.defenses.truncated_normal_eps(0.1, 0.2),
        )

    def trades(apply_fn, progress):
        return spax.defenses.trades_loss(apply_fn, eps=0.15 * progress, steps=5)

    return {
        "plain": robustness(trained(plain_objective, 20)),
        "madry": robustness(trained(madry, 40)),
        "goodfellow": robustness(trained(goodfellow, 40)),
        "kurakin": robustness(trained(kurakin, 40)),
        "trades": robustness(trained(trades, 40)),
    }


def robustness(f, eps=0.15):
    """Clean accuracy, and what is left under PGD-40 with five restarts, in per cent."""
    _, _, x, y = digits()
    attack = functools.partial(spax.evasion.pgd, eps=eps, steps=40, restarts=5)
    x_adv = jax.jit(lambda x, y, key: attack(f, x, y, key=key))(x, y, KEY)
    share = [100 * float(1 - misclassified(f(z), y).mean()) for z in (x, x_adv)]
    return {"clean": round(share[0], 1), "robust": round(share[1], 1)}
