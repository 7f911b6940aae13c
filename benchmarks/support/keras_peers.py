"""Keras as a peer, on JAX and on TensorFlow; see peers.py for what peers are."""

from typing import Any

import numpy as np
from prepared import Prepared
from problems import Problem


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

    def _cell(self, problem: Problem) -> Any:
        cell = self._keras.layers.GRUCell(problem.shape.H)
        cell.build((problem.shape.B, problem.shape.I))
        cell.set_weights([problem.kernel, problem.recurrent_kernel, problem.bias])
        return cell


class KerasJAX(_Keras):
    """``keras.layers.GRU`` and ``GRUCell`` on JAX, jitted.

    The weights are constants of the compiled program, but for training.
    """

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

    def training(self, problem: Problem) -> Prepared:
        """Jit the call and its pullback; weights are arguments, as an optimizer changes them."""
        jax, layer = self._jax, self._layer(problem)
        weights = [variable.value for variable in layer.trainable_variables]
        fixed = [variable.value for variable in layer.non_trainable_variables]

        def outputs(weights: Any, x: Any) -> Any:
            return layer.stateless_call(weights, fixed, x, training=True)[0]

        def function(weights: Any, x: Any, dy: Any) -> Any:
            y, pullback = jax.vjp(outputs, weights, x)
            dweights, dx = pullback(dy)
            return y, dx, *dweights

        jitted = jax.jit(function)
        x, dy = jax.device_put((problem.x, problem.dy))
        return Prepared(lambda: jax.block_until_ready(jitted(weights, x, dy)), tuple)

    def stream(self, problem: Problem) -> Prepared:
        """Jit one call of the cell; the state is donated, so that its buffer can be used again."""
        jax, cell = self._jax, self._cell(problem)
        trainable = [variable.value for variable in cell.trainable_variables]
        fixed = [variable.value for variable in cell.non_trainable_variables]

        def function(x: Any, h: Any) -> Any:
            (y, _), _ = cell.stateless_call(trainable, fixed, x, [h], training=False)
            return y  # a GRU's output is its state

        jitted = jax.jit(function, donate_argnums=1)
        x = jax.device_put(problem.x[:, 0])
        h = jax.numpy.zeros((problem.shape.B, problem.shape.H))

        def call() -> Any:
            nonlocal h
            h = jitted(x, h).block_until_ready()
            return h

        return Prepared(call, np.asarray)


class KerasTensorFlow(_Keras):
    """``keras.layers.GRU`` and ``GRUCell`` on TensorFlow, inside one ``tf.function``."""

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

    def training(self, problem: Problem) -> Prepared:
        """Trace the call and its gradients together."""
        tf, layer = self._tf, self._layer(problem)

        def outputs_and_gradients(x: Any, dy: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            weights = [variable.value for variable in layer.trainable_variables]
            return y, *tape.gradient(y, [x, *weights], output_gradients=dy)

        function = tf.function(outputs_and_gradients)
        x, dy = tf.constant(problem.x), tf.constant(problem.dy)
        return Prepared(
            lambda: function(x, dy), lambda result: tuple(array.numpy() for array in result)
        )

    def stream(self, problem: Problem) -> Prepared:
        """Trace one call of the cell."""
        tf, cell = self._tf, self._cell(problem)
        function = tf.function(lambda x, h: cell(x, [h], training=False)[0])
        x = tf.constant(problem.x[:, 0])
        h = tf.zeros((problem.shape.B, problem.shape.H))

        def call() -> Any:
            nonlocal h
            h = function(x, h)
            return h

        return Prepared(call, lambda h: h.numpy())
