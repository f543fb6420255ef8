"""Known data sets by name, and the data set that comes with the package."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import polars as pl
import torch

from mgqe.checks.names import did_you_mean
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.interactions import Interactions, load_interactions
from mgqe.recsys.data.settings import DataSettings
from mgqe.recsys.data.splits import SplitRule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA_DIR_VARIABLE, CACHE_DIR_VARIABLE = "MGQE_DATA_DIR", "MGQE_CACHE_DIR"


def require_data_dir(name: str, data_dir: Path | str | None, wanted: str, obtain: str, home: str) -> Path:
    """`data_dir`, or the folder that MGQE_DATA_DIR names; ValueError without either. wanted: what must be in DIR."""
    data_dir = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if data_dir is None:
        raise ValueError(
            f"{name} needs a data directory: pass --data-dir DIR or set {DATA_DIR_VARIABLE}, with {wanted} "
            f"({obtain}; {home})"
        )
    return Path(data_dir)


def find_file(name: str, file: str, data_dir: Path | str | None, obtain: str, home: str) -> Path:
    """The data set's `file` below `data_dir` or the folder that MGQE_DATA_DIR names; ValueError if it is missing."""
    path = require_data_dir(name, data_dir, f"the file at DIR/{file}", obtain, home) / file
    if not path.is_file():
        raise ValueError(f"{name}: expected the file {path}; to obtain it: {obtain} ({home})")
    return path


def _require_edition(path: Path, name: str, sha256: str, anyway: str) -> None:
    """ValueError unless the file has that digest; `anyway` says how to use another one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path} is another edition of {name}: expected sha256 {sha256[:12]}..., got {digest[:12]}...; to use "
            f"{anyway}"
        )


@dataclass(frozen=True)
class KnownDataset:
    """A public data set: the name and the digest of its file, and where to obtain it.

    context: its columns of categories. ordered: whether its rows are in time order, which leave-one-out needs.
    The package contains none of these files, because their terms do not allow it.
    """

    name: str
    title: str
    file: str  # below the data directory, as FOLDER/FILE
    format: str
    sha256: str
    home: str
    obtain: str  # what to download, and what to make of it
    context: tuple[str, ...] = ()
    ordered: bool = True

    def checked_path(self, data_dir: Path | str | None) -> Path:
        """The file below `data_dir` or the folder that MGQE_DATA_DIR names; ValueError if it is missing or differs."""
        path = find_file(self.name, self.file, data_dir, f"{self.obtain}; sha256 {self.sha256}", self.home)
        _require_edition(path, self.name, self.sha256, f"it anyway, pass the file itself: --data {path}")
        return path

    def load(self, data_dir: Path | str | None = None, keep_repeats: bool = False) -> Interactions:
        """Read its interactions; ValueError if the file is missing or another edition."""
        return load_interactions(self.checked_path(data_dir), self.format, None, keep_repeats)


_DECLARED = tomllib.loads(resources.files(__package__).joinpath("datasets.toml").read_text(encoding="utf-8"))
DATASETS = {
    name: KnownDataset(name, **{**entries, "context": tuple(entries.get("context", ()))})
    for name, entries in _DECLARED["known"].items()
}


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published split. sha256: the digest of what `digest_of` names."""

    file: str
    sha256: str
    obtain: str
    digest_of: str = "the file"


@dataclass(frozen=True)
class PublishedSet:
    """A data set with a published split, which mgqe.recsys.data.ncf reads."""

    title: str
    home: str
    files: tuple[PublishedFile, ...]


PUBLISHED = {
    name: PublishedSet(entries["title"], entries["home"], tuple(PublishedFile(**file) for file in entries["files"]))
    for name, entries in _DECLARED["published"].items()
}


@dataclass(frozen=True)
class DividedSet:
    """A data set that was published in three files, for training, validation and the test, without an order of time.

    files: of the three parts, in this order. format, columns: of all of them.
    """

    name: str
    title: str
    home: str
    format: str
    files: tuple[PublishedFile, ...]
    columns: Columns

    def load(self, data_dir: Path | str | None = None) -> list[Interactions]:
        """Read the three parts; ValueError if a file is missing or another edition."""
        parts = []
        for file in self.files:
            path = find_file(self.name, file.file, data_dir, f"{file.obtain}; sha256 {file.sha256}", self.home)
            anyway = "such files anyway, pass them themselves: --train FILE --valid FILE --test FILE"
            _require_edition(path, self.name, file.sha256, anyway)
            parts.append(load_interactions(path, self.format, self.columns))
        return parts


DIVIDED = {
    name: DividedSet(
        name,
        entries["title"],
        entries["home"],
        entries["format"],
        tuple(PublishedFile(obtain=entries["obtain"], **file) for file in entries["files"]),
        Columns(**entries.get("columns", {})),
    )
    for name, entries in _DECLARED["divided"].items()
}
SPLIT_IN_ADVANCE = (*PUBLISHED, *DIVIDED)


@dataclass(frozen=True)
class ClickLogInfo:
    """A log of clicks, which mgqe.recsys.data.clicks reads. min_count: as in its Encoding, unless it is set.

    files, home, obtain: what they are, and where they come from; empty for the log that is made up.
    """

    title: str
    min_count: int
    files: str = ""
    home: str = ""
    obtain: str = ""


CLICK_LOGS = {name: ClickLogInfo(**entries) for name, entries in _DECLARED["clicks"].items()}
KNOWN = ("planted", *DATASETS, *SPLIT_IN_ADVANCE, *CLICK_LOGS)


def encoded_home(name: str, data_dir: Path | str | None, made_up: bool = False) -> Path:
    """The folder for what is encoded, or made up, of the log `name`.

    It is below the folder that MGQE_CACHE_DIR names, else below the data directory; for a log that is made up, without
    either, below the user's cache. ValueError if it cannot be written.
    """
    chosen = os.environ.get(CACHE_DIR_VARIABLE) or data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if chosen is None and made_up:
        chosen = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mgqe"
    home = Path(chosen or ".") / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{home}: cannot be made ({error.strerror}): set {CACHE_DIR_VARIABLE} to a folder for the encoded log"
        ) from None
    if not os.access(home, os.W_OK):
        raise ValueError(f"{home}: cannot be written: set {CACHE_DIR_VARIABLE} to a folder for the encoded log")
    return home


def check_layout(data: str, format: str | None, columns: Columns | None) -> None:
    """ValueError if options that describe a user's own file are combined with a known data set."""
    if data not in KNOWN:
        return
    columns = columns or Columns()
    options: dict[str, str | bool | None] = {f"{role}-column": name for role, name in columns.named}
    options |= {"format": format, "separator": columns.separator, "header": columns.header}
    option = next((name for name, value in options.items() if value is not None), None)
    if option is not None:
        raise ValueError(
            f"--{option} is for a file of your own, not for the data set {data}: leave it out, or pass the path of a "
            "file"
        )


def load_data(
    data: str,
    data_dir: Path | str | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    keep_repeats: bool | None = False,
) -> Interactions:
    """A known data set by name, `planted`, or a file by path; keep_repeats: as in load_interactions.

    ValueError lists the known names.
    """
    check_layout(data, format, columns)
    if data == "planted":
        return replace(planted(), keeps_repeats=bool(keep_repeats))
    if data in DATASETS and not DATASETS[data].ordered:
        raise ValueError(f"{data} has no order of time: it is for --task ctr alone")
    if data in DATASETS:
        return DATASETS[data].load(data_dir, bool(keep_repeats))
    if data in SPLIT_IN_ADVANCE:
        raise ValueError(f"{data} has a published split and no order of time: it is for --task ranking alone")
    if data in CLICK_LOGS:
        raise ValueError(f"{data} is a log of clicks: it is for --task ctr alone, as with --model dcn_v2")
    if not Path(data).exists() and not set(data) & {"/", os.sep, ".", "*", "?", "["}:
        known = ", ".join(KNOWN)
        hint = did_you_mean(data, KNOWN)
        raise ValueError(f"no data set {data!r}{hint}: expected {known}, or the path of a file of interactions")
    return load_interactions(data, format, columns, keep_repeats)


def planted(
    num_users: int = 4000, num_items: int = 3000, rank: int = 24, per_user: int = 50, seed: int = 0
) -> Interactions:
    """An artificial data set: item popularity follows a power law, and users' taste has `rank` planted dimensions.

    A user takes items without repeats, with probability proportional to popularity * exp(<taste, item>), drawn by
    Gumbel top-k, in random order. The number of items per user has a long tail, a mean of about `per_user`, and is at
    least 5.
    """
    generator = torch.Generator().manual_seed(seed)
    popularity = -0.9 * torch.log(torch.arange(num_items) + 10.0)
    popularity = popularity[torch.randperm(num_items, generator=generator)]
    taste = torch.randn(num_users, rank, generator=generator)
    kind = torch.randn(num_items, rank, generator=generator) * (3.0 / rank**0.5)
    uniform = torch.rand(num_users, generator=generator).clamp(min=1e-4)
    sizes = (per_user * 0.4 * uniform**-0.6).long().clamp(min=5, max=num_items // 4)
    users, items = [], []
    for chunk in torch.split(torch.arange(num_users), 512):
        noise = torch.rand(len(chunk), num_items, generator=generator).clamp(min=1e-12)
        scores = popularity + taste[chunk] @ kind.T - torch.log(-torch.log(noise))
        order = scores.argsort(dim=1, descending=True)
        for row, user in enumerate(chunk.tolist()):
            chosen = order[row, : sizes[user]]
            items.append(chosen[torch.randperm(len(chosen), generator=generator)])
            users.append(torch.full_like(chosen, user))
    frame = pl.DataFrame({"user": torch.cat(users).numpy(), "item": torch.cat(items).numpy()})
    return Interactions.from_frame(frame)


def check_split(settings: DataSettings) -> None:
    """ValueError unless the settings go together: a rule, or a file for the test and perhaps one for validation."""
    data, rule, valid, test = settings.data, settings.split, settings.valid, settings.test
    if rule is not None:
        SplitRule.parse(rule)
    if valid is not None and test is None:
        raise ValueError(f"--valid {valid} needs a file for the test as well: --test FILE")
    if test is not None and rule is not None:
        raise ValueError(f"--split {rule} divides one file: leave it out, or leave out --test {test}")
    if test is not None and data in KNOWN:
        raise ValueError(f"--test {test} goes with a file of your own to train on: --train FILE, not with {data}")
    for option, number in (("--k-core", settings.k_core), ("--min-count", settings.min_count or 1)):
        if number > 1 and (test is not None or data in SPLIT_IN_ADVANCE):
            raise ValueError(f"{option} {number} is for data that are divided here, not in parts already: leave it out")
    if rule is not None and data in SPLIT_IN_ADVANCE:
        raise ValueError(f"{data} has a published split: leave --split {rule} out")


def check_clicks(settings: DataSettings) -> None:
    """ValueError for settings of logs of clicks with other data, and the other way round."""
    if settings.data not in CLICK_LOGS:
        for name in ("hash_size", "log_rows"):
            if getattr(settings, name) != getattr(DataSettings, name):
                logs = ", ".join(CLICK_LOGS)
                raise ValueError(
                    f"{name}={getattr(settings, name)} is for logs of clicks ({logs}), not for {settings.data}"
                )
        return
    if settings.log_rows != DataSettings.log_rows and settings.data != "criteo-like":
        raise ValueError(f"log_rows={settings.log_rows} is for criteo-like, which is made up, not for {settings.data}")
    if settings.negatives != DataSettings.negatives:
        raise ValueError(
            f"negatives={settings.negatives} is for data without labels: {settings.data} has rows without a click"
        )
    if settings.context_columns.strip():
        raise ValueError(f"context_columns are for a file of your own: all fields of {settings.data} are used")
    check_layout(settings.data, settings.format, None)
