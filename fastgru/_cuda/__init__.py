"""For the backends of a device: CUDA kernels as text, the engine that runs them, cuDNN's calls."""
