"""Open a table that `mgqe train` or `mgqe compare` saved, look vectors up, and recommend from them.

mgqe compare --embedding full --budget 10% --seeds 1 --out runs/demo
python examples/look_up.py runs/demo
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import mgqe
from mgqe.recsys.data.interactions import FileIds
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that --out named")
    folder = find_run(parser.parse_args().out)
    path = folder / "item.mgqe.safetensors"

    started = time.perf_counter()
    table = mgqe.load(path)  # mapped into memory: look-ups read only the pages they need
    opened = 1e3 * (time.perf_counter() - started)
    full = 4 * table.num_embeddings * table.embedding_dim
    print(f"{path}\n  {path.stat().st_size:,} bytes, opened in {opened:.1f} ms; a float32 table has {full:,} bytes")

    ids = torch.tensor([0, 1, 2])
    print(f"table.lookup(torch.tensor([0, 1, 2]))[:, :4] =\n{table.lookup(ids)[:, :4]}")

    model = load_run(folder)  # both tables, frozen, and the model's own weights
    items = FileIds.load(folder / "item_ids.parquet")
    config = TrainConfig(**json.loads((folder / "config.json").read_text()))
    had, offsets = RunData.load(config).task.split.histories(test=True)  # each user's items before the test
    with torch.no_grad():
        query = model.query(torch.tensor([0]))  # what items are multiplied with, for the first user
    best = table.topk(query, 5, exclude=had[: offsets[1]]).ids[0]
    print(f"the best 5 items for the first user that it has not had: {[items.id(int(row)) for row in best]}")


def find_run(out: Path) -> Path:
    """The folder itself if it is a run, else the first MGQE run of a comparison."""
    runs = [out, *sorted(out.glob("runs/mgqe*"))]
    for folder in runs:
        if (folder / "item.mgqe.safetensors").is_file():
            return folder
    raise SystemExit(f"{out} holds no finished run: expected what `mgqe train --out {out}` leaves")


if __name__ == "__main__":
    main()
