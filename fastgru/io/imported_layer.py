"""The layers that readers return: names, parts and the self-check ``verify=``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgru.layers import RNN, Bidirectional, Sequential, StackedRNNCells

if TYPE_CHECKING:
    from collections.abc import Sequence


class ImportedLayer(NamedTuple):
    """One recurrent layer of a source, as a reader made it.

    Attributes
    ----------
    name : str
        Its name in the source, which no other layer there has.
    layer : GRU, RNN, Bidirectional or Sequential
        Built, with the source's weights.
    convention : str
        How the source stores the weights, such as ``"gates r z n in rows, two biases"``.
    recognised : str
        What the reader knew it by, such as ``"config.json: GRU"``.
    mask : str
        Where the mask comes from that the source's model gives it, and how to make it; empty
        without one.
    """

    name: str
    layer: Any
    convention: str
    recognised: str
    mask: str = ""


def parts_of(layer: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return the layers and cells directly inside a layer, with the attributes that hold them.

    An index counts as an attribute, as in ``("layers", "0")``. A GRUCell has no parts.
    """
    if isinstance(layer, Bidirectional):
        return [((name,), getattr(layer, name)) for name in ("forward_layer", "backward_layer")]
    if isinstance(layer, Sequential):
        return [(("layers", str(i)), part) for i, part in enumerate(layer.layers)]
    if isinstance(layer, StackedRNNCells):
        return [(("cells", str(i)), part) for i, part in enumerate(layer.cells)]
    return [(("cell",), layer.cell)] if isinstance(layer, RNN) else []


def by_name(found: Sequence[ImportedLayer], name: str | None, source: str) -> Any:
    """Return {name: layer} of all layers, or the layer called ``name``.

    Raises
    ------
    ValueError
        There is no layer, or none of that name; the message lists the names.
    """
    layers = {one.name: one.layer for one in found}
    if not layers:
        raise ValueError(f"{source}: expected a GRU in it, found none")
    if name is None:
        return layers
    if name not in layers:
        raise ValueError(f"{source}: expected one of {', '.join(layers)}, got name={name!r}")
    return layers[name]


def verify_layer(layer: Any, verify: Any, what: str) -> None:
    """Run ``verify``, a pair (input, expected output), through a loaded layer.

    Raises
    ------
    ValueError
        The outputs differ by more than rounding explains; the message says by how much.
    """
    if verify is None:
        return
    if not isinstance(verify, (tuple, list)) or len(verify) != 2:
        raise TypeError(f"verify: expected a pair (input, expected output), got {verify!r}")
    x, expected = verify
    y = layer(x)
    y = y[0] if isinstance(y, (tuple, list)) else y
    expected = np.asarray(expected)
    if y.shape != expected.shape:
        raise ValueError(f"verify: {what} gives shape {y.shape}, expected {expected.shape}")
    largest = float(np.abs(y - expected).max(initial=0))
    # "not <=", so that NaN raises too.
    if not largest <= 1e-4 * max(1.0, float(np.abs(expected).max(initial=0))):
        raise ValueError(
            f"verify: the outputs of {what} differ from the expected ones by up to {largest:.3g}; "
            "the weights are read in another convention than they were written in, or the input "
            "is not the one that the output belongs to"
        )
