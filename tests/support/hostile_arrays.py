"""Arrays of unusual forms, and what a call must do with each.

A form of an array is (object, verdict): SAME, it has the array's values and is to be served like
the array itself; BAD, it is to be refused; EITHER, it depends on more than the array, as a dtype
does on its values. Objects that give NumPy itself a wrong address or size (``__array_interface__``,
buffers and DLPack capsules over memory that is not theirs) are left out: NumPy reads there before
fastgru is asked.
"""

import ctypes
import math

import numpy as np

SAME, EITHER, BAD = "same", "either", "bad"
HUGE = 2**44  # rows: of whatever size, their bytes are more than a machine can name


class Hostile(Exception):
    """Raised by an object that was passed: no error of fastgru's, it may come out as it is."""


class Subclass(np.ndarray):
    """An array of another type, as units or matrix libraries make them."""


class OnlyArray:
    """Converts itself when it is asked, as frames and tensors of other libraries do."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array.astype(dtype) if dtype is not None else self._array.copy()


class Liar(OnlyArray):
    """Says nothing true about itself; what NumPy asks for is an array all the same."""

    shape = (1, 2, 3, 4, 5)
    ndim = -3
    dtype = "no dtype"
    size = -1
    flags = None
    strides = ("a",)

    def __len__(self):
        return 1 << 40

    def __getitem__(self, index):
        raise Hostile


class Raises:
    """Raises where it is asked for an array."""

    def __init__(self, error):
        self._error = error

    def __array__(self, dtype=None, copy=None):
        raise self._error


class NoArray:
    """Returns something else where it is asked for an array."""

    def __array__(self, dtype=None, copy=None):
        return "no array"


class NoLength:
    """A sequence without an end that can be told."""

    def __len__(self):
        return -1

    def __getitem__(self, index):
        raise Hostile


class Truthless:
    """Has no truth, no number and no comparison."""

    def _raise(self, *arguments):
        raise Hostile

    __bool__ = __int__ = __float__ = __index__ = __eq__ = __hash__ = __iter__ = _raise


def strided(array, rng):
    """Return the same values with other strides: spread out, turned round, Fortran's or none."""
    kind = rng.integers(4)
    if kind == 0 or array.ndim == 0:
        return np.asfortranarray(array)
    axis = rng.integers(array.ndim)
    if kind == 1:
        return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)
    if kind == 2:
        return np.repeat(array, 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
    order = rng.permutation(array.ndim)
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def misaligned(array):
    """Return a copy that begins at an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    copy = np.ndarray(array.shape, array.dtype, memory)
    copy[...] = array
    return copy


def read_only(array):
    """Return a copy that may not be written to."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def subclass(array):
    """Return a view of another type."""
    return array.view(Subclass)


def swapped(array):
    """Return a copy in the other byte order."""
    return array.astype(array.dtype.newbyteorder())


def borrowed(array):
    """Return an array over memory of ctypes."""
    memory = (ctypes.c_char * max(array.nbytes, 1))()
    copy = np.ndarray(array.shape, array.dtype, memory)
    copy[...] = array
    return copy


EQUAL = [
    np.asfortranarray,
    misaligned,
    read_only,
    subclass,
    swapped,
    borrowed,
    OnlyArray,
    Liar,
    lambda a: strided(strided(a, np.random.default_rng(1)), np.random.default_rng(a.size)),
    lambda a: memoryview(np.ascontiguousarray(a)) if a.size else a,
    lambda a: misaligned(swapped(a)),
    lambda a: a.tolist() if a.size else a,
]

WRONG_TYPES = [
    "text",
    b"bytes",
    {},
    {"a": 1},
    set(),
    object(),
    np.datetime64("2020-01-01"),
    1j,
    float("nan"),
    -1,
    10**400,
    print,
    Ellipsis,
    range(3),
    [[1.0], [1.0, 2.0]],
    [[[None]]],
    NoArray(),
    NoLength(),
    Truthless(),
    Raises(Hostile()),
    Raises(ValueError("a")),
    Raises(TypeError("a")),
    Raises(MemoryError()),
    np.array([None, 1], object),
]


def forms(array, rng, numbers=True, alone=False):
    """Return one form of an array, (object, verdict).

    ``numbers``: of floats, where complex and other dtypes are refused. ``alone``: nothing
    else says how many rows and steps there are, so that other sizes may be right too.
    """
    kind = rng.integers(10)
    if kind < 4:
        return EQUAL[rng.integers(len(EQUAL))](array), SAME
    if kind < 5:
        return strided(array, rng), SAME
    if kind < 6:
        return WRONG_TYPES[rng.integers(len(WRONG_TYPES))], BAD
    if kind < 8:
        form, verdict = _misshapen(array, rng)
        return form, EITHER if alone and verdict == BAD and form.size < HUGE else verdict
    return _other_dtype(array, rng, numbers)


def _misshapen(array, rng):
    kind = rng.integers(6)
    axis = rng.integers(max(array.ndim, 1))
    if kind == 0 or array.ndim == 0:
        return array[None], BAD
    if kind == 1:
        return np.repeat(array, 2, axis), BAD if array.shape[axis] else EITHER
    if kind == 2:
        return array.transpose(rng.permutation(array.ndim)), EITHER
    if kind == 3:
        return np.delete(array, slice(None, 1), axis), BAD if array.shape[axis] else EITHER
    if kind == 4:
        return array.reshape(-1), BAD if array.ndim > 1 else SAME
    huge = list(array.shape)
    huge[axis] = HUGE
    if not math.prod(huge):
        return array[..., None], BAD
    return np.broadcast_to(array.dtype.type(0), huge), BAD


def _other_dtype(array, rng, numbers):
    wrong = ["complex64", "complex128", "S3", "U3", "datetime64[s]", "object", "V4"]
    other = ["float16", "float32", "float64", "longdouble", "bool", "int8", "int64", "uint64"]
    other += wrong
    name = other[rng.integers(len(other))]
    with np.errstate(all="ignore"):
        try:
            cast = np.nan_to_num(array).astype(name)
        except (TypeError, ValueError):  # numbers do not become dates, for one
            cast = np.zeros(array.shape, name)
    if cast.dtype == array.dtype:
        return array.astype(name), SAME
    return cast, BAD if name in wrong and numbers else EITHER


def infected(array, rng, infinities):
    """Return a copy with some odd values among its floats: NaN, subnormal, infinite."""
    values = [np.nan, 1e-42, -0.0, *([np.inf, -np.inf, 1e30, -1e30] if infinities else [])]
    copy = array.copy()
    if copy.size and copy.dtype.kind == "f":
        places = rng.integers(copy.size, size=rng.integers(1, 4))
        copy.reshape(-1)[places] = rng.choice(values, len(places))
    return copy
