"""A cuDNN backend with a fake library on an emulated device."""

import itertools

from cuda_emulator import Emulator
from fake_cudnn import FakeCudnn

from fastgru._cuda import libcudnn
from fastgru.backends import cudnn

B, T, I, H = 5, 6, 3, 11
FLAGS = list(itertools.product([False, True], repeat=3))  # reverse, sequences, zero_masked


class Machine:
    """A backend with a fake library and an emulated device."""

    def __init__(self, **how):
        self.fake, self.emulator = FakeCudnn(**how), Emulator()
        self.backend = cudnn.CudnnBackend(self.emulator, libcudnn.Cudnn(self.fake))

    def algorithms(self):
        """What the descriptors of the last call were made for, after a `clear`."""
        return [thing.algorithm for thing in self.fake.objects.values() if thing.kind == "rnn"]

    def clear(self):
        handles = {n: thing for n, thing in self.fake.objects.items() if thing.kind == "handle"}
        self.fake.objects.clear()
        self.fake.objects.update(handles)
        self.fake.calls.clear()
        self.emulator.launched.clear()
