"""What layers tell an optimiser about their parameters: the link between the two, which share nothing else.

An optimiser is made of bare parameters (by Lightning, by ``extend_optimizer``, by the user), and knows no layer that it
could ask. So hints are looked up by parameter, in one weak registry: a hint goes with its parameter, and neither
copies nor checkpoints of the parameter have it until the copy's layer trains.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class OptimizerHints:
    """About one parameter."""

    follows_rows: bool = False  # a codebook that learns from rows alone
    renewals: int = 0  # how often its rows from ``first_renewed`` on were given to other ids
    first_renewed: int = 0


_NONE = OptimizerHints()
_HINTS = WeakTensorKeyDictionary()


def hints_of(parameter: Tensor) -> OptimizerHints:
    """What was last said of a parameter."""
    return _HINTS.get(parameter, _NONE)  # type: ignore[no-any-return, no-untyped-call]


def leave_hints(parameter: Tensor, hints: OptimizerHints) -> None:
    """Say something of a parameter, in place of what was said before."""
    if hints != hints_of(parameter):
        _HINTS[parameter] = hints
