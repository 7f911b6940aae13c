# Arrays through NumPy's C interface, for calls of a microsecond: a Py_buffer costs 60 ns to take
# and give back, and says nothing of the dtype. Who cimports this calls import_array().

cimport numpy as cnp


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


cdef inline object empty(int ndim, cnp.npy_intp *shape, int type):
    return cnp.PyArray_EMPTY(ndim, shape, type, 0)


cdef inline char *bytes_of(array) noexcept:
    return cnp.PyArray_BYTES(<cnp.ndarray> array)


cdef inline cnp.npy_intp *shape_of(array) noexcept:
    return cnp.PyArray_DIMS(<cnp.ndarray> array)


cdef inline cnp.npy_intp *strides_of(array) noexcept:
    return cnp.PyArray_STRIDES(<cnp.ndarray> array)
