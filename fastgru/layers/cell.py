"""GRUCell: the weights of a GRU and one step of it."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, overload

import numpy as np

from fastgru import activations, constraints, dispatch, initializers, locks, regularizers
from fastgru.dropout import DropoutGenerator
from fastgru.dtypes import rounded
from fastgru.layers import options
from fastgru.layers.config import keras_config
from fastgru.layers.dropout_masks import DropoutMasks
from fastgru.layers.nested import Array
from fastgru.problem import (
    GRUProblem,
    GRUSpec,
    GRUWeights,
    as_array,
    check_shape,
)
from fastgru.variables import Variable

_ACTIVATIONS = ("activation", "recurrent_activation")
_NAMES = {"kernel": "kernel", "recurrent": "recurrent_kernel", "bias": "bias"}  # by role


class GRUCell(DropoutMasks):
    """One step of a gated recurrent unit, as `keras.layers.GRUCell`.

    Parameters
    ----------
    units : int
        H, the size of the state and of the output.
    activation, recurrent_activation : str, Activation or callable, default "tanh", "sigmoid"
        Of the candidate, and of the two gates. None means linear.
    use_bias : bool
    kernel_initializer, recurrent_initializer, bias_initializer : str, dict, object or callable
    kernel_regularizer, recurrent_regularizer, bias_regularizer : likewise
    kernel_constraint, recurrent_constraint, bias_constraint : likewise
        Names, configs, objects or callables, as in Keras.
    dropout, recurrent_dropout : float in [0, 1]
        Fraction of the inputs, and of the state, dropped in training.
    reset_after : bool
        Whether the reset gate works after the recurrent product (as cuDNN) or before it.
    seed : int, optional
        Of the dropout masks.
    implementation : {1, 2}
        1 draws one dropout mask per gate, 2 one for all; recurrent_dropout > 0 forces 1.
    dtype : str or policy
        As for `GRU`.
    name : str, optional
    trainable : bool
    **kwargs
        Keras' ``input_shape`` (I,), ``batch_input_shape`` or ``batch_shape`` (B, I), or
        ``input_dim``: the cell is built at once; ``weights``: what they are when it is built.

    Notes
    -----
    With gates z (update), r (reset) and candidate n::

        z = act_r(x Wz + bz + h Uz + cz)
        r = act_r(x Wr + br + h Ur + cr)
        n = act(x Wh + bh + r * (h Uh + ch))    reset_after=True
        n = act(x Wh + bh + (r * h) Uh)         reset_after=False
        h' = z * h + (1 - z) * n

    Source: Cho et al. 2014, arXiv:1406.1078; conventions of Keras 3.
    """

    _transient: ClassVar[tuple[str, ...]] = ("_parent", "_weights")
    _checks = options.cell_checks()
    _axes = 2
    # What the kernels and the shapes of the weights come from, once there are some.
    _fixed = frozenset(("units", "use_bias", "reset_after", "precision", *_ACTIVATIONS))

    units: int
    activation: Any
    recurrent_activation: Any
    use_bias: bool
    kernel_initializer: Any
    recurrent_initializer: Any
    bias_initializer: Any
    kernel_regularizer: Any
    recurrent_regularizer: Any
    bias_regularizer: Any
    kernel_constraint: Any
    recurrent_constraint: Any
    bias_constraint: Any
    dropout: float
    recurrent_dropout: float
    reset_after: bool
    implementation: int
    precision: str | None
    seed: int | None
    seed_generator: DropoutGenerator
    state_size: int
    output_size: int
    spec: GRUSpec | None
    masks_for_cell: dict[int, np.ndarray]

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
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        seed: int | None = None,
        *,
        implementation: int = 2,
        dtype: Any = "float32",
        name: str | None = None,
        trainable: bool = True,
        **kwargs: Unpack[options.Keywords],
    ) -> None:
        self.units = units
        self.implementation = implementation
        super().__init__(name=name, dtype=dtype, trainable=trainable, **kwargs)
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.recurrent_initializer = recurrent_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.recurrent_regularizer = recurrent_regularizer
        self.bias_regularizer = bias_regularizer
        self.kernel_constraint = kernel_constraint
        self.recurrent_constraint = recurrent_constraint
        self.bias_constraint = bias_constraint
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        if self.recurrent_dropout:
            self.implementation = 1
        self.reset_after = reset_after
        self.precision = None  # GRU sets it; Keras' cells have no such argument
        self.seed = seed
        self.seed_generator = DropoutGenerator(seed)
        self.state_size = self.output_size = self.units
        self._kernel: Variable | None = None
        self._recurrent_kernel: Variable | None = None
        self._bias: Variable | None = None
        self.spec = None
        self._weights: GRUWeights | None = None
        self._dropout_mask: Any = None
        self._recurrent_dropout_mask: Any = None
        self.masks_for_cell = {}  # what TF 2.x's members of GRU drew
        self._made()

    # -- weights ---------------------------------------------------------------------------

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of shape (..., I)."""
        inputs = input_dim(input_shape)
        if self.built:
            assert self.spec is not None
            if inputs != self.spec.input_dim:
                raise ValueError(
                    f"{self.name}: it was built for I = {self.spec.input_dim} features, got "
                    f"input shape {tuple(input_shape)}; build another layer for another size"
                )
            return
        arrays = {}
        for role, shape in self._shapes(inputs).items():
            initializer = getattr(self, f"{role}_initializer")
            if initializer is None:  # as Keras 3 does
                initializer = initializers.get("glorot_uniform")
            what = f"{_NAMES[role]} from {role}_initializer"
            value = initializer(shape, dtype=self.variable_dtype)
            arrays[role] = as_array(value, self._variable_dtype, what)
            check_shape(arrays[role], shape, what, "asked for")
        self._take_weights(inputs, arrays, copy=True)
        self._set_initial_weights()

    def adopt(self, *weights: np.ndarray) -> None:
        """Build with weights that are there already, from a file for instance, and draw none.

        Drawing what is replaced at once costs: orthogonal weights of 2048 units take a minute.

        Parameters
        ----------
        *weights : ndarray
            Kernel (I, 3H), recurrent_kernel (H, 3H) and, with use_bias, bias, in the cell's dtype,
            C-contiguous. They are kept where they lie and become read-only; nobody may write to
            their memory any more.

        Raises
        ------
        ValueError
            Another number, shape, dtype or order of arrays; the cell is as it was.
        """
        inputs = weights[0].shape[0] if weights and weights[0].ndim == 2 else 0
        shapes = self._shapes(inputs)
        got = [(w.shape, w.dtype) for w in weights]
        if got != [(shape, self._variable_dtype) for shape in shapes.values()]:
            raise ValueError(
                f"{self.name}: expected {', '.join(_NAMES[role] for role in shapes)} in "
                f"{self._variable_dtype} of shapes {list(shapes.values())}, got "
                f"{', '.join(f'{dtype} {shape}' for shape, dtype in got)}"
            )
        if not all(w.flags.c_contiguous and w.flags.aligned for w in weights):
            raise ValueError(f"{self.name}: expected weights that are C-contiguous and aligned")
        self._take_weights(inputs, dict(zip(shapes, weights, strict=True)), copy=False)

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        columns = 3 * self.units
        shapes: dict[str, tuple[int, ...]] = {
            "kernel": (inputs, columns),
            "recurrent": (self.units, columns),
        }
        if self.use_bias:
            shapes["bias"] = (2, columns) if self.reset_after else (columns,)
        return shapes

    def _take_weights(self, inputs: int, arrays: dict[str, np.ndarray], copy: bool) -> None:
        """Keep all weights, which are of the right shapes and dtype, and be built."""
        variables = {
            role: Variable(
                array,
                name=_NAMES[role],
                regularizer=getattr(self, f"{role}_regularizer"),
                constraint=getattr(self, f"{role}_constraint"),
                owner=self,
                copy=copy,
            )
            for role, array in arrays.items()
        }
        self._kernel, self._recurrent_kernel = variables["kernel"], variables["recurrent"]
        self._bias = variables.get("bias")
        self.spec = self.spec_for(inputs)
        self._weights = self.weights_with({})
        self.built = True

    def spec_for(self, inputs: int) -> GRUSpec:
        """Return the spec of this cell, built or not, for I = ``inputs`` features."""
        return self.spec or GRUSpec(
            inputs,
            self.units,
            self._dtype,
            self.activation,
            self.recurrent_activation,
            self.use_bias,
            self.reset_after,
            self.precision,
        )

    def _is_fixed(self) -> bool:
        return getattr(self, "spec", None) is not None

    def forget(self) -> None:
        """Go back to before build, with a fresh sequence of dropout masks."""
        self._kernel = self._recurrent_kernel = self._bias = self.spec = self._weights = None
        self.built = False
        self.seed_generator = DropoutGenerator(self.seed)
        self._dropout_mask = self._recurrent_dropout_mask = None
        self.masks_for_cell = {}

    def weights_with(self, values: dict[int, np.ndarray]) -> GRUWeights:
        """Return the set of weights, of a new version, after ``values`` by ids of variables.

        Of a mixed policy they are rounded here, once, to the dtype that calls compute in.
        """
        arrays = (values.get(id(v), v.value) for v in self.weights)
        return GRUWeights(*(rounded(array, self._dtype) for array in arrays))

    def renewed(self, values: dict[int, np.ndarray]) -> GRUWeights | None:
        """Return the set of weights after ``values``; None unless all of them are there.

        What calls have used of the old set, packed, is made of the new one here: who swaps weights
        waits for it, and no call.
        """
        if any(id(v) not in values for v in self.weights):
            return None
        weights = self.weights_with(values)
        dispatch.pack_like(self.snapshot(), weights)
        return weights

    def snapshot(self) -> GRUWeights:
        """Return the weights as one immutable set; a write replaces the set, never its arrays."""
        weights = self._weights
        if weights is None:  # after unpickling
            with locks.writing:
                weights = self._weights = self._weights or self.weights_with({})
        return weights

    @property
    def weights(self) -> list[Variable]:
        """Kernel (I, 3H), recurrent_kernel (H, 3H) and, with use_bias, bias; [] before build."""
        return [v for v in (self._kernel, self._recurrent_kernel, self._bias) if v is not None]

    @property
    def kernel(self) -> Variable | None:
        """The input weights (I, 3H); None before build."""
        return self._kernel

    @property
    def recurrent_kernel(self) -> Variable | None:
        """The recurrent weights (H, 3H); None before build."""
        return self._recurrent_kernel

    @property
    def bias(self) -> Variable | None:
        """The bias, (2, 3H) with reset_after, else (3H,); None before build or without use_bias."""
        return self._bias

    # -- the step --------------------------------------------------------------------------

    def get_initial_state(self, batch_size: int | None = None) -> list[np.ndarray]:
        """Return [zeros (batch_size, H)]."""
        if batch_size is None or batch_size < 0:
            raise ValueError(f"batch_size: expected an integer of at least 0, got {batch_size!r}")
        return [np.zeros((batch_size, self.units), self._dtype)]

    @overload
    def __call__(
        self, inputs: Any, states: list[Any] | tuple[Any, ...], training: bool = False
    ) -> tuple[Array, list[Array]]: ...

    @overload
    def __call__(
        self, inputs: Any, states: Array, training: bool = False
    ) -> tuple[Array, Array]: ...

    def __call__(self, inputs: Any, states: Any, training: bool = False) -> tuple[Array, Any]:
        """Run one step.

        Parameters
        ----------
        inputs : array_like, shape (B, I)
        states : array_like, shape (B, H), or a list of one
        training : bool
            Whether dropout is applied; its masks stay the same until they are reset.

        Returns
        -------
        output : ndarray, shape (B, H)
        new_states : ndarray or list of one, as ``states`` came
        """
        nested = isinstance(states, (list, tuple))
        spec, weights = self.spec, self._weights
        if not training and spec is not None and weights is not None:
            h = states[0] if nested and len(states) == 1 else states
            path = dispatch.fast_path()
            y = path.fast_step(weights, spec, inputs, h)
            arrays = type(inputs) is type(h) is np.ndarray
            if y is None and arrays and not inputs.dtype == h.dtype == self._dtype:
                x, h0 = (
                    as_array(a, self._dtype, w) for a, w in ((inputs, "inputs"), (h, "states"))
                )
                y = path.fast_step(weights, spec, x, h0)
            if y is not None:
                return y, ([y] if nested else y)
        x = as_array(inputs, self._dtype, "inputs")
        check_shape(x, (None, self.spec.input_dim if self.spec else None), "inputs", "(B, I)")
        if nested and len(states) != 1:
            raise ValueError(f"states: expected one state (B, H), got {len(states)}")
        h0 = as_array(states[0] if nested else states, self._dtype, "states", x)
        check_shape(h0, (x.shape[0], self.units), "states", "(B, H)")
        if not self.built:
            with locks.building:
                self.build(x.shape)
        assert self.spec is not None
        problem = GRUProblem(spec=self.spec, x=x[:, None, :], h0=h0, return_sequences=False)
        if not training:
            backend = dispatch.choose(problem)
        else:
            dropout, recurrent_dropout = self.placeholders(x.shape)
            problem = problem._replace(dropout=dropout, recurrent_dropout=recurrent_dropout)
            backend = dispatch.choose(problem)
            self.get_dropout_mask(x)  # the same masks at every step, until they are reset
            self.get_recurrent_dropout_mask(h0)
            dropout, recurrent_dropout = self.draw(x.shape)
            problem = problem._replace(dropout=dropout, recurrent_dropout=recurrent_dropout)
        y = backend.forward(problem, self.snapshot()).y
        return y, ([y] if nested else y)

    call = __call__  # Keras' name

    # -- config ----------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data that Keras 3 reads too."""
        config = {
            **super().get_config(),
            "units": self.units,
            "activation": activations.serialize(self.activation),
            "recurrent_activation": activations.serialize(self.recurrent_activation),
            "use_bias": self.use_bias,
        }
        for module in (initializers, regularizers, constraints):
            suffix = module.__name__.rpartition(".")[2][:-1]
            for role in ("kernel", "recurrent", "bias"):
                key = f"{role}_{suffix}"
                config[key] = module.serialize(getattr(self, key))
        config.update(
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            reset_after=self.reset_after,
            seed=self.seed,
        )
        if self.implementation == 1 and not self.recurrent_dropout:
            config["implementation"] = 1
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> GRUCell:
        """Build a cell from a config of this library, of Keras 3 or of Keras 2."""
        return cls(**keras_config(config, custom_objects, needs="units"))


def input_dim(shape: Any) -> int:
    """Return I of an input shape (..., I)."""
    try:
        size = int(tuple(shape)[-1].__index__())
    except (TypeError, IndexError, AttributeError):
        size = -1
    if size < 0:
        raise ValueError(
            f"input_shape: expected a tuple that ends in the number of features, got {shape!r}"
        )
    return size
