"""The CUDA part: kernels as text, compiled at first use, for `fastgru.backends.cuda` alone."""
