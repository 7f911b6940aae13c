"""Make the .onnx files of this folder, with torch's exporters, and what torch computes beside them.

Run once, by hand: python tests/data/onnx/make.py
The files were made with torch 2.13.0, onnxscript 0.7.2 and onnx 1.23.2.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

HERE = Path(__file__).parent
T, B, I, H = 6, 3, 5, 4

# name: options of nn.GRU, options of torch.onnx.export
CASES = {
    "dynamo": ({}, {"dynamo": True}),
    "dynamo_stack": ({"num_layers": 2, "bidirectional": True}, {"dynamo": True}),
    "dynamo_batch_first": ({"batch_first": True, "bias": False}, {"dynamo": True}),
    "dynamo_plain": (
        {"num_layers": 2, "bidirectional": True},
        {"dynamo": True, "optimize": False},
    ),
    "script": ({}, {"dynamo": False}),
    "script_stack": ({"num_layers": 2, "bidirectional": True}, {"dynamo": False}),
    "script_plain": (
        {"bidirectional": True},
        {"dynamo": False, "do_constant_folding": False},
    ),
    "script_state": (
        {"state": True, "batch_first": True},
        {"dynamo": False, "dynamic_axes": {"x": {0: "B", 1: "T"}, "h": {1: "B"}}},
    ),
}


class Model(torch.nn.Module):
    """nn.GRU with biases that are not zeros, and h0 as an input where it is asked for."""

    def __init__(self, state=False, **options):
        super().__init__()
        self.gru = torch.nn.GRU(I, H, **options)

    def forward(self, x, h=None):
        return self.gru(x, h)


def main():
    outputs = {}
    for name, (options, export) in CASES.items():
        torch.manual_seed(len(name))
        model = Model(**options).eval()
        x = torch.randn(B, T, I) if options.get("batch_first") else torch.randn(T, B, I)
        arguments = [x, torch.randn(1, B, H)] if options.get("state") else [x]
        path = HERE / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if export["dynamo"]:
                export = {"external_data": False, **export}
            names = ["x", "h"][: len(arguments)]
            torch.onnx.export(
                model, tuple(arguments), str(path), input_names=names, verbose=False, **export
            )
        with torch.no_grad():
            results = model(*arguments)
        arrays = dict(zip(["x", "h"], arguments, strict=False)) | dict(
            zip(["y", "y_h"], results, strict=True)
        )
        outputs.update({f"{name}.{key}": value.numpy() for key, value in arrays.items()})
        strip(path)
    # What torch 2.10 with onnxscript 0.6.2 wrote: the same without the attribute
    # (onnxscript#2852).
    model = onnx.load(HERE / "dynamo.onnx")
    (node,) = [node for node in model.graph.node if node.op_type == "GRU"]
    kept = [a for a in node.attribute if a.name != "linear_before_reset"]
    del node.attribute[:]
    node.attribute.extend(kept)
    onnx.save(model, HERE / "forgotten.onnx")
    np.savez_compressed(HERE / "outputs.npz", **outputs)


def strip(path):
    """Remove what is only for people: stack traces, shapes of values in between."""
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.initializer, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    onnx.save(model, path)


if __name__ == "__main__":
    sys.exit(main())
