"""A comparison: a small study of one task and data set, declared on the command line instead of in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mgqe.recsys.study.declaration import Ablation, Pair, StudyDeclaration, folder_name
from mgqe.recsys.study.execute import Run
from mgqe.recsys.study.records import Record, run_key
from mgqe.recsys.train.config import TrainConfig

PAIR = "comparison"


class Comparison(StudyDeclaration):
    """Some embeddings, each with every seed, on one pair. `full` is trained only where it is listed."""

    @classmethod
    def of(cls, base: TrainConfig, embeddings: Sequence[str], seeds: Sequence[int]) -> Comparison:
        """Every one of `embeddings` with every one of `seeds`; all other settings are those of `base`.

        An embedding may bring training settings: `lowrank:r=8@learning_rate=0.01`. ValueError when there is none, or
        when one is listed twice, even if it is written differently.
        """
        configs = [base.with_embedding(embedding) for embedding in embeddings]
        for what, listed, different in (("embedding", embeddings, set(configs)), ("seed", seeds, set(seeds))):
            if not listed:
                raise ValueError(f"a comparison needs at least one {what}")
            if len(different) < len(listed):
                raise ValueError(f"expected each {what} once, got {', '.join(map(str, listed))}")
        title = f"{base.data}: {base.model}"
        block = Ablation(PAIR, "embedding", {embedding: embedding for embedding in embeddings}, (PAIR,))
        return cls(title, {PAIR: Pair(PAIR, title, base, tuple(seeds))}, (), (block,))

    def with_earlier(self, records: Sequence[Record]) -> Comparison:
        """This comparison with the embeddings and seeds of earlier records of the same data and settings."""
        base, seeds = self.pairs[PAIR].config, dict.fromkeys(self.pairs[PAIR].seeds)
        listed = {base.with_embedding(embedding): embedding for embedding in self.ablations[0].listed}
        for record in records:
            if record["status"] != "done":
                continue
            try:
                config = base.with_embedding(record["embedding"])
            except ValueError:  # of another version
                continue
            if run_key(PAIR, replace(config, seed=record["seed"])) == record["key"]:
                listed.setdefault(config, record["embedding"])
                seeds.setdefault(record["seed"])
        return Comparison.of(base, list(listed.values()), list(seeds))

    def runs(self, pairs: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[tuple[Pair, Run]]:
        """All runs; of those that share a warm-up one comes early, so that the others find it done."""
        runs = super().runs(pairs, seeds)
        first_of: dict[TrainConfig, tuple[Pair, Run]] = {}
        for pair, run in runs:
            first_of.setdefault(run.config.warm_up(), (pair, run))
        firsts = list(first_of.values())
        return firsts + [entry for entry in runs if entry not in firsts]

    def folder(self, pair: Pair, config: TrainConfig) -> str:
        """A run's folder, named so that people find it: there is one pair, with one set of settings."""
        return f"runs/{folder_name(config)}"

    def embeddings(self, pair: Pair, number: int) -> Iterator[str]:
        """What is trained with any seed."""
        yield from self.ablations[0].listed
