"""A sample of `benchmarks/zoo`: models that people fine-tune, each with all of its checks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

ROOMS = ["shapes", "applications", "hub"]


def sample() -> list[Any]:
    from zoo.member import Zoo

    zoo = Zoo()
    for room in ROOMS[: None if _has_hub() else -1]:
        importlib.import_module(f"zoo.{room}").add_to(zoo)
    return [member for member in zoo.members if member.sample]


def _has_hub() -> bool:
    return importlib.util.find_spec("keras_hub") is not None


@pytest.mark.parametrize("member", sample(), ids=lambda member: member.name)
def test_a_model_of_the_zoo(member: Any):
    from zoo.check import check

    row = check(member)
    assert row["wrong"] == [], row
