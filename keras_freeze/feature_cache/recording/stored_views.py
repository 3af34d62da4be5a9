"""Keeps recorded views in a directory, under a name that the user gives the data."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from keras_freeze.feature_cache.cutting.choose_cached_part import ChosenCut
from keras_freeze.feature_cache.cutting.prefix_and_tail import GraphPrefix
from keras_freeze.feature_cache.cutting.tensors_to_cache import cut_names
from keras_freeze.feature_cache.directory.about import About
from keras_freeze.feature_cache.directory.cache_directory import shared_directory
from keras_freeze.feature_cache.directory.feature_folder import FeatureFolder
from keras_freeze.feature_cache.fingerprints.plain_values import UnknownContentError, print_of
from keras_freeze.feature_cache.fingerprints.value_prints import prints_of_values, versions
from keras_freeze.feature_cache.not_cacheable import tell
from keras_freeze.feature_cache.recording import view_file
from keras_freeze.feature_cache.recording.view import View
from keras_freeze.feature_cache.recording.view_file import UnknownStructureError, ViewFile
from keras_freeze.feature_cache.storage.memory_order import Axes
from keras_freeze.feature_cache.storage.row_hashes import Key


class StoredViews:
    """The views of a `fit` in a directory.

    Args:
        path: the directory.
        limit: bytes that it may take; None = as many as the disk has.
        network: the name of the base, for people who look at the directory.
        data: the name of the data. Views are found again under the same name, the same frozen part
            and random layers, and the same number of batches.
    """

    def __init__(self, path: Path, limit: int | None, network: str, data: str):
        self.directory = shared_directory(path, limit)
        self.network = network
        self.data = data
        self.opened: dict[str, FeatureFolder] = {}
        self.folder: FeatureFolder | None = None
        self.waiting: list[tuple[Path, ViewFile]] = []  # their rows may not be written yet
        self.told = False
        self.known: str | None = None  # name of the folder to use next, whatever the fingerprint
        self.begin_stage(None, None)

    def begin_stage(self, choice: ChosenCut | None, dtype: Any) -> None:
        """Begins a stage, whose views are found by `find`.

        Args:
            choice: what the stage records; None = nothing.
            dtype: dtype in which float features are kept; None = their own.
        """
        part = None if choice is None else choice.part
        self.part = part if isinstance(part, GraphPrefix) else None
        self.given = None if choice is None else choice.given
        self.dtype = dtype
        self.folder = None
        self.print = b""
        if part is not None and self.part is None:
            self._decline("the model's code before the cut can't be fingerprinted")

    def _decline(self, why: str) -> None:
        self.part = self.folder = None
        if not self.told:
            self.told = True
            tell(f"keeps views in memory only, since {why}.")

    def _fingerprint(self, num_batches: int | None) -> bytes:
        assert self.part is not None
        program, calls = self.part.program, self.part.calls
        prints = prints_of_values(program, calls, range(len(program.inputs)), records=True)
        values = [prints[value] for value in self.part.values]
        kept = None if self.dtype is None else self.dtype.name
        return print_of("views", self.data, values, kept, num_batches, self.given)

    def find(self, num_batches: int | None) -> bool:
        """Finds the views of the running stage; returns True when this was done just now.

        Args:
            num_batches: number of batches of an epoch, if known.
        """
        if self.part is None or self.folder is not None or not self.directory.is_usable:
            return False
        self.num_batches = num_batches
        try:
            self.print = self._fingerprint(num_batches)
            name, self.known = self.known or self.print.hex(), None
            self.folder = self.opened.get(name) or self.directory.open(name, self._about(), self)
            self.opened[name] = self.folder
        except UnknownContentError as error:
            self._decline(f"the content of the frozen part can't be fingerprinted: {error.what}")
        except OSError as error:
            self._decline(f"its files can't be checked: {error}")
        return self.folder is not None

    @property
    def name(self) -> str | None:
        """The name of the folder of the running stage; None if it has none."""
        return None if self.folder is None else self.folder.path.name

    def _about(self) -> About:
        assert self.part is not None
        symbols = [self.part.program.symbols[value] for value in self.part.values]
        return About(
            network=self.network,
            cut=cut_names(self.part.program, self.part.values),
            features=[f"{symbol.dtype}{tuple(symbol.shape[1:])}" for symbol in symbols],
            made_with=versions(),
            data=self.data,
        )

    def load(self, number: int, view: View) -> bool:
        """Fills an empty view with a stored one; returns False if there is none, or no room."""
        if self.folder is None or (file := view_file.read(self._path(number))) is None:
            return False
        keys = _keys(file.recording, sum(file.sizes))
        found = self.folder.take(keys)
        if found is None or len(found.positions) < len(keys):
            return False
        names = self._names()
        columns = {names.get(name, name): array for name, array in found.columns.items()}
        axes = {names.get(name, name): order for name, order in found.axes.items()}
        features = {name: array for name, array in columns.items() if _is_feature(name, names)}
        others = {name: array for name, array in columns.items() if name not in features}
        try:
            view_file.restore(view, file, view.backend)
        except (ValueError, TypeError, KeyError):
            return False
        return view.fill(features, others, {name: axes.get(name) for name in features})

    def save(self, number: int, view: View) -> None:
        """Writes a complete view in the background."""
        self.finish()
        if self.folder is None or self.directory.failure:
            return
        if self._fingerprint(self.num_batches) != self.print:
            return  # somebody has changed a weight
        recording = uuid.uuid4().hex
        try:
            file = view_file.described(view, recording)
        except UnknownStructureError as error:
            self._decline(f"a file can't hold batches with a {error}")
            return
        keys = _keys(recording, view.rows)
        names = {column: name for name, column in self._names().items()}
        columns, axes = view.whole_columns()
        named = {names.get(column, column): array for column, array in columns.items()}
        order: dict[str, Axes | None] = {names.get(c, c): a for c, a in axes.items()}
        self.directory.add(self.folder, keys, named, order, patiently=True)
        self.waiting.append((self._path(number), file))

    def finish(self) -> None:
        """Marks views as complete when all their rows are written."""
        if not self.waiting:
            return
        self.directory.flush()
        try:
            while self.waiting and not self.directory.failure:
                view_file.write(*self.waiting.pop(0))
        except OSError as error:
            self.directory.failure = error.strerror or str(error)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder.path / f"view-{number}.json"

    def _names(self) -> dict[str, str]:
        """Returns the columns of features by their names in the files.

        The number of a tensor depends on the whole model, also on its head.
        """
        assert self.part is not None
        numbered = enumerate(self.part.values)
        pairs = [(f"features {place}", str(value)) for place, value in numbered]
        return dict(pairs) | {f"{name}.mask": f"{column}.mask" for name, column in pairs}

    def close(self) -> None:
        """Writes what is left, and closes the folders."""
        self.finish()
        if self.directory.failure:
            tell(
                f"writes no more views to `directory`, {str(self.directory.path)!r}: "
                f"{self.directory.failure}."
            )
        self.directory.let_go(list(self.opened.values()), self)
        self.opened, self.folder = {}, None


def _is_feature(column: str, names: dict[str, str]) -> bool:
    return column in names.values()


def _keys(recording: str, rows: int) -> list[Key]:
    """Returns the keys of the rows of a recording."""
    numbers = np.arange(rows, dtype="<u8")
    return [xxhash.xxh3_128_digest(recording.encode() + number.tobytes()) for number in numbers]
