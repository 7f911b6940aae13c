"""The layer's arithmetic as functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgru import activations, dispatch
from fastgru.device import device_array, overlap, place
from fastgru.dtypes import FLOATS, float_dtype
from fastgru.masks import plan_mask, plan_resets
from fastgru.problem import (
    GRUProblem,
    GRUSpec,
    GRUWeights,
    as_array,
    check_num_threads,
    check_out,
    check_shape,
)


def gru(
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    initial_state: Any = None,
    *,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    reset_after: bool = True,
    mask: Any = None,
    lengths: Any = None,
    reset_mask: Any = None,
    go_backwards: bool = False,
    time_major: bool = False,
    return_sequences: bool = True,
    zero_output_for_mask: bool = False,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a GRU over a sequence.

    Parameters
    ----------
    x : array_like, shape (B, T, I), or (T, B, I) with time_major
    kernel : array_like, shape (I, 3H), gate order z r h
        Its dtype, float32, float64, float16 or bfloat16, is that of all arrays; where it is, all
        arrays are. With 16 bits, sums and gates are float32, and the state is rounded each step.
    recurrent_kernel : array_like, shape (H, 3H)
    bias : array_like, shape (2, 3H) with reset_after (row 0 input, row 1 recurrent), else (3H,)
    initial_state : array_like, shape (B, H), optional
    activation, recurrent_activation : str, Activation or callable
    reset_after : bool
        Whether the reset gate works after the recurrent product or before it.
    mask, lengths, reset_mask : array_like, optional
        As in a call of `fastgru.GRU`.
    go_backwards, time_major, return_sequences, zero_output_for_mask : bool
        As for `fastgru.RNN`; here return_sequences is True by default.
    out : ndarray, optional
        Where y is written; its shape and dtype.
    num_threads : int, optional
        Upper bound for this call.

    Returns
    -------
    y : ndarray, (B, T, H) or (T, B, H), or without return_sequences (B, H)
    state : ndarray, shape (B, H)

    Raises
    ------
    ValueError, TypeError
        Before any work; ``out`` is unchanged.

    Notes
    -----
    The equations stand in `fastgru.GRUCell`.
    """
    spec, weights = _operands(
        kernel, recurrent_kernel, bias, activation, recurrent_activation, reset_after
    )
    x = as_array(x, spec.dtype, "x", weights.kernel)
    check_shape(x, (None, None, spec.input_dim), "x", "(T, B, I)" if time_major else "(B, T, I)")
    if time_major:
        x = x.transpose(1, 0, 2)
    batch, steps, _ = x.shape
    h0 = _state(initial_state, spec, x, "initial_state")
    problem = GRUProblem(
        spec=spec,
        x=x,
        h0=h0,
        mask=plan_mask(mask, lengths, batch, steps, time_major, x),
        resets=plan_resets(reset_mask, batch, steps, time_major, x),
        reverse=bool(go_backwards),
        return_sequences=bool(return_sequences),
        zero_output_for_mask=bool(zero_output_for_mask),
        num_threads=check_num_threads(num_threads),
    )
    swap = bool(time_major and return_sequences)
    shape: tuple[int, ...] = (batch, steps, spec.units) if return_sequences else (batch, spec.units)
    if swap:
        shape = (steps, batch, spec.units)
    copy_to = None
    if out is None:
        target = np.empty_like(x, order="C", shape=shape) if swap else None
    else:
        target = check_out(out, shape, spec.dtype, "of the output", x)
        inputs = (x, h0, weights.kernel, weights.recurrent_kernel, weights.bias, mask, reset_mask)
        if any(overlap(target, a) for a in inputs):
            copy_to, target = target, np.empty_like(x, order="C", shape=shape)
    if target is not None:
        problem = problem._replace(out=target.transpose(1, 0, 2) if swap else target)
    output = dispatch.choose(problem).forward(problem, weights)
    y = output.y.transpose(1, 0, 2) if swap else output.y
    if copy_to is not None:
        copy_to[...] = y
    return (y if out is None else out), output.state


def gru_cell(
    x: Any,
    h: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    *,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    reset_after: bool = True,
    num_threads: int | None = None,
) -> np.ndarray:
    """Run one step of a GRU.

    Parameters
    ----------
    x : array_like, shape (B, I)
    h : array_like, shape (B, H)
        The state before the step.
    kernel, recurrent_kernel, bias : array_like
    activation, recurrent_activation : str, Activation or callable
    reset_after : bool
    num_threads : int, optional
        As for `gru`.

    Returns
    -------
    ndarray, shape (B, H)
        The state after the step.
    """
    spec, weights = _operands(
        kernel, recurrent_kernel, bias, activation, recurrent_activation, reset_after
    )
    x = as_array(x, spec.dtype, "x", weights.kernel)
    check_shape(x, (None, spec.input_dim), "x", "(B, I)")
    if h is None:
        raise TypeError("h: expected the state (B, H), got None; use zeros to start")
    problem = GRUProblem(
        spec=spec,
        x=x[:, None, :],
        h0=_state(h, spec, x, "h"),
        mask=plan_mask(None, None, x.shape[0], 1),
        return_sequences=False,
        num_threads=check_num_threads(num_threads),
    )
    return dispatch.choose(problem).forward(problem, weights).y


def _state(value: Any, spec: GRUSpec, x: Any, what: str) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    state = as_array(value, spec.dtype, what, x)
    check_shape(state, (x.shape[0], spec.units), what, "(B, H)")
    return state


def _operands(
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    activation: Any,
    recurrent_activation: Any,
    reset_after: bool,
) -> tuple[GRUSpec, GRUWeights]:
    """Validate the weights; their dtype is the computation's."""
    on_a_device = place(kernel) == "device"
    kernel = device_array(kernel, "kernel") if on_a_device else np.asarray(kernel)
    name = kernel.dtype.name
    if name not in FLOATS:
        raise TypeError(f"kernel: expected {' or '.join(FLOATS)}, got {name}")
    dtype = float_dtype(name)
    kernel = as_array(kernel, dtype, "kernel")
    check_shape(kernel, (None, None), "kernel", "(I, 3H)")
    inputs, columns = kernel.shape
    if columns == 0 or columns % 3:
        raise ValueError(f"kernel: expected shape (I, 3H), got {kernel.shape}")
    units = columns // 3
    recurrent = as_array(recurrent_kernel, dtype, "recurrent_kernel", kernel)
    check_shape(recurrent, (units, columns), "recurrent_kernel", "(H, 3H)")
    if bias is not None:
        bias = as_array(bias, dtype, "bias", kernel)
        shape, hint = ((2, columns), "(2, 3H)") if reset_after else ((columns,), "(3H,)")
        check_shape(bias, shape, "bias", f"{hint}, for reset_after={bool(reset_after)},")
        bias = np.ascontiguousarray(bias, like=bias)
    spec = GRUSpec(
        inputs,
        units,
        dtype,
        activations.for_gate(activation, "activation"),
        activations.for_gate(recurrent_activation, "recurrent_activation"),
        bias is not None,
        bool(reset_after),
    )
    kernel, recurrent = (np.ascontiguousarray(a, like=a) for a in (kernel, recurrent))
    weights = GRUWeights(kernel, recurrent, bias)
    return spec, weights
