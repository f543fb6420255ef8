"""Files of interactions: every format, and the error for every mistake in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mgqe.recsys.data.columns import Columns
from mgqe.recsys.data.files import recognise
from mgqe.recsys.data.interactions import FileIds, load_interactions

# Users b, a; items x, y, z; in time order b: z, x and a: y, z, x.
EXPECTED = {"a": ["y", "z", "x"], "b": ["z", "x"]}
FILES = {
    "csv": "user,item,rating,timestamp\nb,x,5,20\nb,z,3,10\na,y,1,1\na,x,2,3\na,z,4,2\n",
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "b\tx\t5\t20.5\nb\tz\t3\t10\na\ty\t1\t1\na\tx\t2\t3\na\tz\t4\t2\n",
    "pairs": "b z\nb x\na y\na z\na x\n",
    "lines": "b z x\na y z x\n",
}
SUFFIX = {"csv": ".csv", "inter": ".inter", "pairs": ".txt", "lines": ".txt", "parquet": ".parquet"}


def write(folder: Path, text: str, name: str = "data.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def histories(path: Path, **options: object) -> dict[object, list[object]]:
    data = load_interactions(path, **options)  # type: ignore[arg-type]
    found: dict[object, list[object]] = {}
    for user in range(data.num_users):
        run = slice(int(data.offsets[user]), int(data.offsets[user + 1]))
        assert (data.users[run] == user).all()
        found[data.user_ids.id(user)] = [data.item_ids.id(item) for item in data.items[run].tolist()]
    return found


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("named", [True, False])
def test_layouts(tmp_path: Path, layout: str, named: bool) -> None:
    path = write(tmp_path, FILES[layout], f"data{SUFFIX[layout]}")
    assert recognise(path) == layout
    assert histories(path, format=layout if named else None) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    pl.read_csv(FILES["csv"].encode()).write_parquet(tmp_path / "data.parquet")
    assert histories(tmp_path / "data.parquet") == EXPECTED
    (tmp_path / "data.parquet").rename(tmp_path / "data.bin")
    assert histories(tmp_path / "data.bin") == EXPECTED


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_csv_separators(tmp_path: Path, separator: str) -> None:
    text = FILES["csv"].replace(",", separator)
    assert histories(write(tmp_path, text, "data.csv")) == EXPECTED
    assert histories(write(tmp_path, text, "data.txt")) == EXPECTED


def test_csv_column_names_and_dates(tmp_path: Path) -> None:
    text = 'who,what,when\nb,"x, y",2024-01-02\nb,z,2023-12-31\n'
    path = write(tmp_path, text, "data.csv")
    with pytest.raises(ValueError, match=r"no column that looks like the user.*who, what, when.*--user-column"):
        load_interactions(path)
    assert histories(path, columns=Columns("who", "what", "when")) == {"b": ["z", "x, y"]}
    with pytest.raises(ValueError, match="no column 'whom' for the user"):
        load_interactions(path, columns=Columns("whom", "what", "when"))


def test_byte_order_mark_blank_lines_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xef\xbb\xbfb z\r\nb  x\r\n\r\n a\ty\na z\na x\n\n")
    assert histories(path) == EXPECTED
    path.write_bytes(b"\xef\xbb\xbfuser,item\r\nb,z\r\nb,x\r\n")
    assert histories(path) == {"b": ["z", "x"]}


def test_ids_are_integers_only_if_all_are(tmp_path: Path) -> None:
    assert histories(write(tmp_path, "10 3\n9 4\n9 3\n")) == {9: [4, 3], 10: [3]}
    assert histories(write(tmp_path, "10 3\n9 03\n9 3\n")) == {9: ["03", "3"], 10: ["3"]}
    assert histories(write(tmp_path, "-1 12345678901234567890\n9 3\n")) == {-1: ["12345678901234567890"], 9: ["3"]}


def test_rows_do_not_depend_on_line_order(tmp_path: Path) -> None:
    first = load_interactions(write(tmp_path, "2 30\n1 20\n2 10\n"))
    second = load_interactions(write(tmp_path, "1 20\n2 30\n2 10\n"))
    assert first.item_ids.ids.to_list() == second.item_ids.ids.to_list() == [10, 20, 30]
    assert torch.equal(first.items, second.items)


def test_equal_times_keep_the_files_order(tmp_path: Path) -> None:
    path = write(tmp_path, "user,item,time\n1,5,0\n1,3,0\n1,4,0\n", "data.csv")
    assert histories(path) == {1: [5, 3, 4]}


def test_repeats_keep_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, "1 5\n1 3\n1 5\n1 4\n")
    assert histories(path) == {1: [5, 3, 4]}
    assert load_interactions(path).num_repeats == 1


BAD = {
    "empty": ("", "data.txt", "is empty"),
    "blank": ("\n \n", "data.txt", "is empty"),
    "header only": ("user,item\n", "data.csv", "no interactions"),
    "three fields among pairs": ("1 2\n1 3\n1 4 5\n1 6\n", "data.txt", r"line 3: expected 2 fields.*got 3: '1 4 5'"),
    "one field among pairs": ("1 2\n1 3\n1\n", "data.txt", "line 3: expected 2 fields.*got 1"),
    "user without items": ("1 2 3\n2\n", "data.txt", "line 2: expected `user item item ...`"),
    "csv line too long": ("user,item\n1,2\n1,2,3\n", "data.csv", "line 3: expected 2 fields as in the header, got 3"),
    "csv line too short": ("user,item,time\n1,2,3\n1,2\n", "data.csv", "line 3: expected 3 fields"),
    "no item column": ("user,score\n1,2\n", "data.csv", "no column that looks like the item.*user, score"),
    "null item": ("user,item\n1,2\n1,\n", "data.csv", "line 3: expected an item in column 'item', got nothing"),
    "null user": ("user,item\n1,2\n,3\n", "data.csv", "line 3: expected a user"),
    "null time": ("user,item,time\n1,2,\n1,3,1\n", "data.csv", "line 2: expected a time"),
    "odd time": ("user,item,time\n1,2,3\n1,2,late\n", "data.csv", "line 3: expected a number or a date.*'late'"),
    "same name twice": ("user,user,item\n1,2,3\n", "data.csv", "distinct column names"),
    "not parquet": ("user,item\n1,2\n", "data.parquet", "does not begin with PAR1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    text, name, message = BAD[case]
    path = write(tmp_path, text, name)
    with pytest.raises(ValueError, match=message) as error:
        load_interactions(path)
    assert str(path) in str(error.value)


def test_more_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_interactions(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder"):
        load_interactions(tmp_path)
    with pytest.raises(ValueError, match="unknown format 'excel': expected one of csv"):
        load_interactions(write(tmp_path, "1 2\n"), format="excel")
    with pytest.raises(ValueError, match="line 2: user 1 already has line 1"):
        load_interactions(write(tmp_path, "1 2 3\n1 4 5\n"), format="lines")
    path = tmp_path / "binary.txt"
    path.write_bytes(bytes(range(128, 256)) * 20)
    with pytest.raises(ValueError, match="UTF-8"):
        load_interactions(path)
    path = tmp_path / "cut.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        load_interactions(path)
    pl.DataFrame({"user": [1.5, 2.0], "item": [1, 2]}).write_parquet(path)
    with pytest.raises(ValueError, match="whole numbers or text as user ids"):
        load_interactions(path)
    pl.DataFrame({"user": [1, None], "item": [1, 2]}).write_parquet(path)
    with pytest.raises(ValueError, match="row 2: expected a user"):
        load_interactions(path)


def test_id_map_round_trip(tmp_path: Path) -> None:
    for ids in (["a", "b", "ß"], [-3, 0, 7]):
        known = FileIds(pl.Series("id", ids))
        known.save(tmp_path / "ids.parquet")
        loaded = FileIds.load(tmp_path / "ids.parquet")
        assert [loaded.id(row) for row in range(len(loaded))] == ids
        assert [loaded.row(id) for id in ids] == [0, 1, 2]
        with pytest.raises(KeyError):
            loaded.row("c" if isinstance(ids[0], str) else 8)
        with pytest.raises(IndexError):
            loaded.id(3)
    with pytest.raises(KeyError, match="cannot be an id"):
        loaded.row("seven")
    (tmp_path / "ids.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected a Parquet file"):
        FileIds.load(tmp_path / "ids.parquet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "user item\n1 2\n1 3\n", "looks like a header"),
        ("a.txt", "1 10 5 978300760\n2 11 3 978302109\n3 12 4 978301968\n", "every line has 4 words"),
    ],
)
def test_what_is_not_an_interaction_is_not_taken_for_one(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_interactions(path)


def test_ids_lose_the_spaces_around_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item\n1, 2\n1,3\n2,2\n")
    assert len(load_interactions(path).item_ids) == 2


def test_ids_beyond_64_bits_are_said(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": [1], "item": [2**64 - 1]}, schema={"user": pl.UInt64, "item": pl.UInt64}).write_parquet(path)
    with pytest.raises(ValueError, match="64-bit"):
        load_interactions(path)


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor], ids=lambda make: make.__name__)
def test_the_map_of_ids_takes_numbers_of_numpy_and_torch(number):
    integers, text = FileIds(pl.Series("id", [5, 7])), FileIds(pl.Series("id", ["5", "7"]))
    assert (integers.row(number(7)), integers.id(number(0))) == (1, 5)
    assert (text.row(number(7)), text.id(number(0))) == (1, "5")
    with pytest.raises(KeyError, match="id 6 is not in the training file"):
        integers.row(number(6))
    with pytest.raises(KeyError, match="True cannot be an id here"):
        integers.row(True)
    with pytest.raises(IndexError, match="row 2 is outside"):
        integers.id(number(2))
