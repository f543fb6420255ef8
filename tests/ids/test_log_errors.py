"""Errors of logs and data files name the file, the line and a remedy that works, without texts of other libraries."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import mgqe
from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.interactions import load_interactions
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LONG = b"user,item\n" + b"".join(b"%d,%d\n" % (i % 97, i * 7919 % 10007) for i in range(20_000))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "short.csv.gz",
            gzip.compress(b"user,item\n1,2\n", mtime=0)[:14],
            "it is compressed, and damaged, cut short or packed",
        ),
        ("cut.csv.gz", gzip.compress(LONG, mtime=0)[:-2000], "it is compressed, and damaged, cut short or packed"),
        ("zero.csv", LONG + b"1,2\0\n" + LONG, "it holds NUL bytes, which text does not"),
    ],
)
def test_text_that_cannot_be_read_to_its_end_is_an_error_that_names_the_file(tmp_path, name, content, why):
    path = written(tmp_path / name, content)
    for read in (
        lambda: mgqe.IdMap.from_log(path, "item"),
        lambda: mgqe.count_ids(path, 20_000, column="item"),
        lambda: load_interactions(path),
    ):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as text: {why}"):
            read()


def test_a_number_of_a_column_that_is_not_there_asks_what_separates_the_fields(tmp_path):
    path = written(tmp_path / "u.data", "196\t242\n186\t302\n")
    with pytest.raises(KeyError, match=r"numbers from 1 to 1 .*: say what separates the fields with separator="):
        mgqe.IdMap.from_log(path, 2, header=False)
    assert mgqe.IdMap.from_log(path, 2, header=False, separator="\t").ids([0, 1]).tolist() == [242, 302]


def test_training_asks_what_separates_the_fields_of_a_header_that_is_one_column(tmp_path):
    path = written(tmp_path / "a.csv", "user,item\n1,2\n")
    with pytest.raises(ValueError, match="if it has several, say what separates them with --separator"):
        load_interactions(path, columns=Columns(separator=";"))


def test_a_log_of_a_header_alone_is_an_error_that_names_the_file(tmp_path):
    path = written(tmp_path / "a.csv", "item\n")
    with pytest.raises(ValueError, match=r"a\.csv: there are no ids to count in item"):
        mgqe.IdMap.from_log(path, "item")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": 5}, "separator must be text, got 5"),
        ({"separator": None}, "separator must be text, got None"),
        ({"quote": 5}, "quote must be text, got 5"),
        ({"header": "no"}, "header must be True, False or None, got 'no'"),
    ],
)
def test_a_layout_of_other_types_is_refused(tmp_path, options, message):
    path = written(tmp_path / "a.csv", "item\n1\n")
    with pytest.raises(TypeError, match=message):
        mgqe.IdMap.from_log(path, "item", **options)


def test_quoting_is_a_remedy_only_for_a_line_with_quotes(tmp_path):
    plain = written(tmp_path / "plain.csv", "user,item\n1,2\n1,3,4\n")
    with pytest.raises(ValueError, match="line 3: expected 2 fields as in the header, got 3") as error:
        load_interactions(plain)
    assert "quote" not in str(error.value)
    inches = written(tmp_path / "inches.csv", 'user,item\n1,2\n1,7",4\n')
    with pytest.raises(ValueError, match=r"line 3: expected 2 fields .*turn quoting off with quote=''"):
        load_interactions(inches)


def test_the_first_time_that_is_no_date_among_dates_is_named(tmp_path):
    rows = "user,item,time\n1,2,2020-01-01\n1,3,2020-01-02\n1,4,yesterday\n"
    with pytest.raises(ValueError, match="line 4: expected a number or a date in column 'time', got 'yesterday'"):
        load_interactions(written(tmp_path / "dates.csv", rows))
    rows = "user,item,time\n1,2,10\n1,3,2020-01-02\n1,4,12\n"
    with pytest.raises(ValueError, match="line 3: expected a number or a date in column 'time', got '2020-01-02'"):
        load_interactions(written(tmp_path / "numbers.csv", rows))
    rows = "user,item,time\n1,2,soon\n1,3,later\n"
    with pytest.raises(ValueError, match="line 2: expected a number or a date in column 'time', got 'soon'"):
        load_interactions(written(tmp_path / "words.csv", rows))


def test_an_integer_beyond_63_bits_says_what_to_make_of_the_column(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": [1, 1], "item": pl.Series([2**63, 5], dtype=pl.UInt64)}).write_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet: expected item ids .* got 9223372036854775808: cast .* to text"):
        load_interactions(path)


@pytest.mark.parametrize("columns", [Columns(item="user"), Columns(user="item"), Columns(time="item")])
def test_one_column_is_not_two_things(tmp_path, columns):
    path = written(tmp_path / "a.csv", "user,item\n1,2\n1,3\n1,4\n")
    with pytest.raises(ValueError, match=r"cannot be both the (user|item) and the (item|time): name another one"):
        load_interactions(path, columns=columns)


def test_a_word_for_no_value_among_integers_is_a_missing_id(tmp_path):
    path = written(tmp_path / "a.csv", "user,item\n1,2\n1,NULL\n1,4\n")
    with pytest.raises(ValueError, match="line 3: expected an item in column 'item', got 'NULL': fill it, or drop"):
        load_interactions(path)
    words = load_interactions(written(tmp_path / "words.csv", "user,item\n1,tea\n1,NA\n1,milk\n"))
    assert words.item_ids.ids.to_list() == ["NA", "milk", "tea"]


def test_a_header_is_not_taken_for_data_though_its_ids_are_text(tmp_path):
    path = written(tmp_path / "a.csv", "user_id,item_id\nann,tea\nann,milk\n")
    columns = Columns(user="1", item="2", header=False)
    with pytest.raises(ValueError, match="expected no header, but line 1 looks like one: 'user_id,item_id': leave out"):
        load_interactions(path, columns=columns)
    assert len(load_interactions(path)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"^dropout must be 0 or more and below 1, got 1\.0"),
        ({"weight_decay": -1.0}, r"^weight_decay must be 0 or more, got -1\.0"),
        ({"context_columns": "city"}, "context_columns=city is for --task ctr, not ranking"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_an_embedding_of_a_comparison_has_no_seed_of_its_own():
    with pytest.raises(ValueError, match="full:d=8@seed=4: seed cannot be set for one embedding: use --seeds"):
        TrainConfig().with_embedding("full:d=8@seed=4")


@pytest.mark.parametrize("number", [np.int64, np.array, torch.tensor], ids=lambda make: make.__name__)
def test_a_runs_settings_are_plain_whatever_numbers_and_paths_they_are_given(number):
    config = TrainConfig(data=Path("a.csv"), seed=number(3), dim=number(8), learning_rate=number(1), dropout=0)
    assert config == TrainConfig(data="a.csv", seed=3, dim=8, learning_rate=1.0, dropout=0.0)
    assert json.loads(json.dumps(asdict(config)))["seed"] == 3
    with pytest.raises(TypeError, match=r"dim must be a whole number, got 8\.5"):
        TrainConfig(dim=8.5)
    with pytest.raises(TypeError, match="dropout must be a number, got 'no'"):
        TrainConfig(dropout="no")


@pytest.mark.parametrize("columns", [Columns(user="2", item="1"), Columns(time="3")])
def test_columns_are_not_named_in_vain_where_a_file_has_none(tmp_path, columns):
    path = written(tmp_path / "pairs.txt", "1 2\n1 3\n2 3\n")
    with pytest.raises(ValueError, match="for files with columns, got format pairs: leave it out, or say --format csv"):
        load_interactions(path, columns=columns)
    swapped = Columns(user="2", item="1", header=False, separator="space")
    assert load_interactions(path, "csv", swapped).user_ids.ids.to_list() == [2, 3]


@pytest.mark.parametrize("name", ["format", "user_column", "item_column", "time_column", "separator", "header"])
def test_how_a_file_is_laid_out_is_not_said_of_a_known_set(name):
    value = True if name == "header" else "csv" if name == "format" else "x"
    for data, task, model in (
        ("planted", "ranking", "gmf"),
        ("frappe", "ctr", "deepfm"),
        ("ml-1m-ncf", "ranking", "gmf"),
    ):
        config = TrainConfig(data=data, task=task, model=model, **{name: value})
        with pytest.raises(
            ValueError, match=f"--{name.replace('_', '-')} is for a file of your own, not for .* {data}"
        ):
            RunData.load(config)
