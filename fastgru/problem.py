"""The seam: one validated, canonical GRU call, and what comes back.

Layers build a `GRUProblem`; backends read it and never check again. All text of wrong-array
errors stands here, so that every layer says the same thing.

Symbols: B batch, T timesteps, I input features, H units; gate order z (update), r (reset),
h (candidate) in every array with a 3H axis.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from fastgru.device import check_place, device_array, held, on_device, place
from fastgru.errors import BackendError as BackendError
from fastgru.masks import NO_MASK, MaskPlan

MOST_THREADS = 1 << 20  # an upper bound above this one says nothing more, and C's int holds it
ADDRESSES = 1 << 47  # bytes that a process can name on the 64-bit machines of today

_PAD = "pad rows of different lengths with zeros, and pass lengths=[...]"

_versions = itertools.count(1)


class GRUSpec(NamedTuple):
    """What the arithmetic is, apart from arrays: hashable, the key of packed copies.

    ``activation`` and ``recurrent_activation`` are `fastgru.activations.Activation` objects, or
    any callable for a custom one. ``dtype`` is that of x, the state and the outputs: float32,
    float64, float16 or ml_dtypes' bfloat16. For the last two, sums and gates are float32, and the
    state is rounded at each step. ``precision`` "tf32" lets a device round the operands of float32
    products to TF32; None does not.
    """

    input_dim: int
    units: int
    dtype: np.dtype
    activation: Any
    recurrent_activation: Any
    use_bias: bool
    reset_after: bool
    precision: str | None = None


class GRUWeights:
    """One consistent, immutable set of weights, in the dtype of the spec that they are used with.

    Attributes
    ----------
    kernel : ndarray, shape (I, 3H)
    recurrent_kernel : ndarray, shape (H, 3H)
    bias : ndarray or None
        (2, 3H) with reset_after (row 0 input, row 1 recurrent), else (3H,).
    version : int
        Unique in the process; every write makes a new GRUWeights with a new number.
    packed : dict
        Where backends keep their packed copies, keyed by backend name; freed with the weights.
    """

    __slots__ = ("__weakref__", "bias", "kernel", "packed", "recurrent_kernel", "version")

    def __init__(
        self, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray | None = None
    ) -> None:
        self.kernel = kernel
        self.recurrent_kernel = recurrent_kernel
        self.bias = bias
        self.version = next(_versions)
        self.packed: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Packed copies belong to one process; the version must stay unique in the new one.
        return GRUWeights, (self.kernel, self.recurrent_kernel, self.bias)


class _Fields(NamedTuple):
    """The fields of a `GRUProblem`, in a tuple: the cheapest object that nobody can change."""

    spec: GRUSpec
    x: Any
    h0: Any
    mask: MaskPlan
    resets: Any
    dropout: Any
    recurrent_dropout: Any
    reverse: bool
    return_sequences: bool
    zero_output_for_mask: bool
    out: Any
    num_threads: int
    use_cudnn: bool | str
    unroll: bool


class GRUProblem(_Fields):
    """One call, validated: what a backend has to compute.

    It never changes; ``problem._replace(x=...)`` makes another one. Its arrays are NumPy's, or,
    with ``on_device``, CuPy's on the current device; then y and all else that a backend returns is
    there too. ``mask.lengths`` is always on the host, the dropout masks are where they were drawn.

    Step s of the processing order reads time ``T - 1 - s`` when ``reverse`` else ``s``; mask and
    resets are in input order and are read at the same time index as x.

    Attributes
    ----------
    spec : GRUSpec
    x : ndarray, shape (B, T, I), spec.dtype, any strides, possibly read-only
    h0 : ndarray, shape (B, H), spec.dtype, any strides; None means zeros
    mask : MaskPlan
    resets : ndarray of bool, shape (B, T), C-contiguous; None means none
        True: the row's state is set to zero before that step, masked step or not.
    dropout : ndarray, shape (B, I) or (3, B, I), spec.dtype, or None
        Multiplies x at every step; (3, B, I) has one mask per gate (implementation 1).
    recurrent_dropout : ndarray, shape (3, B, H), spec.dtype, or None
        Multiplies the state before each gate's recurrent product, not in the final blend.
    reverse : bool
    return_sequences : bool
        y is (B, T, H) in processing order, else the last output (B, H).
    zero_output_for_mask : bool
        Masked outputs are zeros instead of the previous output.
    out : ndarray or None
        Where y goes if given: y's shape and spec.dtype, writeable, any strides, overlapping
        nothing else in the problem.
    num_threads : int
        Upper bound for this call on the host; 0 means the library's setting.
    use_cudnn : {"auto", True, False}
        False: cuDNN must not serve the call, although it could.
    unroll : bool
        As the layer has it; cuDNN cannot unroll.
    """

    __slots__ = ()
    # Two problems are never compared by their arrays.
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __new__(  # noqa: D102 (the class says it)
        cls,
        *,
        spec: GRUSpec,
        x: Any,
        h0: Any = None,
        mask: MaskPlan = NO_MASK,
        resets: Any = None,
        dropout: Any = None,
        recurrent_dropout: Any = None,
        reverse: bool = False,
        return_sequences: bool = True,
        zero_output_for_mask: bool = False,
        out: Any = None,
        num_threads: int = 0,
        use_cudnn: bool | str = "auto",
        unroll: bool = False,
    ) -> GRUProblem:
        what = (spec, x, h0, mask, resets, dropout, recurrent_dropout, reverse, return_sequences)
        how = (zero_output_for_mask, out, num_threads, use_cudnn, unroll)
        return tuple.__new__(cls, what + how)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self._asdict()

    def with_x(self, x: Any) -> GRUProblem:
        """Return the problem of another x, as ``_replace(x=x)`` does in three times the time."""
        return tuple.__new__(type(self), (self[0], x, *self[2:]))

    @property
    def on_device(self) -> bool:
        """Whether the arrays are CuPy's."""
        return type(self.x) is not np.ndarray and on_device(self.x)


class GRUOutput(NamedTuple):
    """What ``Backend.forward`` returns.

    y : (B, T, H) in processing order with return_sequences, else (B, H).
    state : (B, H), the state after the last step; never the same memory as y, x or h0.
    states : (B, T, H), the state after each processed step, when ``save`` was asked; else None.
        It may share memory with y: who hands y to a user copies one of them.
    workspace : whatever the backend's own ``backward`` wants to have back; None is always allowed.
    """

    y: np.ndarray
    state: np.ndarray
    states: np.ndarray | None
    workspace: Any = None


class GRUGrads(NamedTuple):
    """What ``Backend.backward`` returns; fresh arrays in the shapes of the problem's arrays.

    ``x`` and ``h0`` have the spec's dtype. Those of the weights may be in the dtype of sums, where
    that is a wider one: who hands them on casts them to the dtype of the variables.
    """

    x: np.ndarray
    h0: np.ndarray
    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray | None

    @property
    def weights(self) -> list[Any]:
        """Those of the weights, in the order of a cell's weights."""
        return [g for g in (self.kernel, self.recurrent_kernel, self.bias) if g is not None]


def as_array(value: Any, dtype: np.dtype, what: str, like: Any = None) -> Any:
    """Return ``value`` as an array of ``dtype``: floats, integers and bools are cast, as in Keras.

    NumPy warns (RuntimeWarning) of numbers that are too large for ``dtype`` and become infinite.
    An array stays where it is, in host memory (NumPy) or on a device (CuPy). On the host the result
    is a view that no other thread has (`fastgru.device.held`), or a copy.

    Parameters
    ----------
    like : array, optional
        Where the call's arrays are; Python numbers and lists follow it.

    Raises
    ------
    TypeError
        Complex or non-numeric values, or an array that is not where ``like`` is.
    MemoryError
        A view that repeats its memory until no machine could hold a mask or a result of its size.
    """
    if type(value) is np.ndarray and not on_device(like):
        value = held(value)  # before anything is checked
        if value.dtype == dtype and value.nbytes < ADDRESSES:
            return value
    where = place(value)
    if like is not None:
        check_place(where, value, like, what)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{what}: expected a plain array, got a numpy.ma.MaskedArray; pass its .data, and "
            "what to skip as mask=... (True = use the step)"
        )
    array: Any
    if where == "device":
        array = device_array(value, what)
    elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        array = np.from_dlpack(value)
    else:
        array = _host_array(value, what)
    array = _cast(array, dtype, what)
    if array.nbytes >= ADDRESSES:
        raise MemoryError(f"{what}: {array.nbytes} bytes, a view of shape {array.shape}")
    return np.asarray(array, like=like) if on_device(like) else array


def _host_array(value: Any, what: str) -> np.ndarray:
    """Return what NumPy makes of lists, numbers and arrays of other libraries, or raise."""
    if value is None:
        raise TypeError(f"{what}: expected numbers, got None")
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{what}: expected numbers, got a {type(value).__name__} that records operations for "
            f"its gradient; pass {what}.detach()"
        )
    try:
        return held(np.asarray(value))
    except ValueError as error:
        if not isinstance(value, (list, tuple)):  # a symbolic tensor of Keras, for one
            kind = type(value).__name__
            raise ValueError(f"{what}: expected an array, got {kind}; NumPy: {error}") from None
        how = f"{_PAD}; " if what == "sequences" else ""
        raise ValueError(f"{what}: expected a rectangular array; {how}NumPy: {error}") from None
    except (TypeError, RuntimeError) as error:  # what it is made of does not become an array
        how = f"; pass {what}.float()" if "BFloat16" in str(error) else ""
        kind = type(value).__name__
        raise TypeError(f"{what}: expected an array, got {kind}{how}; NumPy: {error}") from None


def _cast(array: Any, dtype: np.dtype, what: str) -> Any:
    """Return an array of real numbers in ``dtype``, or raise."""
    if array.dtype == dtype:
        return array.astype(dtype, copy=False)  # the native byte order, no copy if it is already
    if array.dtype.kind == "c":
        raise TypeError(f"{what}: expected real numbers, got {array.dtype}; pass .real or .imag")
    if array.dtype.names or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{what}: expected numbers, got {_no_numbers(array, what)}")
    return array.astype(dtype)


def _no_numbers(array: Any, what: str) -> str:
    """Return what an array has in place of numbers, and what to do about it."""
    if array.dtype != object:
        return f"dtype {array.dtype}"
    if array.ndim == 0:
        kind = type(array.item()).__name__
        ragged = what == "sequences" and "ragged" in kind.lower()  # TensorFlow's RaggedTensor
        return f"a {kind}; {_PAD if ragged else 'pass an array, or lists of numbers'}"
    if what == "sequences" and array.ndim < 3:
        return f"dtype object; {_PAD}"
    return f"dtype object; if numbers are in it, convert it with numpy.asarray({what}, 'float64')"


def check_shape(array: np.ndarray, shape: tuple[int | None, ...], what: str, hint: str) -> None:
    """Raise ValueError unless ``array`` has ``shape``; None stands for any size."""
    if array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    ):
        return
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    raise ValueError(f"{what}: expected shape {hint} = {wanted}, got {array.shape}")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, hint: str, like: Any) -> Any:
    """Validate an ``out=`` argument, which is where ``like`` is; return where to write.

    On the host that is a view of it that no other thread has.
    """
    if type(out) is not np.ndarray or on_device(like):
        check_place(place(out), out, like, "out")
        name, right = (
            "NumPy",
            isinstance(out, np.ndarray) and not isinstance(out, np.ma.MaskedArray),
        )
        if on_device(like):
            name, right = "CuPy", on_device(out)
        if not right:
            raise TypeError(f"out: expected a {name} array, got {type(out).__name__}")
    if not on_device(out):
        out = held(out)
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out: expected dtype {dtype.name}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {hint} = {shape}, got {out.shape}")
    if not on_device(out) and not out.flags.writeable:  # CuPy's arrays always are
        raise ValueError("out: expected a writeable array, got a read-only one")
    return out


def check_num_threads(num_threads: Any) -> int:
    """Return ``num_threads`` as an int; None means 0, the library's setting."""
    if num_threads is None:
        return 0
    if isinstance(num_threads, (bool, float)) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads: expected an integer >= 1, got {num_threads!r}")
    count = num_threads.__index__()
    if count < 1:
        raise ValueError(f"num_threads: expected an integer >= 1, got {count}")
    return min(int(count), MOST_THREADS)
