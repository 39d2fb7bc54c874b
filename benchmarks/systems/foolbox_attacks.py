"""Foolbox's attacks, for any of its frameworks."""

import foolbox
import numpy as np
from foolbox.attacks import (
    BoundaryAttack,
    EADAttack,
    HopSkipJumpAttack,
    L2CarliniWagnerAttack,
    L2DeepFoolAttack,
    LinfPGD,
)

from benchmarks.systems import Job, other_class

PACKAGES = ("foolbox", "eagerpy", "numpy")


def _job(attack, model, x, y, eps, finish):
    def run(_):
        _, clipped, _ = attack(model, x, y, epsilons=eps)
        return finish(clipped)

    return run


def pgd_linf(model, x, y, finish, read, *, eps, step_size, steps, **_):
    attack = LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)
    return Job(_job(attack, model, x, y, eps, finish), lambda out: {"x_adv": read(out)})


def eps_sweep(model, x, y, finish, read, *, eps, share, steps, **_):
    """One call for the whole grid: Foolbox takes it, and repeats the attack inside."""
    attack = LinfPGD(rel_stepsize=share, steps=steps, random_start=True)
    run = _job(attack, model, x, y, eps, lambda all_: [finish(one) for one in all_])
    return Job(run, lambda out: {"x_adv": [read(one) for one in out]})


def carlini_wagner_l2(
    model, x, y, finish, read, *, steps, search_steps, step_size, confidence, initial_const,
    abort_early, **_,
):  # fmt: skip
    attack = L2CarliniWagnerAttack(
        binary_search_steps=search_steps,
        steps=steps,
        stepsize=step_size,
        confidence=confidence,
        initial_const=initial_const,
        abort_early=abort_early,
    )
    return Job(_job(attack, model, x, y, None, finish), lambda out: {"x_adv": read(out)})


def deepfool_l2(model, x, y, finish, read, *, steps, candidates, overshoot, **_):
    attack = L2DeepFoolAttack(steps=steps, candidates=candidates, overshoot=overshoot)
    return Job(_job(attack, model, x, y, None, finish), lambda out: {"x_adv": read(out)})


def elastic_net(
    model, x, y, finish, read, *, steps, search_steps, step_size, beta, confidence, initial_const,
    l1_rule, abort_early, **_,
):  # fmt: skip
    attack = EADAttack(
        binary_search_steps=search_steps,
        steps=steps,
        initial_stepsize=step_size,
        confidence=confidence,
        initial_const=initial_const,
        regularization=beta,
        decision_rule="L1" if l1_rule else "EN",
        abort_early=abort_early,
    )
    return Job(_job(attack, model, x, y, None, finish), lambda out: {"x_adv": read(out)})


class _Counting(foolbox.models.Model):
    """A model that counts the rows it is asked; Foolbox does not tell."""

    def __init__(self, model):
        self._model, self.rows = model, 0

    @property
    def bounds(self):
        return self._model.bounds

    @property
    def data_format(self):
        return self._model.data_format

    def __call__(self, inputs):
        self.rows += len(inputs)
        return self._model(inputs)


def _decision(attack, model, x, y, finish, read, one_by_one):
    counting = _Counting(model)
    start = x[other_class(np.asarray(y))]
    size = 1 if one_by_one else len(x)

    def run(_):
        counting.rows = 0
        found = []
        for i in range(0, len(x), size):
            rows = slice(i, i + size)
            _, clipped, _ = attack(
                counting, x[rows], y[rows], starting_points=start[rows], epsilons=None
            )
            found.append(read(finish(clipped)))
        return np.concatenate(found)

    return Job(run, lambda out: {"x_adv": out, "queries": np.asarray(counting.rows / len(x))})


def hop_skip_jump_l2(model, x, y, finish, read, *, steps, one_by_one=False, **_):
    return _decision(HopSkipJumpAttack(steps=steps), model, x, y, finish, read, one_by_one)


def boundary_l2(model, x, y, finish, read, *, steps, one_by_one=False, **_):
    return _decision(BoundaryAttack(steps=steps), model, x, y, finish, read, one_by_one)
