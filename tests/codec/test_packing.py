"""Packing: hand-worked bytes, round trips at every width, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgqe.codec.packing import bits_for, pack, row_bytes, spare_bits_are_zero, unpack


@pytest.mark.parametrize(
    ("num_centroids", "bits"),
    [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (64, 6), (256, 8), (257, 9), (65535, 16), (65536, 16)],
)
def test_bits_for(num_centroids, bits):
    assert bits_for(num_centroids) == bits


@pytest.mark.parametrize("num_centroids", [0, -1, 65537])
def test_bits_for_refuses(num_centroids):
    with pytest.raises(ValueError, match="num_centroids"):
        bits_for(num_centroids)


def test_row_bytes():
    assert row_bytes(8, 8) == 8
    assert row_bytes(8, 6) == 6
    assert row_bytes(3, 3) == 2
    assert row_bytes(1, 16) == 2
    assert row_bytes(5, 1) == 1
    with pytest.raises(ValueError, match="num_subspaces"):
        row_bytes(0, 8)
    for bits in (0, 17):
        with pytest.raises(ValueError, match="bits"):
            row_bytes(8, bits)


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        # 6 bits: 1 | 2 << 6 | 63 << 12 | 32 << 18 = 0x0083F081
        ([1, 2, 63, 32], 6, [0x81, 0xF0, 0x83]),
        # 3 bits: 5 | 6 << 3 | 7 << 6 = 0b1_1111_0101, 7 spare bits are zero
        ([5, 6, 7], 3, [0b11110101, 0b1]),
        ([1, 0, 1, 1, 0, 0, 0, 0, 1], 1, [0b1101, 0b1]),
        ([0xA, 0xB, 0xC], 4, [0xBA, 0x0C]),
        ([7, 255], 8, [7, 255]),
        # 12 bits: 0xABC | 0x123 << 12 = 0x123ABC
        ([0xABC, 0x123], 12, [0xBC, 0x3A, 0x12]),
        ([0x1234, 0xFFFF], 16, [0x34, 0x12, 0xFF, 0xFF]),
        # 15 bits: 0x7FFF | 1 << 15 = 0xFFFF, then 14 zero bits
        ([0x7FFF, 1], 15, [0xFF, 0xFF, 0x00, 0x00]),
    ],
)
def test_hand_worked_rows(codes, bits, expected):
    packed = pack(torch.tensor([codes]), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [expected]
    unpacked = unpack(packed, len(codes), bits)
    assert unpacked.dtype == torch.int32
    assert unpacked.tolist() == [codes]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_round_trip_against_python_integers(data):
    bits = data.draw(st.integers(1, 16))
    num_subspaces = data.draw(st.integers(1, 40))
    n = data.draw(st.integers(0, 5))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=num_subspaces, max_size=num_subspaces)
    codes = [data.draw(row) for _ in range(n)]
    packed = pack(torch.tensor(codes, dtype=torch.int64).reshape(n, num_subspaces), bits)
    for given_row, got in zip(codes, packed.tolist(), strict=True):
        whole = sum(code << (j * bits) for j, code in enumerate(given_row))
        assert bytes(got) == whole.to_bytes(row_bytes(num_subspaces, bits), "little")
    assert unpack(packed, num_subspaces, bits).tolist() == codes
    assert spare_bits_are_zero(packed, num_subspaces, bits)


def test_chunks_do_not_show(monkeypatch):
    codes = torch.randint(0, 64, (1000, 5))
    whole = pack(codes, 6)
    monkeypatch.setattr("mgqe.codec.packing.CHUNK_CODES", 37)
    assert torch.equal(pack(codes, 6), whole)
    assert torch.equal(unpack(whole, 5, 6), codes.to(torch.int32))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_any_integer_dtype(dtype):
    codes = torch.tensor([[1, 2, 3]]).to(dtype)
    assert unpack(pack(codes, 7), 3, 7).tolist() == [[1, 2, 3]]


def test_refusals():
    with pytest.raises(ValueError, match="code 64 does not fit 6 bits"):
        pack(torch.tensor([[0, 64]]), 6)
    with pytest.raises(ValueError, match="code -1 does not fit"):
        pack(torch.tensor([[0, -1]]), 6)
    with pytest.raises(TypeError, match="integers"):
        pack(torch.zeros(1, 2), 6)
    with pytest.raises(ValueError, match="shape"):
        pack(torch.zeros(3, dtype=torch.int64), 6)
    with pytest.raises(ValueError, match="3 bytes per row"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 4, 6)
    with pytest.raises(TypeError, match="uint8"):
        unpack(torch.zeros(2, 3, dtype=torch.int8), 4, 6)


def test_spare_bits_are_seen():
    packed = pack(torch.tensor([[5, 6, 7]]), 3)
    packed[0, 1] |= 0b10
    assert not spare_bits_are_zero(packed, 3, 3)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
@pytest.mark.parametrize("bits", [9, (9, 9)])
def test_codes_of_unsigned_dtypes_are_packed(dtype, bits):
    codes = torch.tensor([[0, 511], [256, 3]])
    assert torch.equal(pack(codes.to(dtype), bits), pack(codes, bits))
