"""Labelled data for audits, tests and examples: embedded digits, npz files, MNIST's IDX files.

Readers trust nothing: pickles are never loaded, and whatever is wrong with a file raises a
`DatasetError` whose one line names the cause and the remedy.

MNIST, from its four IDX files (gzipped or not) to an npz that ``spax audit --data`` takes::

    >>> from spax.datasets import idx_to_npz, load_npz
    >>> idx_to_npz("mnist/", "mnist.npz")  # doctest: +SKIP
    >>> load_npz("mnist.npz").x_test.shape  # doctest: +SKIP
    (10000, 28, 28, 1)
"""

import dataclasses
import gzip
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

__all__ = ["Dataset", "DatasetError", "digits", "idx_to_npz", "load_idx", "load_npz"]

_TRAIN = ("x_train", "y_train")
_TEST = ("x_test", "y_test")
_PLAIN = ("x", "y")


class DatasetError(ValueError):
    """Data that cannot be used; the message is one line: the cause, then the remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Test examples, optionally with the training examples (the members), of one classifier.

    Everything is checked on construction, so whoever is given a Dataset need not look again.

    Attributes:
      x_train: float32 ``[N, ...]`` within bounds; None where the members are not known.
      y_train: int32 ``[N]``, None with ``x_train``.
      x_test: float32 ``[M, ...]`` within bounds.
      y_test: int32 ``[M]``.
      name: what reports call it.
      bounds: the valid range ``(low, high)`` of every input.

    Raises:
      DatasetError: unless all of this holds.

    Example:
      >>> x, y = np.zeros((2, 3), np.float32), np.array([0, 4], np.int32)
      >>> data = Dataset(None, None, x, y, "two points")
      >>> data.num_classes, data.has_members
      (5, False)
    """

    x_train: np.ndarray | None
    y_train: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray
    name: str
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        bounds = _checked_bounds(self.bounds, self.name)
        object.__setattr__(self, "bounds", bounds)
        if (self.x_train is None) != (self.y_train is None):
            missing = "x_train" if self.x_train is None else "y_train"
            _fail(self.name, f"{missing} is missing; give both x_train and y_train, or neither")
        for x_name, y_name in (_TRAIN, _TEST) if self.has_members else (_TEST,):
            x = _inputs(getattr(self, x_name), x_name, bounds, self.name)
            y = _labels(getattr(self, y_name), y_name, x_name, len(x), self.name)
            object.__setattr__(self, x_name, x)
            object.__setattr__(self, y_name, y)
        if self.x_train is not None and self.x_train.shape[1:] != self.x_test.shape[1:]:
            _fail(
                self.name,
                f"one example has shape {self.x_train.shape[1:]} in x_train but "
                f"{self.x_test.shape[1:]} in x_test; save both in the same shape",
            )

    @property
    def num_classes(self) -> int:
        """The largest label of either part, plus one."""
        parts = [self.y_test] if self.y_train is None else [self.y_train, self.y_test]
        return 1 + max(int(y.max()) for y in parts)

    @property
    def has_members(self) -> bool:
        """Whether the training examples are known, so that membership can be measured."""
        return self.x_train is not None


def digits(test_share: float = 0.3) -> Dataset:
    """The 1797 handwritten digits of 8 by 8 pixels that scikit-learn carries; no download.

    The split is fixed and stratified: every class has the same share of test examples (to within
    one), and the same ``test_share`` always gives the same split.

    Args:
      test_share: the share of the examples held out, in (0, 1), leaving each part >= 10 examples.

    Returns:
      A Dataset with members: x ``[n, 8, 8, 1]`` float32 in [0, 1], y ``[n]`` int32, 10 classes.

    Raises:
      ValueError: if ``test_share`` leaves a part without one example of each class.

    Example:
      >>> data = digits()
      >>> data.x_train.shape, data.x_test.shape, data.num_classes
      ((1257, 8, 8, 1), (540, 8, 8, 1), 10)

    References:
      Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
      Learning Repository (its test set).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[..., None]
    y = bunch.target.astype(np.int32)
    if not 10 / len(y) <= test_share <= 1 - 10 / len(y):
        raise ValueError(
            f"test_share must be in (0, 1) and leave 10 examples or more in each part "
            f"(got test_share={test_share})"
        )
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=test_share, random_state=0, stratify=y
    )
    return Dataset(x_train, y_train, x_test, y_test, "digits")


def load_npz(path: str | os.PathLike[str], *, bounds: tuple[float, float] | None = None) -> Dataset:
    """Reads a labelled dataset from an npz file, never loading pickles.

    The arrays are ``x_test`` and ``y_test``, with ``x_train`` and ``y_train`` where the members
    (the examples the model was trained on) are known; or ``x`` and ``y``, test examples only.

    * Inputs ``[N, ...]``: uint8, mapped linearly from 0..255 onto ``bounds``, or floats already
      within them. Grey images ``[N, H, W]`` become ``[N, H, W, 1]``; all else keeps its shape.
    * Labels ``[N]``: integers from 0.

    Args:
      path: the file.
      bounds: the valid range ``(low, high)`` of the inputs; None means (0, 1).

    Returns:
      The Dataset, named after the file.

    Raises:
      DatasetError: if anything is wrong with the file; one line naming cause and remedy.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "grey.npz"
      >>> np.savez(path, x=np.full((3, 4, 4), 255, np.uint8), y=np.arange(3))
      >>> data = load_npz(path)
      >>> data.x_test.shape, float(data.x_test.max()), data.name
      ((3, 4, 4, 1), 1.0, 'grey')
    """
    path = Path(path)
    where = repr(str(path))
    limits = _checked_bounds((0.0, 1.0) if bounds is None else bounds, where)
    arrays = _read_npz(path, where)

    def pair(x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
        x = _inputs(arrays[x_name], x_name, limits, where, stored=True)
        x = x[..., None] if x.ndim == 3 else x
        return x, _labels(arrays[y_name], y_name, x_name, len(x), where)

    x_train, y_train = pair(*_TRAIN) if "x_train" in arrays else (None, None)
    x_test, y_test = pair(*_PLAIN) if "x" in arrays else pair(*_TEST)
    return Dataset(x_train, y_train, x_test, y_test, path.stem, limits)


def _fail(where: str, problem: str) -> NoReturn:
    """One line, whatever names and shapes are in it."""
    raise DatasetError(" ".join(f"{where}: {problem}".split()))


def _checked_bounds(bounds: Any, where: str) -> tuple[float, float]:
    try:
        low, high = (float(b) for b in bounds)
    except (TypeError, ValueError):
        _fail(where, f"bounds must be two numbers, low and high (got {bounds!r})")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        _fail(where, f"bounds must be finite with low < high (got {low:g} {high:g})")
    return low, high


def _open_checks(path: Path, where: str) -> None:
    if not os.path.exists(path):
        _fail(where, "no such file; check the path")
    if not os.path.isfile(path):
        _fail(where, "is not a file; give the path of the file itself")


def _read_npz(path: Path, where: str) -> dict[str, np.ndarray]:
    """The arrays of one of the accepted sets of names, as stored."""
    _open_checks(path, where)
    save = "save it anew with np.savez(path, x=x, y=y)"
    try:
        # np.load is given an open file, because it leaves a damaged one open that it opened.
        with open(path, "rb") as raw:
            start = raw.read(6)
            if start == b"\x93NUMPY":
                _fail(where, f"holds one bare array (npy), not an npz; {save}")
            if not start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                _fail(where, f"is not an npz file; {save}")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                names = _wanted(set(file.files), where)
                return {name: _read_member(file, name, where) for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            _fail(where, f"cannot be read ({error.strerror}); check its permissions")
        _fail(where, f"is a damaged or truncated npz file; copy it again, or {save}")


def _wanted(found: set[str], where: str) -> list[str]:
    """Which arrays to read: x and y, or the test pair with or without the training pair."""
    names = sorted(found)
    listing = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    got = f"found {listing}" if names else "found none"
    if found & set(_PLAIN) and found & {*_TRAIN, *_TEST}:
        _fail(where, f"holds both x/y and x_train..y_test arrays ({got}); keep one set of names")
    if found & set(_PLAIN):
        wanted = [*_PLAIN]
    else:
        wanted = [*_TRAIN, *_TEST] if found & set(_TRAIN) else [*_TEST]
    missing = [name for name in wanted if name not in found]
    if missing:
        _fail(
            where,
            f"lacks the array{'s'[: len(missing) > 1]} {', '.join(missing)} ({got}); save x and y, "
            "or x_test and y_test with x_train and y_train if the members are known",
        )
    return wanted


def _read_member(file: Any, name: str, where: str) -> np.ndarray:
    try:
        array = file[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            _fail(
                where,
                f"{name} is a pickled object array, which is never loaded (a pickle can run code);"
                f" save it as plain numbers, for example np.stack({name}).astype(np.float32)",
            )
        _fail(where, f"{name} is damaged; save the file anew with np.savez")
    except MemoryError:
        _fail(where, f"{name} does not fit into memory; save fewer examples")
    if not isinstance(array, np.ndarray):  # a member that is not an npy file comes as bytes
        _fail(where, f"{name} is not an array; save the file anew with np.savez")
    return array


def _inputs(
    x: Any, name: str, bounds: tuple[float, float], where: str, stored: bool = False
) -> np.ndarray:
    """Inputs as float32 within bounds; ``stored`` ones may be uint8, still to be scaled."""
    x = np.asarray(x)
    low, high = bounds
    if x.ndim < 2:
        _fail(where, f"{name} must have shape [N, ...], one row an example (got {x.shape})")
    if x.size == 0:
        _fail(where, f"{name} is empty (shape {x.shape}); save one example or more")
    if x.dtype.kind == "O":
        _fail(where, f"{name} has object dtype; make it numbers with np.stack({name})")
    if stored and x.dtype == np.uint8:
        if x.max() <= 1:
            _fail(
                where,
                f"{name} is uint8 with no value above 1, and uint8 is read as 0..255; "
                f"if these are 0/1 values save {name}.astype(np.float32)",
            )
        # Each pixel through a table of 256: exact at both ends, and no large temporaries.
        return np.linspace(low, high, 256).astype(np.float32)[x]
    if not np.issubdtype(x.dtype, np.floating):
        remedy = "save uint8 pixels of 0..255, or float32" if stored else "make it float32"
        _fail(where, f"{name} has dtype {x.dtype}; {remedy} within bounds {low:g} {high:g}")
    if not np.isfinite(x).all():
        count = int(np.sum(~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))))
        _fail(
            where,
            f"{name} has NaN or infinite values in {count} of {len(x)} examples; "
            "remove or repair those examples",
        )
    lowest, highest = float(x.min()), float(x.max())
    # One rounding of the largest bound is forgiven, and clipped away.
    slack = float(np.finfo(np.float32).eps) * max(1.0, abs(low), abs(high))
    if lowest < low - slack or highest > high + slack:
        problem = f"{name} ranges from {lowest:g} to {highest:g}, outside bounds {low:g} {high:g}"
        if (low, high) == (0.0, 1.0) and lowest >= 0 and 127 < highest <= 255:
            _fail(
                where,
                f"{problem}; these look like pixels of 0..255: "
                "divide by 255 or store as uint8, or pass --bounds 0 255",
            )
        _fail(where, f"{problem}; rescale it, or pass its true range as --bounds LOW HIGH")
    return np.clip(x, low, high).astype(np.float32)


def _labels(y: Any, name: str, x_name: str, count: int, where: str) -> np.ndarray:
    """Labels as int32 ``[count]``."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        _fail(where, f"{name} must have shape [N] (got {y.shape}); save {name}[:, 0]")
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biuf":
        one_hot = ((y == 0) | (y == 1)).all() and (y.astype(np.int64).sum(axis=1) == 1).all()
        what = "one-hot labels" if one_hot else "a table"
        remedy = f"np.argmax({name}, axis=1)" if one_hot else "one integer an example"
        _fail(where, f"{name} is {what} of shape {y.shape}, not [N]; save {remedy}")
    if y.ndim != 1:
        _fail(where, f"{name} must have shape [N], one integer an example (got {y.shape})")
    if len(y) != count:
        _fail(
            where,
            f"{x_name} has {count} examples but {name} has {len(y)} labels; "
            "save one label for each example",
        )
    if y.dtype.kind not in "iu":
        if y.dtype.kind == "b":
            remedy = f"save {name}.astype(np.int32)"
        elif y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all():
            remedy = f"they are whole numbers: save {name}.astype(np.int32)"
        elif y.dtype.kind in "US":
            remedy = f"number the classes: np.unique({name}, return_inverse=True)[1]"
        else:
            remedy = "number the classes from 0 and save integers"
        _fail(where, f"{name} has dtype {y.dtype}, labels must be integers; {remedy}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= 2**31 - 1:
        _fail(
            where,
            f"{name} has labels from {low} to {high}; number the classes 0, 1, 2, ..., and leave "
            "out examples without a label",
        )
    return y.astype(np.int32)


# The third byte of an IDX file says what its numbers are; all are big-endian.
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_STEMS = {
    "x_train": "train-images",
    "y_train": "train-labels",
    "x_test": "t10k-images",
    "y_test": "t10k-labels",
}


def load_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads one array in the IDX format of MNIST, gzipped or plain (told by its first bytes).

    Args:
      path: the file.

    Returns:
      The array in the machine's byte order: MNIST's images are uint8 ``[N, 28, 28]``.

    Raises:
      DatasetError: if it is not an IDX file, or holds fewer or more bytes than its header says.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "labels.idx"
      >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
      >>> load_idx(path)
      array([7, 2, 1], dtype=uint8)

    References:
      LeCun, Cortes and Burges (1998), "The MNIST database of handwritten digits" (file formats).
    """
    path = Path(path)
    where = repr(str(path))
    _open_checks(path, where)
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            magic = file.read(4)
            known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _IDX_TYPES
            if not known or not 1 <= magic[3] <= 8:
                _fail(
                    where,
                    f"is not an IDX file (it starts with {magic.hex(' ') or 'nothing'}); "
                    "give one of MNIST's files, such as train-images-idx3-ubyte.gz",
                )
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                _fail(where, "ends within its header; download it again")
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
            dtype = np.dtype(_IDX_TYPES[magic[2]])
            size = math.prod(shape) * dtype.itemsize
            # One byte more than there should be, and never more than the file can hold (deflate
            # shrinks by 1032 at most): a lying header must not claim the memory.
            most = os.path.getsize(path) * (1032 if zipped else 1)
            content = file.read(min(size, most) + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        _fail(where, "is a damaged or truncated gzip file; download it again")
    except OSError as error:
        _fail(where, f"cannot be read ({error.strerror}); check its permissions")
    if len(content) != size:
        amount = f"only {len(content)}" if len(content) < size else "more"
        _fail(
            where,
            f"its header promises {size} bytes of shape {shape} but there are {amount}; "
            "download it again",
        )
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError:  # no values, but dimensions next to the 0 that are too large for NumPy
        _fail(where, f"its header promises the impossible shape {shape}; download it again")
    return array.astype(dtype.newbyteorder("="))


def idx_to_npz(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Makes the npz that `load_npz` reads from the four IDX files of MNIST or its like.

    Args:
      folder: holds one file each whose name starts with ``train-images``, ``train-labels``,
        ``t10k-images`` and ``t10k-labels``, gzipped or plain.
      out: the npz to write, with uint8 ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    Raises:
      DatasetError: if a file is missing or damaged, or images and labels do not match.

    Example:
      >>> idx_to_npz("mnist/", "mnist.npz")  # doctest: +SKIP

    References:
      LeCun, Cortes and Burges (1998), "The MNIST database of handwritten digits".
    """
    folder = Path(folder)
    where = repr(str(folder))
    if not folder.is_dir():
        _fail(where, "no such folder; give the one that holds the four IDX files")
    arrays = {}
    for name, stem in _IDX_STEMS.items():
        files = sorted(path for path in folder.glob(f"{stem}*") if path.is_file())
        if not files:
            _fail(where, f"has no file named {stem}-...; download it into this folder")
        arrays[name] = load_idx(files[0])
    for x_name, y_name in (_TRAIN, _TEST):
        if arrays[x_name].ndim != 3 or not arrays[x_name].size:
            _fail(
                where,
                f"{_IDX_STEMS[x_name]} has shape {arrays[x_name].shape}, not images [N, H, W]; "
                "check that images and labels are not exchanged",
            )
        _labels(arrays[y_name], _IDX_STEMS[y_name], _IDX_STEMS[x_name], len(arrays[x_name]), where)
    with open(out, "wb") as file:  # an open file, because savez would append .npz to a name
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
