import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spax.evasion import Oracle, boundary, hop_skip_jump, mi_fgsm, spsa_attack, substitute
from spax.evasion.oracle import ask
from spax.gradients import nes
from spax.losses import margin, misclassified
from spax.typing import Stochastic

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)


class Service:
    """A linear classifier in NumPy that keeps what it was asked; ``fails`` at that row."""

    def __init__(self, params, scores=False, fails=None):
        self.params, self.scores, self.fails = np.asarray(params), scores, fails
        self.calls = []

    @property
    def rows(self):
        return sum(len(x) for x in self.calls)

    def __call__(self, x):
        assert isinstance(x, np.ndarray)
        assert len(x)
        if self.fails is not None and self.rows + len(x) > self.fails:
            raise ConnectionError("the line is dead")
        self.calls.append(x)
        logits = (x - 0.5) @ self.params
        return logits if self.scores else logits.argmax(axis=1)


ATTACKS = {
    "hop_skip_jump": functools.partial(hop_skip_jump, steps=4, init_evals=30),
    "boundary": functools.partial(boundary, steps=60),
    "spsa_attack": functools.partial(spsa_attack, eps=0.1, n=4, steps=10),
}


@functools.cache
def compiled(name, scores):
    """A jitted attack on a service that can be changed from call to call."""
    holder = []
    oracle = Oracle(lambda x: holder[-1](x), num_classes=4)
    attack = ATTACKS[name]

    @jax.jit
    def run(x, y, key, most):
        return attack(oracle, x, y, key=key, max_queries=most, return_info=True)

    def asked(service, *arguments):
        holder.append(service)
        return run(*arguments)

    return asked


@pytest.mark.parametrize("name", ATTACKS)
def test_the_rows_that_reach_the_service_are_those_counted_and_within_the_budget(linear, name):
    _, params, x, y = linear
    most = jnp.array([0, 1, 5, 17, 40, 90, 90, 90])
    service = Service(params, scores=name == "spsa_attack")
    x_adv, info = compiled(name, service.scores)(service, x, y, KEY, most)
    jax.block_until_ready(x_adv)
    assert (info.queries <= most).all()
    assert service.rows == int(info.queries.sum())
    assert 0 < service.rows < most.sum()
    np.testing.assert_array_equal(x_adv[:2], x[:2])
    # An input that fools already costs one row, once.
    service = Service(params, scores=name == "spsa_attack")
    x_adv, info = compiled(name, service.scores)(service, x, (y + 1) % 4, KEY, most)
    np.testing.assert_array_equal(x_adv, x)
    np.testing.assert_array_equal(info.queries, jnp.minimum(most, 1))
    assert service.rows == 7


@pytest.mark.parametrize("name", ATTACKS)
def test_a_service_is_attacked_as_the_function_behind_it_is(linear, name):
    apply_fn, params, x, y = linear
    most = jnp.full(8, 200)
    service = Service(params, scores=name == "spsa_attack")
    x_adv, info = compiled(name, service.scores)(service, x, y, KEY, most)
    f = functools.partial(apply_fn, params)
    run = jax.jit(lambda x, y: ATTACKS[name](f, x, y, key=KEY, max_queries=most, return_info=True))
    same, known = run(x, y)
    np.testing.assert_allclose(x_adv, same, atol=1e-4)
    np.testing.assert_allclose(info.queries, known.queries, atol=2)
    assert (misclassified(f(x_adv), y) == misclassified(f(same), y)).all()


def test_a_dead_service_is_not_asked_again_and_what_it_answered_can_be_kept(linear):
    _, params, x, y = linear
    run, most = compiled("hop_skip_jump", False), jnp.full(8, 100)
    whole = Service(params)
    wanted, _ = run(whole, x, y, KEY, most)
    jax.block_until_ready(wanted)

    service, known = Service(params, fails=300), {}

    def remembered(x):
        new = [row for row in x if row.tobytes() not in known]
        if new:
            for row, label in zip(new, service(np.stack(new)), strict=True):
                known[row.tobytes()] = label
        return np.array([known[row.tobytes()] for row in x])

    with pytest.raises(jax.errors.JaxRuntimeError, match="the line is dead"):
        jax.block_until_ready(run(remembered, x, y, KEY, most))
    answered = service.rows
    assert 0 < answered <= 300
    service.fails = None
    np.testing.assert_array_equal(run(remembered, x, y, KEY, most)[0], wanted)
    assert service.rows <= whole.rows  # the second run paid for the rest only


def test_live_rows_alone_are_asked_in_batches_of_the_size_given():
    calls = []

    def query(x):
        calls.append(x[:, 0].tolist())
        return x[:, 0].astype(int) % 2

    oracle = Oracle(query, 2, batch_size=2)
    x = jnp.arange(6.0)[:, None]
    live = jnp.array([True, True, False, True, False, True])
    out = jax.jit(lambda x, live: ask(oracle, x, live))(x, live)
    assert calls == [[0, 1], [3, 5]]
    np.testing.assert_array_equal(out, [[1, 0], [0, 1], [0, 0], [0, 1], [0, 0], [0, 1]])
    assert ask(oracle, x, jnp.zeros(6, bool)).shape == (6, 2)
    assert oracle(x[:0]).shape == (0, 2)
    assert len(calls) == 2
    several = ask(oracle, jnp.stack([x, x + 1]), jnp.stack([~live, live]))
    assert calls[2:] == [[2, 4], [1, 2], [4, 6]]
    assert several.shape == (2, 6, 2)


def test_answers_need_not_be_used_to_be_asked_and_are_asked_once():
    """The compiler neither drops a question nor puts equal ones together."""
    calls = []
    oracle = Oracle(lambda x: calls.append(len(x)) or np.zeros(len(x), int), 2)

    @jax.jit
    def f(x):
        oracle(x)
        return jax.lax.fori_loop(0, 3, lambda i, z: z + 0 * oracle(x).sum(), oracle(x).sum())

    f(jnp.ones((2, 1))).block_until_ready()
    jax.effects_barrier()
    assert calls == [2] * 5


def test_nes_by_the_hook_attacks_a_service(linear):
    apply_fn, params, x, y = linear
    service = Service(params, scores=True)
    oracle = Oracle(service, num_classes=4)
    hook = nes(20, 1e-2)
    x_adv = jax.jit(
        lambda x, y, key: mi_fgsm(
            oracle, x, y, key=key, eps=0.2, decay=0.9, steps=5, loss=margin, gradient=hook
        )
    )(x, y, KEY)
    gain = margin(apply_fn(params, x_adv), y) - margin(apply_fn(params, x), y)
    assert (gain > 0).all()
    assert service.rows == len(x) * (5 * (2 * 20 + 1) + 1)


def test_a_substitute_asks_a_service_about_new_inputs_only(linear):
    import optax

    _, params, x, _ = linear
    service = Service(params)
    copy = substitute(
        Oracle(service, num_classes=4),
        lambda params, x, *, train, key: (x - 0.5) @ params,
        optax.sgd(0.5),
        rounds=3,
        reservoir_after=1,
        reservoir_size=5,
        epochs=1,
    )
    state, update = copy.init(jnp.zeros((6, 4)), x), jax.jit(copy.update)
    for i, asked in enumerate((8, 16, 21, 21)):
        _, state = update(state, jax.random.fold_in(KEY, i))
        assert int(state.queries) == service.rows == asked
    every = np.concatenate(service.calls)
    np.testing.assert_array_equal(every, state.x)
    np.testing.assert_array_equal(state.y, ((every - 0.5) @ service.params).argmax(axis=1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.full(len(x), 7), r"labels in \[0, 4\)"),
        (lambda x: np.zeros((len(x), 3)), r"scores \[2, 4\] \(got shape \(2, 3\)"),
        (lambda x: np.zeros(len(x)), "integer labels"),
        (lambda x: np.full((len(x), 4), np.nan), "finite scores"),
    ],
)
def test_a_wrong_answer_raises(answer, message):
    with pytest.raises(ValueError, match=message):
        Oracle(answer, 4).answers(np.zeros((2, 6)), np.ones(2, bool))


def test_there_is_no_derivative_and_bad_settings_raise():
    oracle = Oracle(lambda x: np.zeros(len(x), int), 2)
    with pytest.raises(TypeError, match=r"gradient=spax.gradients.nes"):
        jax.grad(lambda x: oracle(x).sum())(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="query_fn must be callable"):
        Oracle(None, 2)
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        Oracle(len, 1)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        Oracle(len, 2, 0)
    with pytest.raises(ValueError, match="needs a random key"):
        ask(Stochastic(lambda x, key: x), jnp.ones((1, 2)), jnp.ones(1, bool))
