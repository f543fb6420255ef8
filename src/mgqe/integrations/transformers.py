"""Import this module, and transformers' ``from_pretrained`` reads models that mgqe converted.

Without it transformers refuses them: the shapes of the tables differ from those that it expects.

Example:
    >>> import mgqe.integrations.transformers  # doctest: +SKIP
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("folder")  # doctest: +SKIP
"""

from mgqe.convert.pretrained_quantizer import MGQEConfig, MGQEQuantizer

__all__ = ["MGQEConfig", "MGQEQuantizer"]
