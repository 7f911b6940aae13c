"""Choice of the reader of a model file, choice of a layer in it, and the table of `inspect`."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from fastgru import Bidirectional, Sequential
from fastgru.cli.terminal import columns
from fastgru.io.budget import reading
from fastgru.io.bundle import prefix_of
from fastgru.io.foreign import expect_unpacked
from fastgru.io.imported_layer import ImportedLayer
from fastgru.io.replacing import expect_nothing_there, expect_other_file, expect_replaceable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# End of the file's name -> module of fastgru.io, imported when it is needed. "" stands for a folder
# and for a TensorFlow checkpoint by its name.
READERS = {
    "": "keras",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".index": "keras",  # of a TensorFlow checkpoint
    ".weights.json": "named_arrays",  # Keras' weights in several files
    ".index.json": "torch",  # a model in several files of PyTorch or safetensors
    ".json": "keras",  # of TensorFlow.js
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
    ".safetensors": "torch",  # or a file of `fastgru.save`, see _own
    ".onnx": "onnx",
    ".npz": "named_arrays",
    ".npy": "named_arrays",
}
# HDF5 may be a whole model, or weights alone.
_HDF5 = (".h5", ".hdf5")


def find(
    path: Path, *, follow_links: bool = False, output: Path | None = None
) -> list[ImportedLayer]:
    """Return the GRU layers of a model.

    Parameters
    ----------
    path : Path
    follow_links : bool
        Whether the files beside an ONNX model may be links that lead out of its folder.
    output : Path, optional
        What will be written afterwards.

    Raises
    ------
    ValueError
        There is no such file, no reader reads files of this kind, the reader refuses the file, or
        the output would replace a file of the model.
    ImportError
        The package that reads files of this kind is not installed.
    """
    checkpoint = prefix_of(path)
    if not path.exists() and not checkpoint:
        raise ValueError(f"{path}: expected a model there, found nothing")
    expect_unpacked(path)
    ends = [end for end in READERS if end and path.name.lower().endswith(end)]
    kind = max(ends, key=len, default="")
    if path.is_dir() or checkpoint:
        kind = ""
    elif not kind:
        kinds = ", ".join(filter(None, READERS))
        raise ValueError(
            f"{path}: expected a SavedModel folder, a checkpoint or one of {kinds}, got "
            f"{path.suffix!r}"
        )
    if kind == ".safetensors" and (own := _own(path)) is not None:
        return own
    reader = READERS[kind]
    if kind in _HDF5 and _module("named_arrays").without_config(path):
        reader = "named_arrays"
    options: dict[str, Any] = {"follow_links": follow_links} if reader == "onnx" else {}
    with reading(path) as budget:
        found: list[ImportedLayer] = _module(reader).find(path, **options, budget=budget)
        if output is not None:
            expect_other_file(output, budget.members)
        return found


def _module(name: str) -> Any:
    return importlib.import_module(f"fastgru.io.{name}")


def _own(path: Path) -> list[ImportedLayer] | None:
    """Return the layer of a file that `fastgru.save` wrote; None for other .safetensors files."""
    reader: Any = _module("safetensors")
    metadata, _ = reader.read_tensors(path)
    if "fastgru" not in metadata:
        return None
    layer = reader.load(path)
    return [ImportedLayer(layer.name, layer, "fastgru's own", "metadata: fastgru")]


def choose(
    path: Path,
    name: str | None,
    output: Path,
    *,
    follow_links: bool = False,
    force: bool = False,
) -> ImportedLayer:
    """Return the only GRU of a model, or the one called ``name``, for a command with an output.

    Raises
    ------
    ValueError
        There is no GRU, or none of that name, or several and no name is given. The message lists
        the names. Or the output cannot be written, would replace a file of the model, or is there
        already, without ``force``.
    """
    expect_replaceable(output)
    expect_other_file(output, [path])
    found = find(path, follow_links=follow_links, output=output)
    if not force:
        expect_nothing_there(output)
    if not found:
        raise ValueError(f"{path}: expected a GRU in it, found none")
    names = ", ".join(one.name for one in found)
    if name is None and len(found) > 1:
        raise ValueError(f"{path}: it has several GRUs; choose one with --name: {names}")
    chosen = found if name is None else [one for one in found if one.name == name]
    if not chosen:
        raise ValueError(f"{path}: expected --name to be one of {names}, got {name}")
    if "assumed:" in chosen[0].recognised:
        warnings.warn(f"{path}: {chosen[0].name}: known by {chosen[0].recognised}", stacklevel=2)
    if chosen[0].mask:
        warnings.warn(
            f"{path}: {chosen[0].name}: the model gives it a mask, which its file cannot hold: "
            f"{chosen[0].mask}; on the command line, --lengths where the padding is at the end",
            stacklevel=2,
        )
    return chosen[0]


def describe(found: Sequence[ImportedLayer]) -> list[str]:
    """Return lines about layers: name, class, shapes, parameters, weights, convention, source."""
    if not found:
        return ["no GRU in it"]
    rows = [("name", "layer", "shapes", "parameters", "weights")]
    for one in found:
        weights = " ".join(str(v.shape) for v in one.layer.weights)
        parameters = f"{one.layer.count_params():,}"
        rows.append((one.name, _kind(one.layer), _shapes(one.layer), parameters, weights))
    heading, *lines = columns(rows)
    told = [heading]
    # On lines of their own, since as columns they would be wider than a terminal.
    for line, one in zip(lines, found, strict=True):
        told += [line, f"    {one.convention}", f"    known by {one.recognised}"]
        told += [f"    mask: {one.mask}"] if one.mask else []
    return told


def _kind(layer: Any) -> str:
    if isinstance(layer, Sequential):
        return " + ".join(map(_kind, layer.layers))
    if isinstance(layer, Bidirectional):
        return f"Bidirectional {_kind(layer.forward_layer)}"
    sizes = " ".join(str(size) for size in _flat(layer.cell.state_size))
    return f"{type(layer).__name__} {sizes}"


def _flat(sizes: Any) -> Iterable[int]:
    if not isinstance(sizes, (list, tuple)):
        return [sizes]
    return [size for inner in sizes for size in _flat(inner)]


def _shapes(layer: Any) -> str:
    """Return shapes of inputs and outputs, such as "(B, T, 4) -> (B, T, 6)"."""
    inputs = ("B", "T", layer.weights[0].shape[0])
    if layer.time_major:
        inputs = ("T", "B", inputs[2])
    got = layer.compute_output_shape(inputs)
    shapes = [got] if isinstance(got, tuple) and not isinstance(got[0], (tuple, list)) else got
    written = [f"({', '.join(map(str, shape))})" for shape in (inputs, *shapes)]
    return f"{written[0]} -> {', '.join(written[1:])}"
