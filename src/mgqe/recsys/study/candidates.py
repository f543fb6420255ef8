"""Which of a study's runs wait for others: seeds that only the candidate gets which validation prefers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mgqe.recsys.study.analysis import Group, best_on_validation, within_budget
from mgqe.recsys.study.declaration import FULL, Pair, StudyDeclaration
from mgqe.recsys.study.execute import Run
from mgqe.recsys.study.records import Record, run_key
from mgqe.recsys.train.config import TrainConfig


class Preferred:
    """What validation prefers, by the records of the first `candidate_seeds` seeds.

    Where a method has several candidates at a budget of a pair, further seeds are trained with one alone: that which is
    best on validation among those within the budget, once all of them have ended, or failed, with the first seeds.
    """

    def __init__(self, study: StudyDeclaration, done: Mapping[str, Record]) -> None:
        self.study, self.done = study, done
        self._names = {name: self._preferred(pair) for name, pair in study.pairs.items()}

    def waits(self, pair: Pair, run: Run) -> bool:
        """Whether a run is of a further seed, and of a candidate that is not, or not yet, preferred."""
        first = self.study.candidate_seeds
        return (
            first is not None
            and pair.seeds.index(run.config.seed) >= first
            and run.config.name not in self._names[pair.name]
        )

    def _preferred(self, pair: Pair) -> set[str]:
        """The names of runs that get every seed: those of ablations and full tables, too."""
        names = {FULL} | {
            pair.config.with_embedding(embedding).name
            for block in self.study.ablations
            if pair.name in block.pairs
            for embedding in block.listed
        }
        for method in self.study.method_names:
            for budget, listed in self.study.candidates(pair.name, method).items():
                configs = {config.name: config for config in map(pair.config.with_embedding, listed)}
                names |= set(configs) if len(configs) == 1 else self._best(pair, method, budget, list(configs.values()))
        return names

    def _best(self, pair: Pair, method: str, budget: float, configs: list[TrainConfig]) -> set[str]:
        """The name of the best candidate; none while one has not ended, and where none fits."""
        seeds = pair.seeds[: self.study.candidate_seeds]
        groups = []
        for config in configs:
            records = {seed: self.done.get(run_key(pair.name, replace(config, seed=seed))) for seed in seeds}
            ended = {seed: record for seed, record in records.items() if record is not None}
            if len(ended) < len(seeds):
                return set()
            if all(record["status"] == "done" for record in ended.values()):
                groups.append(Group(pair.name, config.name, ended))
        fitting = within_budget(groups, method, budget)
        return {best_on_validation(fitting).embedding} if fitting else set()
