"""Environments as pure functions: Catch."""

import jax
import jax.numpy as jnp

ROWS, COLUMNS = 10, 5
CATCH_STEPS = ROWS - 1


def _draw(state):
    """The screen ``[ROWS, COLUMNS]``: one pixel of ball, and one of paddle in the last row."""
    row, column, paddle = state
    screen = jnp.zeros((ROWS, COLUMNS)).at[row, column].set(1.0)
    return screen.at[ROWS - 1, paddle].set(1.0)


def catch_reset(key):
    """A ball at the top, anywhere; the paddle in the middle."""
    column = jax.random.randint(key, (), 0, COLUMNS)
    state = jnp.zeros((), jnp.int32), column, jnp.full((), COLUMNS // 2, jnp.int32)
    return state, _draw(state)


def catch_step(state, action, key):
    """The ball falls by one; the paddle goes left, stays or goes right; 1 if it catches, or -1."""
    row, column, paddle = state
    paddle = jnp.clip(paddle + action - 1, 0, COLUMNS - 1)
    state = row + 1, column, paddle
    done = row + 1 == ROWS - 1
    reward = jnp.where(done, jnp.where(column == paddle, 1.0, -1.0), 0.0)
    return state, _draw(state), reward, done


CATCH = (catch_reset, catch_step)
