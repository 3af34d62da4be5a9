"""Holds stored features as tensors on the device where the steps run."""

from __future__ import annotations

from typing import Any

from keras_freeze.feature_cache.storage.row_chunks import RowChunks, Slots

SHARE = 0.5  # of the device's free memory, for all tables together


class DeviceTables:
    """Tables of features on the device, one for each column of a chunk of the store.

    On a CPU, tables share the memory of the store.

    Args:
        store: the features in host memory.
        backend: the module of the backend.
        peers: other tables with which these share the memory of the device.

    Attributes:
        on_device: whether the device has its own memory.
    """

    def __init__(self, store: RowChunks, backend: Any, peers: list[DeviceTables] | None = None):
        self.peers = [] if peers is None else peers
        self.peers.append(self)
        self.store = store
        self.backend = backend
        self.on_device = backend.free_device_memory() is not None
        self.forget()

    def forget(self) -> None:
        """Frees all tables."""
        self.tables: dict[tuple[str, int], Any] = {}
        self.rows = 0  # rows of the store that all tables have
        self.is_full = False

    def begin_epoch(self) -> None:
        """Makes tables anew when they are next needed, if rows were added since they were made."""
        if self.rows != self.store.rows:
            self.forget()
            self.rows = self.store.rows

    def chunk_of(self, slots: Slots) -> int | None:
        """Returns the number of the chunk whose tables have all these rows; None if none does."""
        is_there = bool(len(slots)) and int(slots.max()) < self.rows
        return self.store.chunk_of(slots) if is_there else None

    def columns(self, chunk: int, names: list[str]) -> dict[str, Any] | None:
        """Returns the tables of a chunk by column, or None if the device lacks memory for them.

        Args:
            chunk: number of the chunk.
            names: the names of the cached tensors; each may have a mask as a second column.
        """
        wanted = [name for name in self.store.columns if name.split(".")[0] in names]
        missing = [name for name in wanted if (name, chunk) not in self.tables]
        if missing and not self._fits(missing, chunk):
            return None
        for name in missing:
            self.tables[name, chunk] = self.backend.to_table(self.store.columns[name][chunk])
        return {name: self.tables[name, chunk] for name in wanted}

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(self.store.columns[name][of].nbytes for name, of in self.tables)

    def _fits(self, names: list[str], chunk: int) -> bool:
        free = self.backend.free_device_memory()
        needed = sum(self.store.columns[name][chunk].nbytes for name in names)
        held = sum(peer.nbytes for peer in self.peers)
        self.is_full |= free is not None and needed + held > SHARE * (free + held)
        return not self.is_full
