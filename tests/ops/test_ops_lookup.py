"""mgqe.ops.lookup and max_code: hand-worked bytes, every layout against the twin, buffer ends, refused input."""

import copy
import mmap
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import ALL, instruction_set
from ops_tables import DTYPES, MIXED, dense, mixed_table, pack_codes, table

from mgqe import ops
from mgqe.codec.packing import pack, row_bytes
from mgqe.ops import reference


def check_everything(parts, unpacked, tiers):
    expected = dense(parts, unpacked, tiers)
    ids = torch.cat([torch.arange(parts.num_embeddings), torch.arange(parts.num_embeddings).flip(0)])
    assert torch.equal(ops.lookup(ids, parts), expected[ids])
    assert torch.equal(reference.lookup(ids, parts), expected[ids])


def test_hand_worked_bytes():
    # Two subspaces of 4 bits: byte 0x21 is code 1 in the low half, then code 2.
    book = torch.tensor([[[0.0], [1.0], [2.0], [3.0]], [[0.0], [10.0], [20.0], [30.0]]])
    codes = torch.tensor([[0x21], [0x03]], dtype=torch.uint8)
    two_rows = ops.TableBuffers([codes], [book], [torch.empty(0)], [], [], [], [2], [4], [2], [0], 2, -1)
    rows = ops.lookup(torch.tensor([[1, 0], [0, 0]]), two_rows)
    assert rows.tolist() == [[[3, 0], [1, 20]], [[1, 20], [1, 20]]]


def test_hand_worked_int8():
    book = torch.tensor([[[-127], [64]], [[1], [2]]], dtype=torch.int8)
    codes = torch.tensor([[0b01], [0b10]], dtype=torch.uint8)
    scales = torch.tensor([0.5, 4.0])
    two_rows = ops.TableBuffers([codes], [book], [scales], [], [], [], [2], [1], [2], [0], 2, -1)
    rows = ops.lookup(torch.tensor([0, 1]), two_rows)
    assert rows.tolist() == [[32.0, 4.0], [-63.5, 8.0]]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 16, 33])
@pytest.mark.parametrize("count", [2, 16, 64, 100, 200, 256, 1000])
def test_one_tier_of_every_width(count, width, dtype):
    check_everything(*table((77,), (count,), (5,), 5, width, dtype))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("subspaces", [1, 3, 8, 16])
def test_every_number_of_bits(bits, subspaces):
    check_everything(*table((40,), (2**bits,), (subspaces,), subspaces, 2))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shuffled", [False, True], ids=["frequency order", "map"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"own_books": True},
        {"pieces": 1},
        {"sizes": (30, 300, 600), "counts": (256, 256, 256), "subspaces": (8, 4, 2), "pieces": 8, "width": 4},
        {"sizes": (1, 0, 513, 256), "counts": (300, 256, 64, 2), "subspaces": (4, 4, 4, 4)},
        {"sizes": (400, 0), "padding_idx": 7},
        {"padding_idx": 0},
    ],
)
def test_tiers(layout, shuffled, dtype):
    check_everything(*table(**layout, shuffled=shuffled, dtype=dtype))


@pytest.mark.parametrize("isa", ALL)
def test_instruction_sets_agree(isa):
    with instruction_set(isa):
        for dtype in DTYPES.values():
            for width in (1, 3, 4, 8, 16, 20):
                check_everything(*table((200, 900), (256, 37), width=width, dtype=dtype, shuffled=width > 4))


def test_every_float16_converts_exactly():
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    values = values[values.isfinite()][: 63488 // 4 * 4].reshape(1, -1, 4)
    codes = pack(torch.arange(values.shape[1])[:, None], 16)
    every = ops.TableBuffers([codes], [values], [torch.empty(0)], [], [], [], [len(codes)], [16], [1], [0], 4, -1)
    before = ops.native_isa()
    for isa in ("scalar", "auto") if ops.native_available() else ():
        ops.set_native_isa(isa)
        rows = ops.lookup(torch.arange(len(codes)), every)
        assert torch.equal(rows.view(torch.int32), values[0].float().view(torch.int32))
    if ops.native_available():
        ops.set_native_isa(before)


@pytest.mark.parametrize("bits", [1, 3, 6, 8, 11, 16])
@pytest.mark.parametrize("subspaces", [1, 2, 5, 8])
def test_nothing_is_read_beyond_the_codes(bits, subspaces):
    # The codes end where a mapped page ends: reading on would be reading unmapped memory, most often a crash.
    n = 50
    parts, unpacked, tiers = table((n,), (2**bits,), (subspaces,), subspaces, 1)
    size = n * row_bytes(subspaces, bits)
    page = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    whole = torch.frombuffer(page, dtype=torch.uint8)
    codes = whole[len(page) - size :].view(n, -1)
    codes.copy_(parts.codes[0])
    parts.codes[0] = codes
    check_everything(parts, unpacked, tiers)
    assert ops.max_code(codes, subspaces, bits) == int(unpacked[0].max())


def test_codes_beyond_the_codebook_stay_inside_it():
    parts, _, _ = table((20,), (100,), (4,), 4, 8)
    parts.codes[0].fill_(255)
    last = parts.centroids[0][:, -1].reshape(-1)
    ids = torch.arange(20)
    assert torch.equal(ops.lookup(ids, parts), last.expand(20, -1))
    assert torch.equal(reference.lookup(ids, parts), last.expand(20, -1))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("bad", [-1, 330, 2**62, -(2**63)])
def test_ids_out_of_range_are_refused(bad, shuffled):
    parts, _, _ = table(shuffled=shuffled)
    ids = torch.zeros(100, dtype=torch.int64)
    ids[57] = bad
    with pytest.raises(IndexError, match=rf"id {bad} is out of range \(valid ids: 0 to 329\)"):
        ops.lookup(ids, parts)


def test_empty_ids_and_empty_tables():
    parts, _, _ = table()
    assert ops.lookup(torch.empty(3, 0, dtype=torch.int64), parts).shape == (3, 0, 32)
    empty, _, _ = table(sizes=(0, 0))
    assert ops.lookup(torch.empty(0, dtype=torch.int64), empty).shape == (0, 32)
    with pytest.raises(IndexError, match="no rows"):
        ops.lookup(torch.tensor([0]), empty)


def test_shapes_types_and_strides_of_ids():
    parts, unpacked, tiers = table(shuffled=True)
    expected, prepared = dense(parts, unpacked, tiers), ops.PreparedLookup(parts)
    assert torch.equal(prepared(torch.tensor(5)), expected[5])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(prepared(torch.tensor([[5], [7]], dtype=dtype)), expected[[5, 7], None])
    grid = torch.arange(300).reshape(30, 10).T
    assert torch.equal(prepared(grid), expected[grid])
    for wrong in (torch.zeros(3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(TypeError, match="ids must have an integer dtype"):
            prepared(wrong)
    with pytest.raises(TypeError, match=r"ids must be a torch\.Tensor of integers, got list"):
        prepared([1, 2])


def test_threads_change_nothing():
    parts, unpacked, tiers = table(sizes=(500, 5000), shuffled=True)
    expected, prepared = dense(parts, unpacked, tiers), ops.PreparedLookup(parts)
    ids = torch.randint(5500, (7001,))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(prepared(ids), expected[ids])
    finally:
        torch.set_num_threads(before)


def test_prepared_look_ups_copy_and_pickle():
    parts, unpacked, tiers = table(shuffled=True)
    prepared = ops.PreparedLookup(parts)
    expected, ids = dense(parts, unpacked, tiers), torch.arange(330)
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(again(ids), expected)
        assert again.table.codes[0].data_ptr() != parts.codes[0].data_ptr()


def test_damaged_tier_map_is_an_error_not_a_crash():
    if not ops.native_available():
        pytest.skip("only the native kernel checks what it reads")
    parts, _, _ = table(shuffled=True)
    parts.map_ranks[0].fill_(2**31 - 1)
    with pytest.raises(ValueError, match="tier map is damaged"):
        ops.lookup(torch.arange(330), parts)


def test_parts_that_do_not_fit_are_refused():
    parts, _, _ = table(shuffled=True)

    def refused(error, says, **changed):
        with pytest.raises(error, match=says):
            ops.PreparedLookup(ops.TableBuffers(**{**vars(parts), **changed}))

    refused(ValueError, "one entry per tier", bits=[8])
    refused(ValueError, "1 to 16", bits=[8, 17])
    refused(TypeError, "packed uint8", codes=[c.int() for c in parts.codes])
    refused(ValueError, "contiguous", codes=[c[:-1] for c in parts.codes])
    refused(ValueError, "names codebook 1 of 1", codebook_of=[0, 1])
    refused(TypeError, "float32, float16 or int8", centroids=[parts.centroids[0].double()])
    refused(ValueError, "decodes to 32 dimensions", embedding_dim=64)
    refused(ValueError, "scales", centroids=[torch.zeros(4, 256, 8, dtype=torch.int8)])
    refused(ValueError, "order of all tiers", order=[1, 1])
    refused(TypeError, "int64 bits", map_bits=[parts.map_bits[0].int()])
    refused(ValueError, "words and", map_bits=[parts.map_bits[0][:-1]])


MATRICES = {"no matrix": None, **{f"{name} matrix": dtype for name, dtype in DTYPES.items()}}


def test_hand_worked_mixed_bytes():
    # Codes of 1, 0 and 2 bits: byte 0b110 is code 0, none, and code 3. Subspaces of 1, 2 and 1 coordinates.
    book = torch.tensor([1.0, 2.0, 10.0, 20.0, 0.5, 0.25, 0.125, 0.0625])
    codes = torch.tensor([[0b110], [0b011]], dtype=torch.uint8)
    numbers = {"widths": [1, 2, 1], "code_bits": [1, 0, 2]}
    two_rows = ops.TableBuffers([codes], [book], [torch.empty(0)], [], [], [], [2], [2], [3], [0], 4, -1, **numbers)
    assert ops.lookup(torch.tensor([1, 0]), two_rows).tolist() == [[2, 10, 20, 0.25], [1, 10, 20, 0.0625]]
    mean, matrix = torch.tensor([100.0, 0.0]), torch.tensor([[1, 0], [2, 0], [0, 3], [8, 16]], dtype=torch.int8)
    scales = torch.tensor([1.0, 1.0, 0.5, 1.0])
    turned = ops.TableBuffers(
        [codes], [book], [torch.empty(0)], [], [], [], [2], [2], [3], [0], 2, -1, **numbers,
        mean=mean, matrix=matrix, matrix_scales=scales,
    )  # fmt: skip
    assert ops.lookup(torch.tensor([1, 0]), turned).tolist() == [[124, 34], [121.5, 31]]


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
@pytest.mark.parametrize("layout", MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("isa", ALL)
def test_mixed_tables(isa, layout, matrix):
    with instruction_set(isa):
        for dtype in DTYPES.values():
            check_everything(*mixed_table(dtype=dtype, matrix=matrix, **layout))
        check_everything(*mixed_table(matrix=matrix, own_books=True, shuffled=True, padding_idx=3, **layout))


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 130])
@pytest.mark.parametrize("isa", ALL)
def test_matrices_of_every_width(isa, dim):
    with instruction_set(isa):
        for bits in ((8, 8, 8, 8), (8, 5, 3, 0)):
            check_everything(*mixed_table(sizes=(77,), bits=(bits,), matrix=torch.float16, dim=dim))


def test_more_rows_than_stay_in_the_caches():
    # Written around them where there is a matrix.
    parts, unpacked, tiers = mixed_table(sizes=(300, 900), matrix=torch.float32, dim=64, shuffled=True, padding_idx=1)
    ids = torch.randint(1200, (40_000,))
    assert torch.equal(ops.lookup(ids, parts), dense(parts, unpacked, tiers)[ids])


def test_equal_widths_and_bits_give_the_rows_of_an_even_table():
    for bits in (3, 8, 11):
        parts, unpacked, tiers = table((40, 70), (2**bits, 2**bits), width=4)
        mixed, _, _ = mixed_table(sizes=(40, 70), bits=((bits,) * 4,) * 2, widths=(4,) * 4)
        mixed.codes[:] = [pack_codes(c, (bits,) * 4) for c in unpacked]
        mixed.centroids[0] = parts.centroids[0].flatten()
        assert all(torch.equal(a, b) for a, b in zip(mixed.codes, parts.codes, strict=True))
        ids = torch.arange(110)
        assert torch.equal(ops.lookup(ids, mixed), dense(parts, unpacked, tiers))


@pytest.mark.parametrize("layout", MIXED.values(), ids=MIXED.keys())
def test_nothing_is_read_beyond_the_codes_of_a_mixed_table(layout):
    parts, unpacked, tiers = mixed_table(**layout)
    for g, packed in enumerate(parts.codes):
        page = mmap.mmap(-1, -(-max(1, packed.numel()) // mmap.PAGESIZE) * mmap.PAGESIZE)
        codes = torch.frombuffer(page, dtype=torch.uint8)[len(page) - packed.numel() :].view(packed.shape)
        parts.codes[g] = codes.copy_(packed)
    check_everything(parts, unpacked, tiers)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    dtype=st.sampled_from(list(DTYPES)),
    matrix=st.sampled_from(list(MATRICES)),
    dim=st.integers(1, 90),
    shuffled=st.booleans(),
    own_books=st.booleans(),
    data=st.data(),
)
def test_any_mixed_table_decodes_to_its_rows(widths, sizes, dtype, matrix, dim, shuffled, own_books, data):
    each = st.tuples(*[st.integers(0, 10)] * len(widths))
    bits = data.draw(st.lists(each, min_size=len(sizes), max_size=len(sizes)))
    padding_idx = data.draw(st.integers(-1, sum(sizes) - 1))
    check_everything(
        *mixed_table(
            tuple(sizes),
            bits,
            widths,
            DTYPES[dtype],
            MATRICES[matrix],
            dim,
            shuffled,
            padding_idx,
            own_books,
            data.draw(st.integers(0, 1000)),
        )
    )


def test_max_code():
    codes = torch.tensor([[3, 99, 0], [1, 2, 98]])
    assert ops.max_code(pack(codes, 7), 3, 7) == 99
    assert reference.max_code(pack(codes, 7), 3, 7) == 99
    assert ops.max_code(torch.empty(0, 3, dtype=torch.uint8), 3, 7) == -1
    with pytest.raises(TypeError, match="uint8"):
        ops.max_code(codes, 3, 7)
    with pytest.raises(ValueError, match="shape"):
        ops.max_code(pack(codes, 7), 4, 7)
    with pytest.raises(ValueError, match="bits must be"):
        ops.max_code(pack(codes, 7), 3, 17)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 600), min_size=1, max_size=4),
    data=st.data(),
    width=st.integers(1, 17),
    subspaces=st.integers(1, 9),
    layout=st.sampled_from(["own", "shared", "one book"]),
    dtype=st.sampled_from(list(DTYPES)),
    shuffled=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_table_decodes_to_its_rows(sizes, data, width, subspaces, layout, dtype, shuffled, seed):
    counts = [data.draw(st.integers(2, 700)) for _ in sizes]
    parts, unpacked, tiers = table(
        tuple(sizes),
        counts,
        [subspaces] * len(sizes),
        1 if layout == "shared" else subspaces,
        width,
        DTYPES[dtype],
        shuffled,
        own_books=layout == "own",
        seed=seed,
    )
    check_everything(parts, unpacked, tiers)
