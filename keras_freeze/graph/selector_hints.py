"""Suggests a valid selector in the message for one that matches no layer."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_freeze.errors import nearest
from keras_freeze.graph.layer_tree import Layer, children

INPUT = keras.layers.InputLayer
LORA = "lora"  # the selector of layers with LoRA adapters
NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*")


def name_hint(item: str, names: list[str], root: Layer) -> str:
    """Returns the hint for a selector that matches nothing.

    Args:
        item: the selector.
        names: the names of all layers that it could match.
        root: the model or layer that holds them.
    """
    if item == LORA:
        return " No layer has adapters: call enable_lora(rank=4) on the backbone or its layers."
    number = NUMBER.fullmatch(item)
    if number:
        return number_hint(float(item) if number[1] else int(item))
    plain = item.removeprefix("re:").strip("*?!.:").rsplit("/", 1)[-1]
    if plain.lower() in ("all", LORA):
        return f" Did you mean {plain.lower()!r}?"
    near = nearest(plain, names, most=3, least=0.4)
    is_near = bool(nearest(plain, near, least=0.6))
    others = "" if is_near else layers_of(root)
    closest = f" Closest names: {', '.join(map(repr, near))}." if near else ""
    return f"{closest}{others}"


def number_hint(number: Any) -> str:
    """Returns the hint for a number without a colon or "%"; "" if `number` is no number.

    Examples:
        >>> number_hint(-2)
        " Did you mean '-2:', the last 2 layers? An index needs a colon."
        >>> number_hint(0.2)
        " Did you mean '20%', the last share of the layers?"
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return ""
    if isinstance(number, float):
        share = f" Did you mean '{100 * number:g}%', the last share of the layers?"
        return share if 0 < number < 1 else ""
    if number == 0:
        return " An index needs a colon: '0:' is every layer, as is 'all'."
    layers = "layer" if abs(number) == 1 else f"{abs(number)} layers"
    if number < 0:
        return f" Did you mean '{number}:', the last {layers}? An index needs a colon."
    return (
        f" Did you mean '-{number}:', the last {layers}? Or '{number}:', all from index {number} "
        "on? An index needs a colon."
    )


def layers_of(root: Layer) -> str:
    """Returns the hint with some names of a model's layers, if no name is similar."""
    names = [repr(layer.name) for layer in children(root) if not isinstance(layer, INPUT)]
    more = f", ... ({len(names)} layers)" if len(names) > 4 else ""
    return f" It holds {', '.join(names[:4])}{more}." if names else ""
