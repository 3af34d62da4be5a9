"""What must hold for each model, from its weights, its History and the cache's statistics."""

from __future__ import annotations

import contextlib
import io
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_freeze import (
    BottleneckCache,
    FreezeBase,
    GradualUnfreeze,
    Schedule,
    Stage,
    select_layers,
)
from zoo.member import ROWS, Built, Member

BATCH = ROWS // 2
EPOCHS = 4  # two with the frozen base, two with its last block


def check(member: Member) -> dict[str, Any]:
    """Returns a row of the table, with all failed checks in `wrong`."""
    began = time.perf_counter()
    row: dict[str, Any] = {"model": member.name, "wrong": []}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check(member.make, row)
    except Exception as error:  # an error of any type is a result in the table
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        row["wrong"].append(f"{type(error).__name__}: {text} ({where.filename}:{where.lineno})")
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def _check(make: Callable[[], Built], row: dict[str, Any]) -> None:
    wrong = row["wrong"]
    built = fresh(make)
    if built.asks:
        wrong += _must_ask(built)
        built = fresh(make)
    top = _last_block(built, row)
    if built.blocks is not None and row["blocks"] < built.blocks:
        wrong.append(f"{row['blocks']} blocks, at least {built.blocks} expected")
    schedule = Schedule([Stage(2, top)])
    preview = schedule.preview(built.model, epochs=EPOCHS, data=ROWS, base=built.named)
    cache = BottleneckCache(verbose=0)
    cached = run(built, schedule, cache, row)
    wrong += row.pop("froze")
    row["cached"] = cache.stats.enabled or cache.stats.reason
    row["cuts"] = {str(number): names for number, names in cache.stats.cuts.items()}
    wrong += _wrong_cache(built, cache)
    told = [list(stage["cut"] or []) for stage in preview]
    if cache.stats.enabled and told != [cache.stats.cuts.get(n, []) for n in range(len(told))]:
        wrong.append(f"the preview's cuts are {told}, the run's {cache.stats.cuts}")
    other = fresh(make)
    plain = run(other, Schedule([Stage(2, _same(top, built, other))]), None, {})
    wrong += _different("cached and uncached", cached, plain, 1e-5)
    wrong += _against_two_fits(make, top, built, row)


def fresh(make: Callable[[], Built]) -> Built:
    """Builds the member after the same seed, and compiles it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    built = make()
    built.model.compile(keras.optimizers.SGD(1e-3), built.loss)
    return built


def layers_of(built: Built) -> list[Any]:
    """Returns the base's layers that have weights and aren't containers."""
    given = built.base if isinstance(built.base, list) else [built.base]
    found = [leaf for layer in given for leaf in select_layers(layer, "all") if leaf.weights]
    return list({id(leaf): leaf for leaf in found}.values())


def is_adapter(variable: Any) -> bool:
    return variable.name.startswith("lora_")


def values(variables: list[Any]) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def _must_ask(built: Built) -> list[str]:
    try:
        fit(built, [FreezeBase()], epochs=1)
    except ValueError as error:
        return [] if "base" in str(error) else [f"the error doesn't name `base`: {error}"]
    return ["the base was guessed, though two answers are possible"]


def _last_block(built: Built, row: dict[str, Any]) -> list[str]:
    """Returns the names of the base's last block, as a preset finds it."""
    root = built.base
    row["base"] = root.name if isinstance(root, keras.layers.Layer) else "layers of the model"
    leaves = layers_of(built)
    if isinstance(root, keras.Model):
        stages = list(Schedule.ulmfit(root, start=1))
        row["blocks"] = len(stages)
        chosen = select_layers(root, stages[0].unfreeze)
        if not 0 < len(select_layers(root, "50%")) <= len(select_layers(root, "all")):
            row["wrong"].append("50% selects nothing")
    else:
        row["blocks"] = len(root)
        normal = keras.layers.BatchNormalization
        chosen = select_layers([one for one in root if not isinstance(one, normal)][-1], "all")
    inside = {id(leaf) for leaf in leaves}
    return [leaf for leaf in chosen if id(leaf) in inside]


def _same(top: list[Any], one: Built, other: Built) -> list[Any]:
    """Returns the same layers of another copy of the model."""
    places = {id(leaf): place for place, leaf in enumerate(layers_of(one))}
    leaves = layers_of(other)
    return [leaves[places[id(leaf)]] for leaf in top]


def fit(built: Built, callbacks: list[Any], *, epochs: int, first: int = 0) -> dict[str, Any]:
    keras.utils.set_random_seed(1)
    options = {"batch_size": BATCH, "epochs": epochs, "initial_epoch": first, "verbose": 0}
    if "preprocessor" not in dir(built.model):
        options["shuffle"] = False
    data = {"x": built.x, "y": built.y}
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(built.model.fit(**data, callbacks=callbacks, **options).history)


class Look(keras.callbacks.Callback):
    """Records what is frozen in stage 0, and what has changed by its end."""

    def __init__(self, built: Built):
        super().__init__()
        self.built = built
        self.wrong: list[str] = []

    def on_train_begin(self, logs: Any = None) -> None:
        base = [v for leaf in layers_of(self.built) for v in leaf.variables]
        self.frozen = [v for v in base if not is_adapter(v) and "seed" not in v.name]
        self.before = values(self.frozen)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch != 1:
            return
        now = values(self.frozen)
        pairs = zip(self.frozen, self.before, now, strict=True)
        moved = [v.path for v, a, b in pairs if not np.array_equal(a, b)]
        if moved:
            self.wrong.append(f"{len(moved)} weights of the base moved: {moved[:3]}")
        inside = {id(v) for v in self.frozen}
        given = {id(v) for v in self.model.trainable_variables}
        asked = [v for layer in self.model._flatten_layers() for v in layer._trainable_variables]
        left = [v.path for v in asked if id(v) not in inside | given]
        if left:
            self.wrong.append(f"frozen outside the base: {left[:3]}")


def run(built: Built, schedule: Any, cache: Any, row: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Runs one fit of both stages. Returns its History and the model's weights."""
    look = Look(built)
    plan = GradualUnfreeze(schedule, verbose=0)
    callbacks = [FreezeBase(built.named), plan, look, *([cache] if cache is not None else [])]
    history = fit(built, callbacks, epochs=EPOCHS)
    row["froze"] = look.wrong
    return history, values(_weights(built))


def _weights(built: Built) -> list[Any]:
    return [v for v in built.model.variables if "seed_generator" not in v.path]


def _wrong_cache(built: Built, cache: BottleneckCache) -> Iterator[str]:
    stats = cache.stats
    if built.aside:
        if stats.enabled or built.aside not in stats.reason:
            yield f"expected to step aside, {built.aside!r}, but {stats}"
    elif not stats.enabled:
        yield f"stepped aside: {stats.reason}"
    elif stats.base_passes != 1.0:
        yield f"base_passes is {stats.base_passes}"


def _different(what: str, one: Any, other: Any, tolerance: float) -> list[str]:
    (history, weights), (expected, wanted) = one, other
    keys = [key for key in expected if "loss" in key]
    if not all(np.isfinite(losses[key]).all() for losses in (history, expected) for key in keys):
        return [f"{what}: a loss is NaN or infinite, so nothing was compared"]
    worst = max(np.abs(np.subtract(history[key], expected[key])).max() for key in keys)
    furthest = max(_distance(a, b) for a, b in zip(weights, wanted, strict=True))
    if worst <= tolerance and furthest <= tolerance:
        return []
    return [f"{what} differ: losses by {worst:.1e}, weights by {furthest:.1e}"]


def _distance(a: Any, b: Any) -> float:
    if a.dtype.kind not in "fV" or not a.size:
        return 0.0
    return float(np.abs(a.astype("float64") - b.astype("float64")).max())


def _against_two_fits(
    make: Callable[[], Built], top: list[Any], built: Built, row: dict[str, Any]
) -> list[str]:
    """Compares with fresh optimizers for each stage, and flags set by hand."""
    why = built.not_two
    if any(getattr(layer, "rate", 0) for layer in built.model._flatten_layers()):
        why = "stock Keras leaves Dropout on in frozen layers"
    if any(is_adapter(v) for v in built.model.trainable_variables):
        why = "adapters"
    if why:
        row["two fits"] = f"not compared: {why}"
        return []
    ours = fresh(make)
    schedule = Schedule([Stage(2, _same(top, built, ours))], optimizer="reset")
    one = run(ours, schedule, None, {})
    by_hand = fresh(make)
    losses: list[float] = []
    for first, thawed in ((0, []), (2, _same(top, built, by_hand))):
        for leaf in layers_of(by_hand):
            leaf.trainable = any(leaf is other for other in thawed) and not isinstance(
                leaf, keras.layers.BatchNormalization
            )
        by_hand.model.compile(keras.optimizers.SGD(1e-3), by_hand.loss)
        losses += fit(by_hand, [], epochs=first + 2, first=first)["loss"]
    row["two fits"] = "compared"
    two = {"loss": losses}, values(_weights(by_hand))
    return _different("one fit and two", ({"loss": one[0]["loss"]}, one[1]), two, 1e-5)
