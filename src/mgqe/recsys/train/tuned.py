"""Training settings that the validation part of a known data set chose for a model with full tables."""

from __future__ import annotations

from collections.abc import Sequence

# Test items are ranked among 100 sampled negatives, as in SASRec's paper.
_SASREC = ("eval_negatives=100", "weight_decay=0", "batch_size=1024", "dropout=0.2")
# Ahead on amazon-games and level on ml-100k (docs/reference_points.md), so that data of one's own have it, too.
_SASREC_SPARSE = (*_SASREC, "loss=softmax", "negatives=256", "dropout=0.5", "init_std=0.05")
# Two negatives per positive, as in the paper's third task; epochs and patience so that a run ends in minutes.
_CTR = ("negatives=2", "learning_rate=4e-3", "dropout=0.3", "anneal_epochs=4", "patience=2")
_CTR_FRAPPE = (*_CTR, "weight_decay=2e-5", "max_epochs=20")
# No annealing: users have few apps, and as the rate falls their rows fit these closer and do worse on others.
_CTR_APPS = (*_CTR, "weight_decay=1e-5", "init_std=0.02", "batch_size=4096", "max_epochs=9", "anneal_epochs=0")
# BARS's settings for DCN-V2 on Criteo_x4, which has BatchNorm and lowers the rate by plateaus; they are not tuned here.
_CLICKS = (
    "dim=16", "hidden=1000/1000/1000/1000/1000", "dropout=0.1", "learning_rate=1e-3", "weight_decay=1e-5",
    "batch_size=10000", "max_epochs=10", "patience=1", "anneal_epochs=1", "quantised_epochs=1",
)  # fmt: skip
# Of two weight decays, the one of the better AUC on validation with DCN-V2; more epochs fit the rows too closely.
_CRITEO_LIKE = (
    "dim=16", "learning_rate=1e-3", "weight_decay=2e-4", "init_std=0.02", "batch_size=1024", "max_epochs=6",
    "patience=1", "anneal_epochs=1", "quantised_epochs=2",
)  # fmt: skip

# Ahead of single negatives on both published splits and level on ml-100k (docs/reference_points.md). Without a penalty
# and dropout, and from a large start, rows fit few interactions per user too closely.
_MF = ("loss=softmax", "negatives=512", "learning_rate=1e-2", "weight_decay=1e-5", "dropout=0.3", "init_std=0.02",
       "anneal_epochs=5", "anneal_learning_rate=5e-3")  # fmt: skip
# Every step propagates all rows, whatever its batch: few epochs, of large steps. Without a penalty the loss falls to
# nothing while validation stays (docs/reference_points.md).
_LIGHTGCN = ("loss=softmax", "negatives=512", "learning_rate=1e-2", "weight_decay=3e-6", "dropout=0.3",
             "max_epochs=30", "anneal_epochs=5", "anneal_learning_rate=5e-3")  # fmt: skip

# (model, data set) -> NAME=VALUE of TrainConfig; (model, None): for all data that have no entry of their own.
TUNED: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("lightgcn", None): _LIGHTGCN,
    ("mf", None): _MF,
    ("gmf", "amazon-apps"): ("weight_decay=2e-6",),
    ("wide_deep", None): (*_CTR, "weight_decay=1e-5", "batch_size=4096", "max_epochs=20"),
    ("wide_deep", "frappe"): (*_CTR_FRAPPE, "batch_size=512"),
    ("wide_deep", "amazon-apps"): _CTR_APPS,
    ("deepfm", None): (*_CTR, "weight_decay=1e-5", "batch_size=4096", "max_epochs=20"),
    ("deepfm", "frappe"): (*_CTR_FRAPPE, "batch_size=1024"),
    ("deepfm", "amazon-apps"): _CTR_APPS,
    # Not tuned: DeepFM's.
    ("dcn_v2", None): (*_CTR, "weight_decay=1e-5", "batch_size=4096", "max_epochs=20"),
    ("dcn_v2", "frappe"): (*_CTR_FRAPPE, "batch_size=1024"),
    ("dcn_v2", "amazon-apps"): _CTR_APPS,
    **{
        (model, data): _CRITEO_LIKE if data == "criteo-like" else _CLICKS
        for model in ("wide_deep", "deepfm", "dcn_v2")
        for data in ("criteo", "avazu", "criteo-like")
    },
    ("sasrec", None): _SASREC_SPARSE,
    ("sasrec", "ml-1m"): (*_SASREC, "max_length=100", "windows=random", "max_epochs=24"),
}


def tuned_settings(model: str, data: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The settings for `model` on `data`, else those for `model`, else none: TrainConfig's defaults stand.

    given: NAME=VALUE that come after these. A number of negatives is for its loss, and left out where another is given.
    """
    tuned = TUNED.get((model, data), TUNED.get((model, None), ()))
    losses = [[each for each in settings if each.startswith("loss=")][-1:] for settings in (tuned, given)]
    if losses[1] in ([], losses[0]):
        return tuned
    return tuple(each for each in tuned if not each.startswith("negatives="))
