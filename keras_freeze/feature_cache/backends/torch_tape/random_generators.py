"""Reads and sets the states of PyTorch's random generators: the CPU's, and each GPU's in use."""

from __future__ import annotations

from typing import Any

import torch


def states() -> list[Any]:
    """Returns the states of the CPU's generator and, if a GPU is in use, of each GPU's."""
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def set_states(before: list[Any]) -> None:
    """Sets the states that `states` returned."""
    torch.set_rng_state(before[0])
    for device, state in enumerate(before[1:]):
        torch.cuda.set_rng_state(state, device)
