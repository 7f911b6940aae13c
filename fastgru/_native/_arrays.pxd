# Arrays through NumPy's C interface, for calls of a microsecond: a Py_buffer costs 60 ns to take
# and give back, and says nothing of the dtype. Who cimports this calls import_array().

cimport numpy as cnp
from libc.stdint cimport uintptr_t


cdef inline int float_type(Py_ssize_t size) noexcept:
    return cnp.NPY_FLOAT if size == 4 else cnp.NPY_DOUBLE


cdef inline bint is_native(array, int type, int ndim) noexcept:
    # An ndarray, no subclass, of so many axes and this type in the machine's own byte order.
    return (
        cnp.PyArray_CheckExact(array)
        and cnp.PyArray_TYPE(<cnp.ndarray> array) == type
        and cnp.PyArray_NDIM(<cnp.ndarray> array) == ndim
        and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray> array)
    )


cdef inline bint is_plain(array, int type, int ndim) noexcept:
    # ... and C-contiguous and aligned; it may be read-only.
    return is_native(array, type, ndim) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)


cdef inline int require(
    array, str what, int type, int ndim, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c=0,
) except -1:
    # What the kernels are about to read or write is an ndarray of this type and shape (a, b, c),
    # of which the first ndim count. Callers have checked what they were given; but attributes of a
    # layer may change at any time, and here the numbers are those that make addresses.
    cdef Py_ssize_t[3] shape = [a, b, c]
    cdef cnp.npy_intp *found
    cdef int i = 0
    if (
        cnp.PyArray_Check(array)
        and cnp.PyArray_TYPE(<cnp.ndarray> array) == type
        and cnp.PyArray_NDIM(<cnp.ndarray> array) == ndim
        and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray> array)
    ):
        found = shape_of(array)
        while i < ndim and found[i] == shape[i]:
            i += 1
        if i == ndim:
            return 0
    got = f"shape {array.shape}, {array.dtype}" if cnp.PyArray_Check(array) else repr(array)
    raise ValueError(
        f"{what}: expected shape {tuple([shape[i] for i in range(ndim)])} in the layer's dtype, "
        f"got {got}; the layer was changed after it was built, or during the call: do not write to "
        "its attributes, build another one"
    )


cdef inline bint is_walkable(array, Py_ssize_t size) noexcept:
    # Whether the kernels can walk it: last axis contiguous, everything aligned.
    cdef cnp.npy_intp *shape = shape_of(array)
    cdef cnp.npy_intp *strides = strides_of(array)
    cdef int i, last = cnp.PyArray_NDIM(<cnp.ndarray> array) - 1
    if <uintptr_t> bytes_of(array) % size or (shape[last] > 1 and strides[last] != size):
        return False
    for i in range(last):
        if shape[i] > 1 and strides[i] % size:
            return False
    return True


cdef inline object walkable(array, Py_ssize_t size):
    # The array itself, or a copy.
    return array if is_walkable(array, size) else cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)


cdef inline char *plain_bytes(array, list kept) except NULL:
    # Of the array if it is C-contiguous and aligned, else of a copy, which goes to `kept`.
    if not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array):
        array = cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)
        kept.append(array)
    return bytes_of(array)


cdef inline object empty(int ndim, cnp.npy_intp *shape, int type):
    return cnp.PyArray_EMPTY(ndim, shape, type, 0)


cdef inline char *bytes_of(array) noexcept:
    return cnp.PyArray_BYTES(<cnp.ndarray> array)


cdef inline cnp.npy_intp *shape_of(array) noexcept:
    return cnp.PyArray_DIMS(<cnp.ndarray> array)


cdef inline cnp.npy_intp *strides_of(array) noexcept:
    return cnp.PyArray_STRIDES(<cnp.ndarray> array)
