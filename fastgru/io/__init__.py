"""Weights and whole layers from files, and back, without the framework that wrote them.

A file is data: nothing in it is executed, its shapes are compared with its config before anything
is allocated, and what is truncated, altered or hostile is a ValueError that names the place.

| source | reads | writes |
|---|---|---|
| Keras 3 and 2, CuDNNGRU, SavedModel | `from_keras`, `load_keras_weights` | `to_keras_weights` |
| PyTorch | `from_torch` | `to_torch` |
| ONNX | `from_onnx` | `to_onnx` |
| fastgru's own | `load` | `save` |

The packages that read a format (h5py, safetensors, onnx) are extras, imported when they are needed.
"""
