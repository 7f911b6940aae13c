"""The libraries that are compared. Each class is created inside its own worker process.

Every peer computes the same thing: float32, all outputs, h0 = 0, reset after the product. Each is
given its weights and input beforehand, in the type and layout that it likes best, and may leave its
answer in its own; so a timed call holds the peer's own work and nothing of ours. An input is never
changed between calls, but no peer is told so.

A task is a method of a peer. A peer without the method does not do that task.

- `forward`: ``layer(x)`` with all outputs. Weights may be prepared, as they stay the same.
- `training`: all outputs, then from a given dy the gradients of x and of the three weights. A step
  of training changes the weights, so nothing that is made from them may be kept between calls.
- `stream`: one time step of B rows (T is 1), from the state that the last call left.
"""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from keras_peers import KerasJAX, KerasTensorFlow
from prepared import Prepared
from problems import Float32Array, Problem


class FastGRU:
    """Ours: ordinary NumPy arrays in and out."""

    def __init__(self, threads: int) -> None:
        # An installed fastgru wins over the checkout; `versions` records which one was used.
        sys.path.append(str(Path(__file__).resolve().parents[2]))
        import fastgru

        fastgru.set_num_threads(threads)
        self._fastgru = fastgru

    def versions(self) -> dict[str, str]:
        """Give the version and where it was imported from."""
        return {
            "fastgru": self._fastgru.__version__,
            "path": os.path.dirname(self._fastgru.__file__),
            "numpy": np.__version__,
        }

    def forward(self, problem: Problem) -> Prepared:
        """Build a GRU layer from Keras' weights."""
        layer, x = self._layer(problem), problem.x
        return Prepared(lambda: layer(x), np.asarray)

    def training(self, problem: Problem) -> Prepared:
        """Run ``forward`` and ``backward``, with both kernels written anew in every timed call.

        The layer packs its kernels once for each version of them. Where weights change before every
        step it packs them in every step, and here it has to do the same. What an optimizer pays to
        hand over a new value, the copy that ``assign`` makes, is timed with it.
        """
        layer, x, dy = self._layer(problem), problem.x, problem.dy

        def call() -> Any:
            layer.kernel.assign(problem.kernel)
            layer.recurrent_kernel.assign(problem.recurrent_kernel)
            y, tape = layer.forward(x)
            return y, layer.backward(tape, dy)

        return Prepared(call, lambda result: (result[0], result[1].inputs, *result[1].weights))

    def stream(self, problem: Problem) -> Prepared:
        """Open a stream of B rows; its answer is its own buffer."""
        stream = self._layer(problem).stream(problem.shape.B)
        step, x = stream.step, problem.x[:, 0]
        return Prepared(lambda: step(x), np.asarray)

    def _layer(self, problem: Problem) -> Any:
        layer = self._fastgru.GRU(problem.shape.H, return_sequences=True)
        layer.build(problem.x.shape)
        layer.set_weights([problem.kernel, problem.recurrent_kernel, problem.bias])
        return layer


class NumPyLoop:
    """The best that we could write with NumPy alone.

    One GEMM for the input projection of all steps, one a step for the recurrence, everything else
    in place in buffers kept between calls. sigmoid(a) is (1 + tanh(a/2)) / 2: the halves are folded
    into the weights beforehand, so that z and r cost one tanh over 2H columns.
    """

    def __init__(self, threads: int) -> None:
        del threads  # NumPy's BLAS takes it from the environment

    def versions(self) -> dict[str, str]:
        """Give NumPy's version and its BLAS."""
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return {"numpy": np.__version__, "blas": f"{blas['name']} {blas['version']}"}

    def forward(self, problem: Problem) -> Prepared:
        """Fold the weights, allocate the buffers."""
        B, T, I, H = (problem.shape.B, problem.shape.T, problem.shape.I, problem.shape.H)
        W, U, bias, bias_h = self._folded(problem)
        rows = problem.x.reshape(B * T, I)
        p_rows = np.empty((B * T, 3 * H), np.float32)
        p = p_rows.reshape(B, T, 3, H).transpose(1, 2, 0, 3)
        p_zr, p_h = list(p[:, :2]), list(p[:, 2])
        q = np.empty((B, 3 * H), np.float32)
        q_gates = q.reshape(B, 3, H).transpose(1, 0, 2)
        q_zr, q_h = q_gates[:2], q_gates[2]
        # Each gate in its own contiguous array: NumPy is slow over short rows of a wider matrix.
        zr = np.empty((2, B, H), np.float32)
        z, r = zr
        n = np.empty((B, H), np.float32)
        h = np.empty((B, H), np.float32)
        y = np.empty((B, T, H), np.float32)
        y_t = list(y.transpose(1, 0, 2))
        a_half = np.float32(0.5)
        matmul, add, multiply, subtract, tanh = np.matmul, np.add, np.multiply, np.subtract, np.tanh

        def call() -> Float32Array:
            matmul(rows, W, out=p_rows)
            add(p_rows, bias, out=p_rows)
            h.fill(0.0)
            for p_zr_t, p_h_t, out in zip(p_zr, p_h, y_t, strict=True):
                matmul(h, U, out=q)
                add(q_zr, p_zr_t, out=zr)
                tanh(zr, out=zr)
                multiply(zr, a_half, out=zr)
                add(zr, a_half, out=zr)
                add(q_h, bias_h, out=n)
                multiply(n, r, out=n)
                add(n, p_h_t, out=n)
                tanh(n, out=n)
                subtract(h, n, out=h)
                multiply(h, z, out=h)
                add(h, n, out=h)
                out[...] = h
            return y

        return Prepared(call, np.asarray)

    def stream(self, problem: Problem) -> Prepared:
        """Do one step of the loop; the state lives in one buffer."""
        B, H = problem.shape.B, problem.shape.H
        W, U, bias, bias_h = self._folded(problem)
        x = np.ascontiguousarray(problem.x[:, 0])
        p, q = np.empty((2, B, 3 * H), np.float32)
        p_zr, q_zr = p[:, : 2 * H], q[:, : 2 * H]
        p_h, q_h = p[:, 2 * H :], q[:, 2 * H :]
        zr = np.empty((B, 2 * H), np.float32)
        z, r = zr[:, :H], zr[:, H:]
        n = np.empty((B, H), np.float32)
        h = np.zeros((B, H), np.float32)
        a_half = np.float32(0.5)
        matmul, add, multiply, subtract, tanh = np.matmul, np.add, np.multiply, np.subtract, np.tanh

        def call() -> Float32Array:
            matmul(x, W, out=p)
            add(p, bias, out=p)
            matmul(h, U, out=q)
            add(q_zr, p_zr, out=zr)
            tanh(zr, out=zr)
            multiply(zr, a_half, out=zr)
            add(zr, a_half, out=zr)
            add(q_h, bias_h, out=n)
            multiply(n, r, out=n)
            add(n, p_h, out=n)
            tanh(n, out=n)
            subtract(h, n, out=h)
            multiply(h, z, out=h)
            add(h, n, out=h)
            return h

        return Prepared(call, np.asarray)

    @staticmethod
    def _folded(problem: Problem) -> tuple[Float32Array, ...]:
        H = problem.shape.H
        half = np.ones(3 * H, np.float32)
        half[: 2 * H] = 0.5
        bias = problem.bias[0] * half
        bias[: 2 * H] += 0.5 * problem.bias[1, : 2 * H]
        bias_h = problem.bias[1, 2 * H :].copy()
        return problem.kernel * half, problem.recurrent_kernel * half, bias, bias_h


class OnnxRuntime:
    """ONNX Runtime's GRU operator through ``InferenceSession.run``.

    Time-major, as the operator is (its layout=1 is refused), so that no transpose is timed.
    """

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self._onnx, self._runtime = onnx, onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 3

    def versions(self) -> dict[str, str]:
        """Give the runtime's version and that of the package that builds the graph."""
        return {"onnxruntime": self._runtime.__version__, "onnx": self._onnx.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Run a graph of one GRU node over the whole sequence."""
        run, names = self._session(problem, ["X"], ["Y"]).run, ["Y"]
        feed = {"X": np.ascontiguousarray(problem.x.transpose(1, 0, 2))}
        return Prepared(
            lambda: run(names, feed),
            lambda result: np.ascontiguousarray(result[0][:, 0].transpose(1, 0, 2)),
        )

    def stream(self, problem: Problem) -> Prepared:
        """Run a graph of one step; the state that it returns is fed to the next run."""
        run, names = self._session(problem, ["X", "initial_h"], ["Y_h"]).run, ["Y_h"]
        feed = {
            "X": np.ascontiguousarray(problem.x.transpose(1, 0, 2)),
            "initial_h": np.zeros((1, problem.shape.B, problem.shape.H), np.float32),
        }

        def call() -> Float32Array:
            feed["initial_h"] = h = run(names, feed)[0]
            return h

        return Prepared(call, lambda h: h[0])

    def _session(self, problem: Problem, inputs: list[str], outputs: list[str]) -> Any:
        """Build a graph of one GRU node; ONNX's gates are z, r, h as Keras', weights transposed."""
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        float_type = self._onnx.TensorProto.FLOAT
        shape = problem.shape
        sizes = {
            "X": [shape.T, shape.B, shape.I],
            "initial_h": [1, shape.B, shape.H],
            "Y": [shape.T, 1, shape.B, shape.H],
            "Y_h": [1, shape.B, shape.H],
        }
        weights = {
            "W": problem.kernel.T[np.newaxis],
            "R": problem.recurrent_kernel.T[np.newaxis],
            "B": problem.bias.reshape(1, 6 * shape.H),
        }

        def used(names: tuple[str, ...], of: list[str]) -> list[str]:
            return [name if name in of or name in weights else "" for name in names]

        node = helper.make_node(
            "GRU",
            used(("X", "W", "R", "B", "", "initial_h"), inputs),
            used(("Y", "Y_h"), outputs),
            hidden_size=shape.H,
            linear_before_reset=1,
        )
        initializers = [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in weights.items()
        ]
        graph = helper.make_graph(
            [node],
            "gru",
            [helper.make_tensor_value_info(name, float_type, sizes[name]) for name in inputs],
            [helper.make_tensor_value_info(name, float_type, sizes[name]) for name in outputs],
            initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
        model.ir_version = 8  # old enough for any runtime of today
        return self._runtime.InferenceSession(
            model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )


class OpenVINO:
    """OpenVINO's GRUSequence on the CPU, in float32 (it would choose bfloat16 where it can).

    Input and output stay in the request's own tensors; results are not copied out.
    """

    def __init__(self, threads: int) -> None:
        import openvino
        from openvino import opset13

        self._openvino, self._ops = openvino, opset13
        self._config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def versions(self) -> dict[str, str]:
        """Give OpenVINO's version."""
        return {"openvino": self._openvino.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Run the whole sequence from a constant state."""
        zeros = np.zeros((problem.shape.B, 1, problem.shape.H), np.float32)
        request = self._request(problem, self._ops.constant(zeros), output=0)
        infer, result = request.infer, request.get_output_tensor()

        def call() -> Any:
            infer(share_outputs=True)
            return result

        return Prepared(call, lambda tensor: tensor.data[:, 0])

    def stream(self, problem: Problem) -> Prepared:
        """Run a sequence of one step, and copy the state back into the input's tensor.

        Two requests that write into each other's input take as long; setting the tensors anew for
        every step takes longer.
        """
        shape = (problem.shape.B, 1, problem.shape.H)
        request = self._request(problem, self._ops.parameter(shape, np.float32), output=1)
        infer, h = request.infer, np.zeros(shape, np.float32)
        request.set_input_tensor(1, self._openvino.Tensor(h, shared_memory=True))
        result = request.get_output_tensor().data

        def call() -> Float32Array:
            infer(share_outputs=True)
            h[...] = result
            return h

        return Prepared(call, lambda h: h[:, 0])

    def _request(self, problem: Problem, state: Any, output: int) -> Any:
        """Build a model of one GRUSequence: gates z, r, h; biases z and r summed, h apart."""
        ops, shape, bias = self._ops, problem.shape, problem.bias
        B, T, H = shape.B, shape.T, shape.H
        summed = np.concatenate([bias[0, : 2 * H] + bias[1, : 2 * H], bias[0, 2 * H :]])
        biases = np.concatenate([summed, bias[1, 2 * H :]])[np.newaxis]
        x_node = ops.parameter(list(problem.x.shape), np.float32)
        sequence = ops.gru_sequence(
            x_node,
            state,
            ops.constant(np.full(B, T, np.int32)),
            ops.constant(np.ascontiguousarray(problem.kernel.T[np.newaxis])),
            ops.constant(np.ascontiguousarray(problem.recurrent_kernel.T[np.newaxis])),
            ops.constant(biases),
            H,
            "forward",
            linear_before_reset=True,
        )
        parameters = [x_node, *([state] if state.get_type_name() == "Parameter" else [])]
        model = self._openvino.Model([sequence.output(output)], parameters, "gru")
        compiled = self._openvino.Core().compile_model(model, "CPU", self._config)
        request = compiled.create_infer_request()
        request.set_input_tensor(0, self._openvino.Tensor(problem.x, shared_memory=True))
        return request


class Torch:
    """``torch.nn.GRU``, batch first, and ``GRUCell``; in inference mode but for training."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self._torch = torch
        self._mode = ExitStack()

    def versions(self) -> dict[str, str]:
        """Give torch's version."""
        return {"torch": self._torch.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Build the module."""
        self._enter_inference()
        module = self._module(problem).eval()
        x = self._torch.from_numpy(problem.x)
        return Prepared(lambda: module(x)[0], lambda y: y.numpy())

    def training(self, problem: Problem) -> Prepared:
        """Let autograd record the call; the gradients of the last one are dropped, not added to."""
        self._mode.close()
        module = self._module(problem).train()
        x = self._torch.from_numpy(problem.x).requires_grad_()
        dy = self._torch.from_numpy(problem.dy)
        leaves = [x, module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]

        def call() -> Any:
            for leaf in leaves:
                leaf.grad = None
            y = module(x)[0]
            y.backward(dy)
            return y

        def to_numpy(y: Any) -> tuple[Float32Array, ...]:
            dx, dW, dU, *db = (leaf.grad.numpy() for leaf in leaves)
            dW, dU, db_in, db_rec = (self._reordered(array.T) for array in (dW, dU, *db))
            return y.detach().numpy(), dx, dW, dU, np.stack([db_in, db_rec])

        return Prepared(call, to_numpy)

    def stream(self, problem: Problem) -> Prepared:
        """Step a ``GRUCell``."""
        self._enter_inference()
        torch, shape = self._torch, problem.shape
        cell = torch.nn.GRUCell(shape.I, shape.H).eval()
        cell.load_state_dict(
            {k.removesuffix("_l0"): v for k, v in self._module(problem).state_dict().items()}
        )
        x = torch.from_numpy(np.ascontiguousarray(problem.x[:, 0]))
        h = torch.zeros(shape.B, shape.H)

        def call() -> Any:
            nonlocal h
            h = cell(x, h)
            return h

        return Prepared(call, lambda h: h.numpy())

    def _enter_inference(self) -> None:
        # Left on between the calls: entering it is not part of a call.
        self._mode.close()
        self._mode.enter_context(self._torch.inference_mode())

    def _module(self, problem: Problem) -> Any:
        """Build a ``torch.nn.GRU``, whose weights are transposed."""
        torch = self._torch
        module = torch.nn.GRU(problem.shape.I, problem.shape.H, batch_first=True)
        weights = (problem.kernel, problem.recurrent_kernel, *problem.bias)
        with torch.no_grad():
            for parameter, array in zip(module.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(self._reordered(array).T))
        return module

    @staticmethod
    def _reordered(array: Float32Array) -> Float32Array:
        """Put the gates z, r, n into PyTorch's order r, z, n, or the other way round."""
        first, second, n = np.split(array, 3, axis=-1)
        return np.concatenate([second, first, n], axis=-1)


PEERS: dict[str, Callable[[int], Any]] = {
    "fastgru": FastGRU,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVINO,
    "torch": Torch,
    "keras-jax": KerasJAX,
    "keras-tf": KerasTensorFlow,
    "numpy": NumPyLoop,
}

# What a peer needs in its environment before its first import.
ENVIRONMENT: dict[str, dict[str, str]] = {
    # Asked for by name, so that a missing extension is an error and not a slow "cpu" figure.
    "fastgru": {"FASTGRU_BACKEND": "cpu"},
    "keras-jax": {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    "keras-tf": {
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    },
}
