# Keeps the memory of arrays of others where it is while native code uses it.
#
# ndarray.resize(..., refcheck=False) gives memory back whatever still points there, a view of the
# array included. It refuses, though, an array that somebody has a weak reference to, and one that
# does not own its memory. So a weak reference to the owner is what holds the memory. A mmap or a
# bytearray does not give up memory while somebody has its buffer; NumPy gives that back at once.

from cpython.buffer cimport PyObject_CheckBuffer
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.weakref cimport PyWeakref_NewRef

from fastgru._native._arrays cimport cnp


cdef inline object hold(array):
    # What has to be kept as long as the memory of this ndarray is used; None: it is no array's and
    # no buffer's. ValueError for a mmap that is closed. Weak references may start the garbage
    # collector and so any other thread: what the caller has read of the array before is not to be
    # relied on.
    cdef object references = None
    while cnp.PyArray_Check(array):
        if cnp.PyArray_CHKFLAGS(<cnp.ndarray> array, cnp.NPY_ARRAY_OWNDATA):
            references = (array, PyWeakref_NewRef(array, None), references)
        if cnp.PyArray_BASE(<cnp.ndarray> array) == NULL:
            break
        array = <object> cnp.PyArray_BASE(<cnp.ndarray> array)
    if not cnp.PyArray_Check(array) and PyObject_CheckBuffer(array):
        references = (PyMemoryView_FromObject(array), references)
    return references
