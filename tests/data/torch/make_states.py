"""Make states.npz: modules of torch.nn.GRU that start from an ``h_0`` of (L * D, B, H).

Run once, with torch 2.13: ``python tests/data/torch/make_states.py``. Keys are ``LxD/name``: the
weights by torch's names, x (B, T, I), h_0, y and h_n.
"""

from pathlib import Path

import numpy as np
import torch

B, T, I, H = 3, 5, 2, 4
torch.manual_seed(0)
arrays = {}
for layers in (1, 2, 3):
    for directions in (1, 2):
        module = torch.nn.GRU(I, H, layers, batch_first=True, bidirectional=directions == 2)
        x, h_0 = torch.randn(B, T, I), torch.randn(layers * directions, B, H)
        y, h_n = module(x, h_0)
        found = {**module.state_dict(), "x": x, "h_0": h_0, "y": y, "h_n": h_n}
        for name, tensor in found.items():
            arrays[f"{layers}x{directions}/{name}"] = tensor.detach().numpy()
np.savez_compressed(Path(__file__).with_name("states.npz"), **arrays)
