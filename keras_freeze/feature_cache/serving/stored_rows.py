"""The rows of a `fit` in a directory: those of earlier runs, and new ones for later runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_freeze.feature_cache.cutting.find_cut import calls_after
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix, LayerPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import cut_names
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.cache_directory import CacheDirectory, shared_directory
from keras_freeze.feature_cache.directory.feature_folder import FeatureFolder
from keras_freeze.feature_cache.fingerprints.plain_values import UnknownContentError, print_of
from keras_freeze.feature_cache.fingerprints.value_prints import prints_of_values, versions
from keras_freeze.feature_cache.not_cacheable import tell
from keras_freeze.feature_cache.serving.brought_rows import Brought, Continuation
from keras_freeze.feature_cache.serving.read_ahead import ReadAhead
from keras_freeze.feature_cache.storage.memory_order import Axes
from keras_freeze.feature_cache.storage.memory_store import MemoryStore
from keras_freeze.feature_cache.storage.row_hashes import Key
from keras_freeze.graph.layer_calls import Value

Columns = dict[str, np.ndarray[Any, Any]]
FEATURES, MASK = "features", "mask"  # the columns of a folder


class StoredRows:
    """What a `fit` reads from a directory, and writes to it.

    Each cached tensor has its own folder, named by its fingerprint.

    Args:
        path: the directory.
        limit: bytes that it may take; None = as many as the disk has.
        network: the name of the base, for people who look at the directory.
        store: the rows in memory.

    Attributes:
        continuation: how missing features are computed from those of an earlier cut, if they can.
    """

    def __init__(self, path: Path, limit: int | None, network: str, store: MemoryStore):
        self.directory: CacheDirectory = shared_directory(path, limit)
        self.network = network
        self.store = store
        self.opened: dict[str, FeatureFolder] = {}  # by fingerprint
        self.folders: dict[Value, FeatureFolder] = {}  # of the running stage
        self.continuation: Continuation | None = None
        self.behind: list[list[Key]] = []  # rows for which the disk was too slow
        self.prints: dict[Value, bytes] = {}
        self.told: set[str] = set()
        self.ahead = ReadAhead(self._read)

    def begin_stage(self, part: GraphPrefix | LayerPrefix, dtype: Any, *, is_known: bool) -> None:
        """Opens the folders of the running stage.

        Args:
            part: the part of the model that is served.
            dtype: dtype in which float features are kept; None = their own.
            is_known: whether all that comes before the cached tensors is known.
        """
        self.folders, self.continuation = {}, None
        self.part, self.dtype = part, dtype
        if not self.directory.is_usable:
            self._tell_of_failure()
            return
        if not isinstance(part, GraphPrefix) or not is_known:
            self._decline(
                "the model's code before the cut can't be fingerprinted",
                "a functional model, whose graph can be read",
            )
            return
        try:
            self.prints = self._prints(part)
            self.folders = {value: self._open(value, dtype) for value in part.values}
            self.continuation = self._continuation(part)
        except UnknownContentError as error:
            what = f"the content of the frozen part can't be fingerprinted: {error.what}"
            self._decline(what, "layers whose settings are numbers, text, arrays or functions")
        except OSError as error:
            self._decline(f"its files can't be checked: {error}", "a Python that can be started")

    def _prints(self, part: GraphPrefix) -> dict[Value, bytes]:
        places = part.places if part.places is not None else range(len(part.program.inputs))
        return prints_of_values(part.program, part.calls, places)

    def end_stage(self, axes: dict[str, Axes]) -> None:
        """Writes what is left of the stage, and removes all of it if a weight was changed.

        Args:
            axes: for each column, its axes in memory order, if that isn't C order.
        """
        if not self.folders:
            return
        self.ahead.close()
        self.catch_up(patiently=True, axes=axes)
        if self.have_weights_changed():
            self.directory.flush()
            for folder in self.folders.values():
                folder.remove_own()
        self.folders, self.continuation = {}, None

    def have_weights_changed(self) -> bool:
        """Returns True if a weight has changed since the stage began, in whatever bit."""
        part = self.part
        is_used = bool(self.folders) and isinstance(part, GraphPrefix)
        return isinstance(part, GraphPrefix) and is_used and self._prints(part) != self.prints

    def _decline(self, why: str, remedy: str) -> None:
        self.folders, self.continuation = {}, None
        self._once(f"keeps features in memory only, since {why}. `directory` needs {remedy}.")

    def _once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            tell(text)

    def _name(self, value: Value, dtype: Any) -> str:
        kept = None if dtype is None else dtype.name
        return print_of(self.prints[value], kept).hex()

    def _open(self, value: Value, dtype: Any) -> FeatureFolder:
        name = self._name(value, dtype)
        if name not in self.opened:
            self.opened[name] = self.directory.open(name, self._about(value), self)
        return self.opened[name]

    def _about(self, value: Value) -> About:
        part = self.part
        assert isinstance(part, GraphPrefix)
        symbol = part.program.symbols[value]
        kept = symbol.dtype if self.dtype is None else self.dtype.name
        return About(
            network=self.network,
            cut=cut_names(part.program, [value]),
            features=[f"{kept}{tuple(symbol.shape[1:])}"],
            made_with=versions(),
        )

    def _continuation(self, part: GraphPrefix) -> Continuation | None:
        """Finds the latest tensors in the directory from which the missing ones can be computed."""
        served = set(part.cut.values)
        known = {
            value
            for value in self.prints
            if (value not in served or self.dtype is not None)
            and value not in part.program.inputs
            and self.directory.has(self._name(value, None))
        }
        calls, sources = calls_after(part.calls, part.values, known)
        if not sources or not sources.isdisjoint(part.program.inputs):
            return None
        return Continuation(frozenset(sources), calls)

    @property
    def has_rows(self) -> bool:
        """True if rows of all tensors of this stage are known."""
        return bool(self.folders) and all(map(len, self.folders.values()))

    def read(self, keys: list[Key]) -> Brought | None:
        """Returns the features of those rows that the directory has."""
        brought = self.ahead.take(keys)
        self._tell_of_problems()
        return brought

    def _read(self, keys: list[Key]) -> Brought | None:
        return _read(self.folders, keys)

    def read_sources(self, keys: list[Key]) -> Brought | None:
        """Returns features of an earlier cut of those rows that the directory has."""
        sources = self.continuation.sources if self.continuation is not None else ()
        try:
            return _read({value: self._open(value, None) for value in sources}, keys)
        except OSError:  # Python can't be started to check the files
            self.continuation = None
            return None

    def write(self, keys: list[Key], columns: Columns, axes: dict[str, Axes], *, kept: int) -> None:
        """Lets rows be written in the background.

        Args:
            keys: their keys.
            columns: their features.
            axes: for each column, its axes in memory order, if that isn't C order.
            kept: how many of them, from the first, are in memory too.
        """
        if not self.folders:
            return
        self.catch_up(patiently=False, axes=axes)
        if not self._add(keys[:kept], _first(columns, kept), axes, patiently=False):
            self.behind.append(keys[:kept])
        if kept < len(keys):
            rest = {name: array[kept:] for name, array in columns.items()}
            self._add(keys[kept:], rest, axes, patiently=True)
        self._tell_of_problems()

    def _add(
        self, keys: list[Key], columns: Columns, axes: dict[str, Axes], *, patiently: bool
    ) -> bool:
        """Adds rows to the folder of each tensor; returns False if the disk is too slow for now."""
        for value, folder in self.folders.items():
            own = _of_value(value, columns)
            if own and keys:
                order = {name: axes.get(_column(value, name)) for name in own}
                if not self.directory.add(folder, keys, own, order, patiently=patiently):
                    return False
        return True

    def catch_up(self, *, patiently: bool, axes: dict[str, Axes]) -> None:
        """Writes rows for which the disk was too slow, from memory."""
        while self.behind:
            keys = self.behind[0]
            slots = self.store.find(keys)
            keys = [key for key, slot in zip(keys, slots, strict=True) if slot >= 0]
            slots = slots[slots >= 0]
            columns = {name: self.store.take(name, slots) for name in self.store.columns}
            if not self._add(keys, columns, axes, patiently=patiently):
                return
            self.behind.pop(0)

    def distrust(self) -> None:
        """Uses the folders of this stage no more: their features aren't those of the model."""
        where = ", ".join(str(folder.path) for folder in self.folders.values())
        self._once(
            f"keeps features in memory only, since those in {where} differ from what the frozen "
            "part computes now. Remove that folder; if the frozen part has code of its own, give "
            "its class another name when the code changes."
        )
        self.folders, self.continuation = {}, None

    def _tell_of_problems(self) -> None:
        problems, self.directory.problems = self.directory.problems, []
        for problem in problems:
            self._once(f"{problem}.")
        self._tell_of_failure()

    def _tell_of_failure(self) -> None:
        if self.directory.failure:
            self._once(
                f"writes no more to `directory`, {str(self.directory.path)!r}, and keeps features "
                f"in memory: {self.directory.failure}."
            )

    def close(self, axes: dict[str, Axes]) -> None:
        """Writes what is left, and closes the folders that no other fit uses."""
        self.end_stage(axes)
        self.directory.let_go(list(self.opened.values()), self)
        self.opened = {}
        self._tell_of_problems()


def _read(folders: dict[Value, FeatureFolder], keys: list[Key]) -> Brought | None:
    """Returns the rows that all folders have."""
    positions = np.arange(len(keys))
    columns: Columns = {}
    axes: dict[str, Axes | None] = {}
    for value, folder in folders.items():
        found = folder.take([keys[position] for position in positions])
        if found is None:
            return None
        columns = {name: array[found.positions] for name, array in columns.items()}
        positions = positions[found.positions]
        columns |= {_column(value, name): array for name, array in found.columns.items()}
        axes |= {_column(value, name): order for name, order in found.axes.items()}
    return Brought(positions, columns, axes) if folders and len(positions) else None


def _column(value: Value, name: str) -> str:
    return str(value) if name == FEATURES else f"{value}.{MASK}"


def _of_value(value: Value, columns: Columns) -> Columns:
    """Returns the columns of a tensor, under the names that they have in its folder."""
    names = {FEATURES: str(value), MASK: f"{value}.{MASK}"}
    return {name: columns[column] for name, column in names.items() if column in columns}


def _first(columns: Columns, count: int) -> Columns:
    return {name: array[:count] for name, array in columns.items()}
