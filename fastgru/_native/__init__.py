"""The compiled part: Cython over C templates. `fastgru.backends.cpu` calls it, for host arrays.

A call goes down this picture; each module imports those below it, and none above::

        backends/cpu.py
              |
      _fast_path     _stream     _forward     _backward    from arrays to a job
              |         |           |            |
         _coalescing    |           |            |         small calls wait, and run as one
              |         |           |            |
              +------ _execute -----+            |         scratch; with or without the GIL
                        |                        |
                     _partition -----------------+         how a call is divided among threads
                        |                        |
                  _job, _weights                 |         what a kernel reads; its weights
                        |                        |
                  _threads, _kernels ------------+         leases, interrupts; the kernel table
                        |
                     kernels/                              C templates: the loops over time

A job is the `gru_job` of kernels/job.h (`gru_back_job` for backward): what one call reads and
writes. `_job.pxd` fills in what comes from weights, x, y and a problem. A kernel runs some rows, or
some panels of units, of a job through all its steps; there is one per dtype and instruction set.
`PackedWeights` carry the kernel that runs them.

`_execute` holds the rules for every call forward: its scratch, when the GIL is released, when a
call counts as brief, how many threads it gets, and whether it asks for interrupts. `_backward` runs
its walk and its products by the same rules of `_threads`. Neither knows of other calls' requests.

`_arrays.pxd` reads NumPy arrays, `_held` keeps their memory in place, and `_headers.pxd` declares
the C headers. Two extensions stand apart. `_blas` is another kernel for the same jobs; it brings
SciPy's BLAS, and is imported only where it is chosen. `_command_list` belongs to the GPU: it
launches kernels there, step after step.
"""
