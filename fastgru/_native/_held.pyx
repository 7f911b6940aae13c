# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Arrays of others as views that are fastgru's own."""

from fastgru._native._arrays cimport bytes_of, cnp, shape_of, strides_of

import numpy as np

cnp.import_array()

cdef object _ndarray = np.ndarray

cdef extern from "numpy/arrayobject.h":
    object new_from_descr "PyArray_NewFromDescr" (
        void *subtype, void *descr, int ndim, cnp.npy_intp *shape, cnp.npy_intp *strides,
        void *data, int flags, void *array,
    )


cdef class _Holder:
    # The base of a view: as it is no array, NumPy makes the view the base of the view's own views,
    # and these keep it too. It has no members that Python sees.
    cdef object references


cdef object holder_of(array):
    # What a held view, or a view of one, holds; None: it is neither.
    while cnp.PyArray_Check(array) and cnp.PyArray_BASE(<cnp.ndarray> array) != NULL:
        array = <object> cnp.PyArray_BASE(<cnp.ndarray> array)
    return array if isinstance(array, _Holder) else None


def held(array not None):
    """Return a view of an ndarray, of no subclass, that nobody else has.

    So its shape, strides, dtype and flags cannot change any more, and while the view or one of its
    own views lives, `ndarray.resize` raises ValueError for the array whose memory it is.

    Parameters
    ----------
    array : ndarray

    Returns
    -------
    ndarray
    """
    cdef _Holder holder = _Holder.__new__(_Holder)
    cdef cnp.PyArray_Descr *descr
    cdef int writeable
    if not cnp.PyArray_Check(array):
        raise TypeError(f"expected an ndarray, got {type(array).__name__}")
    holder.references = hold(array) or holder_of(array)
    if holder.references is None:  # of memory that is neither an array's nor a buffer's
        return array.view(_ndarray)
    base = holder
    if type(holder.references) is tuple and isinstance(holder.references[0], memoryview):
        if holder.references[1] is None:
            # A mapped file stays to be seen below the view: joblib passes it on as one.
            base = holder.references[0]
            if not cnp.PyArray_CHKFLAGS(<cnp.ndarray> array, cnp.NPY_ARRAY_WRITEABLE):
                base = base.toreadonly()
    # No other thread runs from here on.
    descr = cnp.PyArray_DESCR(<cnp.ndarray> array)
    cnp.Py_INCREF(<object> descr)  # which the call takes over
    writeable = cnp.PyArray_FLAGS(<cnp.ndarray> array) & cnp.NPY_ARRAY_WRITEABLE
    view = new_from_descr(
        <void *> _ndarray, descr, cnp.PyArray_NDIM(<cnp.ndarray> array), shape_of(array),
        strides_of(array), bytes_of(array), writeable, NULL,
    )
    cnp.set_array_base(<cnp.ndarray> view, base)
    return view
