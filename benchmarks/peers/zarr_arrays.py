"""zarr-python, with its own codec pipeline and with that of zarrs (Rust)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.orders import Parts, gathered, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

PYTHON = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
RUST = {
    "codec_pipeline.path": "zarrs.ZarrsCodecPipeline",
    "codec_pipeline.strict": True,  # else zarrs hands what it cannot do back to zarr-python, without a word
}


def _write_by_default(source: Targets, place: Path, layout: Layout) -> None:
    import zarr

    zarr.create_array(place / "rows.zarr", data=source)


def _write(source: Targets, place: Path, layout: Layout, pipeline: dict[str, Any], lz4: bool) -> None:
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle

    # of bytes that are shuffled, blosc's default, lz4 finds nothing to save in float16: blosc then stores them as they are
    compressors = BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.bitshuffle) if lz4 else None
    chunks = (min(layout.blocks.rows_per_block, layout.rows), layout.classes)
    with zarr.config.set(pipeline):
        array = zarr.create_array(
            place / "rows.zarr", shape=source.shape, chunks=chunks, dtype=source.dtype, compressors=compressors
        )
        array[:] = source


@contextmanager
def _rows(place: Path, layout: Layout) -> Iterator[Epochs]:
    import zarr

    array: Any = zarr.open_array(place / "rows.zarr", mode="r")
    yield gathered(layout.rows, lambda which: torch.from_numpy(array.oindex[which]))


@contextmanager
def _window(place: Path, layout: Layout, pipeline: dict[str, Any]) -> Iterator[Epochs]:
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    with zarr.config.set(pipeline):  # read when an array is opened; arrays of other pipelines may be open beside it
        array: Any = zarr.open_array(place / "rows.zarr", mode="r")
    as_buffer: Any = default_buffer_prototype().nd_buffer.from_ndarray_like

    async def blocks(parts: Parts) -> None:
        select = array.async_array.get_orthogonal_selection
        await asyncio.gather(*(select((rows, slice(None)), out=as_buffer(memory)) for rows, memory in parts))

    yield windowed(layout, lambda parts: sync(blocks(parts)))


def _peer(name: str, how: str, pipeline: dict[str, Any], lz4: bool) -> Peer:
    write: Callable[[Targets, Path, Layout], None] = partial(_write, pipeline=pipeline, lz4=lz4)
    read: Callable[[Path, Layout], AbstractContextManager[Epochs]] = partial(_window, pipeline=pipeline)
    how = f"{how}, {'blosc-lz4' if lz4 else 'uncompressed'}; the chunks of a window at once, into its pool"
    return Peer(name, how, "window", write, read, needs=("zarr", "zarrs") if pipeline is RUST else ("zarr",))


PEERS = [
    Peer(
        "zarr-defaults",
        "zarr.create_array(data=...) with its chunks and zstd; oindex of random rows",
        "global",
        _write_by_default,
        _rows,
        needs=("zarr",),
        usual=True,
    ),
    Peer(
        "zarr-oindex",
        "zarr-python, uncompressed chunks of whole rows; oindex of random rows",
        "global",
        partial(_write, pipeline=PYTHON, lz4=False),
        _rows,
        needs=("zarr",),
        usual=True,
    ),
    _peer("zarr-window", "zarr-python", PYTHON, lz4=False),
    _peer("zarr-lz4-window", "zarr-python", PYTHON, lz4=True),
    _peer("zarrs-window", "zarrs under zarr-python", RUST, lz4=False),
    _peer("zarrs-lz4-window", "zarrs under zarr-python", RUST, lz4=True),
]
