"""Logs of clicks: Criteo's and Avazu's layouts, vocabularies, parts, the encoded log, and runs."""

from __future__ import annotations

import gzip
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from paths import ROOT
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app
from mgqe.recsys.data.clicks.encode import Encoding, encode
from mgqe.recsys.data.clicks.encoded import EncodedLog
from mgqe.recsys.data.clicks.generated import FIELDS, draw, generate, planted_logits, vocabulary_sizes
from mgqe.recsys.data.clicks.layouts import AVAZU, CRITEO, LABEL
from mgqe.recsys.data.clicks.parts import RowParts
from mgqe.recsys.data.clicks.sources import ParquetSource, TextSource, find_log
from mgqe.recsys.data.clicks.text_blocks import text_blocks
from mgqe.recsys.data.clicks.vocabulary import MISSING, OTHER, FieldCounter
from mgqe.recsys.tasks.metrics import auc
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.artifacts import load_run
from mgqe.recsys.train.config import TrainConfig
from mgqe.recsys.train.run import data_notes, train_run
from mgqe.recsys.train.tuned import tuned_settings

TENTHS = RowParts(seed=1)


def criteo_line(label: object, counts: list[object], categories: list[object]) -> str:
    return "\t".join(map(str, [label, *counts, *categories]))


def write_criteo(path: Path, rows: int = 300, seed: int = 0) -> Path:
    """Rows in the layout of Kaggle's train.txt, some values missing; a field of few, of many and of rare values."""
    generator = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        kind = int(generator.integers(3))
        counts = [int(generator.integers(-2, 50)) if generator.random() < 0.8 else "" for _ in range(13)]
        categories = [f"{kind:08x}", f"{row:08x}", *(f"{int(generator.integers(130)):08x}" for _ in range(24))]
        categories[5] = "" if row % 3 else categories[5]
        lines.append(criteo_line(int(generator.random() < (0.2, 0.5, 0.8)[kind]), counts, categories))
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


AVAZU_HEADER = ",".join(AVAZU.kinds)
AVAZU_LINE = (
    "1000009418151094273,{},{},1005,0,{},f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,44956a24,1,2,"
    "15706,320,50,1722,0,35,-1,79"
)


def write_avazu(path: Path, rows: int = 300) -> Path:
    generator = np.random.default_rng(0)
    lines = [
        AVAZU_LINE.format(int(generator.random() < 0.3), f"1410{21 + row // 200:02}{row % 24:02}", f"{row % 110:08x}")
        for row in range(rows)
    ]
    text = ("\n".join([AVAZU_HEADER, *lines]) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def criteo(path: Path, block: int = 4000) -> TextSource:
    return TextSource([path], CRITEO, block)


def frame_of(source: TextSource | ParquetSource) -> pl.DataFrame:
    return pl.concat([chunk.frame() for chunk in source.chunks()])


def test_criteo_by_hand(tmp_path: Path) -> None:
    counts = [0, -2, 1, 2, 3, 10, 100, 1382, "", "", "", "", ""]
    (tmp_path / "train.txt").write_text(criteo_line(1, counts, ["05db9164", "", "ffffffff", *["0"] * 23]))
    frame = frame_of(criteo(tmp_path / "train.txt"))
    assert frame.columns == [LABEL, *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    # floor(ln(3)^2) = floor(1.21), of 10 it is floor(5.30), of 100 floor(21.2), of 1382 floor(52.3); missing is 0.
    assert frame.row(0)[:14] == (1, 0, -2, 1, 2, 1, 5, 21, 52, 0, 0, 0, 0, 0)
    assert frame.row(0)[14:18] == (0x05DB9164, None, 0xFFFFFFFF, 0)
    assert CRITEO.texts("C1", [0x05DB9164, 10]) == ["05db9164", "0000000a"]
    assert CRITEO.texts("I1", [-2]) == ["-2"]


def test_avazu_by_hand(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("\n".join([AVAZU_HEADER, AVAZU_LINE.format(1, 14102123, "1fbe01fe")]))
    row = frame_of(TextSource([tmp_path / "train"], AVAZU)).row(0, named=True)
    # 21 October 2014 was a Tuesday, 1 from Monday.
    assert (row[LABEL], row["hour"], row["weekday"], row["weekend"]) == (1, 23, 1, 0)
    assert (row["site_id"], row["C20"], row["banner_pos"]) == (0x1FBE01FE, -1, 0)
    assert "id" not in row
    assert len(row) == 25  # the label and 24 fields
    (tmp_path / "train").write_text("\n".join([AVAZU_HEADER, AVAZU_LINE.format(0, 14102500, "1")]))
    assert frame_of(TextSource([tmp_path / "train"], AVAZU)).select("hour", "weekday", "weekend").row(0) == (0, 5, 1)


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize("block", [300, 4000, 10**6])
def test_blocks_hold_every_line_once(tmp_path: Path, name: str, block: int) -> None:
    path = write_criteo(tmp_path / name, 50)
    assert frame_of(criteo(path, block)).equals(frame_of(criteo(path)))
    found = list(text_blocks(str(path), "\t", tuple(CRITEO.kinds), False, block))
    assert [block.first_line for block in found] == [1 + sum(map(len, found[:at])) for at in range(len(found))]
    assert sum(map(len, found)) == 50


GOOD = criteo_line(0, [1] * 13, ["0a"] * 26)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\t1\t2", "line 4: expected 40 fields, got 3: '0.t1.t2'"),
        (GOOD + "\t7", "line 4: expected 40 fields, got 41"),
        ("", "line 4: expected 40 fields, got 1"),
        ("2" + GOOD[1:], "line 4, column 'label': expected 0 or 1, got '2'"),
        (GOOD[1:], "line 4, column 'label': expected 0 or 1, got ''"),
        (GOOD.replace("\t1\t", "\tx\t", 1), "line 4, column 'I1': expected a whole number or nothing, got 'x'"),
        (GOOD.replace("\t1\t", "\t1.5\t", 1), "line 4, column 'I1': expected a whole number or nothing, got '1.5'"),
        (GOOD[:-2] + "xyz", "line 4, column 'C26': expected a number in base 16 or nothing, got 'xyz'"),
        (GOOD[:-2] + "\udcff", "line 4, column 'C26': expected a number in base 16"),
    ],
)
@pytest.mark.parametrize("block", [200, 10**6])
def test_wrong_lines(tmp_path: Path, line: str, message: str, block: int) -> None:
    path = tmp_path / "day_0"
    path.write_text("\n".join([GOOD, GOOD, GOOD, line, GOOD, ""]), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=f"day_0, {message}"):
        frame_of(criteo(path, block))


def test_wrong_files(tmp_path: Path) -> None:
    path = write_criteo(tmp_path / "train.txt.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        ValueError, match=r"train.txt.gz: cannot be read beyond line \d+: the gzip file is damaged or cut"
    ):
        frame_of(criteo(path))
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="empty: holds no rows: expected one per line, 40 fields each"):
        frame_of(criteo(tmp_path / "empty"))
    (tmp_path / "train").write_text(AVAZU_LINE.format(1, 14102123, "1"))
    with pytest.raises(ValueError, match="train, line 1: expected the header 'id,click,hour,C1"):
        frame_of(TextSource([tmp_path / "train"], AVAZU))
    for hour in ("14102124", "14103501", "141021", ""):
        (tmp_path / "train").write_text("\n".join([AVAZU_HEADER, AVAZU_LINE.format(1, hour, "1")]))
        with pytest.raises(ValueError, match=f"line 2, column 'hour': expected an hour as YYMMDDHH, got '{hour}'"):
            frame_of(TextSource([tmp_path / "train"], AVAZU))


def test_files_that_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGQE_DATA_DIR", raising=False)
    with pytest.raises(ValueError, match=r"criteo needs a data directory: pass --data-dir DIR .* train.txt, or day_0"):
        find_log("criteo", None)
    with pytest.raises(ValueError, match=r"avazu: expected train, train.csv .* in .*/avazu or in .*kaggle.com"):
        find_log("avazu", str(tmp_path))
    (tmp_path / "criteo").mkdir()
    for name in ("day_10", "day_2.gz", "day_1", "day_0"):
        (tmp_path / "criteo" / name).write_text("")
    with pytest.raises(ValueError, match="lacks day_3: expected all days from day_0 to day_10"):
        find_log("criteo", str(tmp_path))
    (tmp_path / "criteo/day_10").rename(tmp_path / "criteo/day_3")
    names = ["day_0", "day_1", "day_2.gz", "day_3"]
    assert [path.name for path in find_log("criteo", str(tmp_path)).files] == names
    assert [path.name for path in find_log("criteo", str(tmp_path / "criteo")).files] == names
    (tmp_path / "criteo/day_2").write_text("")
    with pytest.raises(ValueError, match="day 2 is there twice"):
        find_log("criteo", str(tmp_path))
    (tmp_path / "criteo/day_2").unlink()
    (tmp_path / "criteo/train.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds train.txt and day_0: put one of the two logs elsewhere"):
        find_log("criteo", str(tmp_path))


def test_vocabulary_by_hand() -> None:
    counter = FieldCounter()
    for values in ([5, 5, 7, MISSING], [5, 9, MISSING, 7], [3]):
        counter.add(np.array(values))
    vocabulary = counter.vocabulary(min_count=2)
    # 5 three times; 7, the missing one, and the two rare ones together twice each, by value.
    assert vocabulary.values is not None
    assert vocabulary.values.tolist() == [5, MISSING, OTHER, 7]
    assert vocabulary.counts.tolist() == [3, 2, 2, 2]
    assert vocabulary.rows(np.array([7, 5, 3, 100, MISSING])).tolist() == [3, 0, 2, 2, 1]


@pytest.mark.parametrize("hash_size", [7, 100, None])
def test_counting_in_parts_is_counting(hash_size: int | None) -> None:
    generator, counter = np.random.default_rng(0), FieldCounter(hash_size)
    parts = [generator.integers(0, 40, 500) ** 3 for _ in range(5)]
    for part in parts:
        counter.add(part)
        counter._merge()
    vocabulary = counter.vocabulary(min_count=30)
    whole = np.concatenate(parts)
    if hash_size == 7:
        assert vocabulary.values is None
        assert vocabulary.counts.tolist() == np.bincount(vocabulary.rows(whole), minlength=7).tolist()
        return
    assert vocabulary.counts.sum() == len(whole)
    assert vocabulary.counts.tolist() == np.bincount(vocabulary.rows(whole), minlength=len(vocabulary)).tolist()
    assert vocabulary.counts.tolist() == sorted(vocabulary.counts.tolist(), reverse=True)


def test_parts_of_rows() -> None:
    drawn = RowParts.parse(None, 5).of_rows(0, 20_000, 0)
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert RowParts.parse(None, 5).of_rows(300, 50, 0).tolist() == drawn[300:350].tolist()
    assert RowParts.parse(None, 6).of_rows(0, 20_000, 0).tolist() != drawn.tolist()
    latest = RowParts.parse("latest:10%/20%", 5)
    assert latest.latest == (Fraction(1, 10), Fraction(1, 5))
    assert latest.of_rows(0, 20, 20).tolist() == [0] * 14 + [1] * 2 + [2] * 4
    assert RowParts.parse("latest:20%", 5).of_rows(0, 100, 100).tolist() == [0] * 72 + [1] * 8 + [2] * 20
    # The rules of docs/click_logs.md: the last seventh of Criteo's rows, and the rows of Avazu's last day.
    page = (ROOT / "docs/click_logs.md").read_text()
    for rule, rows, last in (
        ("latest:7.142857%/7.142857%", 45_840_617, 6_548_659),
        ("latest:5.217716%/5.217716%", 40_428_967, 4_218_938),
    ):
        assert f"--min-count 1 --split {rule} " in page
        near = RowParts.parse(rule, 0).of_rows(rows - last - 2, last + 2, rows)
        assert near[:2].tolist() == [0, 0]
        held_out = np.bincount(near)[1:]
        assert held_out[0] == held_out[1]
        assert last - held_out.sum() == {6_548_659: 1, 4_218_938: 2}[last]
    with pytest.raises(ValueError, match=r"--split time:10% is for logs of users and items: .* --split latest:10%/10%"):
        RowParts.parse("time:10%", 5)


def all_rows(log: EncodedLog, part: str) -> torch.Tensor:
    chunks = [log.read(part, chunk) for chunk in range(len(log.sizes[part]))]
    return torch.cat([torch.cat([rows, labels[:, None].int()], dim=1) for rows, labels in chunks])


def test_the_encoded_log_is_the_log(tmp_path: Path) -> None:
    source = criteo(write_criteo(tmp_path / "train.txt"))
    log = encode(source, tmp_path, Encoding(2, None, TENTHS))
    assert len(log.sizes["train"]) > 10  # several chunks
    frame, parts = frame_of(source), TENTHS.of_rows(0, 300, 0)
    for part, number in (("train", 0), ("valid", 1), ("test", 2)):
        rows = all_rows(log, part)
        wanted = frame.filter(pl.Series(parts == number))
        assert rows[:, -1].tolist() == wanted[LABEL].to_list()
        assert log.clicks[part] == wanted[LABEL].sum()
        for at, field in enumerate(log.fields):
            values = log.vocabularies[field].values
            assert values is not None
            known = set(values.tolist())
            expected = [value if value in known else OTHER for value in wanted[field].fill_null(MISSING).to_list()]
            assert values[rows[:, at].numpy()].tolist() == expected
    train = frame.filter(pl.Series(parts == 0))
    assert log.vocabularies["C2"].values is not None
    assert log.vocabularies["C2"].values.tolist() == [OTHER]  # each value is there once
    assert log.vocabularies["C2"].counts.tolist() == [train.height]


def test_hashed_fields(tmp_path: Path) -> None:
    log = encode(criteo(write_criteo(tmp_path / "train.txt")), tmp_path, Encoding(2, 50, TENTHS))
    sizes = {name: len(vocabulary) for name, vocabulary in log.vocabularies.items()}
    hashed = {name for name, vocabulary in log.vocabularies.items() if vocabulary.values is None}
    assert {"C2", "C3", "C26"} <= hashed
    assert not {"C1", "C6"} & {name for name in hashed if name == "C1"}
    assert all(sizes[name] == 50 for name in hashed)
    assert int(all_rows(log, "test")[:, :-1].max()) < 50


def test_an_interrupted_encoding_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, encoding = criteo(write_criteo(tmp_path / "train.txt")), Encoding(2, None, TENTHS)
    whole = encode(source, tmp_path / "whole", encoding)

    def stop(done: int, total: int | None) -> None:
        if total is not None and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(source, tmp_path / "again", encoding, stop)
    written = sorted((tmp_path / "again").glob("*/train-*.parquet"))
    before = [path.stat().st_mtime_ns for path in written]
    assert len(written) == 5
    monkeypatch.setattr("mgqe.recsys.data.clicks.encode._count", None)  # is not called again
    again = encode(source, tmp_path / "again", encoding)
    assert [path.stat().st_mtime_ns for path in written] == before
    assert (again.sizes, again.clicks, again.digest) == (whole.sizes, whole.clicks, whole.digest)
    assert torch.equal(all_rows(again, "test"), all_rows(whole, "test"))


def test_settings_and_content_decide_the_digest(tmp_path: Path) -> None:
    source = criteo(write_criteo(tmp_path / "train.txt"))
    first = encode(source, tmp_path, Encoding(2, None, TENTHS))
    same = encode(criteo(write_criteo(tmp_path / "copy.txt"), 9000), tmp_path, Encoding(2, None, TENTHS))
    other = encode(criteo(write_criteo(tmp_path / "other.txt", seed=1)), tmp_path, Encoding(2, None, TENTHS))
    rarer = encode(source, tmp_path, Encoding(3, None, TENTHS))
    assert first.digest == same.digest
    assert len({log.digest for log in (first, other, rarer)}) == len({log.folder for log in (first, other, rarer)}) == 3


def test_a_part_without_clicks(tmp_path: Path) -> None:
    lines = [criteo_line(int(row < 90), [1] * 13, ["0a"] * 26) for row in range(100)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"with and without a click in the part train .latest:9%/10%., got 81 rows, 81"
    ):
        encode(criteo(tmp_path / "train.txt"), tmp_path / "criteo", Encoding(2, None, RowParts.parse("latest:10%", 0)))
    assert not (tmp_path / "criteo").exists()


def test_batches_hold_every_row_once(tmp_path: Path) -> None:
    log = encode(criteo(write_criteo(tmp_path / "train.txt"), 9000), tmp_path, Encoding(1, None, TENTHS))
    wanted = sorted(map(tuple, all_rows(log, "train").tolist()))

    def epoch(seed: int) -> list[torch.Tensor]:
        batches = log.shuffled("train", 32, torch.Generator().manual_seed(seed))
        return [torch.cat([rows, labels[:, None].int()], dim=1) for rows, labels in batches]

    batches = epoch(0)
    assert [len(batch) for batch in batches] == [32] * (len(wanted) // 32) + [len(wanted) % 32] * (len(wanted) % 32 > 0)
    rows = list(map(tuple, torch.cat(batches).tolist()))
    assert sorted(rows) == wanted != rows
    assert torch.equal(torch.cat(epoch(0)), torch.cat(batches))
    assert not torch.equal(torch.cat(epoch(1)), torch.cat(batches))


@pytest.mark.parametrize("most", [1, 7, 20, 10**6])
def test_rows_that_are_judged(tmp_path: Path, most: int) -> None:
    log = encode(criteo(write_criteo(tmp_path / "train.txt")), tmp_path, Encoding(1, None, TENTHS))
    everything = all_rows(log, "test")
    step = -(-len(everything) // most)
    found = torch.cat([torch.cat([rows, labels[:, None].int()], dim=1) for rows, labels in log.spread("test", most)])
    assert torch.equal(found, everything[::step])
    assert len(found) <= most


def config_of(data: str, folder: Path, **changes: object) -> TrainConfig:
    settings = {"max_epochs": 2, "anneal_epochs": 1, "quantised_epochs": 1, "dim": 8, "batch_size": 256, "hidden": "8"}
    return TrainConfig(data=data, data_dir=str(folder), **{"task": "ctr", "model": "dcn_v2", **settings, **changes})  # type: ignore[arg-type]


def test_the_model_gets_the_fields_that_it_names(tmp_path: Path) -> None:
    write_criteo(tmp_path / "train.txt")
    task = RunData.load(config_of("criteo", tmp_path, min_count=2)).task
    batches = list(task.batches(1000, "full", 1))
    assert len(batches) == task.num_batches(1000)
    context, items, labels = (torch.cat(columns) for columns in zip(*batches, strict=True))
    names = [path.removeprefix("fields.") for path in task.tables]
    rows = torch.cat([context, items], dim=1)[:, [names.index(field) for field in task.log.fields]]
    found = torch.cat([rows, labels.long()], dim=1)
    assert sorted(found.tolist()) == sorted(all_rows(task.log, "train").tolist())
    assert all(info.num_embeddings == int(info.counts.numel()) for info in task.tables.values())
    assert all(int(info.counts.sum()) == len(found) for info in task.tables.values())


@pytest.mark.parametrize(
    ("data", "file", "model", "embedding"),
    [("criteo", "day_0.gz", "dcn_v2", "scalar:bits=8"), ("avazu", "train.gz", "deepfm", "full:d=4")],
)
def test_a_run(tmp_path: Path, data: str, file: str, model: str, embedding: str) -> None:
    (write_criteo if data == "criteo" else write_avazu)(tmp_path / file, 1500)
    config = config_of(data, tmp_path, model=model, embedding=embedding, min_count=2, learning_rate=0.01)
    assert "rows of" in data_notes(config, RunData.load(config))[0]
    metrics = train_run(config, tmp_path / "out")
    assert metrics == json.loads((tmp_path / "out/metrics.json").read_text())
    assert sum(metrics["split"]["interactions"].values()) == 1500
    assert RunData.load(config).task.evaluate(load_run(tmp_path / "out")) == metrics["quality"]
    if data == "criteo":
        assert metrics["quality"]["auc"] > 0.6  # C1 decides; 0.72 is the most
        ids = pl.read_parquet(tmp_path / "out/C1_ids.parquet")["id"].to_list()
        assert sorted(ids) == ["(other)", "00000000", "00000001", "00000002"]
        assert mgqe.load(tmp_path / "out/fields.C1.mgqe.safetensors").num_embeddings == 4


def test_the_made_up_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vocabulary_sizes(40_000_000)[::25] == [10, 10_000_000]
    monkeypatch.setattr("mgqe.recsys.data.clicks.generated.CHUNK", 3000)
    source = generate(tmp_path, 8000)
    assert [path.name for path in source.files] == [f"rows-0000{chunk}.parquet" for chunk in range(3)]
    frame = frame_of(source)
    assert frame.height == 8000
    assert source.fields == FIELDS
    labels = torch.from_numpy(frame[LABEL].to_numpy().copy())
    logits = torch.from_numpy(planted_logits(frame.select(FIELDS).to_numpy().copy(order="C")))
    assert float(labels.float().mean()) == pytest.approx(0.24, abs=0.03)
    assert auc(labels, logits) > 0.9
    most = [int(count) for count in frame["C26"].value_counts(sort=True)["count"][:2]]
    assert most[0] > 1.5 * most[1]  # a power law
    again, other = draw(8000, 1), draw(8000, 1, seed=1)
    assert again[0].tolist() == frame.select(FIELDS)[3000:6000].to_numpy().tolist()
    assert other[0].tolist() != again[0].tolist()


def test_planted_logits_are_their_equation() -> None:
    from mgqe.recsys.data.clicks import generated

    ids = np.ascontiguousarray(np.random.default_rng(0).integers(0, 10, (3, 26)))
    own = sum(generated.OWN * generated._normal(ids[:, k], k, 0) for k in range(26))
    z = np.stack(
        [[generated.CROSSED * generated._normal(ids[:, k], k, 1 + r) for r in range(generated.RANK)] for k in range(26)]
    )
    pairs = sum((z[k] * z[m]).sum(axis=0) for k in range(26) for m in range(k))
    np.testing.assert_allclose(planted_logits(ids), generated.BIAS + own + pairs)
    assert math.isclose(float(generated._normal(np.arange(20_000), 0, 0).std()), 1.0, abs_tol=0.03)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command = f"train --data criteo-like --data-dir {tmp_path} --model dcn_v2 --embedding full --out {tmp_path / 'out'}"
    more = [f"--set={setting}" for setting in ("log_rows=3000", "max_epochs=1", "dim=4", "hash_size=64", "hidden=8")]
    result = CliRunner().invoke(app, [*command.split(), *more, "--split", "latest:10%/10%"])
    assert result.exit_code == 0, result.output
    assert "AUC, log loss (of the test rows)" in result.output
    assert "split latest:10%/10%: train, validation, test" in result.output
    assert "2,400  300  300" in result.output
    assert not (tmp_path / "out/C26_ids.parquet").exists()  # hashed


@pytest.mark.parametrize("data", ["criteo", "avazu", "criteo-like"])
@pytest.mark.parametrize("model", ["wide_deep", "deepfm", "dcn_v2"])
def test_tuned_settings(model: str, data: str) -> None:
    assert TrainConfig(data=data, task="ctr", model=model).with_settings(tuned_settings(model, data)).dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": "planted", "hash_size": 2},
            "hash_size=2 is for logs of clicks .criteo, avazu, criteo-like., not for",
        ),
        ({"data": "planted", "log_rows": 5000}, "log_rows=5000 is for logs of clicks"),
        ({"data": "avazu", "log_rows": 5000}, "log_rows=5000 is for criteo-like, which is made up, not for avazu"),
        ({"data": "criteo", "negatives": 2}, "negatives=2 is for data without labels"),
        ({"data": "criteo", "context_columns": "C1"}, "context_columns are for a file of your own"),
        ({"data": "criteo", "format": "csv"}, "--format is for a file of your own, not for the data set criteo"),
        ({"data": "criteo", "min_count": 0}, "min_count must be a whole number of 1 or more"),
        ({"data": "criteo", "log_rows": 999}, "log_rows must be a whole number of 1,?000 or more"),
        (
            {"data": "criteo", "embedding": "recjpq:D=4,K=16"},
            "recjpq makes its codes from who took what.*rows of criteo",
        ),
        ({"data": "criteo", "test": "x.csv"}, "--test x.csv goes with a file of your own"),
    ],
)
def test_contradictions(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"task": "ctr", "model": "deepfm", **changes})  # type: ignore[arg-type]


def test_clicks_are_for_their_task(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="criteo is a log of clicks: it is for --task ctr alone, as with --model dcn_v2"
    ):
        RunData.load(TrainConfig(data="criteo", data_dir=str(tmp_path)))
