"""Splits rows that are written into blocks, and blocks into commits, of a moderate size."""

from __future__ import annotations

from collections.abc import Sequence
from mmap import PAGESIZE

from keras_freeze.feature_cache.directory.blocks import WIDTH, packed
from keras_freeze.feature_cache.directory.row_index import Batch

AT_ONCE = 1 << 26  # bytes of a block, and of a commit

PAGES = 8  # that LMDB takes for a new file and its lock, and to find blocks


def bytes_needed(batches: Sequence[Batch]) -> int:
    """Returns the bytes of the disk that batches may take."""
    rows = sum(batch.nbytes + 2 * WIDTH * len(batch.keys) for batch in batches)
    return rows + (PAGES + 2 * len(batches)) * PAGESIZE


def blocks_of(batch: Batch) -> list[bytearray]:
    """Packs a batch into blocks."""
    rows = max(1, AT_ONCE * len(batch.keys) // max(1, batch.nbytes))
    starts = range(0, len(batch.keys), rows)
    return [
        packed(
            batch.keys[start : start + rows],
            {name: array[start : start + rows] for name, array in batch.columns.items()},
            batch.axes,
        )
        for start in starts
    ]


def commits_of(blocks: list[bytearray]) -> list[list[bytearray]]:
    """Splits blocks into lists that are committed at once."""
    commits: list[list[bytearray]] = [[]]
    size = 0
    for block in blocks:
        if commits[-1] and size + len(block) > AT_ONCE:
            commits.append([])
            size = 0
        commits[-1].append(block)
        size += len(block)
    return commits
