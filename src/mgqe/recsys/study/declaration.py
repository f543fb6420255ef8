"""A study's declaration: which embeddings are trained on which tasks and data, with which seeds, as a TOML file says.

    title = "What compact tables cost"
    seeds = [1, 2, 3]
    candidate_seeds = 1            # further ones are for the candidate that validation prefers; all if left out

    [settings]                     # of every run; any setting of `mgqe train`
    quantised_epochs = 10

    [pairs.gmf-ml-1m]              # a task on a data set
    title = "GMF, MovieLens-1M"
    model = "gmf"
    data = "ml-1m"
    seeds = [1, 2, 3, 4, 5]        # instead of the study's
    settings = { batch_size = 4096, split = "ratio:80/10/10" }

    [[methods]]                    # candidates by budget, in per cent of the full tables' bytes
    name = "MGQE"                  # "MGQE, 30 epochs" would be a variant of it, and no method that it competes with
    pairs = ["gmf-ml-1m"]          # all pairs if left out; a method may come more than once
    budgets = { 20 = ["mgqe:D=64,K=64/32"], 10 = ["mgqe:D=32,K=256/32", "mgqe:D=32,K=64/16"] }

    [[ablations]]                  # embeddings that differ in one thing: label (best a number) -> embedding
    name = "centroids"
    axis = "centroids of the tail"
    pairs = ["gmf-ml-1m"]
    embeddings = { 8 = "mgqe:D=32,K=64/8", 16 = "mgqe:D=32,K=64/16" }

`full` is trained on every pair, listed or not, since everything is measured against it.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgqe.checks.names import did_you_mean
from mgqe.recsys.models.methods import import_methods
from mgqe.recsys.models.registry import choose_model
from mgqe.recsys.study.execute import Run
from mgqe.recsys.study.records import run_key
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "study.toml"  # a study's folder has its declaration under this name
FULL = "full"


@dataclass(frozen=True)
class Pair:
    """A model on a data set. config: what all of its runs share."""

    name: str
    title: str
    config: TrainConfig
    seeds: tuple[int, ...]


def method_of(name: str) -> str:
    """The method that a name is of: "MGQE" of "MGQE, 30 epochs", a variant of it, and of "MGQE"."""
    return name.partition(", ")[0]


@dataclass(frozen=True)
class StudyMethod:
    """A way to make tables small, on some pairs.

    budgets: per cent of the full tables' bytes -> candidates, of which validation chooses one.
    seeds: how many of the pair's, None: all.
    """

    name: str
    budgets: dict[float, tuple[str, ...]]
    pairs: tuple[str, ...]
    seeds: int | None = None

    @property
    def listed(self) -> list[str]:
        return [embedding for candidates in self.budgets.values() for embedding in candidates]


@dataclass(frozen=True)
class Ablation:
    """Embeddings that differ in one thing.

    embeddings: label -> description. axis: what the labels say. seeds: how many of the pair's, None: all.
    """

    name: str
    axis: str
    embeddings: dict[str, str]
    pairs: tuple[str, ...]
    seeds: int | None = None

    @property
    def listed(self) -> list[str]:
        return list(self.embeddings.values())


@dataclass(frozen=True)
class StudyDeclaration:
    """A study: pairs, methods and ablations.

    candidate_seeds: how many of a pair's seeds all candidates are trained with, None: all.
    """

    title: str
    pairs: dict[str, Pair]
    methods: tuple[StudyMethod, ...]
    ablations: tuple[Ablation, ...] = ()
    candidate_seeds: int | None = None

    def candidates(self, pair: str, method: str) -> dict[float, tuple[str, ...]]:
        """Budget -> candidates of `method` on `pair`, as its blocks declare them together."""
        candidates: dict[float, tuple[str, ...]] = {}
        for block in self.methods:
            if block.name == method and pair in block.pairs:
                for budget, listed in block.budgets.items():
                    candidates[budget] = tuple(dict.fromkeys((*candidates.get(budget, ()), *listed)))
        return candidates

    @property
    def method_names(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(block.name for block in self.methods))

    def runs(self, pairs: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[tuple[Pair, Run]]:
        """All runs, or those of some pairs or seeds: seed by seed, so that an early end leaves whole seeds.

        Of each seed the full tables come first, whose warm-ups the others use, then pair after pair.
        """
        rank = {seed: at for pair in self.pairs.values() for at, seed in reversed(list(enumerate(pair.seeds)))}
        runs: list[tuple[Pair, Run]] = []
        for seed in sorted(rank, key=lambda seed: (rank[seed], seed)):
            of_seed = [
                (pair, run)
                for pair in self.pairs.values()
                if (not pairs or pair.name in pairs) and (not seeds or seed in seeds) and seed in pair.seeds
                for run in self._runs_of(pair, seed)
            ]
            runs += sorted(of_seed, key=lambda entry: entry[1].config.name != FULL)
        return runs

    def _runs_of(self, pair: Pair, seed: int) -> list[Run]:
        """What is trained on a pair with one of its seeds, each embedding once, however it is written."""
        configs: dict[str, TrainConfig] = {}
        for embedding in self.embeddings(pair, pair.seeds.index(seed)):
            config = replace(pair.config.with_embedding(embedding), seed=seed)
            configs.setdefault(run_key(pair.name, config), config)
        return [Run(config, self.folder(pair, config)) for config in configs.values()]

    def of_methods(self, names: Sequence[str]) -> StudyDeclaration:
        """The study of these methods and the full tables alone; ValueError for a method that is not declared."""
        for name in names:
            if name not in self.method_names:
                listed = ", ".join(map(repr, self.method_names))
                raise ValueError(f"no method {name!r}{did_you_mean(name, self.method_names)}: expected {listed}")
        return replace(self, methods=tuple(each for each in self.methods if each.name in names), ablations=())

    def folder(self, pair: Pair, config: TrainConfig) -> str:
        """A run's folder; another one after its settings were changed, so that the old run's files do not stop it."""
        digest = hashlib.sha256(run_key(pair.name, config).encode()).hexdigest()[:6]
        return f"runs/{pair.name}/{folder_name(config)}-{digest}"

    def embeddings(self, pair: Pair, number: int) -> Iterator[str]:
        """What is trained on `pair` with its seed number `number`, from 0."""
        yield FULL
        blocks: tuple[StudyMethod | Ablation, ...] = (*self.methods, *self.ablations)
        for block in blocks:
            if pair.name in block.pairs and (block.seeds is None or number < block.seeds):
                yield from block.listed


def folder_name(config: TrainConfig) -> str:
    """Such as `mgqe_D=32_K=64_16-seed1`."""
    return f"{re.sub(r'[^A-Za-z0-9.=@-]+', '_', config.name)}-seed{config.seed}"


def read_declaration(path: Path, data_dir: str | None = None, device: str = "cpu") -> StudyDeclaration:
    """The study that a file declares; ValueError says what is wrong in it and where.

    data_dir, device: of its runs, as TrainConfig has them.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    try:
        declaration = _declaration(_Entries(content, "the file"), data_dir)
        pairs = {
            name: replace(pair, config=replace(pair.config, device=device)) if device != "cpu" else pair
            for name, pair in declaration.pairs.items()
        }
        return replace(declaration, pairs=pairs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Entries:
    """A TOML table whose entries are taken one by one; one that is left over is a mistake in the file."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{where}: expected a table, got {content!r}")
        self.content, self.where, self.names = dict(content), where, set[str]()

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        self.names.add(name)
        if name not in self.content:
            if default is None:
                raise ValueError(f"{self.where}: {name} is missing")
            return default
        value = self.content.pop(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.where}: {name} must be a {kind.__name__}, got {value!r}")
        return value

    def blocks(self, name: str) -> list[_Entries]:
        """The tables of an array of tables."""
        return [_Entries(content, f"{name}[{at}]") for at, content in enumerate(self.take(name, list, []))]

    def finish(self) -> None:
        for name in self.content:
            hint = did_you_mean(name, self.names)
            raise ValueError(f"{self.where}: no entry {name!r}{hint}: expected {', '.join(sorted(self.names))}")


def _declaration(entries: _Entries, data_dir: str | None) -> StudyDeclaration:
    title = entries.take("title", str, "A study")
    seeds = _seeds(entries.take("seeds", list, [1, 2, 3]), entries.where)
    candidate_seeds = entries.take("candidate_seeds", int, 0)
    settings = entries.take("settings", dict, {})
    pairs = {}
    for name, content in entries.take("pairs", dict).items():
        pairs[name] = _pair(name, _Entries(content, f"pairs.{name}"), settings, seeds, data_dir)
    if not pairs:
        raise ValueError("pairs: expected at least one, [pairs.NAME] with model and data")
    methods = [_method(block, pairs) for block in entries.blocks("methods")]
    ablations = [_ablation(block, pairs) for block in entries.blocks("ablations")]
    entries.finish()
    declaration = StudyDeclaration(title, pairs, tuple(methods), tuple(ablations), candidate_seeds or None)
    for pair in pairs.values():
        import_methods(declaration.embeddings(pair, 0))
        for embedding in dict.fromkeys(declaration.embeddings(pair, 0)):
            pair.config.with_embedding(embedding)  # reads the description
    return declaration


def _pair(name: str, entries: _Entries, common: dict[str, Any], seeds: tuple[int, ...], data_dir: str | None) -> Pair:
    task, model = choose_model(None, entries.take("model", str))
    data = entries.take("data", str)
    config = TrainConfig(task=task, model=model, data=data, data_dir=data_dir)
    settings = {**common, **entries.take("settings", dict, {})}
    written = [f"{key}={value}" for key, value in settings.items()]
    try:
        config = config.with_settings([*tuned_settings(model, data, written), *written])
    except ValueError as error:
        raise ValueError(f"{entries.where}: {error}") from error
    pair = Pair(
        name, entries.take("title", str, name), config, _seeds(entries.take("seeds", list, list(seeds)), entries.where)
    )
    entries.finish()
    return pair


def _method(entries: _Entries, pairs: dict[str, Pair]) -> StudyMethod:
    budgets = {}
    for text, listed in entries.take("budgets", dict).items():
        try:
            budget = float(text)
        except ValueError:
            budget = math.nan
        if not 0 < budget <= 100:
            raise ValueError(f"{entries.where}: a budget is a per cent such as 10, got {text!r}")
        if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed) or not listed:
            raise ValueError(f"{entries.where}: budget {text} must have a list of embeddings, got {listed!r}")
        budgets[budget] = tuple(listed)
    method = StudyMethod(entries.take("name", str), budgets, *_pairs_and_seeds(entries, pairs))
    entries.finish()
    return method


def _ablation(entries: _Entries, pairs: dict[str, Pair]) -> Ablation:
    name = entries.take("name", str)
    embeddings = entries.take("embeddings", dict)
    if not embeddings or not all(isinstance(entry, str) for entry in embeddings.values()):
        raise ValueError(f"{entries.where}: embeddings must be LABEL = EMBEDDING, got {embeddings!r}")
    ablation = Ablation(name, entries.take("axis", str, name), embeddings, *_pairs_and_seeds(entries, pairs))
    entries.finish()
    return ablation


def _pairs_and_seeds(entries: _Entries, pairs: dict[str, Pair]) -> tuple[tuple[str, ...], int | None]:
    """(pairs, number of seeds) of a block."""
    chosen = entries.take("pairs", list, list(pairs))
    for name in chosen:
        if name not in pairs:
            hint = did_you_mean(str(name), pairs)
            raise ValueError(f"{entries.where}: no pair {name!r}{hint}: expected {', '.join(pairs)}")
    number = entries.take("seeds", int, 0)
    return tuple(chosen), number or None


def _seeds(values: list[Any], where: str) -> tuple[int, ...]:
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{where}: seeds must be a list of whole numbers, got {values!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"{where}: expected each seed once, got {values!r}")
    return tuple(values)
