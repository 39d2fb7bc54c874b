"""Readers give exactly what the file holds, or one line that says what is wrong with it."""

import contextlib
import gzip
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from spax.datasets import Dataset, DatasetError, digits, idx_to_npz, load_idx, load_npz

GREY = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4) * 8
LABELS = np.array([3, 0])
BYTES = LABELS.astype(np.uint8)
FLOATS = np.linspace(0, 1, 2 * 5, dtype=np.float32).reshape(2, 5)


def save(folder, **arrays):
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def failure(call, *args, **kwargs):
    """The message of the DatasetError: one line, that says something must be done."""
    with pytest.raises(DatasetError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message or "(" in message
    return message


def idx(array, code):
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


# digits


def test_digits_are_scikit_learns_divided_by_16():
    from sklearn.datasets import load_digits

    data = digits()
    ours = np.concatenate([data.x_train, data.x_test])[..., 0]
    assert ours.dtype == np.float32
    assert sorted((ours * 16).tolist()) == sorted(load_digits().images.tolist())
    assert data.y_train.dtype == data.y_test.dtype == np.int32
    assert data.bounds == (0.0, 1.0)
    assert data.has_members


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_split_of_digits_is_stratified_and_fixed(share):
    first, second = digits(share), digits(share)
    np.testing.assert_array_equal(first.x_test, second.x_test)
    np.testing.assert_array_equal(first.y_train, second.y_train)
    held_out, rest = np.bincount(first.y_test), np.bincount(first.y_train)
    assert np.all(np.abs(held_out - share * (held_out + rest)) <= 1)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001, float("nan")])
def test_digits_refuse_a_share_that_leaves_too_few(share):
    with pytest.raises(ValueError, match="test_share"):
        digits(share)


def test_importing_datasets_does_not_import_scikit_learn():
    code = "import sys, spax.datasets; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# npz: what is read


def test_uint8_images_are_scaled_and_grey_ones_get_a_channel(tmp_path):
    data = load_npz(save(tmp_path, x=GREY, y=LABELS))
    assert data.x_test.shape == (2, 4, 4, 1)
    np.testing.assert_allclose(data.x_test[..., 0], GREY / 255, rtol=1e-6)
    assert (data.name, data.num_classes, data.has_members) == ("data", 4, False)
    assert data.x_train is None
    assert data.y_train is None


def test_uint8_images_reach_both_ends_of_any_bounds_exactly(tmp_path):
    x = np.array([[0, 255, 51]], np.uint8)
    path = save(tmp_path, x=x, y=LABELS[:1])
    assert load_npz(path, bounds=(-1, 1)).x_test.tolist() == [[-1, 1, np.float32(-0.6)]]
    assert load_npz(path, bounds=(0, 255)).x_test.tolist() == [[0, 255, 51]]
    assert load_npz(path, bounds=(0, 255)).bounds == (0.0, 255.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_within_bounds_become_float32(tmp_path, dtype):
    data = load_npz(save(tmp_path, x=FLOATS.astype(dtype), y=LABELS.astype(np.uint8)))
    np.testing.assert_array_equal(data.x_test, FLOATS.astype(dtype).astype(np.float32))
    assert data.x_test.dtype == np.float32
    assert data.y_test.dtype == np.int32


def test_members_are_read_with_the_test_examples(tmp_path):
    path = save(tmp_path, x_train=FLOATS, y_train=[9, 1], x_test=FLOATS[:1], y_test=[0], extra=1)
    data = load_npz(path)
    assert data.has_members
    assert data.num_classes == 10
    assert len(data.x_train) == 2
    assert len(data.x_test) == 1


def test_one_rounding_over_the_bounds_is_clipped(tmp_path):
    x = np.array([[1 + 1e-7, -1e-8]])
    assert load_npz(save(tmp_path, x=x, y=[0])).x_test.tolist() == [[1.0, 0.0]]


def test_colour_images_and_plain_features_keep_their_shape(tmp_path):
    x = np.full((2, 4, 4, 3), 0.5, np.float32)
    assert load_npz(save(tmp_path, x=x, y=LABELS)).x_test.shape == (2, 4, 4, 3)
    assert load_npz(save(tmp_path, x=FLOATS, y=LABELS)).x_test.shape == (2, 5)


# npz: what is refused


def with_nan():
    x = FLOATS.copy()
    x[1, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "cause", "remedy"),
    [
        ({"images": GREY, "y": LABELS}, "lacks the array x (found 'images', 'y')", "save x and y"),
        ({"a": GREY}, "lacks the arrays x_test, y_test (found 'a')", "save x and y"),
        ({"x_train": GREY, "y_train": LABELS}, "lacks the arrays x_test, y_test", "save"),
        ({"x_test": GREY, "y_test": LABELS, "x_train": GREY}, "lacks the array y_train", "save"),
        ({"x": GREY, "y": LABELS, "x_test": GREY}, "both x/y and x_train", "keep one"),
        ({}, "found none", "save x and y"),
        ({"x": GREY, "y": [1, 2, 3]}, "x has 2 examples but y has 3 labels", "one label for each"),
        ({"x": FLOATS[0], "y": LABELS}, "shape [N, ...]", "one row an example"),
        ({"x": GREY[:0], "y": LABELS[:0]}, "x is empty", "save one example or more"),
        ({"x": np.zeros((2, 0)), "y": LABELS}, "x is empty", "save"),
        ({"x": GREY.astype(np.int64), "y": LABELS}, "dtype int64", "uint8 pixels of 0..255"),
        ({"x": GREY > 3, "y": LABELS}, "dtype bool", "float32"),
        ({"x": FLOATS * 1j, "y": LABELS}, "dtype complex64", "float32"),
        ({"x": np.ones((2, 3), np.uint8), "y": LABELS}, "no value above 1", "astype(np.float32)"),
        ({"x": with_nan(), "y": LABELS}, "NaN or infinite values in 1 of 2", "remove"),
        (
            {"x": FLOATS + np.float32(np.inf), "y": LABELS},
            "NaN or infinite values in 2 of 2",
            "remove",
        ),
        ({"x": FLOATS * 255, "y": LABELS}, "from 0 to 255", "divide by 255 or store as uint8"),
        ({"x": FLOATS * 255, "y": LABELS}, "outside bounds 0 1", "pass --bounds 0 255"),
        ({"x": FLOATS * 16, "y": LABELS}, "from 0 to 16", "--bounds LOW HIGH"),
        ({"x": FLOATS - 0.5, "y": LABELS}, "from -0.5 to 0.5", "--bounds LOW HIGH"),
        ({"x": FLOATS, "y": [1.0, 0.0]}, "dtype float64", "save y.astype(np.int32)"),
        ({"x": FLOATS, "y": [1.5, 0.0]}, "dtype float64", "number the classes from 0"),
        ({"x": FLOATS, "y": [np.nan, 0.0]}, "dtype float64", "number the classes from 0"),
        ({"x": FLOATS, "y": [True, False]}, "dtype bool", "save y.astype(np.int32)"),
        ({"x": FLOATS, "y": ["cat", "dog"]}, "labels must be integers", "np.unique(y"),
        ({"x": FLOATS, "y": np.eye(2)}, "one-hot labels of shape (2, 2)", "np.argmax(y, axis=1)"),
        ({"x": FLOATS, "y": np.eye(2, 7, dtype=int)}, "one-hot", "np.argmax(y, axis=1)"),
        ({"x": FLOATS, "y": np.ones((2, 4))}, "a table of shape (2, 4)", "one integer an example"),
        ({"x": FLOATS, "y": [[1], [0]]}, "must have shape [N]", "y[:, 0]"),
        ({"x": FLOATS, "y": 3}, "must have shape [N]", "one integer an example"),
        ({"x": FLOATS, "y": [-1, 2]}, "from -1 to 2", "leave out examples without a label"),
        ({"x": FLOATS, "y": np.array([0, 2**40])}, "from 0 to", "number the classes"),
        (
            {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:, :2], "y_test": LABELS},
            "(4, 4, 1) in x_train but (2, 4, 1) in x_test",
            "same shape",
        ),
        ({"x": np.array([[1], [1, 2]], object), "y": LABELS}, "x is a pickled object", "np.stack"),
        ({"x": FLOATS, "y": np.array([1, None])}, "y is a pickled object", "plain numbers"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(tmp_path, arrays, cause, remedy):
    message = failure(load_npz, save(tmp_path, **arrays))
    assert cause in message
    assert remedy in message
    assert "data" in message  # the name of the file


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), (0, np.inf), (0,), 3, ("a", "b")])
def test_bad_bounds_are_refused(tmp_path, bounds):
    assert "bounds" in failure(load_npz, save(tmp_path, x=FLOATS, y=LABELS), bounds=bounds)


def test_files_that_are_no_npz_are_refused(tmp_path):
    assert "no such file" in failure(load_npz, tmp_path / "none.npz")
    assert "no such file" in failure(load_npz, "a\nb\x1b[31m\0.npz")
    assert "is not a file" in failure(load_npz, tmp_path)
    for content in (b"", b"x,y\n1,2\n", pickle.dumps({"x": 1})):
        (tmp_path / "other.npz").write_bytes(content)
        assert "is not an npz file" in failure(load_npz, tmp_path / "other.npz")
    np.save(tmp_path / "bare.npy", FLOATS)
    assert "one bare array" in failure(load_npz, tmp_path / "bare.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("x", "hello")
        file.writestr("y", "hello")
    assert "x is not an array" in failure(load_npz, tmp_path / "text.npz")


def test_no_pickle_is_ever_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    failure(load_npz, save(tmp_path, x=np.array([Bomb()], object), y=LABELS[:1]))
    (tmp_path / "bomb.npz").write_bytes(pickle.dumps(Bomb()))
    failure(load_npz, tmp_path / "bomb.npz")
    assert not (tmp_path / "ran").exists()


def test_every_truncation_and_corruption_is_a_dataset_error(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", x=GREY, y=LABELS)
    whole = (tmp_path / "whole.npz").read_bytes()
    broken = tmp_path / "broken.npz"
    for length in range(0, len(whole), 7):
        broken.write_bytes(whole[:length])
        failure(load_npz, broken)
    rng = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        broken.write_bytes(content)
        # A bit of the zip's metadata may not matter; then the data are the true ones.
        with contextlib.suppress(DatasetError):
            np.testing.assert_array_equal(load_npz(broken).y_test, LABELS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_an_unreadable_file_is_refused(tmp_path):
    path = save(tmp_path, x=FLOATS, y=LABELS)
    path.chmod(0)
    assert "permissions" in failure(load_npz, path)


# Dataset


def test_a_dataset_made_by_hand_is_held_to_the_same_rules():
    y = LABELS.astype(np.int32)
    data = Dataset(None, None, FLOATS, y, "mine")
    np.testing.assert_array_equal(data.x_test, FLOATS)
    assert "x_test ranges" in failure(Dataset, None, None, FLOATS * 255, y, "mine")
    assert "make it float32" in failure(Dataset, None, None, GREY, y, "mine")
    assert "y_train is missing" in failure(Dataset, FLOATS, None, FLOATS, y, "mine")
    assert "object dtype" in failure(Dataset, None, None, FLOATS.astype(object), y, "mine")


# IDX


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("u1", 0x08), ("i1", 0x09), ("i2", 0x0B), ("i4", 0x0C), ("f4", 0x0D), ("f8", 0x0E)],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_round_trip_in_every_type(tmp_path, dtype, code, pack):
    array = (np.arange(24) - (0 if dtype == "u1" else 12)).astype(dtype).reshape(2, 3, 4)
    path = tmp_path / "some-idx"
    path.write_bytes(pack(idx(array, code)))
    read = load_idx(path)
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_damaged_idx_files_are_refused(tmp_path, pack):
    whole = idx(GREY, 0x08)
    path = tmp_path / "some-idx"
    for content, cause in [
        (b"", "not an IDX file (it starts with nothing)"),
        (b"\x00\x00\x07\x01" + whole[4:], "not an IDX file (it starts with 00 00 07 01)"),
        (b"\x00\x00\x08\x00", "not an IDX file"),
        (b"\x01" + whole[1:], "not an IDX file"),
        (whole[:10], "ends within its header"),
        (whole[:-1], "promises 32 bytes of shape (2, 4, 4) but there are only 31"),
        (whole + b"\0", "but there are more"),
        (b"\0\0\x08\x03" + b"\0" * 4 + b"\xff" * 8, "the impossible shape (0, 4294967295, "),
        (b"\0\0\x08\x03" + b"\xff" * 12 + whole, "but there are only"),  # claims 2^96 bytes
    ]:
        path.write_bytes(pack(content))
        assert cause in failure(load_idx, path)
    zipped = gzip.compress(whole)
    path.write_bytes(zipped[:-9])
    assert "damaged or truncated gzip" in failure(load_idx, path)
    assert "no such file" in failure(load_idx, tmp_path / "none")


def write_mnist(folder, images=GREY, labels=BYTES):
    folder.mkdir(exist_ok=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images, 8)))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels, 8))
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx(images[:1], 8))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[:1], 8)))
    return folder


def test_the_recipe_from_idx_files_to_an_audit(tmp_path):
    out = tmp_path / "small"  # the name is kept as it is
    idx_to_npz(write_mnist(tmp_path / "mnist"), out)
    data = load_npz(out)
    np.testing.assert_allclose(data.x_train[..., 0], GREY / 255, rtol=1e-6)
    assert data.y_train.tolist() == LABELS.tolist()
    assert data.x_test.shape == (1, 4, 4, 1)
    assert data.has_members


def test_the_recipe_names_what_is_missing_or_wrong(tmp_path):
    out, folder = tmp_path / "out.npz", tmp_path / "mnist"
    assert "no such folder" in failure(idx_to_npz, folder, out)
    write_mnist(folder, labels=np.array([1], np.uint8))
    assert "train-images has 2 examples but train-labels has 1" in failure(idx_to_npz, folder, out)
    write_mnist(folder, images=np.array([1, 2], np.uint8))
    assert "not images [N, H, W]" in failure(idx_to_npz, folder, out)
    write_mnist(folder, images=GREY[:0], labels=np.zeros(0, np.uint8))
    assert "not images [N, H, W]" in failure(idx_to_npz, folder, out)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "no file named t10k-labels" in failure(idx_to_npz, folder, out)
    assert not out.exists()


def test_mnist_itself(spax_data):
    data = load_npz(spax_data / "mnist.npz")
    assert data.x_train.shape == (60000, 28, 28, 1)
    assert data.x_test.shape == (10000, 28, 28, 1)
    assert (data.num_classes, data.bounds) == (10, (0.0, 1.0))
    assert np.bincount(data.y_test)[0] == 980
    assert float(data.x_train.max()) == 1.0
