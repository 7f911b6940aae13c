"""The libraries that are compared. Each class is created inside its own worker process.

Every peer computes the same thing: float32, all outputs, h0 = 0, reset after the product. Each is
given its weights and input beforehand, in the type and layout that it likes best, and may leave its
answer in its own; so a timed call holds the peer's own work and nothing of ours. An input is never
changed between calls, but no peer is told so.

A task is a method of a peer (`forward` so far). A peer without the method does not do that task.
"""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from problems import Float32Array, Problem


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be timed.

    Attributes
    ----------
    call : callable
        Takes nothing, returns the peer's own result, complete (no work still under way).
    to_numpy : callable
        Turns that result into an array (B, T, H) float32; never timed.
    """

    call: Callable[[], Any]
    to_numpy: Callable[[Any], Float32Array]


class FastGRU:
    """Ours: ``layer(x)`` on a NumPy array, an ordinary NumPy array back."""

    def __init__(self, threads: int) -> None:
        # An installed fastgru wins over the checkout; `versions` records which one was used.
        sys.path.append(str(Path(__file__).resolve().parent.parent))
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
        layer = self._fastgru.GRU(problem.shape.H, return_sequences=True)
        layer.build(problem.x.shape)
        layer.set_weights([problem.kernel, problem.recurrent_kernel, problem.bias])
        x = problem.x
        return Prepared(lambda: layer(x), np.asarray)


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
        half = np.ones(3 * H, np.float32)
        half[: 2 * H] = 0.5
        W = problem.kernel * half
        U = problem.recurrent_kernel * half
        bias = problem.bias[0] * half
        bias[: 2 * H] += 0.5 * problem.bias[1, : 2 * H]
        bias_h = problem.bias[1, 2 * H :].copy()
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
        """Build a graph of one GRU node; ONNX's gates are z, r, h as Keras', weights transposed."""
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        float_type = self._onnx.TensorProto.FLOAT
        shape = problem.shape
        weights = {
            "W": problem.kernel.T[np.newaxis],
            "R": problem.recurrent_kernel.T[np.newaxis],
            "B": problem.bias.reshape(1, 6 * shape.H),
        }
        node = helper.make_node(
            "GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=shape.H, linear_before_reset=1
        )
        x_info = helper.make_tensor_value_info("X", float_type, [shape.T, shape.B, shape.I])
        y_info = helper.make_tensor_value_info("Y", float_type, [shape.T, 1, shape.B, shape.H])
        initializers = [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in weights.items()
        ]
        graph = helper.make_graph([node], "gru", [x_info], [y_info], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
        model.ir_version = 8  # old enough for any runtime of today
        session = self._runtime.InferenceSession(
            model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )
        run, names = session.run, ["Y"]
        feed = {"X": np.ascontiguousarray(problem.x.transpose(1, 0, 2))}
        return Prepared(
            lambda: run(names, feed),
            lambda result: np.ascontiguousarray(result[0][:, 0].transpose(1, 0, 2)),
        )


class OpenVINO:
    """OpenVINO's GRUSequence on the CPU, in float32 (it would choose bfloat16 where it can).

    Input and output stay in the request's own tensors; results are not copied out.
    """

    def __init__(self, threads: int) -> None:
        import openvino

        self._openvino = openvino
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
        """Build a model of one GRUSequence: gates z, r, h; biases z and r summed, h apart."""
        from openvino import opset13 as ops

        shape, bias = problem.shape, problem.bias
        B, T, H = shape.B, shape.T, shape.H
        summed = np.concatenate([bias[0, : 2 * H] + bias[1, : 2 * H], bias[0, 2 * H :]])
        biases = np.concatenate([summed, bias[1, 2 * H :]])[np.newaxis]
        x_node = ops.parameter(list(problem.x.shape), np.float32)
        sequence = ops.gru_sequence(
            x_node,
            ops.constant(np.zeros((B, 1, H), np.float32)),
            ops.constant(np.full(B, T, np.int32)),
            ops.constant(np.ascontiguousarray(problem.kernel.T[np.newaxis])),
            ops.constant(np.ascontiguousarray(problem.recurrent_kernel.T[np.newaxis])),
            ops.constant(biases),
            H,
            "forward",
            linear_before_reset=True,
        )
        model = self._openvino.Model([sequence.output(0)], [x_node], "gru")
        compiled = self._openvino.Core().compile_model(model, "CPU", self._config)
        request = compiled.create_infer_request()
        request.set_input_tensor(self._openvino.Tensor(problem.x, shared_memory=True))
        infer, result = request.infer, request.get_output_tensor()

        def call() -> Any:
            infer(share_outputs=True)
            return result

        return Prepared(call, lambda tensor: tensor.data[:, 0].copy())


class Torch:
    """``torch.nn.GRU``, batch first, in inference mode."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        # Entered once for the life of the process: entering it is not part of a call.
        self._mode = ExitStack()
        self._mode.enter_context(torch.inference_mode())
        self._torch = torch

    def versions(self) -> dict[str, str]:
        """Give torch's version."""
        return {"torch": self._torch.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Build the module; PyTorch's gates are r, z, n and its weights are transposed."""
        torch, H = self._torch, problem.shape.H

        def converted(array: Float32Array) -> Any:
            z, r, n = array[..., :H], array[..., H : 2 * H], array[..., 2 * H :]
            return torch.from_numpy(np.ascontiguousarray(np.concatenate([r, z, n], axis=-1).T))

        module = torch.nn.GRU(problem.shape.I, H, batch_first=True).eval()
        module.weight_ih_l0.copy_(converted(problem.kernel))
        module.weight_hh_l0.copy_(converted(problem.recurrent_kernel))
        module.bias_ih_l0.copy_(converted(problem.bias[0]))
        module.bias_hh_l0.copy_(converted(problem.bias[1]))
        x = torch.from_numpy(problem.x)
        return Prepared(lambda: module(x)[0], lambda y: y.numpy())


class _Keras:
    """What the two Keras peers share; KERAS_BACKEND is set before the process starts."""

    def __init__(self, threads: int) -> None:
        del threads
        import keras

        self._keras = keras

    def _layer(self, problem: Problem) -> Any:
        layer = self._keras.layers.GRU(problem.shape.H, return_sequences=True)
        layer.build(problem.x.shape)
        layer.set_weights([problem.kernel, problem.recurrent_kernel, problem.bias])
        return layer


class KerasJAX(_Keras):
    """``keras.layers.GRU`` on JAX, jitted; the weights are constants of the compiled program."""

    def __init__(self, threads: int) -> None:
        import jax  # named first, so that it is JAX and not Keras that is reported as missing

        self._jax = jax
        super().__init__(threads)  # XLA takes its threads from the affinity and from NPROC

    def versions(self) -> dict[str, str]:
        """Give the versions of Keras and JAX."""
        return {"keras": self._keras.__version__, "jax": self._jax.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Jit ``stateless_call``; the first call, which compiles, is never timed."""
        layer = self._layer(problem)
        trainable = [variable.value for variable in layer.trainable_variables]
        fixed = [variable.value for variable in layer.non_trainable_variables]

        def function(x: Any) -> Any:
            return layer.stateless_call(trainable, fixed, x, training=False)[0]

        jitted = self._jax.jit(function)
        x = self._jax.device_put(problem.x)
        return Prepared(lambda: jitted(x).block_until_ready(), np.asarray)


class KerasTensorFlow(_Keras):
    """``keras.layers.GRU`` on TensorFlow, inside one ``tf.function``."""

    def __init__(self, threads: int) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._tf = tf
        super().__init__(threads)

    def versions(self) -> dict[str, str]:
        """Give the versions of Keras and TensorFlow."""
        return {"keras": self._keras.__version__, "tensorflow": self._tf.__version__}

    def forward(self, problem: Problem) -> Prepared:
        """Trace the layer for the one input signature."""
        layer = self._layer(problem)
        function = self._tf.function(lambda x: layer(x, training=False))
        x = self._tf.constant(problem.x)
        return Prepared(lambda: function(x), lambda y: y.numpy())


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
