"""Takes the figures of README's systems table, on real data, and stores them as JSON.

    python -m benchmarks.figures             # all rooms
    python -m benchmarks.figures evasion dp  # some

The attacks meet the MNIST network of `benchmarks.victim` (its first 300 correctly classified test
images; the embedded digits where SPAX_DATA is not set), the rest runs on the embedded digits. One
file a room, in ``benchmarks/results/figures/``; the table itself is rendered by
``python systems/render.py``.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spax
from benchmarks import harness, victim
from spax.gradients import bpda, canonical_convolutions, eot
from spax.losses import misclassified
from spax.typing import call, lift

KEY = jax.random.key(0)
IMAGES = 300


@functools.cache
def mnist():
    """(params, x, y, name of the data) of the network under attack."""
    path = victim.prepare(quick=False)
    with np.load(path) as stored:
        params = {name: jnp.asarray(v) for name, v in stored.items() if "/" in name}
        x, y = stored["x"][:IMAGES], stored["y"][:IMAGES].astype(np.int32)
    return params, jnp.asarray(x), jnp.asarray(y), path.stem.removeprefix("victim-")


def remaining(attack, *, through=lambda f: f, judged=lambda f: f, labels=None, **settings):
    """Accuracy, in per cent, of the judged model on points found through another."""
    params, x, y, _ = mnist()
    given = y if labels is None else labels

    @jax.jit
    def run(params, x, given, y, key):
        f = functools.partial(victim.apply_fn, params)
        x_adv = attack(through(f), x, given, key=key, **settings)
        return x_adv, misclassified(call(judged(f), x_adv, jax.random.key(7)), y)

    x_adv, wrong = run(params, x, given, y, KEY)
    return round(100 * float(1 - wrong.mean()), 1), x_adv


def evasion():
    """Every attack on the same network."""
    params, x, y, data = mnist()
    f = jax.jit(functools.partial(victim.apply_fn, params))
    projected = functools.partial(spax.evasion.pgd, steps=40)

    target = spax.evasion.least_likely(f, x)
    _, towards = remaining(spax.evasion.bim, labels=target, eps=0.3, steps=20, targeted=True)
    run = jax.jit(
        lambda p, x, y: spax.evasion.carlini_wagner(
            lambda x: victim.apply_fn(p, x), x, y, steps=1000
        )
    )
    x_adv = run(params, x[:100], y[:100])
    verdict = spax.evaluation.judge(f, x[:100], x_adv, y[:100], norm="l2")
    return {
        "data": data,
        "fgsm": {
            "at_01": remaining(spax.evasion.fgsm, eps=0.1)[0],
            "at_02": remaining(spax.evasion.fgsm, eps=0.2)[0],
        },
        "bim": {
            "at_01": remaining(spax.evasion.bim, eps=0.1)[0],
            "at_02": remaining(spax.evasion.bim, eps=0.2)[0],
        },
        "least_likely": {"hit": round(100 * float(spax.losses.hits(f(towards), target).mean()), 1)},
        "mi_fgsm": {
            "at_01": remaining(spax.evasion.mi_fgsm, eps=0.1)[0],
            "at_02": remaining(spax.evasion.mi_fgsm, eps=0.2)[0],
        },
        "pgd": {
            "at_01": remaining(projected, eps=0.1, step_size=0.01)[0],
            "at_02": remaining(projected, eps=0.2, step_size=0.01)[0],
            "l2_at_3": remaining(projected, eps=3.0, norm="l2")[0],
            "l1_at_15": remaining(projected, eps=15.0, norm="l1")[0],
        },
        "carlini_wagner": {
            "success": round(100 * float(verdict.success.mean()), 1),
            "mean_l2": round(float(verdict.distance[verdict.success].mean()), 3),
        },
    }


def gradients():
    """What the hooks recover where a defence hides the gradient, and estimates without any."""
    resized = functools.partial(spax.defenses.randomized_resize, low=24, high=28, out=28)
    mild = functools.partial(spax.evasion.pgd, eps=0.1, step_size=0.01, steps=100)
    free = functools.partial(spax.evasion.pgd, eps=0.3, step_size=0.03, steps=20)

    return {
        "data": mnist()[3],
        "one_bit": quantised(1),
        "four_bits": quantised(4),
        "randomized_resize": {
            "clean": remaining(lambda f, x, y, key: x, judged=resized)[0],
            "unaware": remaining(mild, judged=resized)[0],
            "eot": remaining(
                functools.partial(mild, gradient=eot(20)), through=resized, judged=resized
            )[0],
        },
        "nes": {
            "left": remaining(functools.partial(free, gradient=spax.gradients.nes(50, 0.01)))[0]
        },
        "spsa": {"left": remaining(functools.partial(free, gradient=spax.gradients.spsa(50)))[0]},
    }


def quantised(bits):
    """What PGD leaves of a quantised model, and what BPDA then takes."""
    hard = functools.partial(spax.defenses.bit_depth, bits=bits)
    straight = bpda(functools.partial(spax.defenses.quantize, bits=bits))
    attack = functools.partial(spax.evasion.pgd, eps=0.3, step_size=0.02, steps=40)
    return {
        "clean": remaining(lambda f, x, y, key: x, judged=hard)[0],
        "plain": remaining(attack, through=hard, judged=hard)[0],
        "bpda": remaining(attack, through=functools.partial(lift, straight), judged=hard)[0],
    }


@functools.cache
def digits():
    """The embedded digits as JAX arrays: (x_train, y_train, x_test, y_test)."""
    data = spax.datasets.digits()
    return tuple(jnp.asarray(v) for v in (data.x_train, data.y_train, data.x_test, data.y_test))


def trained(make_loss, epochs, batch_size=64, data=None):
    """A small network trained on ``make_loss(apply_fn, progress) -> loss_fn``, on digits."""
    x, y = digits()[:2] if data is None else data
    net = spax.nets.CNN(features=(32, 64), hidden=64)

    def apply_fn(params, x, *, train, key):
        return net.apply(params, x)

    a_pass = len(x) // batch_size
    steps = epochs * a_pass
    optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, steps))

    @jax.jit
    def run(params, x, y, key):
        key_order, key_steps = jax.random.split(key)
        order = jax.vmap(lambda k: jax.random.permutation(k, len(x))[: a_pass * batch_size])(
            jax.random.split(key_order, epochs)
        ).reshape(steps, batch_size)

        def step(carry, given):
            params, opt_state = carry
            i, rows, key = given
            loss_fn = make_loss(apply_fn, jnp.minimum(1.0, 4 * (i + 1) / steps))
            gradient = canonical_convolutions(jax.grad(loss_fn, has_aux=True))
            grads, _ = gradient(params, (x[rows], y[rows]), key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        given = jnp.arange(steps), order, jax.random.split(key_steps, steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), given)
        return params

    params = run(net.init(jax.random.key(1), x[:1]), x, y, KEY)
    return lambda x: net.apply(params, x)


def plain_objective(apply_fn, progress):
    """Cross-entropy, in the form of the other objectives."""

    def loss_fn(params, batch, key):
        x, y = batch
        logits = apply_fn(params, x, train=True, key=key)
        return spax.losses.cross_entropy(logits, y).mean(), None

    return loss_fn


def decayed_objective(apply_fn, progress, decay=0.03):
    """Cross-entropy and half the squared weights, weighed by ``decay``."""
    plain = plain_objective(apply_fn, progress)

    def loss_fn(params, batch, key):
        value, _ = plain(params, batch, key)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return value + decay / 2 * squares, None

    return loss_fn


def robustness(f, eps=0.15):
    """Clean accuracy, and what is left under PGD-40 with five restarts, in per cent."""
    _, _, x, y = digits()
    attack = functools.partial(spax.evasion.pgd, eps=eps, steps=40, restarts=5)
    x_adv = jax.jit(lambda x, y, key: attack(f, x, y, key=key))(x, y, KEY)
    share = [100 * float(1 - misclassified(f(z), y).mean()) for z in (x, x_adv)]
    return {"clean": round(share[0], 1), "robust": round(share[1], 1)}


def defenses():
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


def poisoning():
    """What a fifth of wrong labels costs a 1-NN classifier, and what relabelling mends."""
    x, y, x_test, y_test = digits()
    _, flipped = spax.poisoning.flip_labels(x, y, key=KEY, rate=0.2, num_classes=10)
    _, mended = spax.defenses.relabel_knn(x, flipped, num_classes=10)
    return {
        "labels": {
            "wrong_flipped": round(100 * float((flipped != y).mean()), 1),
            "wrong_mended": round(100 * float((mended != y).mean()), 1),
            **{
                name: nearest_neighbour(x, labels, x_test, y_test)
                for name, labels in (("clean", y), ("flipped", flipped), ("mended", mended))
            },
        },
    }


def nearest_neighbour(x, y, x_test, y_test):
    """Test accuracy, in per cent, of the nearest neighbour: it believes every label."""
    from sklearn.neighbors import KNeighborsClassifier

    flat = [np.asarray(v).reshape(len(v), -1) for v in (x, x_test)]
    model = KNeighborsClassifier(1).fit(flat[0], np.asarray(y))
    return round(100 * model.score(flat[1], np.asarray(y_test)), 1)


def dp():
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


@functools.cache
def audit_models():
    """The three models of ``spax audit``."""
    from spax.audit import defaults, progress

    return defaults.train(spax.datasets.digits(), key=KEY, progress=progress.Silent())


def rounded_up(value, digits=2):
    """What bounds a leak is never rounded down."""
    return math.ceil(float(value) * 10**digits) / 10**digits


def leakage():
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


def crypto():
    """Throughput of the cipher's bits, beside JAX's generator."""
    shape = (1 << 22,)
    draws = {
        "chacha": (jax.jit(lambda key: spax.crypto.bits(key, shape)), spax.crypto.fresh_key()),
        "threefry": (jax.jit(lambda key: jax.random.bits(key, shape)), KEY),
    }
    return {"bits": {name: megabytes_a_second(*draw, 4 * shape[0]) for name, draw in draws.items()}}


def megabytes_a_second(draw, key, size, repetitions=15):
    """By the median time."""
    jax.block_until_ready(draw(key))
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(draw(key))
        seconds.append(time.perf_counter() - start)
    return round(size / float(np.median(seconds)) / 1e6)


ROOMS = {
    room.__name__: room for room in (evasion, gradients, defenses, poisoning, dp, leakage, crypto)
}
FOLDER = harness.RESULTS / "figures"


def main(argv=None):
    """Takes and stores the figures of the rooms asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", metavar="room", help=f"{', '.join(ROOMS)}; all if none")
    parser.add_argument(
        "--out", type=pathlib.Path, default=FOLDER, help="the folder of the results"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"no such room: {', '.join(sorted(unknown))} (there are {', '.join(ROOMS)})")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.rooms or ROOMS:
        environment, start = harness.environment(), time.perf_counter()
        figures = ROOMS[name]()
        environment["seconds"] = round(time.perf_counter() - start, 1)
        packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
        versions = {p: importlib.metadata.version(p) for p in packages}
        result = {
            **figures,
            "environment": environment,
            "versions": {"spax": spax.__version__, **versions},
        }
        path = options.out / f"{name}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
