"""Random models of PyTorch, written as people write them, and what each computes."""

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file, save_model
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as old_weight_norm

T = 5


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def names_of(gru, rng):
    """Some of a GRU's matrices."""
    names = [name for name, _ in gru.named_parameters() if name.startswith("weight")]
    return [str(name) for name in rng.choice(names, rng.integers(1, len(names) + 1), False)]


def tie(gru, rng):
    """Layers share weights, or directions, or biases."""
    kind = rng.integers(3)
    for name in list(dict(gru.named_parameters())):
        other = {
            0: name.replace("_l1", "_l0").replace("_l2", "_l0"),
            1: name.replace("_reverse", ""),
            2: name.replace("bias_hh", "bias_ih"),
        }[kind]
        first, second = getattr(gru, other), getattr(gru, name)
        if first is not second and first.shape == second.shape:
            setattr(gru, name, first)


def change(gru, rng):
    """Norms, pruning, parametrizations, ties; say which."""
    kind = str(
        rng.choice(["none", "none", "tie", "norm", "old norm", "prune", "spectral", "other"])
    )
    if kind == "tie":
        tie(gru, rng)
    for name in names_of(gru, rng) if kind not in ("none", "tie") else ():
        if kind == "norm":
            parametrizations.weight_norm(gru, name, dim=[0, 1, None][rng.integers(3)])
            with torch.no_grad():
                gru.parametrizations[name].original0.mul_(float(rng.uniform(0.5, 2)))
        elif kind == "old norm":
            old_weight_norm(gru, name, dim=[0, 1, None][rng.integers(3)])
            with torch.no_grad():
                getattr(gru, f"{name}_g").mul_(float(rng.uniform(0.5, 2)))
        elif kind == "prune":
            prune.random_unstructured(gru, name, 0.4)
        elif kind == "spectral":
            parametrizations.spectral_norm(gru, name)
        else:
            parametrize.register_parametrization(gru, name, Doubled())
    return kind


def beside(rng):
    """What else people put into a checkpoint."""
    some = {
        "seed": 13935871285137465351,
        "large": -(10**80),
        "size": torch.Size([3, 4]),
        "words": {"a", "b"},
        "frozen": frozenset([1]),
        "best": np.float64(0.5),
        "history": np.arange(6.0).reshape(2, 3),
        "args": argparse.Namespace(lr=0.1, where=pathlib.PurePosixPath("a/b")),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "complex": torch.ones(3, dtype=torch.complex64),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "int8": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.ones(3).to(torch.uint16),
        "meta": torch.ones(3, device="meta"),
        "pairs": {(0, 1): torch.ones(2), None: 3},
        "rng": torch.get_rng_state(),
        "bytes": bytearray(b"abc"),
    }
    names = rng.choice(sorted(some), rng.integers(0, 5), False)
    return {str(name): some[name] for name in names}


class Model(torch.nn.Module):
    """A GRU and what stands around it."""

    def __init__(self, gru, rng):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, gru.input_size)
        self.gru = gru
        self.head = torch.nn.Linear(gru.hidden_size, 2)
        if rng.random() < 0.3:
            self.register_buffer("adjacency", torch.eye(4).to_sparse())
        if rng.random() < 0.3:
            self.lstm = torch.nn.LSTM(2, 2)


def save_in_shards(state, folder, rng):
    """An index and its files, as large models are stored."""
    names = list(state)
    count = int(rng.integers(2, 4))
    files = {name: int(rng.integers(count)) for name in names}
    called = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for n in range(count):
        part = {name: state[name].clone().contiguous() for name in names if files[name] == n}
        save_file(part, folder / called[n], {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: called[n] for name, n in files.items()}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def random_case(seed, folder):
    """Return a source, a prefix, an input, torch's output, and what was done."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    size = int(rng.integers(2, 6))
    options = {
        "num_layers": int(rng.integers(1, 4)),
        "bidirectional": bool(rng.integers(2)),
        "bias": bool(rng.random() < 0.8),
    }
    gru = torch.nn.GRU(size, size, batch_first=True, **options)
    for parameter in gru.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    gru = gru.to([torch.float32, torch.float32, torch.float64][rng.integers(3)])
    done = change(gru, rng)
    model = Model(gru, rng).to(gru.bias_ih_l0.dtype if options["bias"] else torch.float32).eval()
    model = model.to(torch.float64 if rng.random() < 0.2 else next(gru.parameters()).dtype)
    wrapper = rng.integers(4)
    whole, prefix = model, "gru"
    if wrapper == 0:
        whole = torch.nn.DataParallel(model)
    elif wrapper == 1:
        whole = torch.nn.ModuleDict({"_orig_mod": model})
    x = torch.randn(2, T, size, dtype=next(gru.parameters()).dtype)
    with torch.no_grad():
        y = gru(x)[0].numpy()
    ways = ["pt", "legacy", "checkpoint", "module", "safetensors", "shards", "live", "numpy"]
    how = str(rng.choice(ways))
    path = folder / "model.pt"
    state = dict(whole.state_dict())
    protocol = int(rng.integers(2, 6))
    legacy = {"_use_new_zipfile_serialization": False}
    if how == "pt":
        torch.save(state, path, pickle_protocol=protocol)
    elif how in ("legacy", "checkpoint"):
        extra = beside(rng) if how == "checkpoint" else {"args": argparse.Namespace(a=1)}
        old = how == "legacy" or rng.random() < 0.3
        saved = {"model": state, "epoch": 3, **extra}
        torch.save(saved, path, pickle_protocol=protocol, **(legacy if old else {}))
        prefix = "" if rng.random() < 0.5 else "model.gru"
    elif how == "numpy":
        arrays = {k: v.numpy() for k, v in state.items() if v.layout == torch.strided}
        if rng.random() < 0.5:
            torch.save(arrays, path, pickle_protocol=protocol)
        else:
            path = folder / "model.npy"
            np.save(path, arrays, allow_pickle=True)
    elif how == "module" and done not in ("norm", "spectral", "other"):  # torch refuses these
        torch.save(whole, path, **(legacy if rng.random() < 0.3 else {}))
    elif how == "live":
        path = whole
    else:
        plain = {k: v for k, v in state.items() if v.layout == torch.strided}
        if how == "shards":
            path = save_in_shards(plain, folder, rng)
        else:
            whole.__dict__.pop("adjacency", None)
            if "adjacency" in model._buffers:
                del model._buffers["adjacency"]
            path = folder / "model.safetensors"
            save_model(whole, path)
    return path, prefix, x.numpy(), y, f"{done}, {how}, {options}, wrapper {wrapper}"
