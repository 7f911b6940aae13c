"""How a problem is handed to cuDNN, and its results are turned into fastgru's.

A `Session` lends one call a handle. A `Net` is a layer as one of cuDNN's algorithms computes it. A
`CudnnCall` has the arrays of one problem, or of a direction pair: both halves of a bidirectional
layer.

- cuDNN gets x itself if it has no gaps, rows or steps first; else a copy, steps first.
- x ends with the longest row. The persistent algorithms need all rows to be as long then.
- For a row without a valid step cuDNN gets one step of zeros, since its reference does not say what
  a length of 0 does. The row's result is replaced by the state that it had.
- If there are more steps than cuDNN takes, they go in pieces of time, each from the state of the
  one before.

Buffers are in cuDNN's order, (steps, B, n) or (B, steps, n), with the halves side by side in n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru import activations
from fastgru._cuda import engine as engines
from fastgru._cuda import libcudnn, source
from fastgru._cuda.engine import Launch
from fastgru.gates import KERAS_GATES, LAYOUTS
from fastgru.problem import GRUGrads, GRUOutput, GRUProblem, GRUSpec, GRUWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

# cuDNN refuses more than 65535 steps. This is a multiple of 16, so that all pieces are aligned.
STEPS = 65520
ALIGNMENT = 16  # bytes: cuDNN reads vectors and does not check their alignment

# dtype -> the type of data and of sums, and what products may use. 16-bit numbers are summed in
# float32. DEFAULT_MATH would round float32 to TF32, which only a layer's precision may ask for.
TYPES = {
    "float16": (libcudnn.DATA_HALF, libcudnn.DATA_FLOAT, libcudnn.TENSOR_OP_MATH),
    "bfloat16": (libcudnn.DATA_BFLOAT16, libcudnn.DATA_FLOAT, libcudnn.TENSOR_OP_MATH),
    "float32": (libcudnn.DATA_FLOAT, libcudnn.DATA_FLOAT, libcudnn.FMA_MATH),
    "float64": (libcudnn.DATA_DOUBLE, libcudnn.DATA_DOUBLE, libcudnn.DEFAULT_MATH),
}
# cuDNN's numbers of the input matrices of z, r and h; the recurrent ones are larger by 3.
_LINEAR_LAYERS = [LAYOUTS["cudnn"].gates.index(gate) for gate in KERAS_GATES]


class Session(NamedTuple):
    """What one call has alone: a handle, and descriptors that are destroyed at its end."""

    engine: engines.Engine
    library: libcudnn.Cudnn
    handle: int
    opened: ExitStack

    def new(self, kind: str) -> int:
        """Return a new descriptor; ``kind`` is RNN, RNNData or Tensor."""
        descriptor: int = getattr(self.library, f"create{kind}Descriptor")()
        self.opened.callback(getattr(self.library, f"destroy{kind}Descriptor"), descriptor)
        return descriptor


class Descriptors(NamedTuple):
    """cuDNN's descriptors of x, of y and of the states, for one piece of time."""

    x: int
    y: int
    h: int


class WeightSpace(NamedTuple):
    """Weights in cuDNN's layout, of these versions; places[d] (4, 3) is `at` in cudnn.cu."""

    versions: list[int]
    space: Any
    places: list[Any]


class Net:
    """A layer by one algorithm: one direction, or a direction pair."""

    def __init__(self, session: Session, spec: GRUSpec, directions: int, algorithm: int) -> None:
        self.session, self.spec, self.directions = session, spec, directions
        self.algorithm = algorithm
        data, sums, math = TYPES[spec.dtype.name]
        if spec.precision == "tf32" and math == libcudnn.FMA_MATH:
            math = libcudnn.DEFAULT_MATH
        self._data = data
        self._ids = (session.handle, session.new("RNN"))
        session.library.setRNNDescriptor_v8(
            *(self._ids[1], algorithm, libcudnn.GRU, libcudnn.RNN_DOUBLE_BIAS),
            libcudnn.BIDIRECTIONAL if directions == 2 else libcudnn.UNIDIRECTIONAL,
            *(libcudnn.LINEAR_INPUT, data, sums, math),
            *(spec.input_dim, spec.units, spec.units, 1),
            *(0, libcudnn.RNN_PADDED_IO_ENABLED),  # no dropout between layers
        )
        self._space_bytes = session.library.getRNNWeightSpaceSize(*self._ids)

    def descriptors(self, steps: int, lengths: Sequence[int], steps_first: bool) -> Descriptors:
        """Describe rows of these lengths, in buffers of ``steps`` steps."""
        new, library, units = self.session.new, self.session.library, self.spec.units
        layout = (
            libcudnn.RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED
            if steps_first
            else libcudnn.RNN_DATA_LAYOUT_BATCH_MAJOR_UNPACKED
        )
        made = Descriptors(new("RNNData"), new("RNNData"), new("Tensor"))
        for descriptor, size in ((made.x, self.spec.input_dim), (made.y, self.directions * units)):
            library.setRNNDataDescriptor(descriptor, self._data, layout, steps, size, lengths)
        library.setTensorNdDescriptor(made.h, self._data, (self.directions, len(lengths), units))
        return made

    def forward(
        self, training: bool, desc: Descriptors, x: Any, hx: Any, y: Any, hy: Any, space: Any
    ) -> Any:
        """Write y and hy, and return the reserve space, which `backward` takes."""
        mode = libcudnn.FWD_MODE_TRAINING if training else libcudnn.FWD_MODE_INFERENCE
        at = self.session.engine.address
        work, reserve = self._scratch(mode, desc)
        self.session.library.rnnForward(
            *(*self._ids, mode, 0, desc.x, at(x), desc.y, at(y), desc.h, at(hx), at(hy), 0, 0, 0),
            *(self._space_bytes, at(space), *self._sized(work), *self._sized(reserve)),
        )
        return reserve

    def backward(
        self,
        desc: Descriptors,
        x: Any,
        hx: Any,
        y: Any,
        dy: Any,
        dhy: Any,
        dx: Any,
        dhx: Any,
        space: Any,
        dspace: Any,
        reserve: Any,
    ) -> None:
        """Write dx and dhx, and add to dspace; cuDNN requires this order of its two calls."""
        at, library = self.session.engine.address, self.session.library
        work = self._sized(self._scratch(libcudnn.FWD_MODE_TRAINING, desc)[0])
        library.rnnBackwardData_v8(
            *(*self._ids, 0, desc.y, at(y), at(dy), desc.x, at(dx)),
            *(desc.h, at(hx), at(dhy), at(dhx), 0, 0, 0, 0),
            *(self._space_bytes, at(space), *work, *self._sized(reserve)),
        )
        library.rnnBackwardWeights_v8(
            *(*self._ids, libcudnn.WGRAD_MODE_ADD, 0, desc.x, at(x), desc.h, at(hx)),
            *(desc.y, at(y), self._space_bytes, at(dspace), *work, *self._sized(reserve)),
        )

    def _scratch(self, mode: int, desc: Descriptors) -> list[Any]:
        sizes = self.session.library.getRNNTempSpaceSizes(*self._ids, mode, desc.x)
        item = self.spec.dtype.itemsize
        return [self.session.engine.empty((-(-n // item),), self.spec.dtype) for n in sizes]

    def _sized(self, scratch: Any) -> tuple[int, int]:
        return scratch.nbytes, self.session.engine.address(scratch)

    # ---- weights -------------------------------------------------------------------------------

    def space(self) -> Any:
        """Return zeros of the size of cuDNN's weights."""
        item = self.spec.dtype.itemsize
        return self.session.engine.zeros((-(-self._space_bytes // item),), self.spec.dtype)

    def packed(self, weights: Sequence[GRUWeights]) -> WeightSpace:
        """Return the weights of each direction in cuDNN's layout, made once for their versions."""
        engine, spec = self.session.engine, self.spec
        kept = weights[0].packed.setdefault("cudnn", {})
        key = (engine, spec, self.algorithm, self.directions)
        versions = [w.version for w in weights]
        packed: WeightSpace | None = kept.get(key)
        if packed is not None and packed.versions == versions:
            return packed
        space = self.space()
        packed = WeightSpace(versions, space, [self._places(space, d) for d in range(len(weights))])
        for w, at in zip(weights, packed.places, strict=True):
            arrays = (w.kernel, w.recurrent_kernel, w.bias)
            moved = [None if array is None else engine.array(array) for array in arrays]
            self._launch("pack_weights", at, *moved, space)
        engine.synchronize()
        kept[key] = packed
        return packed

    def gradients(self, dspace: Any, at: Any) -> tuple[Any, Any, Any]:
        """Return one direction's gradients of the kernels and the bias, from cuDNN's layout."""
        I, H = self.spec.input_dim, self.spec.units
        everything = self.session.engine.empty((I + H + 2, 3 * H), self.spec.dtype)
        self._launch("unpack_weights", at, dspace, everything)
        bias = everything[I + H :] if self.spec.use_bias else None
        return everything[:I], everything[I : I + H], bias

    def _launch(self, name: str, *arguments: Any) -> None:
        I, H = self.spec.input_dim, self.spec.units
        options, size = kernel_options(self.spec), (I + H + 2) * 3 * H
        self.session.engine.repeat(1, [Launch(name, options, size, (I, H, *arguments))])

    def _places(self, space: Any, direction: int) -> Any:
        """Return at which element the matrices and biases of z, r and h begin."""
        engine, library = self.session.engine, self.session.library
        start, item = engine.address(space), self.spec.dtype.itemsize
        tensors = {kind: self.session.new("Tensor") for kind in ("matrix_tensor", "bias_tensor")}
        offsets = np.empty((2, 2, 3), np.int64)  # matrix or bias, input or recurrent, gate
        for side in (0, 1):
            for gate, layer in enumerate(_LINEAR_LAYERS):
                offsets[:, side, gate] = library.getRNNWeightParams(
                    *(*self._ids, direction, self._space_bytes, start, layer + 3 * side), **tensors
                )
        offsets -= start
        return engine.array(offsets.reshape(4, 3) // item)


class Run(NamedTuple):
    """What a forward run made, and what its backward needs.

    ``y`` is a buffer, ``last`` (D, B, H) the last states. ``starts`` and ``reserves`` have, for
    each piece of time, the states that it began with and cuDNN's reserve space.
    """

    algorithm: int
    y: Any
    last: Any
    starts: list[Any]
    reserves: list[Any]


class CudnnCall:
    """One problem, or the two of a direction pair, of which the first goes forwards."""

    def __init__(self, session: Session, problems: Sequence[GRUProblem]) -> None:
        problem = problems[0]
        self.session, self.engine, self.problems = session, session.engine, problems
        self.spec = problem.spec
        self.B, self.T, self.I = problem.x.shape
        self.H, self.D = self.spec.units, len(problems)
        lengths = problem.mask.lengths
        self.steps = self.T if lengths is None else int(lengths.max())
        self.ragged = lengths is not None and int(lengths.min()) < self.steps
        self.lengths = np.full(self.B, self.T) if lengths is None else lengths
        self.masked = lengths is not None
        self.pieces = [(k, min(STEPS, self.steps - k)) for k in range(0, self.steps, STEPS)]
        self.x = engines.whole_strides(self.engine, problem.x)
        self.gathered, self.steps_first = self._order(self.x)
        self._whole = self.D == 1 and not self.masked  # cuDNN's y is the layer's y and its states

        self._options = kernel_options(self.spec)
        self.h0 = self._together([p.h0 for p in problems])
        self._lengths = self.engine.array(self.lengths.astype(np.int64)) if self.masked else None
        self._dropout = None if problem.dropout is None else self.engine.array(problem.dropout)
        lengths_at = self.engine.address(self._lengths)
        self._structs = [
            source.common_struct(p, lengths=lengths_at, h0=self._of_half(self.h0, d))
            for d, p in enumerate(problems)
        ]

    def _order(self, x: Any) -> tuple[bool, bool]:
        """Return whether x has to be copied, and whether cuDNN gets it with steps first."""
        problem = self.problems[0]
        if not (self.masked or problem.reverse or problem.dropout is not None):
            if self._ready(x.transpose(1, 0, 2)):
                return False, True
            if self._ready(x) and len(self.pieces) == 1:
                return False, False
        return True, True

    def _ready(self, array: Any) -> bool:
        return array.flags.c_contiguous and not self.engine.address(array) % ALIGNMENT

    def _launch(self, name: str, half: int, size: int, *arguments: Any) -> None:
        launch = Launch(name, self._options, size, (self._structs[half], *arguments))
        self.engine.repeat(1, [launch])

    # ---- buffers -------------------------------------------------------------------------------

    def _buffer(self, size: int, new: Callable[..., Any]) -> Any:
        steps, batch = self.steps, self.B
        shape = (steps, batch, size) if self.steps_first else (batch, steps, size)
        return new(shape, self.spec.dtype)

    def _rows_first(self, buffer: Any) -> Any:
        return buffer.transpose(1, 0, 2) if self.steps_first else buffer

    def _piece(self, buffer: Any, first: int, steps: int) -> Any:
        return buffer[first : first + steps] if self.steps_first else buffer

    def _of_half(self, buffer: Any, half: int) -> int:
        """Return where a half begins in states (D, B, H); 0 for None."""
        offset = half * self.B * self.H * self.spec.dtype.itemsize
        return 0 if buffer is None else self.engine.address(buffer) + offset

    def _outputs_of(self, buffer: Any, half: int) -> tuple[int, int, int]:
        """Return where a half begins in outputs (..., D * H), and the strides of rows and steps."""
        rows, steps, _ = engines.element_strides(self._rows_first(buffer))
        return self.engine.address(buffer) + half * self.H * buffer.itemsize, rows, steps

    def _together(self, states: Sequence[Any]) -> Any:
        """Return the states (B, H) of the halves as one array (D, B, H); None for only Nones."""
        if all(state is None for state in states):
            return None
        together = self.engine.zeros((self.D, self.B, self.H), self.spec.dtype)
        for half, state in enumerate(states):
            if state is not None:
                together[half] = self.engine.array(state)
        return together

    def _inputs(self) -> Any:
        if not self.gathered:
            return self.x.transpose(1, 0, 2) if self.steps_first else self.x
        x = self._buffer(self.I, self.engine.empty)
        at, strides = self.engine.address(self.x), engines.element_strides(self.x)
        arguments = (self.steps, at, *strides, self._dropout, x)
        self._launch("gather_x", 0, self.steps * self.B * self.I, *arguments)
        return x

    def _descriptors(self, net: Net, first: int, steps: int) -> Descriptors:
        lengths = np.clip(self.lengths - first, 1, steps)
        return net.descriptors(steps, lengths.tolist(), self.steps_first)

    def _keep_ended(self, first: int, before: Any, after: Any) -> None:
        """Give rows that have no step from ``first`` on the state before, or zeros for None."""
        if self.ragged:
            for d in range(self.D):
                states = (self._of_half(before, d), self._of_half(after, d))
                self._launch("keep_ended", d, self.B * self.H, first, *states)

    # ---- forward -------------------------------------------------------------------------------

    def run(self, net: Net, weights: Sequence[GRUWeights], training: bool) -> Run:
        """Let cuDNN run over all pieces of time."""
        space = net.packed(weights).space
        x, y, h = self._inputs(), self._buffer(self.D * self.H, self.engine.empty), self.h0
        starts, reserves = [], []
        for first, steps in self.pieces:
            starts.append(h)
            h = self.engine.empty((self.D, self.B, self.H), self.spec.dtype)
            desc = self._descriptors(net, first, steps)
            pieces = (self._piece(x, first, steps), starts[-1], self._piece(y, first, steps), h)
            reserves.append(net.forward(training, desc, *pieces, space))
            self._keep_ended(first, starts[-1], h)
        return Run(net.algorithm, y, h, starts, reserves)

    def outputs(self, run: Run, save: bool, workspace: Run | None) -> list[GRUOutput]:
        """Return y and the states of each problem."""
        y: Any
        results = []
        for d, problem in enumerate(self.problems):
            y = states = self._rows_first(run.y) if self._whole else None
            if save and not self._whole:
                states = self._spread(run, d, outputs=False)
            # The saved states are never the user's y: the user may write there.
            as_it_is = self._whole and problem.return_sequences and not (self.gathered or save)
            if not as_it_is or problem.out is not None:
                y = self._spread(run, d, outputs=True)
            saved = (states, workspace if d == 0 else None) if save else (None, None)
            results.append(GRUOutput(y, run.last[d], *saved))
        return results

    def _spread(self, run: Run, half: int, outputs: bool) -> Any:
        """Return new states, or with ``outputs`` y, in the problem's `out` if there is one."""
        problem = self.problems[half]
        sequences = problem.return_sequences or not outputs
        out = problem.out if outputs else None
        y = out
        if y is None or engines.whole_strides(self.engine, y) is not y:
            shape = (self.B, self.T, self.H) if sequences else (self.B, self.H)
            y = self.engine.empty(shape, self.spec.dtype)
        strides = engines.element_strides(y)
        if not sequences:
            strides.insert(1, 0)
        size = self.B * self.H * (self.T if sequences else 1)
        taken = (*self._outputs_of(run.y, half), half, int(outputs))
        self._launch("spread", half, size, *taken, self.engine.address(y), *strides)
        if out is not None and out is not y:
            out[...] = y
        return y if out is None else out

    # ---- backward ------------------------------------------------------------------------------

    def backward(
        self,
        net: Net,
        weights: Sequence[GRUWeights],
        run: Run,
        dys: Sequence[Any],
        dstates: Sequence[Any],
    ) -> list[GRUGrads]:
        """Return the gradients, from what `run` left in training."""
        space, dspace = net.packed(weights), net.space()
        x, dx = self._inputs(), self._buffer(self.I, self.engine.empty)
        dy, dh = self._output_gradients(dys), self._together(dstates)
        pieces = zip(self.pieces, run.starts, run.reserves, strict=True)
        for (first, steps), start, reserve in reversed(list(pieces)):
            x_, y_, dy_, dx_ = (self._piece(a, first, steps) for a in (x, run.y, dy, dx))
            after, given = dh, dh
            if self.ragged and dh is not None:
                given = dh.copy()
                self._keep_ended(first, None, given)
            dh = self.engine.empty((self.D, self.B, self.H), self.spec.dtype)
            desc = self._descriptors(net, first, steps)
            net.backward(desc, x_, start, y_, dy_, given, dx_, dh, space.space, dspace, reserve)
            self._keep_ended(first, after, dh)
        dx_of: list[Any] = [self._input_gradient(dx), None]  # a pair has one x and one gradient
        return [
            GRUGrads(dx_of[d], dh[d], *net.gradients(dspace, at))
            for d, at in enumerate(space.places)
        ]

    def _output_gradients(self, dys: Sequence[Any]) -> Any:
        """Return the gradient of cuDNN's y."""
        if self._whole and self.problems[0].return_sequences and dys[0] is not None:
            dy = dys[0].transpose(1, 0, 2) if self.steps_first else dys[0]
            dy = self.engine.array(dy)
            return dy if self._ready(dy) else dy.copy()
        dy = self._buffer(self.D * self.H, self.engine.zeros)
        for d, given in enumerate(dys):
            if given is not None:
                at, rows, steps = self._outputs_of(dy, d)
                arguments = (self.steps, self.engine.array(given), d, at, rows, steps)
                self._launch("fold_dy", d, self.steps * self.B * self.H, *arguments)
        return dy

    def _input_gradient(self, dx: Any) -> Any:
        if not self.gathered:
            return self._rows_first(dx)
        out = self.engine.empty((self.B, self.T, self.I), self.spec.dtype)
        self._launch("scatter_dx", 0, self.B * self.T * self.I, dx, self._dropout, out)
        return out


def kernel_options(spec: GRUSpec) -> tuple[str, ...]:
    """Return the options that the kernels are compiled with."""
    return source.options(spec.dtype, activations.tanh, activations.sigmoid)
