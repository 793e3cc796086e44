"""Peers: other ways of storing soft targets and reading them shuffled, each as usual and as it is best used.

`python -m benchmarks.peers` says how one is run by itself. Nothing is imported that a peer needs before it is used.
"""

from __future__ import annotations

from benchmarks.peers import (
    arrow_files,
    hdf5_files,
    huggingface_datasets,
    litdata_chunks,
    lmdb_tables,
    mosaic_shards,
    plain_files,
    tensorstore_arrays,
    torch_files,
    webdataset_tars,
    zarr_arrays,
)
from benchmarks.peers.peer import Peer

MODULES = (
    plain_files,
    zarr_arrays,
    hdf5_files,
    tensorstore_arrays,
    arrow_files,
    huggingface_datasets,
    lmdb_tables,
    mosaic_shards,
    litdata_chunks,
    webdataset_tars,
    torch_files,
)

PEERS: dict[str, Peer] = {peer.name: peer for module in MODULES for peer in module.PEERS}

BASELINE = "memmap-index-select"
"""The faster of the two ways to gather random rows of a memory map: all ratios are taken against it."""
