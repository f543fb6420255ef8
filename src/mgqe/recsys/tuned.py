"""Training settings that the validation part of a known data set chose for a model with full tables."""

from __future__ import annotations

# (model, data set) -> NAME=VALUE of TrainConfig; (model, None): for all data that have no entry of their own.
TUNED: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("gmf", "amazon-apps"): ("weight_decay=2e-6",),
}


def tuned_settings(model: str, data: str) -> tuple[str, ...]:
    """The settings for `model` on `data`, else those for `model`, else none: TrainConfig's defaults stand."""
    return TUNED.get((model, data), TUNED.get((model, None), ()))
