"""Known data sets by name, and the data set that comes with the package."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.interactions import Interactions, load_interactions
from mgqe.recsys.data.settings import DataSettings
from mgqe.recsys.data.splits import SplitRule

DATA_DIR_VARIABLE = "MGQE_DATA_DIR"


def find_file(name: str, file: str, data_dir: Path | str | None, obtain: str, home: str) -> Path:
    """The data set's `file` below `data_dir` or the folder that MGQE_DATA_DIR names; ValueError if it is missing."""
    data_dir = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    where = f"{data_dir or 'DIR'}/{file}"
    if data_dir is None:
        raise ValueError(
            f"{name} needs a data directory: pass --data-dir DIR or set {DATA_DIR_VARIABLE}, with the file at {where} "
            f"({obtain}; {home})"
        )
    path = Path(data_dir) / file
    if not path.is_file():
        raise ValueError(f"{name}: expected the file {where}; to obtain it: {obtain} ({home})")
    return path


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
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise ValueError(
                f"{path} is another edition of {self.name}: expected sha256 {self.sha256[:12]}..., got "
                f"{digest[:12]}...; to use it anyway, pass the file itself: --data {path}"
            )
        return path

    def load(self, data_dir: Path | str | None = None) -> Interactions:
        """Read its interactions; ValueError if the file is missing or another edition."""
        return load_interactions(self.checked_path(data_dir), self.format)


_SASREC = "https://github.com/kang205/SASRec/tree/master/data"
DATASETS = {
    known.name: known
    for known in (
        KnownDataset(
            name="ml-1m",
            title="MovieLens-1M, SASRec's edition: 6,040 users, 3,416 films, 999,611 ratings",
            file="ml-1m/ml-1m_sasrec.txt",
            format="pairs",
            sha256="b725f3acb3986fe3130bffd1e77a74d182a1f51799567a236dbd60270f95b0a2",
            home="https://grouplens.org/datasets/movielens/1m/",
            obtain=f"download ml-1m.txt from {_SASREC} and save it under that name",
        ),
        KnownDataset(
            name="ml-100k",
            title="MovieLens-100K, RecBole's edition: 943 users, 1,682 films, 100,000 ratings",
            file="ml-100k/ml-100k.inter",
            format="inter",
            sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            home="https://grouplens.org/datasets/movielens/100k/",
            obtain="download ml-100k.zip from https://recbole.io/dataset_list.html and unpack it there",
        ),
        KnownDataset(
            name="amazon-apps",
            title="Amazon Apps for Android, 5-core: 87,271 users, 13,209 apps, 752,937 reviews",
            file="amazon-apps/Apps_for_Android.txt",
            format="lines",
            sha256="ef5f185fd2427feacb2c4850fc8af3dfb3344031e8d7e24d5e0778799d57fc26",
            home="https://jmcauley.ucsd.edu/data/amazon/",
            obtain="download the 5-core reviews of Apps for Android and write one line per user, `user item item ...`, "
            "in time order, users and items numbered from 1 in the order of their first review",
        ),
        KnownDataset(
            name="amazon-games",
            title="Amazon Video Games, SASRec's edition: 31,013 users, 23,715 games, 287,107 reviews",
            file="amazon-games/Video.txt",
            format="pairs",
            sha256="b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651",
            home="https://jmcauley.ucsd.edu/data/amazon/",
            obtain=f"download Video.txt from {_SASREC}",
        ),
        KnownDataset(
            name="frappe",
            title="Frappe, use of mobile apps in context: 94,716 rows of use with 7 fields of context",
            file="frappe/frappe.csv",
            format="csv",
            sha256="3a1560b7d18dad07475b262c90b1369ece2e71038a3a5b82aa2fbac47a9c2a1d",
            home="https://www.baltrunas.info/context-aware",
            obtain="download the Frappe data set and write the table of use as a comma-separated file with the columns "
            "user,item,cnt,daytime,weekday,isweekend,homework,weather,country,city",
            # Without cnt, how often the app was used, which a negative cannot have.
            context=("daytime", "weekday", "isweekend", "homework", "weather", "country", "city"),
            ordered=False,
        ),
    )
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


_NCF = "from https://github.com/hexiangnan/neural_collaborative_filtering/tree/master/Data"
PUBLISHED = {
    "ml-1m-ncf": PublishedSet(
        title="MovieLens-1M as in NCF: 6,040 users, 3,706 films, 1,000,209 ratings, its test items and negatives",
        home="https://grouplens.org/datasets/movielens/1m/",
        files=(
            PublishedFile(
                "ml-1m/ratings_user_movie_pairs.parquet",
                "3b07b6e6aa14e7a2d65a0cabde5b9ce07a746bc8465e823ee9343db49334b5a4",
                "write the users and films of ratings.dat, in its order, as a Parquet file with the columns userID "
                "and movieID",
                # The digest is not of the file, since programs write different bytes for the same Parquet table.
                "rows of users and of items, int64, in order",
            ),
            PublishedFile(
                "ml-1m/ncf_ml-1m.test.rating",
                "231ae11eb060b643a8c58c063cd17ffc743b54f569afb073d1abb6cf126b88b5",
                f"download ml-1m.test.rating {_NCF} and save it under that name",
            ),
            PublishedFile(
                "ml-1m/ncf_ml-1m.test.negative",
                "127853228a76b7d21c0481e8ef8d00dd009cd5c88670dbdd9e9debfdb9f93de4",
                f"download ml-1m.test.negative {_NCF} and save it under that name",
            ),
        ),
    )
}


def check_layout(data: str, format: str | None, columns: Columns | None) -> None:
    """ValueError if options that describe a user's own file are combined with a known data set."""
    if data not in ("planted", *DATASETS, *PUBLISHED):
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
    data: str, data_dir: Path | str | None = None, format: str | None = None, columns: Columns | None = None
) -> Interactions:
    """A known data set by name, `planted`, or a file by path. ValueError lists the known names."""
    check_layout(data, format, columns)
    if data == "planted":
        return planted()
    if data in DATASETS and not DATASETS[data].ordered:
        raise ValueError(f"{data} has no order of time: it is for --task ctr alone")
    if data in DATASETS:
        return DATASETS[data].load(data_dir)
    if data in PUBLISHED:
        raise ValueError(f"{data} has a published split and no order of time: it is for --task ranking alone")
    if not Path(data).exists() and not set(data) & {"/", os.sep, ".", "*", "?", "["}:
        known = ", ".join(["planted", *DATASETS, *PUBLISHED])
        raise ValueError(f"no data set {data!r}: expected {known}, or the path of a file of interactions")
    return load_interactions(data, format, columns)


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
    if test is not None and data in ("planted", *DATASETS, *PUBLISHED):
        raise ValueError(f"--test {test} goes with a file of your own to train on: --train FILE, not with {data}")
    if rule is not None and data in PUBLISHED:
        raise ValueError(f"{data} has a published split: leave --split {rule} out")
