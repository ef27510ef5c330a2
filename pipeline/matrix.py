"""`Matrix`: n_samples x n_features, cut in blocks that are read one at a time; it never holds the data."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from pipeline.errors import InputError, PipelineError, StoreError
from pipeline.kernels.blocks import careful, check_digits, doubled, fill_in, mark, working_dtype
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.sparse import SparseBlock
from pipeline.labels import Labels
from pipeline.sources import COLUMNS, ROWS, ImplicitSource, Range, Source, Window, open_source
from pipeline.sources.stream import Stream
from pipeline.weights import weights_of_features, weights_of_samples

__all__ = ["Matrix", "open_matrix", "open_stream"]

# A block is what one task reads at a time: tall enough for BLAS, low enough that a few fit in any memory; small data is
# still cut, so that every core has something to do and progress can be seen.
# Chunks that are taller are read whole rather than several times, as far as `_TALLEST_BYTES` go.
_BLOCK_BYTES, _SMALL_BLOCK_BYTES, _FEW_BLOCKS, _TALLEST_BYTES = 64 << 20, 256 << 10, 16, 1 << 30


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix whose rows are samples, read block by block from where it is stored.

    Made by `open_matrix`. `side` says along which side it is cut: blocks of whole rows, or of whole columns (`X.T`).
    """

    source: Source
    samples: Labels
    features: Labels
    name: str = "matrix"
    weights: np.ndarray | None = None
    sample_weights: np.ndarray | None = None
    side: int = ROWS
    block_bytes: int | None = None
    block_length: int | None = None
    fill: np.ndarray | None = None
    code: float | None = None
    edges: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_features)."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored entries."""
        return self.source.dtype

    @property
    def work_dtype(self) -> np.dtype[Any]:
        """Of the blocks: float32 for float16 and float32 data, complex64 for such data, else double precision."""
        return working_dtype(self.dtype)

    @property
    def seen_dtype(self) -> np.dtype[Any]:
        """In which entries are told apart, however many there are, when it is taken down what rows held."""
        return doubled(self.dtype) if self.source.implicit else self.work_dtype

    @property
    def block_dtype(self) -> np.dtype[Any]:
        """In which blocks are multiplied: `work_dtype`, but double precision for few entries and for sparse blocks."""
        return self.seen_dtype if self.source.implicit else careful(self.dtype, self.shape[0] * self.shape[1])

    @property
    def density(self) -> float:
        """Share of the entries that are stored: 1 for dense data."""
        return self._implicit.density if self.source.implicit else 1.0

    @property
    def _implicit(self) -> ImplicitSource:
        return cast(ImplicitSource, self.source)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense matrix in its stored dtype."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def T(self) -> Matrix:
        """The same matrix, cut along its other side: each block holds whole columns."""
        return replace(self, side=1 - self.side, edges=None)

    @cached_property
    def cuts(self) -> np.ndarray:
        """Where the walked side is cut: 0, …, its length (or the stretch of it that is meant)."""
        if self.edges is not None:
            return self.edges
        if self.block_length is not None:
            return np.append(np.arange(0, self.shape[self.side], self.block_length), self.shape[self.side])
        across = max(1, self.shape[1 - self.side]) * self.work_dtype.itemsize
        unit = min(self.source.unit(self.side), _TALLEST_BYTES // across)
        if self.block_bytes is not None:
            return self.source.cuts(self.side, max(1, self.block_bytes // across))
        cuts = self.source.cuts(self.side, max(1, unit, _BLOCK_BYTES // across))
        target = int(np.clip(self.shape[self.side] * across // _FEW_BLOCKS, _SMALL_BLOCK_BYTES, _BLOCK_BYTES))
        finer = self.source.cuts(self.side, max(1, unit, target // across))
        if self.source.touched(self.side, finer) <= self.source.touched(self.side, cuts):  # no chunk is cut
            return finer
        return cuts

    @property
    def n_blocks(self) -> int:
        """Number of blocks along the walked side."""
        return len(self.cuts) - 1

    @property
    def block_height(self) -> int:
        """Rows (columns for a transposed walk) of the largest block."""
        return int(np.diff(self.cuts).max())

    def block_nbytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of the largest block that a task holds: as a dense array of a dtype, or as what is stored of it."""
        across = max(1, self.shape[1 - self.side]) * dtype.itemsize
        if not self.source.implicit:
            return self.block_height * across
        target = self.block_bytes or _BLOCK_BYTES
        stored = int(3 * self.density * across * self.block_height)  # entries and indices, in double precision
        return 2 * max(min(target, 3 * self.bytes_a_pass), stored)  # as read, and as computed with

    def kept_nbytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of a block while it is kept decoded; where little is stored, on the average."""
        if not self.source.implicit:
            return self.block_nbytes(dtype)
        # Entries in double precision, and in single where they are stored so.
        return max(1, 2 * self.bytes_a_pass // max(self.n_blocks, 1))

    def spans_nbytes(self, spans: Iterable[Range]) -> int:
        """Decoded bytes that a walk over some spans of the walked side reads."""
        return sum(self.source.touched(self.side, np.array(span)) for span in spans)

    def spans_kept_nbytes(self, spans: Iterable[Range], dtype: np.dtype[Any]) -> int:
        """Bytes of the blocks of such spans while they are kept decoded."""
        return sum(self.stretch(np.array(span)).kept_nbytes(dtype) for span in spans)

    def together(self, cuts: np.ndarray) -> np.ndarray:
        """Those of some cuts between which blocks that are not made dense are read at a time."""
        return self._implicit.together(self.side, cuts, self.block_bytes or _BLOCK_BYTES)

    @cached_property
    def bytes_a_pass(self) -> int:
        """Decoded bytes that one pass reads: chunks that several blocks share count once for each."""
        return self.source.touched(self.side, self.cuts)

    def __len__(self) -> int:
        return self.shape[0]

    def bounds(self, i: int) -> tuple[int, int]:
        """First and last + 1 position of block i along the walked side; raises InputError when there is none."""
        if not 0 <= i < self.n_blocks:
            raise InputError(f"block {i} does not exist: the matrix has {self.n_blocks}")
        return int(self.cuts[i]), int(self.cuts[i + 1])

    def read(self, i: int, out: np.ndarray | None = None) -> np.ndarray:
        """Block i: (rows, d), or (n, columns) for a transposed walk, in the data's own units and `work_dtype`.

        Parameters
        ----------
        i : int
            0 to n_blocks - 1.
        out : array, optional
            A float buffer of the block's shape to read into.

        Raises
        ------
        StoreError
            When the store cannot be read there.
        """
        return self.read_range(*self.bounds(i), out)

    def read_range(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Positions [start, stop) of the walked side, as `read` gives them."""
        with self._reading(start, stop):
            block = self.source.read(*self._rectangle(start, stop), out)
            if self.dtype.kind in "iu" and self.dtype.itemsize == 8:
                check_digits(block, self.name)
        if out is None:
            block = block.astype(self.work_dtype, copy=self.code is not None or self.fill is not None)
        if self.code is not None:
            mark(block, self.code)
        if self.fill is not None:
            fill_in(block, self._fill(start, stop))
        return block

    def read_implicit(self, start: int, stop: int) -> ImplicitBlock:
        """Positions [start, stop) of the walked side as a block that is not made dense."""
        with self._reading(start, stop):
            block = self._implicit.block(*self._rectangle(start, stop))
        if isinstance(block, SparseBlock):
            block = block if self.code is None else block.marked(self.code)
            block = block if self.fill is None else block.filled(self._fill(start, stop))
        return block

    def _rectangle(self, start: int, stop: int) -> tuple[Range, Range]:
        rows, cols = ((start, stop) if s == self.side else (0, self.shape[s]) for s in (ROWS, COLUMNS))
        return rows, cols

    def _fill(self, start: int, stop: int) -> np.ndarray:
        assert self.fill is not None
        return self.fill if self.side == ROWS else self.fill[start:stop]

    @contextmanager
    def _reading(self, start: int, stop: int) -> Iterator[None]:
        """Whatever goes wrong says where."""
        try:
            yield
        except (PipelineError, MemoryError):
            raise
        except Exception as error:
            what = "rows" if self.side == ROWS else "features"
            raise StoreError(
                f"{what} {start} to {stop} of {self.name} cannot be read ({type(error).__name__}: {error}): "
                "restore that part of the store, or leave it out with select"
            ) from error

    def filled(self, fill: np.ndarray) -> Matrix:
        """The same matrix with `fill` (d,) in the place of NaN; where that is NaN too, nothing changes."""
        return replace(self, fill=fill)

    def coded(self, code: float) -> Matrix:
        """The same matrix with NaN for entries that equal `code`."""
        return replace(self, code=code)

    def rows(self, start: int, stop: int) -> Matrix:
        """The matrix of the rows [start, stop); nothing is copied."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        stop = max(start, stop)
        weights = None if self.sample_weights is None else self.sample_weights[start:stop]
        take = getattr(self.source, "rows", None)
        source = take(start, stop) if take else Window(self.source, start, stop)
        samples = self.samples.take(start, stop)
        return replace(self, source=source, samples=samples, sample_weights=weights, edges=None)

    def cut_to(self, block_bytes: int) -> Matrix:
        """The same matrix in blocks of at most so many bytes (or one row each)."""
        return replace(self, block_bytes=block_bytes)

    def cut_at(self, block_length: int) -> Matrix:
        """The same matrix in blocks of exactly so many rows (the last may be shorter), whatever the stored chunks."""
        return replace(self, block_length=block_length)

    def stretch(self, edges: np.ndarray) -> Matrix:
        """The same matrix of which only the blocks between these cuts are walked."""
        return replace(self, edges=edges)

    def __repr__(self) -> str:
        n, d = self.shape
        return (
            f"Matrix: {n} samples x {d} features of {self.dtype} ({_size(self.nbytes)}) in {self.n_blocks} blocks "
            f"of up to {self.block_height} {'rows' if self.side == ROWS else 'columns'}; "
            f"{self.name}: {self.source.layout}"
        )

    def _repr_html_(self) -> str:
        rows = {
            "samples": _side(self.samples),
            "features": _side(self.features),
            "entries": f"{self.dtype}, {_size(self.nbytes)}",
            "blocks": f"{self.n_blocks} of up to {self.block_height} {'rows' if self.side == ROWS else 'columns'}",
            "weights": "one a feature" if self.weights is not None else "none",
            "source": f"{self.name}: {self.source.layout}",
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items()
        )
        n, d = self.shape
        shown = min(self.n_blocks, 24)
        lines = "".join(
            f"<line x1='0' x2='60' y1='{60 * i / shown:.1f}' y2='{60 * i / shown:.1f}'/>" for i in range(1, shown)
        )
        turn = " transform='rotate(-90 30 30)'" if self.side == COLUMNS else ""
        picture = (
            "<svg width='64' height='64' viewBox='-2 -2 64 64' fill='#9dbbd8' stroke='#2f5d87'>"
            f"<g{turn}><rect width='60' height='60'/>{lines}</g></svg>"
        )
        return (
            f"<div><b>Matrix</b> {n} × {d}<div style='display:flex;gap:1em;align-items:center'>"
            f"<table>{cells}</table>{picture}</div></div>"
        )


def open_matrix(
    source: Any,
    variable: str | Sequence[str] | None = None,
    sample_dims: str | Sequence[str] | None = None,
    weights: Any = None,
    sample_weights: Any = None,
    select: Mapping[str, Any] | None = None,
) -> Matrix:
    """Open stored or in-memory data as a `Matrix`; nothing but metadata and coordinates is read.

    Parameters
    ----------
    source : path, URL, zarr, dask, NumPy or sparse array, zarr Group, DataArray, Dataset, DataFrame, AnnData, operator
        Numbers: integers, booleans, floats or complex numbers of any width. A group may be a sparse matrix or a whole
        data set as anndata stores them; sparse data is never made dense. Operators have `matmat` and `rmatmat`.
    variable : str or list of str, optional
        Name or names inside a group or Dataset; several are concatenated as features. Of an anndata group: `X` by
        default, 'raw', or a path such as 'layers/counts'.
    sample_dims : str or list of str, optional
        Dims that are samples (default: the first); all others are features.
    weights : (d,) array, DataArray over feature dims, or 'coslat', optional
        What features are multiplied by; 'coslat' is sqrt(cos(latitude)), clipped at 0.
    sample_weights : (n,) array, optional
        How much each sample counts; integers count as repeated rows.
    select : dict, optional
        {dim: slice, positions or boolean mask}; a slice of dates, strings or floats goes by the dim's coordinate.

    Returns
    -------
    Matrix

    Raises
    ------
    InputError
        When the source, a name, a dim, a selection or weights do not fit.
    StoreError
        When a store is there but cannot be read.

    Examples
    --------
    >>> X = open_matrix(np.arange(24.0).reshape(4, 2, 3), weights=[1, 1, 1, 2, 2, 2], select={"dim_0": slice(1, 4)})
    >>> X.shape, X.n_blocks, X.read(0)[0].tolist()
    ((3, 6), 1, [6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    """
    if isinstance(source, Matrix):
        if any(a is not None for a in (variable, sample_dims, weights, sample_weights, select)):
            raise InputError("the source is a Matrix already: give its options when it is first opened")
        return source
    if isinstance(source, Iterator):
        raise InputError("a stream of blocks can be read only once: give it to the fit of a model")
    opened = open_source(source, variable, sample_dims, select)
    return Matrix(
        opened.source,
        opened.samples,
        opened.features,
        opened.name,
        None if weights is None else weights_of_features(weights, opened.features),
        None if sample_weights is None else weights_of_samples(sample_weights, opened.source.shape[0]),
    )


def open_stream(blocks: Iterator[Any]) -> Matrix:
    """A Matrix of an iterator of row blocks (m, d), which can be walked once; its length is known afterwards.

    Raises InputError when there is no block, or the first one is no table of numbers.
    """
    source = Stream(blocks)
    d = source.shape[1]
    return Matrix(source, Labels.plain("sample", 0), Labels.plain("feature", d), "stream")


def _side(labels: Labels) -> str:
    return f"{labels.size} ({' × '.join(f'{d} {n}' for d, n in zip(labels.dims, labels.sizes, strict=True))})"


def _size(nbytes: float) -> str:
    from dask.utils import format_bytes

    return str(format_bytes(int(nbytes)))
