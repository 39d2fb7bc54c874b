"""Networks whose private training is timed, in plain JAX: parameters, a batch and logits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

VOCABULARY = 1000
HEADS = 4
SIZES = {"mlp": 256, "cnn": 256, "transformer": 64, "lstm": 64, "resnet": 64}


def _dense(draw, inputs, outputs):
    return {"w": draw(inputs, outputs) / np.sqrt(inputs), "b": np.zeros(outputs)}


def _conv(draw, size, inputs, outputs):
    scale = np.sqrt(2 / (size * size * inputs))
    return {"w": draw(size, size, inputs, outputs) * scale, "b": np.zeros(outputs)}


def _norm(size):
    return {"g": np.ones(size), "b": np.zeros(size)}


def _apply(layer, x):
    return x @ layer["w"] + layer["b"]


def _convolve(layer, x, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    out = lax.conv_general_dilated(
        x, layer["w"], (stride, stride), padding, dimension_numbers=numbers
    )
    return out + layer["b"]


def _normalise(x, axes):
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + 1e-5)


def _layer_norm(layer, x):
    return _normalise(x, -1) * layer["g"] + layer["b"]


def _group_norm(layer, x):
    split = x.reshape(*x.shape[:-1], 8, x.shape[-1] // 8)
    return _normalise(split, (1, 2, 4)).reshape(x.shape) * layer["g"] + layer["b"]


def mlp_params(draw):
    sizes = (784, 1024, 1024, 10)
    return [_dense(draw, a, b) for a, b in itertools.pairwise(sizes)]


def mlp(params, x):
    x = x.reshape(x.shape[0], -1)
    for layer in params[:-1]:
        x = jax.nn.relu(_apply(layer, x))
    return _apply(params[-1], x)


def cnn_params(draw):
    return [
        _conv(draw, 8, 1, 16),
        _conv(draw, 4, 16, 32),
        _dense(draw, 512, 32),
        _dense(draw, 32, 10),
    ]


def cnn(params, x):
    x = jnp.tanh(_convolve(params[0], x, 2, "VALID"))
    x = jnp.tanh(_convolve(params[1], x, 2, "VALID"))
    x = jnp.tanh(_apply(params[2], x.reshape(x.shape[0], -1)))
    return _apply(params[3], x)


def transformer_params(draw, width=128, layers=2, length=64):
    def layer():
        return {
            "n1": _norm(width),
            "qkv": [_dense(draw, width, width) for _ in range(3)],
            "out": _dense(draw, width, width),
            "n2": _norm(width),
            "up": _dense(draw, width, 4 * width),
            "down": _dense(draw, 4 * width, width),
        }

    return {
        "table": draw(VOCABULARY, width),
        "places": draw(length, width) * 0.02,
        "layers": [layer() for _ in range(layers)],
        "norm": _norm(width),
        "head": _dense(draw, width, VOCABULARY),
    }


def transformer(params, ids):
    x = params["table"][ids] + params["places"]
    rows, length, width = x.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    for layer in params["layers"]:
        h = _layer_norm(layer["n1"], x)
        q, k, v = (
            _apply(part, h).reshape(rows, length, HEADS, width // HEADS) for part in layer["qkv"]
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // HEADS)
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + _apply(layer["out"], mixed)
        h = jax.nn.relu(_apply(layer["up"], _layer_norm(layer["n2"], x)))
        x = x + _apply(layer["down"], h)
    return _apply(params["head"], _layer_norm(params["norm"], x))


def lstm_params(draw, inputs=64, hidden=128):
    gates = {"w": draw(inputs, 4 * hidden) / 8, "u": draw(hidden, 4 * hidden) / np.sqrt(hidden)}
    return {**gates, "b": np.zeros(4 * hidden), "head": _dense(draw, hidden, 10)}


def lstm(params, x):
    hidden = params["u"].shape[0]

    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ params["w"] + h @ params["u"] + params["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    zero = jnp.zeros((x.shape[0], hidden), x.dtype)
    (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
    return _apply(params["head"], h)


def resnet_params(draw):
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        blocks.append(
            {
                "c1": _conv(draw, 3, inputs, outputs),
                "n1": _norm(outputs),
                "c2": _conv(draw, 3, outputs, outputs),
                "n2": _norm(outputs),
                "skip": _conv(draw, 1, inputs, outputs),
            }
        )
        inputs = outputs
    stem = {"c": _conv(draw, 3, 3, 16), "n": _norm(16)}
    return {"stem": stem, "blocks": blocks, "head": _dense(draw, 64, 10)}


def resnet(params, x):
    x = _convolve(params["stem"]["c"], x, 1, [(1, 1)] * 2)
    x = jax.nn.relu(_group_norm(params["stem"]["n"], x))
    for i, block in enumerate(params["blocks"]):
        stride = 1 if i == 0 else 2
        h = _convolve(block["c1"], x, stride, [(1, 1)] * 2)
        h = jax.nn.relu(_group_norm(block["n1"], h))
        h = _group_norm(block["n2"], _convolve(block["c2"], h, 1, [(1, 1)] * 2))
        x = jax.nn.relu(h + _convolve(block["skip"], x, stride, "VALID"))
    return _apply(params["head"], x.mean((1, 2)))


APPLY = {"mlp": mlp, "cnn": cnn, "transformer": transformer, "lstm": lstm, "resnet": resnet}
_PARAMS = {
    "mlp": mlp_params,
    "cnn": cnn_params,
    "transformer": transformer_params,
    "lstm": lstm_params,
    "resnet": resnet_params,
}
_SHAPES = {"mlp": (28, 28, 1), "cnn": (28, 28, 1), "lstm": (100, 64), "resnet": (32, 32, 3)}


def load(name, batch_size=None):
    """Parameters and a batch ``(x, y)`` as NumPy arrays, always the same ones."""
    rng = np.random.default_rng(0)
    params = _PARAMS[name](lambda *shape: rng.normal(size=shape))
    rows = batch_size or SIZES[name]
    if name == "transformer":
        ids = rng.integers(0, VOCABULARY, (rows, 65)).astype(np.int32)
        x, y = ids[:, :-1], ids[:, 1:]
    else:
        x = rng.normal(size=(rows, *_SHAPES[name])).astype(np.float32)
        y = rng.integers(0, 10, rows).astype(np.int32)
    return jax.tree.map(lambda v: v.astype(np.float32), params), (x, y)


def losses(name, params, x, y):
    """``[B]``: the cross-entropy of each example, the mean over positions if there are several."""
    logits = APPLY[name](params, x)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)[..., 0]
    return -picked.reshape(picked.shape[0], -1).mean(1)
