"""The check of a file's bytes has the result of a check of each line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgqe.ids.logs import line_check
from mgqe.ids.logs.line_check import all_lines_alike


def by_lines(content: bytes, width: int) -> bool | None:
    lines = content.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    if any(line.count(b",") != width - 1 or b'"' in line or b"\0" in line for line in lines):
        return None
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


SIGNS = st.lists(st.sampled_from([b"1", b",", b"1,2\n", b"\n", b"\r\n", b'"', b"\0", "é".encode(), b"\xe9", b"\xc3"]))


@given(content=st.one_of(SIGNS.map(b"".join), SIGNS.map(lambda signs: b"a,b\n" * 3 + b"".join(signs))), data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_agrees_with_a_look_at_each_line_whatever_the_blocks(content, data, tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    monkeypatch.setattr(line_check, "CHUNK", data.draw(st.sampled_from([1, 2, 3, 5, 1 << 20])))
    for width in (1, 2, 3):
        assert all_lines_alike(str(path), ",", '"', width) is by_lines(content, width)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n3,4", True),  # no line feed at the end
        (b"a,b\n1,2\n3", None),
        (b"a,b\n\n1,2\n", None),
        (b'a,b\n1,7" single\n', None),
        (b"a,b\n1,caf\xe9\n", False),
        ("a,b\n1,caf\u00e9\n".encode(), True),
        (b"a,b\n1,caf\xc3", False),  # half a letter at the end
        (gzip.compress(b"a,b\n1,2\n", mtime=0), None),
    ],
)
def test_what_it_says_of_two_columns(tmp_path: Path, content: bytes, expected: bool | None):
    (tmp_path / "a.csv").write_bytes(content)
    assert all_lines_alike(str(tmp_path / "a.csv"), ",", '"', 2) is expected


def test_quotes_are_text_where_nothing_quotes(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'a\tb\n1\t7"\n')
    assert all_lines_alike(str(tmp_path / "a.csv"), "\t", "", 2) is True
