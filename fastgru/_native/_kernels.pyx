# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The table of kernels: the instruction set whose kernels run, and the ids of activations."""

from cython cimport floating

from fastgru._native._headers cimport (
    ACT_COUNT,
    HALF_BFLOAT16,
    HALF_FLOAT16,
    fastgru_activation_names,
    fastgru_isa_names,
    fastgru_isa_supported,
    fastgru_kernels_f32,
    fastgru_kernels_f64,
    gate_functions,
    kernels_f32,
    kernels_f64,
    openmp_threads,
)

OPENMP = openmp_threads() > 0  # asked at the import: see _SPINNING in backends/cpu.py
ISA_NAMES = []
while fastgru_isa_names[len(ISA_NAMES)] != NULL:
    ISA_NAMES.append(fastgru_isa_names[len(ISA_NAMES)].decode())
cdef dict _activation_ids = {
    fastgru_activation_names[_i].decode(): _i for _i in range(ACT_COUNT)
}
ACTIVATIONS = frozenset(_activation_ids) - {"gelu_tanh"}

cdef int _isa = 0

ctypedef fused kernel_table:
    kernels_f32
    kernels_f64


cdef Kernels _untyped(const kernel_table *table) noexcept:
    cdef Kernels kernels
    kernels.lanes = table.lanes
    kernels.run, kernels.run_scratch = table.run, table.run_scratch
    kernels.back, kernels.back_scratch = table.back, table.back_scratch
    kernels.products, kernels.product_scratch = table.products, table.product_scratch
    return kernels


cdef Kernels kernels_of(Py_ssize_t itemsize) noexcept:
    if itemsize == 4:
        return _untyped(fastgru_kernels_f32(_isa))
    return _untyped(fastgru_kernels_f64(_isa))


def lanes(Py_ssize_t itemsize):
    """Return how many units a panel has; 0: this compiler made no fused kernels."""
    return kernels_of(itemsize).lanes


cdef void activate(int number, const double *params, Py_ssize_t n, floating *a) noexcept nogil:
    # Applies a built-in activation in place.
    if floating is float:
        fastgru_kernels_f32(_isa).activations[number](n, params, a)
    else:
        fastgru_kernels_f64(_isa).activations[number](n, params, a)


cdef void round_to_half(int half, Py_ssize_t n, floating *a) noexcept nogil:
    # Rounds to 16 bits in place; half 0 and doubles: does nothing.
    if floating is float:
        fastgru_kernels_f32(_isa).round(half, n, a)


cdef int half_of(dtype) except -1:
    # The `half` of a job whose arrays have this dtype.
    return {"float16": HALF_FLOAT16, "bfloat16": HALF_BFLOAT16}.get(dtype.name, 0)


cdef int isa_in_use() noexcept:
    return _isa


def set_isa(str name):
    """Use the instruction set of that name from now on.

    Raises
    ------
    ValueError
        An unknown name, or one that this machine cannot run.
    """
    global _isa
    if name not in ISA_NAMES:
        raise ValueError(f"FASTGRU_ISA: expected one of {', '.join(ISA_NAMES)}, got {name!r}")
    cdef int isa = ISA_NAMES.index(name)
    if not fastgru_isa_supported(isa):
        raise ValueError(f"FASTGRU_ISA: this machine cannot run {name!r}")
    _isa = isa


def get_isa():
    """Return the name of the instruction set in use."""
    return ISA_NAMES[_isa]


def supported_isas():
    """Return the names of the instruction sets that this machine can run, best last."""
    return [name for i, name in enumerate(ISA_NAMES) if fastgru_isa_supported(i)]


cdef int read_functions(spec, gate_functions *functions) except -1:
    # The activations of a GRUSpec and their parameters.
    functions.activation = _read_activation(spec.activation, functions.params)
    functions.recurrent_activation = _read_activation(
        spec.recurrent_activation, functions.recurrent_params
    )
    return 0


cdef int _read_activation(activation, double *params) except -1:
    name, values = activation.name, activation.params
    if name == "gelu":
        name, values = ("gelu_tanh" if values[0] else "gelu"), ()
    for i in range(3):
        value = values[i] if i < len(values) else 0.0
        params[i] = float("nan") if value is None else value
    return _activation_ids[name]


def apply_rounding(dtype, float[::1] values):
    """Round in place to a dtype of 16 bits, as states are: what the tests of rounding call."""
    if values.shape[0] > 0:
        round_to_half(half_of(dtype), values.shape[0], &values[0])


def apply_activation(activation, floating[::1] values):
    """Apply an `Activation` in place, as the gates do: what the tests of accuracy call."""
    cdef double params[3]
    cdef int number = _read_activation(activation, params)
    if values.shape[0] > 0:
        activate(number, params, values.shape[0], &values[0])
