"""A pytest plugin: Keras' GRU layers computed by fastgru. For test_keras_own_tests.

``keras.src.backend.gru`` is where a backend of Keras may put a fused GRU; the NumPy backend has
none. The plugin puts `fastgru.gru` there and counts its calls in the file that
FASTGRU_CALLS_FILE names.
"""

import contextvars
import os
from pathlib import Path

import keras
import numpy as np

import fastgru

_zero_output_for_mask = contextvars.ContextVar("zero_output_for_mask", default=False)
_inner_loop = keras.layers.GRU.inner_loop
_calls = 0


def gru(
    inputs,
    initial_state,
    mask,
    kernel,
    recurrent_kernel,
    bias,
    activation,
    recurrent_activation,
    return_sequences=False,
    go_backwards=False,
    unroll=False,
    time_major=False,
    reset_after=True,
):
    """Do what Keras' backends do: return (last_output, outputs, [state])."""
    global _calls
    if isinstance(inputs, keras.KerasTensor):
        raise NotImplementedError  # a symbolic call, for shapes only
    # In a mixed policy the weights are float32, and the layer computes in the dtype of its inputs.
    dtype = np.asarray(inputs).dtype
    arrays = (inputs, kernel, recurrent_kernel, bias, initial_state)
    outputs, state = fastgru.gru(
        *(None if a is None else np.asarray(a).astype(dtype, copy=False) for a in arrays),
        activation=activation,
        recurrent_activation=recurrent_activation,
        reset_after=reset_after,
        mask=None if mask is None else np.asarray(mask),
        go_backwards=go_backwards,
        time_major=time_major,
        zero_output_for_mask=_zero_output_for_mask.get(),
    )
    _calls += 1
    return outputs[-1] if time_major else outputs[:, -1], outputs, [state]


def _inner_loop_that_tells(layer, *args, **kwargs):
    """Keras gives its fused GRU everything but zero_output_for_mask: pass that by the side."""
    token = _zero_output_for_mask.set(layer.zero_output_for_mask)
    try:
        return _inner_loop(layer, *args, **kwargs)
    finally:
        _zero_output_for_mask.reset(token)


def pytest_configure(config):
    """Put fastgru where Keras looks for a fused GRU."""
    assert keras.src.backend.backend() == "numpy"
    keras.src.backend.gru = gru
    keras.layers.GRU.inner_loop = _inner_loop_that_tells


def pytest_sessionfinish(session):
    """Say how often it was asked."""
    Path(os.environ["FASTGRU_CALLS_FILE"]).write_text(str(_calls))
