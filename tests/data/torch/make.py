"""Write the files of this folder: needs torch and safetensors (made with torch 2.13.0, 0.8.0).

    python tests/data/torch/make.py

expected.npz holds, for every GRU in them, an input x (B, T, I), and torch's output and h_n:
``<file>:<prefix>:x``, ``:y``, ``:h``.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
B, T = 3, 6
expected = {}


def draw(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return module


def remember(name, module):
    """Run a GRU, or a GRUCell step by step, in float32 or float64."""
    module = module.double() if next(module.parameters()).dtype == torch.float64 else module.float()
    x = torch.randn(B, T, module.input_size, dtype=next(module.parameters()).dtype)
    with torch.no_grad():
        if isinstance(module, torch.nn.GRUCell):
            steps, h = [], None
            for t in range(T):
                h = module(x[:, t], h)
                steps.append(h)
            y, h = torch.stack(steps, 1), h[None]
        else:
            module.batch_first = True
            y, h = module(x)
    for what, value in (("x", x), ("y", y), ("h", h)):
        expected[f"{name}:{what}"] = value.numpy()


def on_one_storage(weights):
    """Views of one storage, as a GRU on a CUDA device has them; the matrices transposed in it."""
    flat = torch.zeros(3 + sum(w.numel() for w in weights.values()), dtype=torch.float64)
    views, at = {}, 3
    for key, w in weights.items():
        view = (
            flat[at : at + w.numel()].view(w.shape[::-1]).t()
            if w.ndim == 2
            else flat[at:][: len(w)]
        )
        view.copy_(w)
        views[key] = view
        at += w.numel()
    return views


def main():
    torch.manual_seed(20)
    gru = draw(torch.nn.GRU(5, 4, num_layers=2, bidirectional=True))
    torch.save(gru.state_dict(), FOLDER / "gru.pt")
    save_file(gru.state_dict(), FOLDER / "gru.safetensors")
    torch.save(gru.state_dict(), FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(gru, FOLDER / "module.pt")
    torch.jit.script(gru).save(FOLDER / "script.pt")
    remember("gru.pt:", gru)

    model = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.ModuleDict({"gru": draw(torch.nn.GRU(5, 4, bidirectional=True))}),
            "decoder": draw(torch.nn.GRUCell(3, 8)),
            "tagger": torch.nn.LSTM(3, 2),
            "head": torch.nn.Linear(8, 2),
        }
    )
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "losses": [1.5, 0.25],
        "note": "grüße",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, FOLDER / "checkpoint.pth")
    remember("checkpoint.pth:state_dict.encoder.gru", model["encoder"]["gru"])
    remember("checkpoint.pth:state_dict.decoder", model["decoder"])
    torch.save(dict(model["decoder"].named_parameters()), FOLDER / "parameters.pt")
    remember("parameters.pt:", model["decoder"])

    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        gru = draw(torch.nn.GRU(5, 4, bias=False)).to(dtype)
        torch.save(gru.state_dict(), FOLDER / f"{name}.pt")
        save_file(gru.state_dict(), FOLDER / f"{name}.safetensors")
        remember(f"{name}.pt:", gru)

    gru = draw(torch.nn.GRU(5, 4)).double()
    torch.save(on_one_storage(gru.state_dict()), FOLDER / "one_storage.pt", pickle_protocol=4)
    remember("one_storage.pt:", gru)

    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()
