"""Golden files: their bytes never change, a reader written from docs/format.md agrees, so does the example there."""

import hashlib
import json
import re

import pytest
import torch
from format_reader import FormatReader, hash_number
from make_golden import GOLDEN, golden_tables, write_appended, write_sharded
from paths import ROOT

from mgqe.baselines.hashing import bucket_of
from mgqe.table.appended import append
from mgqe.table.io import load, save

# Files of versions 1 and 2 must stay readable, so a change here needs a new version of the format.
SHA256 = {
    "additive-float16.safetensors": "e0f93bd2ac211296dac1ab575c8517e4da4aa6f5884252049a87f426d4183ef1",
    "additive-int8.safetensors": "07d4d1da34e7e575aee3eaa41836ff84078f2bc2eae99d9ae39cbe4d64724441",
    "cce.safetensors": "8e7535c3316e81f3539f3273cc9e05c1b9fae00615b62c220fc981fd59d8cea9",
    "compact-fallback.safetensors": "592edc147da5f7281d50737aa66e829cd1cd5640cde49ef5153ed45038903593",
    "compact-frequency-order.safetensors": "898e2bd4dab4812c066154dc50b6d9d5270d0a09291bd84dc43a83eb90157020",
    "compact-own-codebooks-float16.safetensors": "6a58def9fb15b26fb8ebeeb82238a80e34811a4f5a16cd4ba79b158e98b6c691",
    "compact-small.safetensors": "dacfc574fd9b39982832659a1aed0eccb68b5efa5ae2383d0f98c4ea48ca428b",
    "compact-three-tiers-int8.safetensors": "8f331030c00b2b177816c6c6f34d154465bc38926e2b988eea3a9c157b919a85",
    "full-bfloat16.safetensors": "776420672740dd55cae24eb0018e4cce119e89190fb6648d9ead409cd6f90bb4",
    "hash.safetensors": "962d08fed1eb638bfcda63ab28cb383a5422e58a4a88889db409494acca60f94",
    "low-rank.safetensors": "f2c0e96dd387e1f488955eee1b7e6c5992cc0eed95f20ea903d81fb4efe29fdb",
    "mixed-column-scales.safetensors": "cd02f1a96f945a20a3e68a691f3f8413482f0d8206da8f11b8e74c56bd8a416c",
    "mixed-float32-matrix.safetensors": "6b6cae6b4c1549c11647192c79da26162b620cd8305a3c6a60153d3fae7f38d9",
    "mixed-separate-int8.safetensors": "82f09689148ac87bed61b2d8716c7c08285c877a3372e903dc34f4e1936e6d31",
    "mixed-small.safetensors": "9efa375fa1f8f2d87e725abdce7e68c30b1e4941a3a9823a93ab12eb8269a374",
    "mixed-three-tiers-int8-matrix.safetensors": "f9cb473c2b83e0d14115ba6c2b058588bd2bd002d7f352f84ecd3c5170da1f2b",
    "quotient-remainder.safetensors": "f7e06bab517f520f512b2938cb3422af7dbebdc445bf4680075dc24012075325",
    "scalar-dimension.safetensors": "f0535b6af5eb777c53995c71dcb47439d0c28f55bc00f91e11aa5d5c4ede0f49",
    "scalar-row.safetensors": "2548383e167e4dc31ea0449f0816609a53f9938c2d0b372dbcf9ec5b50687a6e",
}
APPENDED = {
    "compact-small.safetensors": SHA256["compact-small.safetensors"],
    "compact-small.safetensors.append-24260ff5-000001": (
        "5a7b26735d2e6bbafa5924dffb50be3c23c200b3ebbaea0d4833427915664ad3"
    ),
    "compact-small.safetensors.append-24260ff5-000002": (
        "5b6f1105627bf794818ac4605a3fb0226d7504503ecbf0f62401106f9edcb8ad"
    ),
    "compact-small.safetensors.append-24260ff5-record": (
        "94969a45cd97b34c796656fe1b89f1d4ffa2d610a146e45def7ce783ad2de317"
    ),
}
SHARDED = {
    "shard-00112233445566aa-00000.safetensors": "2b1a279d977af314620f0785136a53a39603cc04286be9d8d07bb7241a87ba4b",
    "shard-00112233445566aa-00001.safetensors": "7530efd162fc10ebe5ebd387a3e2dcafe8ff227c6ae6917f2c32cad99a2f1659",
    "table.safetensors": "ee88ea930e9e6bb6f400377bff87e122412c56d16a15d494cc1193381e299f38",
}
VERSION_1 = {
    "appended/compact-small.safetensors": "672f213c8326a444390692a610195477166dc73e36bbc15279d4216def63ca11",
    "appended/compact-small.safetensors.append-24260ff5-000001": (
        "9de78c2dbaef76328944d03d1b3f306cce0d850e22b2f51fdda334693efb624e"
    ),
    "appended/compact-small.safetensors.append-24260ff5-000002": (
        "b15cfdad6df23670e0d3e43c8d129fcf8738b057c2a35cff80f97939b0995eef"
    ),
    "compact-fallback.safetensors": "afc4a5458d8d033b9af4c745bf297ff13fb12936416f6724b50671a0ae1f581b",
    "compact-frequency-order.safetensors": "824a25dcd03541b9dbd469c6964d7e4c967fcdca6b2f12fb17a33ef193125430",
    "compact-own-codebooks-float16.safetensors": "7e0a08f9b21e38366bc6fe17817765ac9311aa6c70e7b4cb14eaf135058dbab8",
    "compact-small.safetensors": "672f213c8326a444390692a610195477166dc73e36bbc15279d4216def63ca11",
    "compact-three-tiers-int8.safetensors": "e065fef51a5bbb8c4fd40ceabe756ad44931c5600e31b44a1f097752baaa75cf",
    "full-bfloat16.safetensors": "b8e8240b43cc101ac7160ce5f62af58fe8b308f954ab65e0a9143974c0e350b6",
    "hash.safetensors": "f8305576aa5aba7055daf515c463cd49988a27d57d4eefaa56322964688acc98",
    "idmap/binary.safetensors": "9d69cb1fa6ce8f4362798d91926bb74f47d18b0aa12767b3e88e6a4927b6d619",
    "idmap/hashes.safetensors": "05460db30210a6cd172b3aac5c23accfa50d851694e2d67af0194c7622f38e26",
    "idmap/int32.safetensors": "037764bc6e0ce34753ed3520d9d09bb33e62814fb89d097b43d23a8f9ad5d17c",
    "idmap/int64.safetensors": "df6f411b95116d35cc6045fd17f18c0ed907a5e3e06c359cd683b79f9ce66e48",
    "idmap/string.safetensors": "67f52d75b19f7950549c089b368271e252d0d52a7fd406002b40cddd706b34ce",
    "idmap/uint64.safetensors": "4b0af8dbec9d374ce7fe6a2878a30dd14bb70ea80b9f3936594644494a9fadd7",
    "low-rank.safetensors": "a83a62fc1e43eab0d0522f5862d3b3fca30f6f82080cc0a733cb46ff33734bd3",
    "quotient-remainder.safetensors": "5a6f76be04a91ba1e844f65655416b86163bba28e5b43a88eb466de712d1fb47",
    "scalar-dimension.safetensors": "e6daeabb34e421e09c0da8544b83328adbad12cc8e3a5795a0ae5724182adff1",
    "scalar-row.safetensors": "33c15a51c4253f4b2c12f09b6bc18b8b5ac9ec2bb2e3976de9ce33f7a1d94531",
    "sharded/shard-00112233445566aa-00000.safetensors": (
        "bc4d6083a500ed256d1b88a0ccf86dcda65a5b342f23ad894b38955aeef3c631"
    ),
    "sharded/shard-00112233445566aa-00001.safetensors": (
        "ccb77dbe761203fe8110ac32d6de78609954d26c1457ecc166feed71638f7853"
    ),
    "sharded/table.safetensors": "b3cfd286673fbf4c39504e646e4d949df9e8365f84b2a6c7f03cba90c0c91bcb",
}
EVERY_FILE = [(GOLDEN, name) for name in SHA256] + [
    (GOLDEN / "version-1", name) for name in SHA256 if name in VERSION_1
]
each_version = pytest.mark.parametrize("folder", [GOLDEN, GOLDEN / "version-1"], ids=["version 2", "version 1"])
FORMAT_DOC = ROOT / "docs" / "format.md"


def test_every_golden_file_is_listed():
    assert {path.name for path in GOLDEN.iterdir() if path.is_file()} == SHA256.keys() == golden_tables().keys()
    assert {path.name for path in (GOLDEN / "appended").iterdir()} == APPENDED.keys()
    assert {path.name for path in (GOLDEN / "sharded").iterdir()} == SHARDED.keys()


def test_files_of_version_1_are_as_they_were():
    folder = GOLDEN / "version-1"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == VERSION_1


@pytest.mark.parametrize("name", SHA256)
def test_bytes(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256[name]
    save(golden_tables()[name], tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_bytes_of_appended_files(tmp_path):
    assert [path.name for path in write_appended(tmp_path / "new")] == [*APPENDED]
    for name, expected in APPENDED.items():
        content = (GOLDEN / "appended" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
        assert (tmp_path / "new" / name).read_bytes() == content


@each_version
def test_a_second_reader_agrees_on_appended_files(folder):
    path = folder / "appended" / "compact-small.safetensors"
    reader, table = FormatReader(path), load(path)
    assert table.num_embeddings == reader.num_embeddings == 8
    rows = table.lookup(torch.arange(8))
    assert rows.tolist() == [reader.row(i) for i in range(8)]
    assert rows[5:].tolist() == [[-1.25, -0.25], [-2.0, 0.5], [0.25, 2.0]]
    assert torch.equal(rows[:5], load(GOLDEN / path.name).lookup(torch.arange(5)))


def test_bytes_of_a_sharded_folder(tmp_path):
    assert [path.name for path in write_sharded(tmp_path / "new")] == [*SHARDED]
    for name, expected in SHARDED.items():
        content = (GOLDEN / "sharded" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
        assert (tmp_path / "new" / name).read_bytes() == content


@each_version
def test_a_second_reader_agrees_on_a_sharded_folder(folder):
    table, reader = load(folder / "sharded"), FormatReader(folder / "sharded" / "table.safetensors")
    assert table.equal(load(GOLDEN / "compact-three-tiers-int8.safetensors"))
    assert table.lookup(torch.arange(300)).tolist() == [reader.row(i) for i in range(300)]


@pytest.mark.parametrize("name", ["compact-fallback.safetensors", "mixed-float32-matrix.safetensors"])
def test_a_second_reader_agrees_on_the_fallback(name):
    path = GOLDEN / name
    for unknown in (-1, 9, 2**40):
        assert load(path).lookup(torch.tensor(unknown)).tolist() == FormatReader(path).row(unknown)


@pytest.mark.parametrize(("folder", "name"), EVERY_FILE)
def test_a_second_reader_agrees(folder, name):
    reader, table = FormatReader(folder / name), load(folder / name)
    assert table.equal(golden_tables()[name])
    assert (table.kind, table.num_embeddings, table.embedding_dim) == (
        reader.kind,
        reader.config["num_embeddings"],
        reader.config["embedding_dim"],
    )
    rows = table.lookup(torch.arange(table.num_embeddings))
    assert rows.tolist() == [reader.row(i) for i in range(table.num_embeddings)]


def test_rows_by_formula():
    """The golden codes and centroids, worked out without any table: see make_golden.py."""
    rows = load(GOLDEN / "compact-frequency-order.safetensors").lookup(torch.arange(11))
    for i in range(11):
        rank, k = (i, 64) if i < 3 else (i - 3, 10)
        codes = [(3 * rank + 5 * j) % k for j in range(3)]
        expected = [((7 * j + 3 * codes[j] + t) % 17 - 8) / 4 for j in range(3) for t in range(2)]
        assert rows[i].tolist() == expected


def test_the_documented_example():
    text = FORMAT_DOC.read_text()
    content = (GOLDEN / "compact-small.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = re.search(r"```json\n(.*?)\n```", text, re.DOTALL).group(1)
    data = re.search(r"```hex\n(.*?)\n```", text, re.DOTALL).group(1)
    assert f"{len(content)} bytes: five ids" in text
    assert f"`{content[:8].hex(' ')}`" in text
    assert content[8 : 8 + length].decode() == header + 6 * " "
    assert content[8 + length :] == bytes.fromhex(data)
    rows = load(GOLDEN / "compact-small.safetensors").lookup(torch.tensor([4, 3, 2]))
    assert rows.tolist() == [[0.25, -0.25], [-2.0, 0.5], [0.0, 0.0]]
    json.loads(header)


def test_the_documented_mixed_table():
    text = FORMAT_DOC.read_text()
    content = (GOLDEN / "mixed-small.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length].decode().rstrip(), content[8 + length :]
    assert f"`tests/golden/mixed-small.safetensors`, {len(content)} bytes" in text
    assert header in text
    elements = json.loads(header)["checksums"]["data_offsets"][0]
    assert data[:elements] in [bytes.fromhex(each) for each in re.findall(r"```hex\n(.*?)\n```", text, re.DOTALL)]
    rows = load(GOLDEN / "mixed-small.safetensors").lookup(torch.tensor([4, 3])).tolist()
    assert all(f"({', '.join(f'{x:g}' for x in row)})" in text for row in rows)


@pytest.mark.parametrize("name", ["mixed-three-tiers-int8-matrix.safetensors", "mixed-column-scales.safetensors"])
def test_an_appended_file_of_a_mixed_table(name, tmp_path):
    """Its name tells the mean and the matrix, too, by which the codes have their meaning."""
    path, whole = tmp_path / "table", golden_tables()[name]
    n, d = whole.num_embeddings, whole.embedding_dim
    save(whole, path)
    append(path, torch.linspace(-1, 1, 2 * d).reshape(2, d))
    append(path, torch.linspace(-2, 1, d).reshape(1, d), tier=0)
    reader, table = FormatReader(path), load(path)
    assert table.num_embeddings == reader.num_embeddings == n + 3
    assert table.lookup(torch.arange(n + 3)).tolist() == [reader.row(i) for i in range(n + 3)]


def test_the_documented_appended_file():
    text = FORMAT_DOC.read_text()
    content = (GOLDEN / "appended" / [*APPENDED][1]).read_bytes()
    assert f"tests/golden/appended/{[*APPENDED][1]}`, {len(content)} bytes" in text
    assert content[8:384].decode().rstrip() in text
    assert content[384:386] == b"\x01\x02"
    assert len(content) == 402


def test_the_documented_record():
    content = (GOLDEN / "appended" / [*APPENDED][3]).read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode().rstrip()
    assert header in FORMAT_DOC.read_text()


def test_the_documented_shard():
    text = FORMAT_DOC.read_text()
    name = next(iter(SHARDED))
    content = (GOLDEN / "sharded" / name).read_bytes()
    assert f"tests/golden/sharded/{name}`, {len(content)} bytes" in text
    length = int.from_bytes(content[:8], "little")
    assert content[8 : 8 + length].decode().rstrip() in text


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("num_buckets", [1, 7, 1000])
def test_hashes(seed, num_buckets):
    ids = torch.tensor([0, 1, 2, 1000, 2**31, 2**47])
    for j in range(3):
        expected = [hash_number(i, j, seed, num_buckets) for i in ids.tolist()]
        assert bucket_of(ids, num_buckets, seed, j).tolist() == expected


def test_documented_hashes():
    assert [hash_number(i, 0, 0, 1000) for i in range(3)] == [767, 232, 55]
    assert "ids 0, 1, 2 is 767, 232, 55" in FORMAT_DOC.read_text()
