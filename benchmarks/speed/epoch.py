"""An epoch of GMF through the codes (MGQE, D=32, K=256/64, users and items) against one on full tables.

python -m benchmarks.speed.epoch --data ml-1m --data-dir DIR
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks._common import Contender, Measurement, argument_parser, measure, print_table, save
from mgqe import quantization_loss, start_quantizing
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.loop import make_optimizer
from mgqe.recsys.train.run import build_tables

PEER = "full"
EMBEDDINGS = {PEER: "full", "mgqe D=32 K=256/64": "mgqe:D=32,K=256/64", "dpq D=8 K=256": "dpq:D=8,K=256"}
TARGETS = {"mgqe D=32 K=256/64": 2.0, "dpq D=8 K=256": 2.0}


def epoch(config: TrainConfig, data: RunData) -> Contender:
    """A function that trains one epoch, sampling of negatives included."""
    model = build_tables(config, data)
    start_quantizing(model)
    phase = config.phase("quantised")
    optimizer = make_optimizer(model, phase)
    model.train()

    def run(number: int) -> None:
        for batch in data.task.batches(phase.batch_size, "benchmark", number):
            loss = data.task.loss(model, batch) + quantization_loss(model)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    parser = argument_parser(__doc__ or "", "epoch")
    parser.set_defaults(rounds=2, calls=1, threads=[1])
    parser.add_argument("--data", default="planted", help="a known set or a file")
    parser.add_argument("--data-dir", default=None)
    options = parser.parse_args()
    results: list[Measurement] = []
    base = TrainConfig(data=options.data, data_dir=options.data_dir, seed=options.seed)
    data = RunData.load(base)
    for threads in options.threads:
        torch.set_num_threads(threads)
        contenders = {name: epoch(replace(base, embedding=spec), data) for name, spec in EMBEDDINGS.items()}
        setting = {"data": options.data, "threads": threads}
        results += measure(setting, contenders, PEER, options.rounds, options.calls, TARGETS)
    print_table(results, data.task.split.train_users.numel() * (1 + base.negatives), "pair")
    save(options.out, "epoch", options, results)


if __name__ == "__main__":
    main()
