"""The laws of state machines."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from spax import evasion
from spax.crypto import ChaChaKey, fold_in
from tests.contracts.cases import QUICK, STATES

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(1)
SECRET = ChaChaKey(jnp.arange(8, dtype=jnp.uint32))


# Case by case, so that one worker compiles a case once for all of its laws.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            case,
            id=f"{name}-{i}",
            # The states of attacks and of accountants compile for long.
            marks=pytest.mark.slow if hasattr(evasion, name) or "." in name else (),
        )
        for name, cases in STATES.items()
        for i, case in enumerate(cases)
    ],
)
def case(request):
    return request.param


@functools.cache
def compiled(case):
    """The update, and a list that grows with its traces."""
    traces = []

    def update(state, key):
        traces.append(state)
        return case.update(state, key)

    return jax.jit(update, compiler_options=QUICK), traces


def update(case, state, key):
    return compiled(case)[0](state, key)


def after(case, updates, key=KEY):
    """The last output and the state after some updates."""
    output, state = None, case.init()
    for i in range(updates):
        output, state = update(case, state, jax.random.fold_in(key, i))
    return output, state


def test_it_counts_its_updates(case):
    assert [case.count(after(case, n)[1]) for n in range(3)] == [0, 1, 2]


def test_it_is_a_frozen_pytree_of_arrays_that_round_trips(case):
    _, state = after(case, 1)
    leaves, treedef = jax.tree.flatten(state)
    assert leaves
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(treedef, leaves)
    assert jax.tree.structure(again) == treedef
    chex.assert_trees_all_equal(again, state)
    chex.assert_trees_all_equal(update(case, again, KEY), update(case, state, KEY))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    assert len(set(paths)) == len(leaves)
    with pytest.raises((AttributeError, TypeError)):
        setattr(state, paths[0].lstrip(".").partition(".")[0], None)


def test_an_update_keeps_structure_shapes_and_dtypes(case):
    chex.assert_trees_all_equal_shapes_and_dtypes(after(case, 1)[1], case.init())
    assert jax.tree.structure(after(case, 1)[1]) == jax.tree.structure(case.init())


def test_it_survives_a_checkpoint(case, tmp_path):
    _, state = after(case, 2)
    path = tmp_path / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, jax.tree.map(jnp.zeros_like, case.init()))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(update(case, restored, KEY), update(case, state, KEY))


@pytest.mark.parametrize("key", [KEY, SECRET], ids=["jax.random", "ChaCha20"])
def test_no_key_enters_the_state(case, key):
    """A restored key would repeat its noise."""

    def is_key(leaf):
        return isinstance(leaf, ChaChaKey) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    _, state = update(case, case.init(), key)
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, ChaChaKey))
    assert not any(map(is_key, leaves))
    words = np.asarray(SECRET.words if key is SECRET else jax.random.key_data(key))
    for leaf in leaves:
        held = np.asarray(leaf).tobytes()
        assert words.tobytes() not in held


def test_jit_equals_eager_with_one_trace(case):
    state = after(case, 1)[1]
    before = len(compiled(case)[1])
    for i in range(2):
        key = jax.random.fold_in(KEY, i)
        jitted, eager = update(case, state, key), case.update(state, key)
        chex.assert_trees_all_close(jitted, eager, rtol=1e-5, atol=1e-6)
        state = jitted[1]
    assert len(compiled(case)[1]) == before


def test_a_scan_equals_a_loop(case):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3))

    def step(state, key):
        output, state = case.update(state, key)
        return state, output

    run = jax.jit(lambda s, k: jax.lax.scan(step, s, k), compiler_options=QUICK)
    state, outputs = run(case.init(), keys)
    last, looped = after(case, 3)
    chex.assert_trees_all_close(state, looped, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda v: v[-1], outputs), last, rtol=1e-5, atol=1e-6)


def test_vmap_equals_a_loop(case):
    keys = jax.random.split(KEY, 2)
    together = jax.vmap(compiled(case)[0], (None, 0))(case.init(), keys)
    for i in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda v: v[i], together),  # noqa: B023, used at once
            update(case, case.init(), keys[i]),
            rtol=1e-5,
            atol=1e-6,
        )


def test_the_same_key_gives_the_same_bits_and_another_other_ones(case):
    for key, other in ((KEY, jax.random.key(2)), (SECRET, fold_in(SECRET, 2))):
        first, again, apart = (update(case, case.init(), k) for k in (key, key, other))
        chex.assert_trees_all_equal(first, again)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), first[0], apart[0])
        assert all(jax.tree.leaves(same)) != case.draws
