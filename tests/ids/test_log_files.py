"""Log files as other programs write them, read by IdMap.from_log, count_ids and load_interactions."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mgqe
from mgqe import IdMap
from mgqe.ids.logs.paths import log_files
from mgqe.ids.logs.text_layout import TextLayout

pl = pytest.importorskip("polars")

from mgqe.recsys.data.columns import Columns  # noqa: E402
from mgqe.recsys.data.interactions import load_interactions  # noqa: E402


def counts_of(source, column="item", **options):
    """Id -> count, by IdMap, in which a lost row would show."""
    found = IdMap.from_log(source, column, **options)
    assert found.interactions == int(found.counts.sum())
    return dict(zip(list(found.ids(range(len(found)))), found.counts.tolist()))


def histories(source, **options):
    data = load_interactions(source, **options)
    runs = zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist())
    return {
        data.user_ids.id(user): [data.item_ids.id(item) for item in data.items[first:last].tolist()]
        for user, (first, last) in enumerate(runs)
    }


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pl.DataFrame):
            content.write_parquet(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


# ---- folders and Parquet -------------------------------------------------------------------------------------


@pytest.fixture
def spark(write, tmp_path):
    """A folder as Spark writes it: data, a success marker, checksums and unfinished files."""
    for number in range(3):
        frame = pl.DataFrame({"user": [number, 7], "item": [5, number], "time": [1, 2]})
        name = f"part-{number:05}-c0ffee-c000.snappy.parquet"
        write(f"out/{name}", frame)
        write(f"out/.{name}.crc", b"crc\0\0")
    write("out/_SUCCESS", b"")
    write("out/._SUCCESS.crc", b"crc\0")
    write("out/_temporary/0/part-00000.parquet", pl.DataFrame({"item": [9]}))
    return tmp_path / "out"


def test_a_folder_as_spark_writes_it_is_read_by_every_door(spark):
    assert counts_of(spark) == {5: 3, 0: 1, 1: 1, 2: 1}
    assert counts_of(f"{spark}/") == counts_of([str(spark)]) == counts_of(str(spark / "*")) == counts_of(spark)
    assert mgqe.count_ids(spark, 6, column="item").tolist() == [1, 1, 1, 0, 0, 3]
    assert histories(spark) == histories(str(spark / "part-*")) == {0: [5], 1: [5], 2: [5], 7: [0, 1, 2]}


def test_folders_named_key_value_are_columns(write, tmp_path):
    write("out/day=2024-01-02/lang=de/part-0.parquet", pl.DataFrame({"user": [1], "item": [3]}))
    write("out/day=2024-01-01/lang=fr%2Fca/part-0.parquet", pl.DataFrame({"user": [1, 1], "item": [4, 5]}))
    source = tmp_path / "out"
    assert counts_of(source) == {3: 1, 4: 1, 5: 1}
    assert counts_of(source, "lang") == {"fr/ca": 2, "de": 1}
    assert histories(source, columns=Columns(time="day")) == {1: [4, 5, 3]}
    write("out/day=__HIVE_DEFAULT_PARTITION__/lang=de/part-0.parquet", pl.DataFrame({"user": [1], "item": [3]}))
    with pytest.raises(ValueError, match=r"__/lang=de/part-0\.parquet, row 1: expected a time in column 'day'"):
        histories(source, columns=Columns(time="day"))
    with pytest.raises(ValueError, match=r"__/lang=de/part-0\.parquet: column 'day', row 0 from 0: 1 missing ids"):
        counts_of(source, "day")


def test_parquet_is_known_by_its_first_bytes(write):
    frame = pl.DataFrame({"user": [1, 1], "item": [2, 3]})
    for name in ("log", "part-0", "log.csv", "a[1]*?"):
        path = write(name, frame)
        assert counts_of(path) == {2: 1, 3: 1}
        assert mgqe.count_ids(path, 4, column="item").tolist() == [0, 0, 1, 1]
        assert histories(path) == {1: [2, 3]}


def test_parts_may_have_grown_columns_and_widened_integers(write, tmp_path):
    old = {"user": pl.Series([1, 1], dtype=pl.Int32), "item": pl.Series([3, 4], dtype=pl.Int32), "time": [1, 2]}
    write("out/0.parquet", pl.DataFrame(old))
    new = {"item": pl.Series([2**53 + 1, 3], dtype=pl.Int64), "note": ["x", None], "time": [3.5, 4.0], "user": [1, 2]}
    write("out/1.parquet", pl.DataFrame(new))
    write("out/2.parquet", pl.DataFrame({"item": [4.0, 2.0**31], "user": [1.0, 2.0], "time": [5, 6], "note": [1, 2]}))
    assert counts_of(tmp_path / "out") == {3: 2, 4: 2, 2**31: 1, 2**53 + 1: 1}
    assert counts_of(tmp_path / "out", kind="string") == {"3": 2, "4": 2, str(2**31): 1, str(2**53 + 1): 1}
    assert histories(tmp_path / "out") == {1: [3, 4, 2**53 + 1], 2: [3, 2**31]}
    for bad, why in ((4.5, "holds '4.5'"), (2.0**53, "holds '9007199254740992.0'"), (None, "1 missing ids")):
        write("out/2.parquet", pl.DataFrame({"item": [3.0, bad], "user": [1, 2], "time": [5, 6]}))
        with pytest.raises(ValueError, match=rf"2\.parquet: column 'item', row 1 from 0:.* {why}"):
            counts_of(tmp_path / "out")
        with pytest.raises(ValueError, match=r"2\.parquet, row 2: expected a"):
            histories(tmp_path / "out")


def test_parts_of_different_kinds_name_both_files(write, tmp_path):
    write("out/0.parquet", pl.DataFrame({"user": [1], "item": [3]}))
    write("out/1.parquet", pl.DataFrame({"user": [1], "item": ["3"]}))
    with pytest.raises(ValueError, match=r"1\.parquet: column 'item' holds .* string, but .* int64 in .*0\.parquet"):
        counts_of(tmp_path / "out")
    assert counts_of(tmp_path / "out", kind="int64") == {3: 2}
    with pytest.raises(ValueError, match=r"1\.parquet: column of the item holds String, but Int64 in .*0\.parquet"):
        histories(tmp_path / "out")
    write("out/1.parquet", pl.DataFrame({"user": [1], "items": [3]}))
    with pytest.raises(ValueError, match=r"1\.parquet: .*no column 'item': the file has user, items"):
        counts_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"1\.parquet: .*no column 'item'"):
        histories(tmp_path / "out")


def test_a_part_without_any_value_is_an_error_that_names_it(write, tmp_path):
    write("out/0.parquet", pl.DataFrame({"item": ["a"]}))
    write("out/1.parquet", pl.DataFrame({"item": [None]}))
    with pytest.raises(ValueError, match=r"1\.parquet: column 'item', row 0 from 0: 1 missing ids"):
        counts_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.parquet", b"", "expected Parquet by its name, but it is empty"),
        ("text.parquet", b"item\n1\n", "does not begin with PAR1"),
        ("a.zip", b"PK\x03\x04....", "got a zip archive: convert it first"),
        ("wide.csv", "item\n1\n".encode("utf-16"), "got UTF-16 text"),
        ("cut", b"PAR1 and no more", "cannot be read as parquet: damaged, or cut short"),
        ("zero.csv", b"item,x\n1,2\n\0,2\n", "cannot be read as text"),
        ("none.csv", b"", "it is empty"),
    ],
)
def test_what_cannot_be_read_is_said_without_another_librarys_words(write, name, content, match):
    path = write(name, content)
    for read in (counts_of, lambda p: mgqe.count_ids(p, 9, column="item"), load_interactions):
        with pytest.raises(ValueError, match=match) as error:
            read(path)
        assert str(path) in str(error.value)
        assert not {"polars", "arrow", "dtype", "infer_schema"} & set(str(error.value).lower().split())


def test_damage_in_a_page_names_the_file(write, tmp_path):
    good = pl.DataFrame({"user": range(5000), "item": range(5000)})
    path = write("out/1.parquet", good)
    write("out/0.parquet", good)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = os.urandom(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.parquet: cannot be read as parquet"):
        counts_of(tmp_path / "out", "user")
    with pytest.raises(ValueError, match=r"1\.parquet: cannot be read as parquet"):
        load_interactions(tmp_path / "out")


def test_folders_without_data_and_mixed_ones(write, tmp_path):
    write("out/_SUCCESS", b"")
    for read in (counts_of, load_interactions):
        with pytest.raises(ValueError, match="is a folder without data"):
            read(tmp_path / "out")
    write("out/a.csv", b"user,item\n1,2\n")
    write("out/b", pl.DataFrame({"user": [1], "item": [2]}))
    with pytest.raises(ValueError, match=r"files of one kind.*out/b \(Parquet\).*out/a.csv \(text\)"):
        counts_of(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"none-\*: no file"):
        log_files(str(tmp_path / "none-*"))


def test_a_folder_of_text_has_a_header_in_each_file(write, tmp_path):
    write("out/part-0.csv", b"user,item\n1,2\n")
    write("out/part-1.csv", b"item,note,user\n3,,1\n")
    write("out/part-2.csv", b"")  # an empty partition
    write("out/part-3.csv", b"user,item\n")
    assert counts_of(tmp_path / "out") == {2: 1, 3: 1}
    assert mgqe.count_ids(tmp_path / "out", 4, column="item").tolist() == [0, 0, 1, 1]
    assert histories(tmp_path / "out") == {1: [2, 3]}
    with pytest.raises(ValueError, match="no ids to count"):
        counts_of(tmp_path / "out/part-3.csv")


# ---- quotes --------------------------------------------------------------------------------------------------

STRAY = 'user,item,title\n1,10,7" single\n1,11,5\n2,12,"Weird Al" Yankovic\n2,13,12" x 7"\n2,10,"a ""b"", c"\n'


def test_quotes_in_a_column_that_nobody_asked_for_lose_no_row(write):
    path = write("a.csv", STRAY)
    assert counts_of(path) == {10: 2, 11: 1, 12: 1, 13: 1}
    assert mgqe.count_ids(path, 14, column="item").tolist() == [0] * 10 + [2, 1, 1, 1]
    assert histories(path) == {1: [10, 11], 2: [12, 13, 10]}
    with pytest.raises(ValueError, match=r"a\.csv: line 4, column 'title': .*turn quoting off with quote='' \(--no-q"):
        counts_of(path, "title")


def test_without_quotes_a_quote_is_text(write):
    path = write("a.csv", 'user,item\n1,"x\n1,7"\n2,"y"\n')
    for quote in ("", None):
        assert counts_of(path, quote=quote) == {'"x': 1, '7"': 1, '"y"': 1}
        assert histories(path, columns=Columns(quote=quote)) == {1: ['"x', '7"'], 2: ['"y"']}
    path = write("b.csv", "user,item\n1,'x,y'\n1,7\n")
    assert counts_of(path, quote="'") == {"7": 1, "x,y": 1}
    assert histories(path, columns=Columns(quote="'")) == {1: ["x,y", "7"]}
    for wrong in ("ab", ",", "\n"):
        with pytest.raises(ValueError, match="quote must be one character"):
            counts_of(path, quote=wrong)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('item,note\n1,x\n2,"never closed\n3,y\n4,z\n', 3),
        ('item,note\n1,x\n2,"opened\n3,"opened again\n4,z\n', 3),
        ('item,note\n1,x\n2,"opened\n3,y\n4,closed"\n5,z\n', 3),
        ('item,note\n1,"a\nb"\n2,"opened\n3,y\n4,closed"\n5,z\n', 4),
        ('note,item\n"opened,1\nx,2\ny",3\n', 2),
    ],
)
def test_a_quote_that_swallows_rows_is_an_error_with_its_line(write, text, line):
    path = write("a.csv", text)
    with pytest.raises(ValueError, match=rf"a\.csv: line {line}: a quoted field .*quote='' \(--no-quote\)"):
        counts_of(path)
    rows = text.count("\n") - 1
    if line == 3:
        assert sum(counts_of(path, quote="").values()) == rows
    with pytest.raises(ValueError, match=rf"a\.csv: line {line}: a quoted field"):
        mgqe.count_ids(path, 9, column="item")


def test_quoted_fields_of_several_lines_are_one_field(write):
    text = 'item,user,note\n1,7,"a\nb, c\n""d"""\n\n2,7,"x"\n"3",7,"many\nlines, of text, and commas"\n'
    path = write("a.csv", text)
    assert counts_of(path) == {1: 1, 2: 1, 3: 1}
    assert histories(path) == {7: [1, 2, 3]}
    assert counts_of(write("b.csv", 'item,n\n"a\nb",1\nc,2\n')) == {"a\nb": 1, "c": 1}
    path = write("c.csv", text + '4,7,"a\nb",5\n')
    with pytest.raises(ValueError, match=r"c\.csv: line 9 has 4 fields, expected the header's 3"):
        counts_of(path)
    path = write("d.csv", text + ',7,"a\nb"\n')
    with pytest.raises(ValueError, match=r"d\.csv: line 9, column 'item': missing id"):
        counts_of(path)
    with pytest.raises(ValueError, match=r"d\.csv, line 9: expected an item in column 'item', got nothing"):
        load_interactions(path)


def test_recboles_files_are_never_quoted(write):
    text = 'user_id:token\titem_id:token\ttitle:token_seq\n1\t"x\tIt\'s "A"\n1\ty\t"B\n2\t"x\tz"\n'
    path = write("a.inter", text)
    assert counts_of(path, "item_id") == counts_of(path, "item_id:token", separator="\t") == {'"x': 2, "y": 1}
    assert histories(path) == {1: ['"x', "y"], 2: ['"x']}
    assert histories(write("b.txt", text)) == histories(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 20), st.text(alphabet="ab,\" '\n\r;é", max_size=8)), min_size=1, max_size=20),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_what_pythons_writer_writes_is_read(tmp_path_factory, rows, separator, quoting, crlf):
    """Ids beside notes of any text are counted as in the list that was written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator="\r\n" if crlf else "\n")
    writer.writerows([("item", "note"), *rows])
    path = tmp_path_factory.mktemp("log") / "a.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert counts_of(path, separator=separator) == dict(Counter(item for item, _ in rows))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["1", "2", "x", "30"]), st.text(alphabet="ab \"'", max_size=5)),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([",", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_quotes_at_random_are_an_error_or_lose_no_row(tmp_path_factory, rows, separator, end):
    """The lines are those of a program that does not treat quotes specially."""
    lines = [separator.join(row) for row in [("item", "note", "x"), *((*row, "z") for row in rows)]]
    path = tmp_path_factory.mktemp("log") / "a.csv"
    path.write_text(end.join(lines), encoding="utf-8", newline="")
    expected = dict(Counter(item for item, _ in rows))
    assert counts_of(path, separator=separator, quote="", kind="string") == expected
    try:
        found = counts_of(path, separator=separator, kind="string")
    except ValueError as error:
        assert "--no-quote" in str(error)  # noqa: PT017
    else:
        assert found == expected


# ---- missing ids ---------------------------------------------------------------------------------------------


def test_a_word_for_no_value_is_missing_among_integers(write):
    for word in ("null", "NaN", "\\N", "NULL"):
        path = write("a.csv", f"item,x\n{word},1\n7,2\n")
        with pytest.raises(ValueError, match=r"a\.csv: line 2, column 'item': missing id, expected int64"):
            counts_of(path)
    assert counts_of(write("a.csv", "item,x\nnull,1\nb,2\n")) == {"b": 1, "null": 1}
    assert counts_of(write("a.csv", f"item,x\n{2**64 - 1},1\n7,2\n")) == {2**64 - 1: 1, 7: 1}


@pytest.mark.parametrize("blank", ["", '""', "   ", '" "', "\t"])
@pytest.mark.parametrize("ids", ["12", "ab"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_missing_id_is_one_error_however_it_is_written(write, blank, ids, end):
    path = write("a.csv", end.join(["user,item,x", f"{ids[0]},{ids[0]},1", f"{ids[0]},{blank},2", f"u,{ids[1]},3", ""]))
    with pytest.raises(ValueError, match=r"a\.csv: line 3, column 'item': missing id, expected \w+: fill it"):
        counts_of(path)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: expected an item in column 'item', got nothing"):
        load_interactions(path)
    path = write("b.csv", end.join(["item", ids[0], blank, ids[1], ""]))
    with pytest.raises(ValueError, match=r"b\.csv: line 3, column 'item': missing id, expected \w+: fill it"):
        counts_of(path)
    if ids == "12":
        with pytest.raises(ValueError, match=r"b\.csv: line 3, column 'item': missing id, expected int64: fill it"):
            mgqe.count_ids(path, 3, column="item")


# ---- headers and separators ----------------------------------------------------------------------------------

U_DATA = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t377\t1\t878887116\n"
RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
NUMBERED = {"user": "1", "item": "2", "time": "4"}


def test_movielens_files_are_read_as_published(write):
    data, ratings = write("u.data", U_DATA), write("ratings.dat", RATINGS)
    assert counts_of(data, 2, separator="\t", header=False) == {242: 1, 302: 1, 377: 1}
    assert counts_of(data, "1", separator=r"\t", header=False) == {196: 2, 186: 1}
    assert counts_of(ratings, 2, separator="::", header=False) == {1193: 2, 661: 1}
    assert mgqe.count_ids(ratings, 3, column=1, separator="::", header=False).tolist() == [0, 2, 1]
    assert histories(data, columns=Columns(**NUMBERED, header=False)) == {186: [302], 196: [377, 242]}
    assert histories(ratings, columns=Columns(**NUMBERED, separator="::", header=False)) == {1: [1193, 661], 2: [1193]}
    assert histories(ratings, columns=Columns(**NUMBERED, header=False)) == {1: [1193, 661], 2: [1193]}


def test_latin_1_and_quotes_in_titles_do_not_stop_reading(write):
    films = 'é "Amélie" (2001)::Comedy\n2::"Great Performances" Cats (1998)::Musical\n3::It\'s "x::Drama\n'
    path = write("movies.dat", ("1::" + films).encode("latin-1"))
    assert counts_of(path, 1, separator="::", header=False) == {1: 1, 2: 1, 3: 1}
    with pytest.raises(ValueError, match=r"movies\.dat: line 1, column '2': .* is not UTF-8: write the file as UTF-8"):
        counts_of(path, 2, separator="::", header=False)
    assert counts_of(write("ok.csv", "item,x\n\ufffd,1\n"), "item") == {"\ufffd": 1}
    path = write("a.csv", b"user,item,t\n1,2,\xe9\n1,3,x\n")
    assert histories(path) == {1: [2, 3]}
    for text in (b"1 a\n1 \xe9\n", b"1 a b\n2 \xe9 d e\n"):
        with pytest.raises(ValueError, match=r"a\.txt, line 2: .* is not UTF-8"):
            load_interactions(write("a.txt", text))


def test_a_file_without_a_header_never_loses_its_first_row(write):
    remedy = r"line 1 looks like data: .*header=False \(--no-header\).*header=True \(--header\)"
    for name, text, column in (
        ("u.data", U_DATA, "196"),
        ("a.csv", "1,10,5\n2,11,3\n", "10"),
        ("b.csv", "u1,10\nu1,11\n", "u1"),
        ("c.csv", "u1,2.5\nu1,11\n", "2.5"),
    ):
        separator = "\t" if name == "u.data" else ","
        with pytest.raises(ValueError, match=rf"{name}: expected a header, but {remedy}"):
            counts_of(write(name, text), column, separator=separator)
    with pytest.raises(KeyError, match=r"no column 'item': the file has 1, 10, 5 .*header=False \(--no-header\)"):
        counts_of(write("a.csv", "1,10,5\n2,11,3\n"))
    for name, text in (("u.data", U_DATA), ("ratings.dat", RATINGS), ("a.csv", "1,10,5\n2,11,3\n")):
        with pytest.raises(ValueError, match=rf"{name}: no column that looks like the user.*\(--no-header\).*column 1"):
            load_interactions(write(name, text))
    # A header of numbers, as pandas writes it, needs header=True.
    assert counts_of(write("d.csv", "0,1\n7,8\n"), "1", header=True) == {8: 1}


def test_a_header_is_never_taken_for_a_row(write):
    path = write("a.csv", "user,item\n1,2\n1,3\n")
    for read in (
        lambda: counts_of(path, 2, header=False),
        lambda: load_interactions(path, columns=Columns("1", "2", header=False)),
    ):
        with pytest.raises(ValueError, match=r"a\.csv: expected no header, but line 1 looks like one: 'user,item'"):
            read()


def test_columns_without_a_header_are_numbers(write):
    path = write("a.csv", "1,2\n1,3\n")
    with pytest.raises(KeyError, match=r"no column '3': without a header, columns are numbers from 1 to 2"):
        counts_of(path, 3, header=False)
    with pytest.raises(KeyError, match=r"no column 'item': without a header"):
        counts_of(path, "item", header=False)
    with pytest.raises(ValueError, match=r"no header: say which number it has, --user-column 1"):
        load_interactions(path, columns=Columns(header=False))
    with pytest.raises(ValueError, match=r"a\.csv: line 3 has 3 fields, expected 2 as in line 1"):
        counts_of(write("a.csv", "1,2\n1,3\n1,2,3\n"), 1, header=False)
    with pytest.raises(ValueError, match="separator must be"):
        counts_of(path, separator="")
    with pytest.raises(TypeError, match=r"expected a column's name or number, or a list of these, got 1\.5"):
        counts_of(path, 1.5, header=False)
    for text in ("1::2\n1::3\n", "1\t2\n1\t3\n"):
        with pytest.raises(ValueError, match=r"a\.csv: has one column, but '.*' in every line: .*--separator"):
            counts_of(write("a.csv", text), 1, header=False)
    with pytest.raises(ValueError, match=r"a\.csv: .* carriage returns alone: write line feeds"):
        counts_of(write("a.csv", "item,x\r1,2\r"))


def test_lines_end_as_they_may_and_marks_are_no_part_of_an_id(write):
    for content in (
        b"\xef\xbb\xbfitem,x\r\n7,1\r\n8,2",
        b"item,x\n7,1\n8,2",
        b"item,x\r\n7,1\r\n\r\n8,2\r\n\r\n",
        b"x,item\r\n1,7\r\n2,8",
    ):
        assert counts_of(write("a.csv", content)) == {7: 1, 8: 1}
    assert counts_of(write("b.csv", b"\xef\xbb\xbf7,1\r\n8,2\r\n"), 1, header=False) == {7: 1, 8: 1}
    assert counts_of(write("c.csv", b'\xef\xbb\xbf"item",x\n"7",1\n')) == {7: 1}


def test_a_name_twice_matters_only_where_it_is_asked_for(write):
    path = write("a.csv", "item,x,x\n1,2,3\n")
    assert counts_of(path) == {1: 1}
    with pytest.raises(ValueError, match=r"a\.csv, line 1: expected distinct column names, got item, x, x"):
        counts_of(path, "x")
    assert histories(write("b.csv", "user,item,x,x\n1,2,3,4\n")) == {1: [2]}


def test_a_line_cut_short_is_an_error_and_not_a_shorter_id(write):
    with pytest.raises(ValueError, match=r"a\.csv: line 3 has 1 fields, expected the header's 2"):
        counts_of(write("a.csv", "item,x\n123,1\n12"))


def test_compressed_text_is_read_as_it_is(write):
    path = write("a.csv.gz", gzip.compress(b'user,item,x\n1,2,"a\nb"\n1,3,c\n'))
    try:
        pl.scan_csv(path).collect()
    except pl.exceptions.PolarsError:  # of older versions
        with pytest.raises(ValueError, match=r"a\.csv\.gz: .* it is compressed.*: decompress it first"):
            counts_of(path)
        return
    assert counts_of(path) == {2: 1, 3: 1}
    assert histories(path) == {1: [2, 3]}


def test_layouts():
    assert TextLayout.of(r"\t") == TextLayout("\t", '"', None)
    assert TextLayout.of("::") == TextLayout("::", "", None)
    assert TextLayout.of("space", None) == TextLayout(" ", "", None)


def test_temporary_files_go(write, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert counts_of(write("a.csv", 'item,x\n1,"a\nb"\n')) == {1: 1}
    with pytest.raises(ValueError, match="line 2: a quoted field"):
        counts_of(write("a.csv", 'item,x\n1,"a\n'))
    assert not list((tmp_path / "tmp").iterdir())
