"""The compiled part: Cython over C; `fastgru.backends.cpu` is its only user."""
