"""A study's declaration: a TOML file -> which embeddings are trained on which tasks and data, with which seeds.

    title = "What compact tables cost"
    seeds = [1, 2, 3]

    [settings]                     # of every run; any setting of `mgqe train`
    quantised_epochs = 10

    [pairs.gmf-ml-1m]              # a task on a data set
    title = "GMF, MovieLens-1M"
    model = "gmf"
    data = "ml-1m"
    seeds = [1, 2, 3, 4, 5]        # instead of the study's
    settings = { batch_size = 4096, split = "ratio:80/10/10" }

    [[methods]]                    # candidates by budget, in per cent of the full tables' bytes
    name = "MGQE"
    pairs = ["gmf-ml-1m"]          # all pairs if left out; a method may come more than once
    budgets = { 20 = ["mgqe:D=64,K=64/32"], 10 = ["mgqe:D=32,K=256/32", "mgqe:D=32,K=64/16"] }

    [[ablations]]                  # one thing at a time: a label (a number where there is one) -> an embedding
    name = "centroids"
    axis = "centroids of the tail"
    pairs = ["gmf-ml-1m"]
    embeddings = { 8 = "mgqe:D=32,K=64/8", 16 = "mgqe:D=32,K=64/16" }

`full` is trained on every pair, named or not, since everything is measured against it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgqe.checks.names import did_you_mean
from mgqe.recsys.models.registry import choose_model
from mgqe.recsys.study.compare import Run, folder_name
from mgqe.recsys.study.records import run_key
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.tuned import tuned_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FULL = "full"


@dataclass(frozen=True)
class Pair:
    """A model on a data set. config: what its runs have in common."""

    name: str
    title: str
    config: TrainConfig
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class StudyMethod:
    """budgets: per cent of the full tables' bytes -> candidates, of which validation chooses. pairs: where."""

    name: str
    budgets: dict[float, tuple[str, ...]]
    pairs: tuple[str, ...]
    seeds: int | None = None


@dataclass(frozen=True)
class Ablation:
    """embeddings: label -> description. axis: what the labels say. seeds: how many of the pair's, None: all."""

    name: str
    axis: str
    embeddings: dict[str, str]
    pairs: tuple[str, ...]
    seeds: int | None = None


@dataclass(frozen=True)
class StudyDeclaration:
    """A whole study."""

    title: str
    pairs: dict[str, Pair]
    methods: tuple[StudyMethod, ...]
    ablations: tuple[Ablation, ...] = ()
    source: str = field(default="", compare=False)

    def candidates(self, pair: str, method: str) -> dict[float, tuple[str, ...]]:
        """Budget -> candidates of `method` on `pair`, as its blocks declare them together."""
        found: dict[float, tuple[str, ...]] = {}
        for block in self.methods:
            if block.name == method and pair in block.pairs:
                for budget, listed in block.budgets.items():
                    found[budget] = tuple(dict.fromkeys((*found.get(budget, ()), *listed)))
        return found

    @property
    def method_names(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(block.name for block in self.methods))

    def runs(self, pairs: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[tuple[Pair, Run]]:
        """All runs, or those of some pairs or seeds: seed by seed, so that an early end leaves whole seeds.

        Of a seed the full tables come first, whose warm-ups the others use, then pair after pair.
        """
        rank = {seed: at for pair in self.pairs.values() for at, seed in reversed(list(enumerate(pair.seeds)))}
        found: list[tuple[Pair, Run]] = []
        for seed in sorted(rank, key=lambda seed: (rank[seed], seed)):
            firsts, others = [], []
            for pair in self.pairs.values():
                if (pairs and pair.name not in pairs) or (seeds and seed not in seeds) or seed not in pair.seeds:
                    continue
                configs: dict[str, TrainConfig] = {}
                for embedding in self._embeddings(pair, pair.seeds.index(seed)):
                    config = replace(pair.config.with_embedding(embedding), seed=seed)
                    configs.setdefault(run_key(pair.name, config), config)
                # Runs whose settings were changed in the declaration do not meet what is there of the old ones.
                first, *rest = (
                    Run(
                        config, f"runs/{pair.name}/{folder_name(config)}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"
                    )
                    for key, config in configs.items()
                )
                firsts.append((pair, first))
                others += [(pair, run) for run in rest]
            found += firsts + others
        return found

    def _embeddings(self, pair: Pair, place: int) -> Iterator[str]:
        """What is trained on `pair` with its seed number `place`."""
        yield FULL
        blocks: tuple[StudyMethod | Ablation, ...] = (*self.methods, *self.ablations)
        for block in blocks:
            if pair.name not in block.pairs or (block.seeds is not None and place >= block.seeds):
                continue
            if isinstance(block, Ablation):
                yield from block.embeddings.values()
            else:
                for listed in block.budgets.values():
                    yield from listed


def read_grid(path: Path, data_dir: str | None = None) -> StudyDeclaration:
    """The study that a file declares; ValueError says what is wrong in it and where."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    try:
        return _grid(_Table(content, "the file"), data_dir, str(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Table:
    """A table of the file whose keys are taken one by one; what nobody takes is a mistake."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{where}: expected a table, got {content!r}")
        self.content, self.where, self.known = dict(content), where, set[str]()

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        self.known.add(name)
        if name not in self.content:
            if default is None:
                raise ValueError(f"{self.where}: {name} is missing")
            return default
        value = self.content.pop(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.where}: {name} must be a {kind.__name__}, got {value!r}")
        return value

    def finish(self) -> None:
        for name in self.content:
            hint = did_you_mean(name, self.known)
            raise ValueError(f"{self.where}: no entry {name!r}{hint}: expected {', '.join(sorted(self.known))}")


def _grid(table: _Table, data_dir: str | None, source: str) -> StudyDeclaration:
    title = table.take("title", str, "A study")
    seeds = _seeds(table.take("seeds", list, [1, 2, 3]), table.where)
    settings = table.take("settings", dict, {})
    pairs = {}
    for name, content in table.take("pairs", dict).items():
        pairs[name] = _pair(name, _Table(content, f"pairs.{name}"), settings, seeds, data_dir)
    if not pairs:
        raise ValueError("pairs: expected at least one, [pairs.NAME] with model and data")
    methods = [
        _method(_Table(content, f"methods[{at}]"), pairs) for at, content in enumerate(table.take("methods", list, []))
    ]
    ablations = [
        _ablation(_Table(content, f"ablations[{at}]"), pairs)
        for at, content in enumerate(table.take("ablations", list, []))
    ]
    table.finish()
    grid = StudyDeclaration(title, pairs, tuple(methods), tuple(ablations), source)
    for pair in pairs.values():
        for embedding in dict.fromkeys(grid._embeddings(pair, 0)):
            pair.config.with_embedding(embedding)  # reads the description
    return grid


def _pair(name: str, table: _Table, common: dict[str, Any], seeds: tuple[int, ...], data_dir: str | None) -> Pair:
    task, model = choose_model(None, table.take("model", str))
    data = table.take("data", str)
    config = TrainConfig(task=task, model=model, data=data, data_dir=data_dir)
    own = table.take("settings", dict, {})
    written = [f"{key}={value}" for key, value in {**common, **own}.items()]
    try:
        config = config.with_settings([*tuned_settings(model, data), *written])
    except ValueError as error:
        raise ValueError(f"{table.where}: {error}") from error
    pair = Pair(
        name, table.take("title", str, name), config, _seeds(table.take("seeds", list, list(seeds)), table.where)
    )
    table.finish()
    return pair


def _method(table: _Table, pairs: dict[str, Pair]) -> StudyMethod:
    budgets = {}
    for text, listed in table.take("budgets", dict).items():
        try:
            budget = float(text)
        except ValueError:
            raise ValueError(f"{table.where}: a budget is a per cent such as 10, got {text!r}") from None
        if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed) or not listed:
            raise ValueError(f"{table.where}: budget {text} must have a list of embeddings, got {listed!r}")
        budgets[budget] = tuple(listed)
    method = StudyMethod(table.take("name", str), budgets, *_where(table, pairs))
    table.finish()
    return method


def _ablation(table: _Table, pairs: dict[str, Pair]) -> Ablation:
    name = table.take("name", str)
    embeddings = table.take("embeddings", dict)
    if not embeddings or not all(isinstance(entry, str) for entry in embeddings.values()):
        raise ValueError(f"{table.where}: embeddings must be LABEL = EMBEDDING, got {embeddings!r}")
    ablation = Ablation(name, table.take("axis", str, name), embeddings, *_where(table, pairs))
    table.finish()
    return ablation


def _where(table: _Table, pairs: dict[str, Pair]) -> tuple[tuple[str, ...], int | None]:
    """(pairs, number of seeds) of a block."""
    chosen = table.take("pairs", list, list(pairs))
    for name in chosen:
        if name not in pairs:
            hint = did_you_mean(str(name), pairs)
            raise ValueError(f"{table.where}: no pair {name!r}{hint}: expected {', '.join(pairs)}")
    number = table.take("seeds", int, 0)
    return tuple(chosen), number or None


def _seeds(values: list[Any], where: str) -> tuple[int, ...]:
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{where}: seeds must be a list of whole numbers, got {values!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"{where}: expected each seed once, got {values!r}")
    return tuple(values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
