# Keeps the memory of arrays of others where it is while native code uses it.
#
# ndarray.resize(..., refcheck=False) gives memory back whatever still points there, a view of the
# array included. It refuses, though, an array that somebody has a weak reference to, and one that
# does not own its memory. So a weak reference to the owner is what holds the memory.

from cpython.weakref cimport PyWeakref_NewRef

from fastgru._native._arrays cimport cnp


cdef inline object hold(array):
    # What has to be kept as long as the memory of this ndarray is used; None: nobody can resize
    # it. Weak references may start the garbage collector and so any other thread: what the caller
    # has read of the array before is not to be relied on.
    cdef object references = None
    while cnp.PyArray_Check(array):
        if cnp.PyArray_CHKFLAGS(<cnp.ndarray> array, cnp.NPY_ARRAY_OWNDATA):
            references = (array, PyWeakref_NewRef(array, None), references)
        if cnp.PyArray_BASE(<cnp.ndarray> array) == NULL:
            break
        array = <object> cnp.PyArray_BASE(<cnp.ndarray> array)
    return references
