"""A pytest plugin: what tests call on NumPy's arrays runs on a device. For test_device_suites.

Arguments go to the device and results come back, at the borders that users call: layers, cells,
functions and streams. FASTGRU_DEVICE=cupy, or without a GPU "emulated" or "with cudnn"; how many
calls ran there is written to the file that FASTGRU_CALLS_FILE names.
"""

import functools
import os
from pathlib import Path

import numpy as np

import fastgru
from fastgru import dispatch, functional
from fastgru.device import on_device
from fastgru.layers import bidirectional, cell, rnn, sequence, sequential, stream
from fastgru.variables import Variable

_calls = 0
_depth = 0


def _to(value, move):
    if isinstance(value, (list, tuple)):
        parts = [_to(part, move) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: _to(part, move) for key, part in value.items()}
    return move(value)


def _to_host(value):
    if isinstance(value, dispatch.Explanation) and "cuda" in value.reasons:
        for name in ("backend", "backward"):  # where tests say cpu, they mean not the reference
            if getattr(value, name) in ("cuda", "cudnn"):
                setattr(value, name, "cpu")
        value.reasons["cpu"] = value.reasons.pop("cuda")
    return value.get() if on_device(value) else value


def _wrap(owner, name):
    import cupy

    inner = getattr(owner, name)

    def to_device(value):
        array_like = hasattr(value, "__array__") and not isinstance(value, np.ma.MaskedArray)
        return cupy.asarray(np.asarray(value)) if array_like else value

    @functools.wraps(inner)
    def on_the_device(*args, **kwargs):
        global _calls, _depth
        if _depth:  # only what the test itself calls is a border
            return inner(*args, **kwargs)
        out = kwargs.get("out")
        _depth += 1
        try:
            moved = _to(args, to_device), _to(kwargs, to_device)
            result = inner(*moved[0], **moved[1])
        finally:
            _depth -= 1
        _calls += 1
        place = moved[1].get("out")
        if type(out) is not np.ndarray:
            return _to(result, _to_host)
        out[...] = _to_host(place)
        return _to(result, lambda value: out if value is place else _to_host(value))

    setattr(owner, name, on_the_device)


def _wrap_property(owner, name):
    """Let what a property gives come back to the host; what is set goes where it is used."""
    inner = getattr(owner, name)

    def get(self):
        value = inner.fget(self)
        return value if _depth else _to(value, _to_host)

    setattr(owner, name, property(get, inner.fset))


def pytest_configure(config):
    """Put the device behind every call."""
    if os.environ["FASTGRU_DEVICE"] != "cupy":
        import fake_cudnn
        import fake_cupy

        cudnn = fake_cudnn.FakeCudnn() if os.environ["FASTGRU_DEVICE"] == "with cudnn" else None
        fake_cupy.install(cudnn=cudnn, blocks=3, shared_bytes=1 << 16)
    for owner in (rnn.RNN, bidirectional.Bidirectional, sequential.Sequential):
        _wrap(owner, "backward")
        _wrap(owner, "explain")
    _wrap(sequence.SequenceLayer, "__call__")
    _wrap(sequence.SequenceLayer, "forward")
    _wrap(cell.GRUCell, "__call__")
    _wrap(stream.Stream, "step")
    _wrap_property(stream.Stream, "state")
    _wrap_property(Variable, "value")
    _wrap_property(rnn.RNN, "activity_losses")
    for name in ("gru", "gru_cell"):
        _wrap(functional, name)
        setattr(fastgru, name, getattr(functional, name))
    ours = dispatch.use_backend
    fastgru.use_backend = lambda name: ours("cuda" if name == "cpu" else name)
    Variable.__array__ = lambda self, *how, **named: self.numpy().__array__(*how, **named)


def pytest_sessionfinish(session):
    """Say how often the device was called."""
    Path(os.environ["FASTGRU_CALLS_FILE"]).write_text(str(_calls))
