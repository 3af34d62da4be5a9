"""A sample of the models in `benchmarks/zoo`, with all checks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

ROOMS = ["shapes", "applications", "hub"]


def sample() -> Iterator[Any]:
    """Yields the sampled models, with their module in the zoo as part of the id."""
    from zoo.member import Zoo

    for room in ROOMS[: None if _has_hub() else -1]:
        zoo = Zoo()
        importlib.import_module(f"zoo.{room}").add_to(zoo)
        for member in zoo.members:
            if member.sample:
                yield pytest.param(member, id=f"{room}: {member.name}")


def _has_hub() -> bool:
    return importlib.util.find_spec("keras_hub") is not None


@pytest.mark.one_backend(
    but=[
        "shapes: Siamese network",
        "applications: MobileNetV2, flat",
        "hub: DistilBertTextClassifier",
    ]
)
@pytest.mark.parametrize("member", list(sample()))
def test_a_model_of_the_zoo(member: Any):
    from zoo.check import check

    row = check(member)
    assert row["wrong"] == [], row
