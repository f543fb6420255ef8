"""What compress_, freeze_ and load_model do for models of transformers, which is imported only where it is already."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

from torch import nn

from mgqe.convert.pretrained_model import mix_into


def adopt(model: nn.Module) -> None:
    """Let the transformers models in a converted model save their tables, and transformers read them."""
    modeling = sys.modules.get("transformers.modeling_utils")  # where it is not imported there is no such model
    if modeling is not None and mix_into(model, modeling.PreTrainedModel):
        with suppress(ImportError):  # releases that take no further methods refuse what is saved
            import_module("mgqe.convert.pretrained_quantizer")
