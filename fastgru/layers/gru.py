"""GRU: the layer most people want."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np

from fastgru import regularizers
from fastgru.device import follow
from fastgru.dropout import INPUT, RECURRENT
from fastgru.dtypes import policy_of
from fastgru.layers import options
from fastgru.layers.cell import GRUCell
from fastgru.layers.config import keras_config
from fastgru.layers.nested import Array, Result
from fastgru.layers.rnn import RNN
from fastgru.variables import Variable


def _of_cell(name: str) -> Any:
    return property(lambda self: getattr(self.cell, name), doc=f"``{name}`` of the cell.")


class GRU(RNN[Result]):
    """Gated recurrent unit over a sequence, as `keras.layers.GRU`.

    Parameters
    ----------
    units : int
        H, the size of the state and of the output.
    activation, recurrent_activation : str, Activation or callable, default "tanh", "sigmoid"
    use_bias : bool
    kernel_initializer, recurrent_initializer, bias_initializer : str, dict, object or callable
    kernel_regularizer, recurrent_regularizer, bias_regularizer, activity_regularizer : likewise
    kernel_constraint, recurrent_constraint, bias_constraint : likewise
        Names, configs, objects or callables, as in Keras.
    dropout, recurrent_dropout : float in [0, 1]
    seed : int, optional
        Of the dropout masks.
    return_sequences, return_state, go_backwards, stateful, unroll : bool
        As for `RNN`.
    reset_after : bool
        Whether the reset gate works after the recurrent product (as cuDNN) or before it.
    use_cudnn : {"auto", True, False}
        True: raise ValueError where cuDNN cannot serve the call.
    time_major, zero_output_for_mask : bool
        As for `RNN`.
    implementation : {1, 2}
        1 draws one dropout mask per gate, 2 one for all; recurrent_dropout > 0 forces 1.
    dtype : str or policy
        "float32", "float64", "float16", "bfloat16", or a policy of Keras, "mixed_float16" or
        "mixed_bfloat16", whose weights are float32. With 16 bits, sums and gates are float32.
    precision : {None, "tf32"}
        "tf32" lets GPUs round the factors of float32 products to 10 bits, for speed; None, as on
        the CPU, computes in the dtype itself.
    name : str, optional
    trainable : bool
    **kwargs
        As for `RNN`.

    Notes
    -----
    The equations stand in `GRUCell`; what masks, resets and empty rows do, in docs/semantics.md.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> layer = fastgru.GRU(4, return_sequences=True, return_state=True)
    >>> y, state = layer(np.zeros((32, 10, 8), "float32"))
    >>> y.shape, state.shape
    ((32, 10, 4), (32, 4))
    """

    cell: GRUCell
    units: int = _of_cell("units")
    activation: Any = _of_cell("activation")
    recurrent_activation: Any = _of_cell("recurrent_activation")
    use_bias: bool = _of_cell("use_bias")
    kernel_initializer: Any = _of_cell("kernel_initializer")
    recurrent_initializer: Any = _of_cell("recurrent_initializer")
    bias_initializer: Any = _of_cell("bias_initializer")
    kernel_regularizer: Any = _of_cell("kernel_regularizer")
    recurrent_regularizer: Any = _of_cell("recurrent_regularizer")
    bias_regularizer: Any = _of_cell("bias_regularizer")
    kernel_constraint: Any = _of_cell("kernel_constraint")
    recurrent_constraint: Any = _of_cell("recurrent_constraint")
    bias_constraint: Any = _of_cell("bias_constraint")
    dropout: float = _of_cell("dropout")
    recurrent_dropout: float = _of_cell("recurrent_dropout")
    reset_after: bool = _of_cell("reset_after")
    implementation: int = _of_cell("implementation")
    precision: str | None = _of_cell("precision")
    seed: int | None = _of_cell("seed")
    kernel: Variable | None = _of_cell("kernel")
    recurrent_kernel: Variable | None = _of_cell("recurrent_kernel")
    bias: Variable | None = _of_cell("bias")

    @overload
    def __init__(
        self: GRU[Array],
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: Literal[False] = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        *,
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        implementation: int = 2,
        dtype: Any = "float32",
        precision: str | None = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    @overload
    def __init__(
        self: GRU[tuple[Array, Array]],
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        *,
        return_state: Literal[True],
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        implementation: int = 2,
        dtype: Any = "float32",
        precision: str | None = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    @overload
    def __init__(
        self: GRU[Array | tuple[Array, Array]],
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        *,
        return_state: bool,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        implementation: int = 2,
        dtype: Any = "float32",
        precision: str | None = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None: ...

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Any = "auto",
        *,
        time_major: bool = False,
        zero_output_for_mask: bool = False,
        implementation: int = 2,
        dtype: Any = "float32",
        precision: str | None = None,
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        if precision == "tf32" and policy_of(dtype).compute_dtype != "float32":
            raise ValueError(
                f"precision: 'tf32' is a precision of float32 products, got dtype {dtype!r}"
            )
        self.use_cudnn = use_cudnn
        cell = GRUCell(
            units,
            activation,
            recurrent_activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            kernel_regularizer,
            recurrent_regularizer,
            bias_regularizer,
            kernel_constraint,
            recurrent_constraint,
            bias_constraint,
            dropout,
            recurrent_dropout,
            reset_after,
            seed,
            implementation=implementation,
            dtype=dtype,
            name="gru_cell",
        )
        cell.precision = precision
        # What self is depends on the overloads, which a checker does not relate.
        super().__init__(  # type: ignore[misc, call-overload]
            cell,
            return_sequences,
            return_state,
            go_backwards,
            stateful,
            unroll,
            zero_output_for_mask,
            time_major=time_major,
            activity_regularizer=activity_regularizer,
            dtype=dtype,
            name=name,
            trainable=trainable,
            **kwargs,
        )

    def reset_dropout_mask(self) -> None:
        """Forget the cell's input mask; see `GRUCell.reset_dropout_mask`."""
        self.cell.reset_dropout_mask()

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the cell's recurrent masks; see `GRUCell.reset_recurrent_dropout_mask`."""
        self.cell.reset_recurrent_dropout_mask()

    def get_dropout_mask_for_cell(self, inputs: Any, training: Any, count: int = 1) -> Any:
        """Return dropout masks in the shape of ``inputs``, as TF 2.x's layers do.

        Parameters
        ----------
        inputs : array_like
            Only its shape counts, and where it is.
        training : bool
            False: the masks are ones.
        count : int
            How many.

        Returns
        -------
        None, ndarray or list of ndarray
            None without dropout, a list for ``count`` > 1. Masks stay the same until the cell's are
            reset.
        """
        return self._masks_for_cell(INPUT, self.cell.dropout, inputs, training, count)

    def get_recurrent_dropout_mask_for_cell(
        self, inputs: Any, training: Any, count: int = 1
    ) -> Any:
        """Return recurrent dropout masks in the shape of ``inputs``, as TF 2.x's layers do.

        Parameters
        ----------
        inputs, training, count : as for `get_dropout_mask_for_cell`
        """
        return self._masks_for_cell(RECURRENT, self.cell.recurrent_dropout, inputs, training, count)

    def _masks_for_cell(
        self, stream: int, rate: float, inputs: Any, training: Any, count: int
    ) -> Any:
        if not rate:
            return None
        shape = np.shape(inputs)
        masks = self.cell.masks_for_cell.get(stream)
        if not training:
            masks = np.ones((count, *shape), self._dtype)
        elif masks is None or masks.shape != (count, *shape):
            masks = self.cell.seed_generator.draw(stream, shape, rate, self._dtype, count)
            self.cell.masks_for_cell[stream] = masks
        masks = follow(masks, inputs)
        return list(masks) if count > 1 else masks[0]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        cell = self.cell.get_config()
        for key in ("name", "trainable", "dtype"):
            del cell[key]
        activity = regularizers.serialize(self.activity_regularizer)
        if self.cell.precision is not None:
            cell["precision"] = self.cell.precision
        return {**self.sequence_config(), **cell, "activity_regularizer": activity}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Any:
        """Build a layer from a config of this library, of Keras 3 or of Keras 2."""
        return cls(**keras_config(config, custom_objects, needs="units"))
