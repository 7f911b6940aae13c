"""libcudnn on the host: what its header and its reference state of GRUs, over NumPy's memory.

It is loaded as the real one is, through C function pointers. Where the real one leaves something
undefined it writes NaN, and it refuses what the real one refuses; what the real one does not check,
and would answer with wrong numbers, gives EXECUTION_FAILED with the reason.
"""

import ctypes
import traceback
from types import SimpleNamespace

import numpy as np

from fastgru._cuda.libcudnn import SIGNATURES

NAMES = {
    1001: b"CUDNN_STATUS_NOT_INITIALIZED",
    2000: b"CUDNN_STATUS_BAD_PARAM",
    3000: b"CUDNN_STATUS_NOT_SUPPORTED",
    5000: b"CUDNN_STATUS_EXECUTION_FAILED",
}
TYPES = {0: np.dtype("float32"), 1: np.dtype("float64"), 2: np.dtype("float16")}
STANDARD, STATIC, DYNAMIC, SMALL = range(4)
SUPPORTED = {  # data, sums -> algorithms, as cudnnSetRNNDescriptor_v8 of 9.28 answers
    (0, 0): {STANDARD, STATIC, DYNAMIC, SMALL},
    (1, 1): {STANDARD, DYNAMIC},
    (2, 0): {STANDARD, STATIC, DYNAMIC, SMALL},
}
ALIGNMENT = 16
STREAM = 4321  # the caller's current one
RESET, UPDATE, NEW = range(3)  # linLayerID of input matrices; recurrent ones are three further


class Refused(Exception):
    def __init__(self, status, text=""):
        super().__init__(text)
        self.status = status


def require(condition, status, text=""):
    if not condition:
        raise Refused(status, text)


class FakeCudnn:
    """What ctypes.CDLL gives for libcudnn."""

    def __init__(self, version=91002, most_steps=65535, without=()):
        self.version, self.most_steps = version, most_steps
        self.without = set(without)  # algorithms that rnnForward refuses
        self.small_units, self.made = 192, 0
        self.calls, self.objects, self.runs, self._last_error = [], {}, {}, b""
        self._names = {status: ctypes.create_string_buffer(name) for status, name in NAMES.items()}
        self.cudnnGetVersion = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: self.version)
        # A callback cannot give a char * that lives on, so it gives its address.
        name_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)
        self.cudnnGetErrorString = name_of(lambda status: ctypes.addressof(self._names[status]))
        last = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
        self.cudnnGetLastErrorString = last(self._give_last_error)
        for name, arguments in SIGNATURES.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._checked(name)))

    def _give_last_error(self, at, size):
        text = self._last_error[: size - 1] + b"\0"
        ctypes.memmove(at, text, len(text))

    def _checked(self, name):
        function = getattr(self, "_" + name.removeprefix("cudnn"))

        def call(*arguments):
            self.calls.append(name.removeprefix("cudnn"))
            self._last_error = b""
            try:
                function(*arguments)
            except Refused as refused:
                self._last_error = str(refused).encode()
                return refused.status
            except Exception:
                self._last_error = traceback.format_exc().encode()
                return 5000
            return 0

        return call

    # ---- objects -------------------------------------------------------------------------------

    def _new(self, at, kind):
        self.made += 1
        at[0] = self.made
        self.objects[self.made] = SimpleNamespace(kind=kind, alive=True, set=False)

    def _get(self, number, kind):
        found = self.objects.get(number)
        require(found is not None and found.kind == kind and found.alive, 2000, f"no {kind}")
        return found

    def _end(self, number, kind):
        self._get(number, kind).alive = False

    def alive(self, kind):
        return [thing for thing in self.objects.values() if thing.kind == kind and thing.alive]

    def _Create(self, at):
        self._new(at, "handle")

    def _Destroy(self, handle):
        self._end(handle, "handle")

    def _SetStream(self, handle, stream):
        self._get(handle, "handle").stream = stream

    def _CreateTensorDescriptor(self, at):
        self._new(at, "tensor")

    def _DestroyTensorDescriptor(self, tensor):
        self._end(tensor, "tensor")

    def _SetTensorNdDescriptor(self, tensor, dtype, rank, shape, strides):
        tensor = self._get(tensor, "tensor")
        tensor.dtype, tensor.shape = TYPES[dtype], tuple(shape[:rank])
        packed = np.empty(tensor.shape, "b").strides
        assert tuple(strides[:rank]) == packed
        tensor.set = True

    def _CreateRNNDescriptor(self, at):
        self._new(at, "rnn")

    def _DestroyRNNDescriptor(self, rnn):
        self._end(rnn, "rnn")

    def _SetRNNDescriptor_v8(
        self, rnn, algorithm, mode, bias, direction, inputs, data, sums, math, I, H, P, *rest
    ):
        rnn = self._get(rnn, "rnn")
        layers, dropout, flags = rest
        assert (mode, bias, inputs, layers, dropout, flags) == (3, 2, 0, 1, None, 1)
        require(I > 0 and H > 0, 2000, "inputSize < 1 || hiddenSize < 1")
        require(H == P, 3000)
        require(algorithm in SUPPORTED.get((data, sums), ()), 3000)
        rnn.algorithm, rnn.dtype, rnn.math = algorithm, TYPES[data], math
        rnn.directions, rnn.I, rnn.H, rnn.set = direction + 1, I, H, True
        self._lay_out(rnn)

    def _lay_out(self, rnn):
        """Every algorithm has its matrices and biases somewhere else."""
        rng = np.random.default_rng(7 * rnn.algorithm + rnn.H)
        blocks = [
            (d, layer, what)
            for d in range(rnn.directions)
            for layer in range(6)
            for what in ("matrix", "bias")
        ]
        rnn.blocks, end = {}, 0
        for block in rng.permutation(len(blocks)):
            _, layer, what = key = blocks[block]
            shape = (rnn.H, rnn.I if layer < 3 else rnn.H) if what == "matrix" else (rnn.H,)
            end += int(rng.integers(0, 3)) * ALIGNMENT
            rnn.blocks[key] = (end, shape)
            end += -(-int(np.prod(shape)) * rnn.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        rnn.size = end + 10

    def _CreateRNNDataDescriptor(self, at):
        self._new(at, "data")

    def _DestroyRNNDataDescriptor(self, data):
        self._end(data, "data")

    def _SetRNNDataDescriptor(self, data, dtype, layout, steps, batch, size, lengths, fill):
        data = self._get(data, "data")
        lengths = np.array(lengths[:batch])
        require(min(steps, batch, size) > 0, 2000, "maxSeqLength <= 0")
        require(steps <= self.most_steps, 3000)
        require((lengths >= 0).all() and (lengths <= steps).all(), 2000, "seqLengthArray")
        assert layout in (0, 2), "packed sequences are not what this plays"
        assert fill is None
        data.dtype, data.layout, data.lengths = TYPES[dtype], layout, lengths
        data.shape, data.set = (steps, batch, size), True

    # ---- sizes and places ----------------------------------------------------------------------

    def _GetRNNWeightSpaceSize(self, handle, rnn, size):
        self._get(handle, "handle")
        size[0] = self._get(rnn, "rnn").size

    def _GetRNNTempSpaceSizes(self, handle, rnn, mode, x, work, reserve):
        self._get(handle, "handle")
        steps, batch, _ = self._get(x, "data").shape
        work[0] = 101 + batch
        reserve[0] = (8 + 3 * steps * batch) if mode else 0

    def _GetRNNWeightParams(
        self, handle, rnn, pseudo, size, space, layer, m_tensor, m_at, b_tensor, b_at
    ):
        self._get(handle, "handle")
        rnn = self._get(rnn, "rnn")
        require(size == rnn.size and space, 2000)
        self._get(m_tensor, "tensor"), self._get(b_tensor, "tensor")
        m_at[0] = space + rnn.blocks[pseudo, layer, "matrix"][0]
        b_at[0] = space + rnn.blocks[pseudo, layer, "bias"][0]

    def _weights(self, rnn, space, direction):
        """Views on matrices and biases, by linLayerID."""
        found = []
        for layer in range(6):
            for what in ("matrix", "bias"):
                offset, shape = rnn.blocks[direction, layer, what]
                found.append(memory(space + offset, rnn.dtype, shape))
        return found[::2], found[1::2]

    # ---- computing -----------------------------------------------------------------------------

    def _begin(self, handle, rnn, lengths, x, y, h, size, work_size, work):
        """Check what the three calls have in common."""
        assert self._get(handle, "handle").stream == STREAM
        rnn, x, y = self._get(rnn, "rnn"), self._get(x, "data"), self._get(y, "data")
        assert lengths is None, "lengths on the device may be gone when they are read"
        require(size == rnn.size, 2000, "weightSpaceSize")
        require(rnn.algorithm not in self.without, 3000)
        require(rnn.algorithm == STANDARD or (x.lengths == x.shape[0]).all(), 3000)
        require(rnn.algorithm != SMALL or self.small_units >= rnn.H, 3000)
        assert (x.lengths > 0).all(), "nobody knows what becomes of rows without steps"
        assert (x.lengths == y.lengths).all()
        assert x.layout == y.layout
        assert x.shape[2] == rnn.I
        assert y.shape == (*x.shape[:2], rnn.directions * rnn.H)
        assert self._get(h, "tensor").shape == (rnn.directions, x.shape[1], rnn.H)
        assert rnn.dtype == x.dtype == y.dtype == self._get(h, "tensor").dtype
        assert work_size >= 101 + x.shape[1]
        ctypes.memset(work, 0xFF, work_size)  # NaN, whatever it is read as
        return rnn, x, y

    def _RNNForward(
        self, handle, rnn, mode, lengths, x_desc, x, y_desc, y, h_desc, hx, hy, *others
    ):
        c_desc, cx, cy, size, space, work_size, work, reserve_size, reserve = others
        assert c_desc is cx is cy is None
        common = (handle, rnn, lengths, x_desc, y_desc, h_desc, size, work_size, work)
        rnn, x_desc, y_desc = self._begin(*common)
        steps, batch, _ = x_desc.shape
        x = sequences(x, x_desc).astype(float)
        assert np.isfinite(x).all(), "nobody says that padding is not read"
        y = sequences(y, y_desc)
        y[...] = np.nan
        shape = (rnn.directions, batch, rnn.H)
        hx_ = np.zeros(shape) if hx is None else aligned(hx, rnn.dtype, shape).astype(float)
        hy = aligned(hy, rnn.dtype, shape)
        tapes = []
        for d in range(rnn.directions):
            weights = self._weights(rnn, space, d)
            y_part = y[:, :, d * rnn.H : (d + 1) * rnn.H]
            tape, hy[d] = forward(x, x_desc.lengths, hx_[d], weights, bool(d), y_part)
            tapes.append(tape)
        if mode:
            assert reserve_size >= 8 + 3 * steps * batch
            token = len(self.runs) + 1
            self.runs[token] = SimpleNamespace(tapes=tapes, x=x, y=y.copy(), data=False)
            memory(reserve, np.dtype(np.int64), ())[...] = token

    def _RNNBackwardData_v8(
        self, handle, rnn, lengths, y_desc, y, dy, x_desc, dx, h_desc, hx, dhy, dhx, *others
    ):
        *cells, size, space, work_size, work, reserve_size, reserve = others
        assert cells == [None] * 4
        common = (handle, rnn, lengths, x_desc, y_desc, h_desc, size, work_size, work)
        rnn, x_desc, y_desc = self._begin(*common)
        _, batch, _ = x_desc.shape
        run = self._run(reserve, reserve_size)
        np.testing.assert_array_equal(sequences(y, y_desc), run.y)
        dy, dx = sequences(dy, y_desc).astype(float), sequences(dx, x_desc)
        shape = (rnn.directions, batch, rnn.H)
        dhy = np.zeros(shape) if dhy is None else aligned(dhy, rnn.dtype, shape).astype(float)
        dhx = aligned(dhx, rnn.dtype, shape)
        total = np.zeros(dx.shape)
        run.gradients = []
        for d in range(rnn.directions):
            weights = self._weights(rnn, space, d)
            part = dy[:, :, d * rnn.H : (d + 1) * rnn.H]
            dx_part, dhx[d], gradients = backward(run.tapes[d], part, dhy[d], weights)
            total += dx_part
            run.gradients.append(gradients)
        padding = np.arange(total.shape[0])[:, None] >= x_desc.lengths
        total[padding] = np.nan
        dx[...] = total
        run.data = True

    def _RNNBackwardWeights_v8(
        self, handle, rnn, add, lengths, x_desc, x, h_desc, hx, y_desc, y, size, dspace, *others
    ):
        common = (handle, rnn, lengths, x_desc, y_desc, h_desc, size, *others[:2])
        rnn, x_desc, y_desc = self._begin(*common)
        require(add == 0, 3000, "CUDNN_WGRAD_MODE_SET")
        run = self._run(others[3], others[2])
        assert run.data, "BackwardWeights comes after BackwardData"
        np.testing.assert_array_equal(sequences(x, x_desc), run.x.astype(rnn.dtype))
        np.testing.assert_array_equal(sequences(y, y_desc), run.y)
        for d, (matrices, biases) in enumerate(run.gradients):
            at = self._weights(rnn, dspace, d)
            for view, gradient in zip((*at[0], *at[1]), (*matrices, *biases), strict=True):
                view += gradient.astype(rnn.dtype)

    def _run(self, reserve, reserve_size):
        assert reserve_size >= 8
        return self.runs[int(memory(reserve, np.dtype(np.int64), ()))]


def memory(address, dtype, shape):
    count = int(np.prod(shape))
    assert address
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


def aligned(address, dtype, shape):
    assert address % ALIGNMENT == 0, "cuDNN reads vectors"
    return memory(address, dtype, shape)


def sequences(address, data):
    """View of (steps, B, n), however it lies."""
    steps, batch, size = data.shape
    if data.layout == 0:
        return aligned(address, data.dtype, data.shape)
    return aligned(address, data.dtype, (batch, steps, size)).transpose(1, 0, 2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward(x, lengths, h, weights, backwards, y):
    """One direction; writes y, returns what `backward` needs and the last state."""
    w, b = ([array.astype(float) for array in arrays] for arrays in weights)
    rows, tape = np.arange(len(lengths)), []
    for k in range(lengths.max()):
        used = k < lengths
        at = np.where(used, lengths - 1 - k if backwards else k, 0)
        inputs = x[at, rows]
        p = [inputs @ w[g].T + b[g] for g in range(3)]
        q = [h @ w[3 + g].T + b[3 + g] for g in range(3)]
        r, z = sigmoid(p[RESET] + q[RESET]), sigmoid(p[UPDATE] + q[UPDATE])
        n = np.tanh(p[NEW] + r * q[NEW])
        after = ((1 - z) * n + z * h).astype(y.dtype).astype(float)
        tape.append((used, at, inputs, h, r, z, n, q[NEW]))
        h = np.where(used[:, None], after, h)
        y[at[used], rows[used]] = h[used]
    return (tape, x.shape), h


def backward(tape_and_shape, dy, dh, weights):
    """Gradients of x, the first state, and the weights by linLayerID."""
    tape, shape = tape_and_shape
    w = [array.astype(float) for array in weights[0]]
    dw, db = [np.zeros(m.shape) for m in w], [np.zeros(len(w[0])) for _ in w]
    dx, rows = np.zeros(shape), np.arange(shape[1])
    for used, at, inputs, h, r, z, n, q in reversed(tape):
        live = used[:, None]
        d = np.where(live, dh + np.where(live, dy[at, rows], 0), 0)
        dn = d * (1 - z) * (1 - n * n)
        arguments = [dn * q * r * (1 - r), d * (h - n) * z * (1 - z), dn]
        recurrent = [*arguments[:2], dn * r]
        before = d * z
        for g in range(3):
            before += recurrent[g] @ w[3 + g]
            dw[g] += arguments[g].T @ inputs
            dw[3 + g] += recurrent[g].T @ h
            db[g] += arguments[g].sum(0)
            db[3 + g] += recurrent[g].sum(0)
            np.add.at(dx, (at[used], rows[used]), (arguments[g] @ w[g])[used])
        dh = np.where(live, before, dh)
    return dx, dh, (dw, db)
