"""Layers as actors of Ray Data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgru.distributed.rows import check_built, check_rows_alone, load_layer
from fastgru.layers.nested import flatten, map_nested

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import numpy as np


class Predictor:
    """A layer for ``ray.data.Dataset.map_batches``: each actor loads it once and runs batches.

    Parameters
    ----------
    layer : path, or GRU, RNN, Bidirectional or Sequential
        A file of `fastgru.save` that every node can open, or a built layer, which Ray sends to
        each actor. Not stateful and not time_major.
    sequences : str
        The column with (T, I) for each row.
    mask, lengths, reset_mask : str, optional
        Columns with (T,), one integer and (T,) for each row.
    initial_state : str, or lists of them as the layer takes states, optional
        Columns with (H,) for each row.
    outputs : sequence of str
        Names for the arrays that the layer returns, in order. It returns several with return_state
        or merge_mode=None.
    keep : sequence of str
        Columns of the input that the output also has, such as row numbers, since Ray may reorder
        batches.
    on_device : bool
        True: compute on the actor's GPU, for ``map_batches(..., num_gpus=1)``. Batches are copied
        to the GPU and results back.
    num_threads : int
        Most threads of each call. Pass the same number as ``num_cpus``; both are 1 by default.

    Raises
    ------
    ValueError, TypeError
        The layer cannot run on some rows at a time.

    Notes
    -----
    A batch is a dict of NumPy arrays, ``batch_format="numpy"``, Ray's default. They may be
    read-only. Pad rows of different lengths, and add a column of lengths.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> layer = fastgru.GRU(4)
    >>> layer.build((None, None, 5))
    >>> predict = fastgru.distributed.ray.Predictor(layer, lengths="n", keep=["id"])
    >>> batch = {"id": np.arange(3), "x": np.zeros((3, 6, 5), "float32"), "n": np.array([6, 0, 4])}
    >>> {name: column.shape for name, column in predict(batch).items()}
    {'id': (3,), 'y': (3, 4)}
    """

    def __init__(
        self,
        layer: str | PathLike[str] | Any,
        *,
        sequences: str = "x",
        mask: str | None = None,
        lengths: str | None = None,
        reset_mask: str | None = None,
        initial_state: Any = None,
        outputs: Sequence[str] = ("y",),
        keep: Sequence[str] = (),
        on_device: bool = False,
        num_threads: int = 1,
    ) -> None:
        if isinstance(outputs, str) or isinstance(keep, str):
            raise TypeError("outputs, keep: expected lists of column names, got a string")
        self.layer = load_layer(layer)
        check_rows_alone(self.layer)
        check_built(self.layer)
        columns = {"mask": mask, "lengths": lengths, "reset_mask": reset_mask}
        columns["initial_state"] = initial_state
        self.columns = {"sequences": sequences, **columns}
        self.outputs = tuple(outputs)
        self.keep = tuple(keep)
        self.on_device = bool(on_device)
        self.num_threads = num_threads

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the layer on a batch.

        Parameters
        ----------
        batch : dict of str to ndarray
            Its columns, each with one item per row.

        Returns
        -------
        dict of str to ndarray
            The columns ``keep`` and ``outputs``.
        """

        def column(name: str | None) -> Any:
            return None if name is None else self._column(batch, name)

        given = {what: map_nested(column, names) for what, names in self.columns.items()}
        results = flatten(self.layer(**given, num_threads=self.num_threads))
        if len(results) != len(self.outputs):
            raise ValueError(
                f"outputs: expected {len(results)} names, as {self.layer.name} returns so many "
                f"arrays, got {list(self.outputs)}"
            )
        if self.on_device:
            results = [array.get() for array in results]
        kept = {name: batch[name] for name in self.keep}
        return {**kept, **dict(zip(self.outputs, results, strict=True))}

    def _column(self, batch: dict[str, np.ndarray], name: str) -> Any:
        if name not in batch:
            raise ValueError(f"expected a column {name!r}, got {sorted(batch)}")
        if batch[name].dtype == object:
            raise ValueError(
                f"column {name!r}: expected arrays of one shape, got rows of different ones; pad "
                "them, and give their lengths as a column, Predictor(..., lengths=...)"
            )
        if not self.on_device:
            return batch[name]
        import cupy

        return cupy.asarray(batch[name])
