"""Whole states of a model and its optimizer, whether these are sharded over processes or not.

One form for both, so that a run may go on with another strategy.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gathered(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The whole `model` and `optimizer` state, on the first process. All processes must call it."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": moments}


def scatter(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its shard of what `gathered` gave. All processes must call it, each with the whole state."""
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
