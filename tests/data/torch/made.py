"""Write more files of this folder: needs torch and safetensors (made with torch 2.13.0, 0.8.0).

    python tests/data/torch/made.py

made.npz holds an input ``x`` (B, T, I) and, by the files' names, what torch computes from it.
"""

import argparse
import json
import pathlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file, save_model
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

FOLDER = Path(__file__).parent
x = torch.zeros(2, 5, 4)
made = {}


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


class WeightDrop(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.weight_hh_l0_raw = torch.nn.Parameter(module.weight_hh_l0.data.clone())

    def forward(self, inputs):
        dropped = torch.nn.functional.dropout(self.weight_hh_l0_raw, 0.5, self.training)
        self.module.weight_hh_l0.data = dropped
        return self.module(inputs)


def model(**options):
    whole = torch.nn.Module()
    whole.gru = torch.nn.GRU(4, 4, batch_first=True, **options)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return whole


def remember(file, whole):
    with torch.no_grad():
        made[file] = whole.gru(x)[0].numpy()


def weights_of_another_kind():
    whole = model(num_layers=2)
    for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(whole.gru, f"{role}_l1", getattr(whole.gru, f"{role}_l0"))
    save_model(whole, FOLDER / "tied.safetensors")
    remember("tied.safetensors", whole)
    for file, norm, g in (
        ("old_norm.pt", weight_norm, "weight_hh_l0_g"),
        ("norm.pt", parametrizations.weight_norm, None),
    ):
        whole = model(bidirectional=True)
        norm(whole.gru, "weight_hh_l0")
        norm(whole.gru, "weight_ih_l0_reverse", dim=1)
        with torch.no_grad():
            g = getattr(whole.gru, g) if g else whole.gru.parametrizations.weight_hh_l0.original0
            g.mul_(1.5)
        torch.save(whole.state_dict(), FOLDER / file)
        remember(file, whole)
        if norm is weight_norm:
            torch.save(whole.gru, FOLDER / "normed_module.pt")
            with_gru = {"gru": whole.gru}
            torch.save(with_gru, FOLDER / "normed_module.pt")
            remember("normed_module.pt", whole)
    whole = model()
    prune.random_unstructured(whole.gru, "weight_hh_l0", 0.4)
    prune.random_unstructured(whole.gru, "weight_ih_l0", 0.4)
    torch.save(whole.state_dict(), FOLDER / "pruned.pt")
    remember("pruned.pt", whole)
    dropped = WeightDrop(model().gru)
    dropped(x)
    torch.save(dropped.state_dict(), FOLDER / "weight_drop.pt")
    for file, change in (
        ("spectral.pt", parametrizations.spectral_norm),
        ("orthogonal.pt", parametrizations.orthogonal),
        (
            "own_parametrization.pt",
            lambda gru, name: parametrize.register_parametrization(gru, name, Doubled()),
        ),
    ):
        whole = model()
        change(whole.gru, "weight_hh_l0")
        torch.save(whole.state_dict(), FOLDER / file)


def other_files():
    whole = model(num_layers=2)
    state = whole.state_dict()
    names = {}
    for n in (1, 2):
        file = f"model-{n:05}-of-00002.safetensors"
        part = {name: w for k, (name, w) in enumerate(state.items()) if k % 2 == n - 1}
        save_file(part, FOLDER / file, {"format": "pt"})
        names |= dict.fromkeys(part, file)
    index = FOLDER / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 960}, "weight_map": names}))
    remember(index.name, whole)
    beside = {
        "state_dict": {f"module.{name}": w for name, w in state.items()},
        "seed": 13935871285137465351,
        "size": torch.Size([3, 4]),
        "words": {"a", "b"},
        "best": np.float64(0.5),
        "history": np.arange(6.0).reshape(2, 3),
        "args": argparse.Namespace(lr=0.1, where=pathlib.PurePosixPath("a/b")),
        "dtype": torch.bfloat16,
        "complex": torch.ones(3, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "pairs": {(0, 1): torch.ones(2)},
        "head": torch.nn.Linear(2, 2),
    }
    torch.save(beside, FOLDER / "beside.pt")
    legacy = {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}
    torch.save(beside, FOLDER / "legacy_beside.pt", **legacy)
    remember("beside.pt", whole)
    remember("legacy_beside.pt", whole)
    state = model().gru.state_dict()
    matrix, bias = state["weight_hh_l0"], state["bias_hh_l0"]
    for file, change in {
        "float8.pt": {"weight_hh_l0": matrix.to(torch.float8_e4m3fn)},
        "meta.pt": {"weight_hh_l0": matrix.to("meta")},
        "quantized.pt": {"weight_hh_l0": torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8)},
        "sparse.pt": {"weight_hh_l0": matrix.to_sparse()},
        "negative.pt": {"bias_hh_l0": torch._neg_view(-bias)},
    }.items():
        torch.save(dict(state) | change, FOLDER / file)


if __name__ == "__main__":
    torch.manual_seed(21)
    x.normal_()
    made["x"] = x.numpy()
    weights_of_another_kind()
    other_files()
    np.savez_compressed(FOLDER / "made.npz", **made)
