"""What a finished run should make its reader doubt, in words."""

from __future__ import annotations

from typing import Any

from mgqe.recsys.tasks.base import RunSettings
from mgqe.recsys.tasks.ranking import PAIR_LOSSES

EARLY = 2  # epochs
PRODUCTS = ("mf", "gmf", "lightgcn", "sasrec")  # models whose score is a product of two vectors: loss=softmax is theirs


def advice(metrics: dict[str, Any]) -> list[str]:
    """Warnings about a run's figures, from what `metrics.json` or a study's record holds; none where all is well.

    A small table that is as good as a full one says nothing where the full one is no better than a list of the most
    frequent items, or where its training went wrong after an epoch or two, or ended too soon.
    """
    quality, notes = metrics["quality"], []
    settings = metrics.get("config") or metrics.get("settings") or {}
    pairwise = settings.get("model") in PRODUCTS and settings.get("loss", "bce") in PAIR_LOSSES
    softmax = "--set loss=softmax --set negatives=256, " * pairwise
    for prefix, part in (("valid_", "validation"), ("", "test")):
        figure = f"{prefix}full_{RunSettings.select_by}"
        popular = quality.get(f"popularity_{figure}")  # not in runs of earlier versions, nor where nothing is ranked
        if popular is not None and quality[figure] <= popular:
            notes.append(
                f"the model ranks no better than the most frequent items do ({quality[figure]:.4f} and {popular:.4f} "
                f"of NDCG@10 in the whole catalogue, on {part}): it has learnt too little; try {softmax}another "
                "learning_rate or weight_decay, or more epochs"
            )
            break
    if metrics["best_epoch"].get("full", EARLY + 1) <= EARLY < metrics["epochs"]["full"] - EARLY:
        notes.append(
            f"validation was best after epoch {metrics['best_epoch']['full']} of {metrics['epochs']['full']}, and fell "
            "from then on: the rows fit the training part too closely; try a smaller learning_rate, a larger "
            "weight_decay or --set dropout=0.5"
        )
    last = metrics["epochs"]["full"]
    if EARLY < last == metrics["best_epoch"].get("full"):
        notes.append(
            f"validation was best after the last epoch, {last}: full tables that train longer may be better, and what "
            f"codes gain by training further is then no gain of the codes; try --set max_epochs={2 * last}"
        )
    return notes
