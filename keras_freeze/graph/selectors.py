"""Selects layers of a model by name, pattern, slice, or share of its layers.

`"block5_conv1"` exact name at any depth; `"block5_*"` glob on the name or the path; `"a:"`, `":b"`,
`"a:b"` slices by name in execution order, both ends included as in pandas' `.loc`; `"-20:"` by
index; `"20%"` the last share of the layers with weights, moved to the nearest block boundary;
`"re:..."` full-match regex on the path; `"all"`; `"lora"` the layers with LoRA adapters; `"!..."`
in a list excludes layers; a callable `layer -> bool`; a `Layer`; lists of these.
"""

from __future__ import annotations

import fnmatch
import math
import re
from typing import Any

import keras

from keras_freeze.errors import LayerMatchError, names_unknown
from keras_freeze.graph.block_boundaries import block_starts
from keras_freeze.graph.layer_tree import Layer, LayerTree, adapters
from keras_freeze.graph.selector_hints import LORA, layers_of, name_hint, number_hint
from keras_freeze.graph.selector_scope import Scope

PERCENT = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")
INTEGER = re.compile(r"\s*([+-]?\d+)\s*")


@names_unknown()
def select_layers(model_or_base: Layer, selector: Any) -> list[Layer]:
    """Returns the layers that `selector` matches, in execution order.

    If a layer that holds layers matches, the layers in it are returned. Names and paths match at
    any depth. Indices and percentages count within `model_or_base`, so pass the base itself for
    those.

    Args:
        model_or_base: a `keras.Model` or layer whose sublayers exist.
        selector: a string (`"block5_conv1"`, `"block5_*"`, `"vgg19/block5_*"`,
            `"block5_conv1:"`, `":block3_pool"`, `"a:b"` with both ends included, `"-20:"`,
            `"20%"`, `"re:.*_conv[12]"`, `"all"`, `"lora"` for the layers with LoRA adapters), a
            callable `layer -> bool`, a `Layer`, or a list of these, in which `"!..."` excludes.

    Raises:
        LayerMatchError: no layer matches, or the selector is invalid (`"-0:"`, `"0%"`).

    Examples:
        >>> base = keras.Sequential(
        ...     [keras.Input((4,))] + [keras.layers.Dense(4, name=f"d{i}") for i in range(4)])
        >>> [layer.name for layer in select_layers(base, "d2:")]
        ['d2', 'd3']
        >>> [layer.name for layer in select_layers(base, ["all", "!d[01]"])]
        ['d2', 'd3']
    """
    if not isinstance(model_or_base, keras.layers.Layer):
        raise LayerMatchError(
            "`model_or_base` must be a Keras model or layer. "
            f"Received: model_or_base={model_or_base!r}"
        )
    return select(Scope(LayerTree(model_or_base)), selector, where="`selector`")


def select(
    scope: Scope, selector: Any, *, where: str, fallback: Scope | None = None
) -> list[Layer]:
    """Returns the leaves of `scope` that `selector` matches.

    Args:
        scope: the layers to choose from.
        selector: as in `select_layers`.
        where: the argument (and stage) that an error names.
        fallback: further layers, searched for a name, pattern or layer that `scope` doesn't have.
    """
    if not scope.leaves:
        raise LayerMatchError(
            f"{where}: {scope.tree.root.name!r} has no layers yet, so none can be selected. Build "
            "it first, with `model.build(input_shape)` or a call on one batch. "
            f"Received: {selector!r}"
        )
    check_selector(selector, where)
    items = list(selector) if isinstance(selector, (list, tuple)) else [selector]
    takes_away = [item for item in items if isinstance(item, str) and item.startswith("!")]
    if takes_away and (len(takes_away) == len(items)):
        raise LayerMatchError(
            f"{where}: '!' excludes layers, and the list has nothing to exclude them from. "
            f"Write ['all', {takes_away[0]!r}]. Received: {selector!r}"
        )
    kept: list[Layer] = []
    taken: list[Layer] = []
    for item in items:
        if isinstance(item, str) and item.startswith("!"):
            taken += _select_one(scope, item[1:], where, fallback)
        else:
            kept += _select_one(scope, item, where, fallback)
    away = {id(layer) for layer in taken}
    wanted = [layer for layer in kept if id(layer) not in away]
    found = scope.restrict(wanted)
    if fallback is not None:
        inside = {id(layer) for layer in found}
        found += [leaf for leaf in fallback.restrict(wanted) if id(leaf) not in inside]
    if not found:
        raise LayerMatchError(f"{where}: no layer is left over. Received: {selector!r}")
    return found


def _select_one(scope: Scope, item: Any, where: str, fallback: Scope | None) -> list[Layer]:
    if isinstance(item, (list, tuple)):
        return select(scope, item, where=where, fallback=fallback)
    found = _matches(scope, item, where)
    if not found and fallback is not None and not _is_positional(item):
        found = _matches(fallback, item, where)
    if not found:
        raise _no_match(fallback or scope, item, where)
    return found


def check_selector(selector: Any, where: str) -> None:
    """Raises `LayerMatchError` for a selector that is invalid for any model."""
    if isinstance(selector, (list, tuple)) and selector:
        for item in selector:
            check_selector(item, where)
    elif isinstance(selector, str) and selector.strip():
        _check_text(selector.removeprefix("!"), where)
    elif isinstance(selector, type):
        raise LayerMatchError(
            f"{where}: a class can't be a selector. Pass a function: "
            f"lambda layer: isinstance(layer, {selector.__name__}). Received: {selector!r}"
        )
    elif not (isinstance(selector, keras.layers.Layer) or callable(selector)):
        raise LayerMatchError(
            f"{where} must be a layer's name, a pattern such as 'block5_*' or 'block5_conv1:', a "
            f"Layer, a callable `layer -> bool`, or a list of these.{number_hint(selector)} "
            f"Received: {selector!r}"
        )


def _check_text(text: str, where: str) -> None:
    percent = PERCENT.fullmatch(text)
    if percent and not 0 < float(percent[1]) <= 100:
        counts = " '20%' is the last share already." if float(percent[1]) < 0 else ""
        raise LayerMatchError(
            f"{where}: a share must be above 0% and at most 100%.{counts} Received: {text!r}"
        )
    if re.fullmatch(r"\s*-0+\s*:.*|.*:\s*-0+\s*", text):
        raise LayerMatchError(
            f"{where}: '-0' is the same as '0'. Write 'all' for every layer, or '-20:' for the "
            f"last 20. Received: {text!r}"
        )
    if text.startswith("re:"):
        try:
            re.compile(text[3:])
        except re.error as error:
            raise LayerMatchError(
                f"{where}: the regular expression is invalid: {error}. Received: {text!r}"
            ) from None


def _is_positional(item: Any) -> bool:
    """True for a selector that counts within the scope, or means all of it: it has no fallback."""
    if not isinstance(item, str):
        return False
    ends = item.split(":")
    return item == "all" or bool(PERCENT.fullmatch(item)) or any(map(INTEGER.fullmatch, ends))


def _matches(scope: Scope, item: Any, where: str) -> list[Layer]:
    if isinstance(item, keras.layers.Layer):
        return scope.restrict(LayerTree(item).leaves)
    if callable(item):
        return [leaf for leaf in scope.leaves if item(leaf)]
    named = _named(scope, item)  # comes first, as a name may contain any of the signs below
    if named:
        return named
    if item.startswith("re:"):
        pattern = re.compile(item[3:])
        return _below(scope, lambda layer, path: pattern.fullmatch(path) is not None)
    if item == "all":
        return scope.leaves
    if item == LORA:
        return [leaf for leaf in scope.leaves if adapters(leaf)]
    if PERCENT.fullmatch(item):
        return _last_share(scope, item, where)
    if ":" in item:
        return _slice(scope, item, where)
    return _below(
        scope,
        lambda layer, path: (
            fnmatch.fnmatchcase(layer.name, item) or fnmatch.fnmatchcase(path, item)
        ),
    )


def _named(scope: Scope, name: str) -> list[Layer]:
    return _below(scope, lambda layer, path: name in (layer.name, path))


def _below(scope: Scope, matches: Any) -> list[Layer]:
    """Returns the leaves at or below each layer for which `matches(layer, path)` is true."""
    tree = scope.tree
    found = [
        leaf
        for layer in tree
        if any(matches(layer, path) for path in tree.paths(layer))
        for leaf in tree.below(layer)
    ]
    return scope.restrict(found)


def _slice(scope: Scope, item: str, where: str) -> list[Layer]:
    ends = item.split(":")
    if len(ends) != 2 or not any(end.strip() for end in ends):
        raise LayerMatchError(
            f"{where}: a slice has one ':' and at least one end: 'first:', ':last' or "
            f"'first:last'. Received: {item!r}"
        )
    start, stop = (end.strip() for end in ends)
    begin = _position(scope, start, item, where, first=True) if start else 0
    end = _position(scope, stop, item, where, first=False) if stop else len(scope.indexed)
    if begin >= end:
        raise LayerMatchError(
            f"{where}: the slice is empty: {stop!r} comes before {start!r} in execution order. "
            f"Received: {item!r}"
        )
    return scope.restrict(scope.indexed[begin:end])


def _position(scope: Scope, end: str, item: str, where: str, *, first: bool) -> int:
    """Returns where a slice begins (`first`) or stops; an index as in Python, a name inclusive."""
    number = INTEGER.fullmatch(end)
    leaves = _named(scope, end)
    if number and not leaves:
        return _index(scope, int(number[1]), item, where)
    if not leaves:
        raise _no_match(scope, end, where, item)
    ids = [id(leaf) for leaf in scope.indexed]
    positions = [ids.index(id(leaf)) for leaf in leaves]
    return min(positions) if first else max(positions) + 1


def _index(scope: Scope, index: int, item: str, where: str) -> int:
    count = len(scope.indexed)
    if abs(index) > count:
        raise LayerMatchError(
            f"{where}: {scope.tree.root.name!r} has {count} layers, so {index} is out of range. "
            f"Received: {item!r}"
        )
    return index + count if index < 0 else index


def _last_share(scope: Scope, item: str, where: str) -> list[Layer]:
    """Returns the last share of the layers with weights, from the nearest block start on."""
    share = float(item.strip().rstrip("%")) / 100
    weighted = [bool(leaf.weights) for leaf in scope.indexed]
    if not any(weighted) or not scope.tree.root.built:
        raise LayerMatchError(
            f"{where}: a share counts layers with weights, and {scope.tree.root.name!r} has none, "
            f"or isn't built. Call it on one batch first. Received: {item!r}"
        )
    wanted = max(1, math.floor(share * sum(weighted) + 0.5))
    candidates = [p for p in _starts_in(scope) if any(weighted[p:])]
    # If two starts are equally near, unfreeze less; if both unfreeze the same, take the later one.
    start = min(candidates, key=lambda p: (abs(sum(weighted[p:]) - wanted), sum(weighted[p:]), -p))
    return scope.restrict(scope.indexed[start:])


def _starts_in(scope: Scope) -> list[int]:
    """Returns the block starts of the tree, as positions among the layers of the scope."""
    ids = [id(leaf) for leaf in scope.tree.leaves]
    chosen = {id(leaf) for leaf in scope.indexed}
    starts = block_starts(scope.tree.root)
    return sorted({sum(1 for other in ids[:start] if other in chosen) for start in starts})


def _no_match(scope: Scope, item: Any, where: str, whole: Any = None) -> LayerMatchError:
    name = item.name if isinstance(item, keras.layers.Layer) else item
    root = scope.tree.root
    hint = name_hint(item, scope.names(), root) if isinstance(item, str) else layers_of(root)
    return LayerMatchError(
        f"{where}: no layer of {root.name!r} matches {name!r}.{hint} "
        f"Received: {whole if whole is not None else name!r}"
    )
