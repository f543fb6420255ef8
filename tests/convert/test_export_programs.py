"""torch.export, torch.compile(fullgraph=True) and AOTInductor: outputs, sizes, ids outside the table."""

from __future__ import annotations

import shutil

import pytest
import torch
from export_cases import DIM, FREE, N, batch, frozen, layout, tables_of, two_towers
from torch import nn

import mgqe
from mgqe import CompactEmbedding, CompactEmbeddingBag
from mgqe.recsys.models.deepfm import DeepFM
from mgqe.recsys.models.gmf import GMF
from mgqe.recsys.models.neumf import NeuMF

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
# Frozen models as they are, whose look-ups are mgqe's operators, and copies by standard operators.
both = pytest.mark.parametrize("ready", [lambda model: model, mgqe.portable], ids=["frozen", "portable"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def pairs(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the models in mgqe.recsys: users (b,), items (b, c)."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(N, (size,), generator=generator), torch.randint(N, (size, 3), generator=generator)


def gmf() -> nn.Module:
    return frozen(GMF(nn.Embedding(N, DIM), nn.Embedding(N, DIM), DIM), "user", centroid_dtype="int8")


@both
def test_exported_programs_equal_eager_mode(ready):
    model = gmf()
    program = torch.export.export(ready(model), pairs(5), dynamic_shapes=(FREE, FREE))
    custom = {str(node.target) for node in program.graph.nodes if "mgqe" in str(node.target)}
    assert bool(custom) == (ready is not mgqe.portable)  # the portable program runs without mgqe
    for size in (1, 2, 9):
        torch.testing.assert_close(program.module()(*pairs(size)), model(*pairs(size)), rtol=1e-6, atol=1e-6)
    with pytest.raises(IndexError):
        program.module()(torch.tensor([0, N]), pairs(2)[1])


def test_a_saved_program_holds_packed_codes(tmp_path):
    model = gmf()
    program = torch.export.export(mgqe.portable(model), pairs(5), dynamic_shapes=(FREE, FREE))
    torch.export.save(program, tmp_path / "gmf.pt2")
    loaded = torch.export.load(tmp_path / "gmf.pt2").module()
    torch.testing.assert_close(loaded(*pairs(9)), model(*pairs(9)), rtol=1e-6, atol=1e-6)
    tables = sum(table.nbytes for table in tables_of(model))
    stored = sum(tensor.nbytes for tensor in program.state_dict.values())
    assert tables <= stored <= tables + 4 * DIM + 4  # the dense weight and bias


def test_the_frozen_model_compiles_without_a_break():
    model = gmf()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (2, 9):
        torch.testing.assert_close(compiled(*pairs(size)), model(*pairs(size)), rtol=1e-6, atol=1e-6)
    with pytest.raises(IndexError, match=f"id {N} is out of range"):
        compiled(torch.tensor([0, N]), pairs(2)[1])


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    "settings", [{}, {"centroid_dtype": "int8", "num_centroids": (64, 16)}], ids=["8 bits", "int8"]
)
def test_bags_in_exported_programs(ready, settings):
    model = two_towers(**settings)
    program = torch.export.export(ready(model), batch(5), dynamic_shapes=(FREE,) * 4)
    for size in (1, 2, 9):
        given = batch(size, size)
        torch.testing.assert_close(program.module()(*given), model(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@both
@pytest.mark.parametrize("kind", ["DeepFM", "NeuMF"])
def test_models_that_look_up_distinct_items(ready, kind):
    tables = [nn.Embedding(N, DIM) for _ in range(4)]
    if kind == "DeepFM":
        model: nn.Module = DeepFM({"user": tables[0], "item": tables[1], "city": tables[2]})
        given = [(torch.stack([u, u.flip(0)], 1), i) for u, i in map(pairs, (5, 1, 9))]
    else:
        model, given = NeuMF(*tables, embedding_dim=DIM), [pairs(size) for size in (5, 1, 9)]
    frozen(model, "fields.user" if kind == "DeepFM" else "gmf_user")
    program = torch.export.export(ready(model), given[0], dynamic_shapes=(FREE, FREE))
    if ready is mgqe.portable:
        assert not [node for node in program.graph.nodes if "mgqe" in str(node.target)]
    for inputs in given:
        torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_compiler
@both
def test_inductor(ready):
    model = two_towers(centroid_dtype="int8")
    compiled = torch.compile(ready(model), fullgraph=True, dynamic=True)
    for size in (2, 9):
        torch.testing.assert_close(compiled(*batch(size, size)), model(*batch(size, size)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_compiler
@both
@pytest.mark.parametrize("name", ["two tiers", "frequency order"])
def test_inductor_refuses_ids_outside_the_table(ready, name):
    model = CompactEmbedding(layout(name))
    compiled = torch.compile(ready(model), fullgraph=True)
    assert torch.equal(compiled(torch.tensor([0, 46])), model(torch.tensor([0, 46])))
    for unknown in (-1, 47, 1 << 61):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)|< 4|0 <="):
            compiled(torch.tensor([0, unknown]))


@pytest.mark.slow
@needs_compiler
def test_ahead_of_time_inductor(tmp_path):
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    model = two_towers(20_000)
    program = torch.export.export(mgqe.portable(model), batch(5), dynamic_shapes=(FREE,) * 4)
    path = aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = aoti_load_package(path)
    for size in (1, 2, 9):
        torch.testing.assert_close(loaded(*batch(size, size)), model(*batch(size, size)), rtol=1e-5, atol=1e-6)
    # The rest is code and does not depend on the tables' size. Decoded rows alone would be 3.8 MB.
    assert (tmp_path / "model.pt2").stat().st_size < sum(table.nbytes for table in tables_of(model)) + 2_500_000
    users, *others = batch(2)
    for unknown in (-1, 20_000, 1 << 61):
        users[1] = unknown
        with pytest.raises(RuntimeError):
            loaded(users, *others)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("mode", ["sum", "max"])
def test_ahead_of_time_bags(mode, tmp_path):
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    bag = CompactEmbeddingBag(layout("int8"), mode=mode)
    ids, offsets = torch.tensor([3, 46, 5, 7, 46, 0, 1]), torch.tensor([0, 1, 2, 2, 5])
    program = torch.export.export(mgqe.portable(bag), (ids[:5], offsets[:3]), dynamic_shapes=(FREE, FREE))
    loaded = aoti_load_package(aoti_compile_and_package(program, package_path=str(tmp_path / "bag.pt2")))
    torch.testing.assert_close(loaded(ids, offsets), bag(ids, offsets), rtol=1e-6, atol=1e-6)
