"""Models wrapped by torch.compile, DataParallel and their kind, and models on the meta device, saved and loaded."""

from __future__ import annotations

import json
import os

import pytest
import torch
from convert_models import DIM, LanguageModel, N, Ranker, batch, ranker
from manifest_tools import copy_changed
from torch import nn

import mgqe
from mgqe.convert.wrappers import plain_key, plain_paths


class Held(nn.Module):
    """A custom wrapper like those of training frameworks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


class Deep(nn.Module):
    """A module with a child named "module" and other children."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"user": nn.Embedding(N, DIM), "module": nn.Embedding(N, DIM)})
        self.user = nn.Embedding(N, DIM)

    def forward(self, users, *others):
        return self.user(users) + 2 * self.module["user"](users) + 3 * self.module["module"](users)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def inside(model: nn.Module) -> nn.Module:
    """Wrappers below the model's root."""
    model.user = compiled(model.user)
    if isinstance(model, Ranker):
        model.encoder = nn.DataParallel(model.encoder)
        model.encoder.__class__ = type("Getting", (nn.DataParallel,), {"__getitem__": lambda s, k: s.module[k]})
        model.head = Held(model.head)
    return model


def fsdp_like(model: nn.Module) -> nn.Module:
    """The names of FSDP and activation checkpointing, nested."""
    inner, outer = nn.Module(), nn.Module()
    inner._checkpoint_wrapped_module = model
    outer._fsdp_wrapped_module = inner
    outer.forward = model.forward
    return outer


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "somebody's own": Held,
    "DataParallel, compiled": lambda model: compiled(nn.DataParallel(model)),
    "compiled, DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "FSDP-like": fsdp_like,
    "inside": inside,
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def frozen(model: nn.Module) -> nn.Module:
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    return model


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    torch.manual_seed(0)
    model, folder = frozen(Ranker()), tmp_path_factory.mktemp("plain")
    mgqe.save_model(model, folder)
    return model, folder


def same_file_names(folder) -> list[str]:
    return sorted(name.rsplit(".", 2)[0] for name in os.listdir(folder))


@each_wrapper
def test_a_folder_has_plain_paths_for_every_wrapper(plain_folder, tmp_path, wrap):
    model, folder = plain_folder
    mgqe.save_model(wrap(mgqe.load_model(Ranker(), folder)), tmp_path)
    old, new = (json.loads((at / "manifest.json").read_text()) for at in (folder, tmp_path))
    assert new["class"] == "Ranker"
    assert [entry["paths"] for entry in new["tables"]] == [entry["paths"] for entry in old["tables"]]
    assert same_file_names(tmp_path) == same_file_names(folder)
    assert torch.equal(mgqe.load_model(Ranker(), tmp_path)(*batch()), model(*batch()))


@each_wrapper
def test_a_plain_folder_is_loaded_into_a_wrapped_model(plain_folder, wrap):
    model, folder = plain_folder
    wrapped = wrap(Ranker())
    assert mgqe.load_model(wrapped, folder) is wrapped
    assert torch.equal(wrapped(*batch()), model(*batch()))
    assert not any(module.training for module in wrapped.modules())


@each_wrapper
@pytest.mark.parametrize("into", ["plain", "compiled", "somebody's own"])
def test_a_name_that_wrappers_give_too_is_not_lost(tmp_path, wrap, into):
    torch.manual_seed(0)
    model = frozen(Deep())
    mgqe.save_model(wrap(model), tmp_path)
    loaded = mgqe.load_model(WRAPPERS[into](Deep()), tmp_path)
    assert torch.equal(loaded(batch()[0]), model(batch()[0]))


OLD = {  # class and what stood before every path in folders of version 1
    "compiled": ("OptimizedModule", "_orig_mod."),
    "DataParallel": ("DataParallel", "module."),
    "DistributedDataParallel": ("DistributedDataParallel", "module."),
    "DataParallel, compiled": ("OptimizedModule", "_orig_mod.module."),
    "compiled, DataParallel": ("DataParallel", "module._orig_mod."),
    "FSDP": ("FullyShardedDataParallel", "_fsdp_wrapped_module."),
}


@pytest.mark.parametrize("into", ["plain", "compiled", "DataParallel", "FSDP-like"])
@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("cls", [Ranker, Deep, LanguageModel])
def test_folders_of_version_1_that_were_saved_through_a_wrapper(tmp_path, cls, old, into):
    torch.manual_seed(0)
    model = frozen(cls())
    mgqe.save_model(model, tmp_path / "new")
    class_name, prefix = OLD[old]

    def older(manifest):
        manifest["version"], manifest["class"] = 1, class_name
        for entry in (*manifest["tables"], manifest["dense"], manifest):
            entry.pop("checksum", None)
        for entry in manifest["tables"]:
            entry["paths"] = [prefix + path for path in entry["paths"]]
        for tie in manifest["ties"]:
            tie.update(path=prefix + tie["path"], table=prefix + tie["table"])
        aliases = manifest["dense"]["aliases"]
        manifest["dense"]["aliases"] = {prefix + name: prefix + other for name, other in aliases.items()}
        manifest["dense"]["nbytes"] = len(dense)

    from safetensors.torch import load_file, save

    (file,) = (tmp_path / "new").glob("dense.*")
    weights = {prefix + name: value for name, value in load_file(file).items() if name != "checksums"}
    dense = save(weights)
    folder = copy_changed(tmp_path / "new", tmp_path, older, sealed=False)
    (folder / file.name).write_bytes(dense)
    loaded = mgqe.load_model(WRAPPERS[into](cls()), folder)
    got, want = (
        loaded(*batch()[:1], *batch()[1:] * (cls is Ranker)),
        model(*batch()[:1], *batch()[1:] * (cls is Ranker)),
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel], ids=["compiled", "DataParallel"])
@pytest.mark.parametrize("when", ["before compress_", "before freeze_"])
def test_an_embedding_in_a_wrapper_of_its_own_is_converted(wrap, when):
    """A compiled module does not call the old embedding."""
    torch.manual_seed(0)
    model, twin = Ranker(), Ranker()
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        if each is model and when == "before compress_":
            each.user, each.tags = wrap(each.user), wrap(each.tags)
        torch.manual_seed(1)
        mgqe.compress_(each, init="from_weight")
        if each is model and when == "before freeze_":
            each.user, each.tags = wrap(each.user), wrap(each.tags)
        loss = each(*batch()).square().sum() + mgqe.quantization_loss(each)
        loss.backward()
    gradients, expected_gradients = (
        {
            n.replace("._orig_mod", "").replace("user.module", "user").replace("tags.module", "tags"): p.grad
            for n, p in each.named_parameters()
        }
        for each in (model, twin)
    )
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(grad, expected_gradients[name]) for name, grad in gradients.items() if grad is not None)
    for each in (model, twin):
        mgqe.freeze_(each)
    assert isinstance(model.user, mgqe.CompactEmbedding)
    assert torch.equal(model(*batch()), twin(*batch()))


def test_the_class_inside_a_wrapper_is_compared(plain_folder):
    _, folder = plain_folder
    with pytest.raises(TypeError, match="holds a model of class Ranker, not LanguageModel"):
        mgqe.load_model(compiled(LanguageModel()), folder)


def test_plain_paths():
    model = nn.ModuleDict({"a": Held(nn.ModuleDict({"module": nn.Linear(1, 1)})), "b": Held(nn.Linear(1, 1))})
    plain = plain_paths(Held(model))
    assert plain == {
        "": "",
        "module": "",
        "module.a": "a",
        "module.a.module": "a",
        "module.a.module.module": "a",  # the dictionary has nothing else, and is a wrapper like the others
        "module.b": "b",
        "module.b.module": "b",
    }
    assert plain_key("module.b.module.weight", plain) == "b.weight"
    assert plain_key("b.weight", plain) == "b.weight"  # a hook of state_dict may have removed the wrapper's name
    assert plain_key("module.b.deeper.weight", plain) == "b.deeper.weight"


def test_weights_tied_under_a_wrapper(tmp_path):
    model = frozen(LanguageModel())
    mgqe.save_model(nn.DataParallel(model), tmp_path)
    loaded = mgqe.load_model(compiled(LanguageModel()), tmp_path)
    ids = torch.arange(8).view(2, 4)
    assert all(torch.equal(a, b) for a, b in zip(loaded(ids), model(ids), strict=True))
    assert list(loaded.parameters()) == []


# ---- the meta device -----------------------------------------------------------------------------------------


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


@each_wrapper
def test_a_model_on_the_meta_device_gets_all_its_weights(plain_folder, wrap):
    model, folder = plain_folder
    loaded = mgqe.load_model(wrap(on_meta(Ranker)), folder)
    assert torch.equal(loaded(*batch()), model(*batch()))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize("prepare", [mgqe.compress_, frozen], ids=["compressed", "frozen"])
def test_converted_before_it_goes_to_the_meta_device(plain_folder, prepare):
    model, folder = plain_folder
    other = Ranker()
    prepare(other)
    loaded = mgqe.load_model(other.to("meta") if prepare is mgqe.compress_ else other, folder)
    assert torch.equal(loaded(*batch()), model(*batch()))


def test_loaded_where_the_meta_device_is_the_default(plain_folder):
    model, folder = plain_folder
    with torch.device("meta"):
        loaded = mgqe.load_model(Ranker(), folder)
    assert torch.equal(loaded(*batch()), model(*batch()))


class Shared(nn.Module):
    """Dense weights under two names, weights that do not train, buffers, and several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(N, DIM)
        self.first = nn.Linear(DIM, DIM)
        self.second = nn.Linear(DIM, DIM)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(DIM)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("none", None)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(2.5))
        for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
            self.register_buffer("as_" + str(dtype)[6:], torch.arange(3.0).to(dtype))
        for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64):
            self.register_buffer("as_" + str(dtype)[6:], torch.arange(3).to(dtype))


def test_sharing_freezing_and_types_survive_the_meta_device(tmp_path):
    model = frozen(Shared())
    mgqe.save_model(model, tmp_path)
    for other in (Shared(), on_meta(Shared)):
        for name, buffer in other.named_buffers():
            if not buffer.is_meta and name.startswith(("as_", "scalar")):
                buffer.zero_()
        loaded = mgqe.load_model(other, tmp_path)
        assert loaded.first.weight is loaded.second.weight
        assert [p.requires_grad for p in loaded.first.parameters()] == [True, False]
        states = model.state_dict(), loaded.state_dict()
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert value.dtype == states[1][key].dtype
            assert torch.equal(value.double(), states[1][key].double()), key
        loaded.first.weight.square().sum().backward()
        assert loaded.first.weight.grad is not None


def test_an_own_type_on_the_meta_device_stays(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(N, DIM), "head": nn.Linear(DIM, 2)})
    mgqe.save_model(frozen(model), tmp_path)
    with torch.device("meta"):
        other = nn.ModuleDict({"embed": nn.Embedding(N, DIM), "head": nn.Linear(DIM, 2).bfloat16()})
    loaded = mgqe.load_model(other, tmp_path)
    assert loaded["head"].weight.dtype == torch.bfloat16
    assert torch.equal(loaded["head"].weight, model["head"].weight.bfloat16())


def test_buffers_that_were_not_saved_are_asked_for_before_anything_is_changed(tmp_path):
    class Masked(Ranker):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(3), persistent=False)

    model = frozen(Masked())
    mgqe.save_model(model, tmp_path)
    assert torch.equal(mgqe.load_model(Masked(), tmp_path)(*batch()), model(*batch()))
    other = on_meta(Masked)
    with pytest.raises(ValueError, match=r"mask: on the meta device, and no part of state_dict \(persistent=False\)"):
        mgqe.load_model(other, tmp_path)
    assert other.head.weight.is_meta
    assert isinstance(other.user, nn.Embedding)


def test_a_model_without_weights_cannot_be_saved(plain_folder, tmp_path):
    _, folder = plain_folder
    model = mgqe.load_model(Ranker(), folder)
    model.head = on_meta(lambda: nn.Linear(DIM, 1))
    with pytest.raises(ValueError, match=r"head\.weight: on the meta device, where tensors have no elements"):
        mgqe.save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_weight_that_no_file_holds_is_named(tmp_path):
    model = ranker(init="from_weight")
    mgqe.freeze_(model)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"phase: a Tensor of torch\.complex64"):
        mgqe.save_model(model, tmp_path / "model")
    model.phase = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match=r"phase: a Tensor of torch\.float32 and torch\.sparse_coo"):
        mgqe.save_model(model, tmp_path / "model")


def test_kinds_of_dtypes_are_compared(tmp_path):
    model = frozen(Shared())
    mgqe.save_model(model, tmp_path)
    other = Shared()
    other.mask = torch.zeros(2)
    with pytest.raises(ValueError, match=r"mask: torch\.float32 in the model, torch\.bool saved"):
        mgqe.load_model(other, tmp_path)


def test_a_lazy_weight_is_named(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(N, DIM), "head": nn.Linear(DIM, 2)})
    mgqe.save_model(frozen(model), tmp_path)
    other = nn.ModuleDict({"embed": nn.Embedding(N, DIM), "head": nn.LazyLinear(2)})
    with pytest.raises(ValueError, match=r"head\.weight: has no shape in the model yet: call the model once"):
        mgqe.load_model(other, tmp_path)


def test_weights_made_in_inference_mode_are_named(plain_folder):
    model, folder = plain_folder
    with torch.inference_mode():
        other = Ranker()
        assert torch.equal(mgqe.load_model(Ranker(), folder)(*batch()), model(*batch()))
    with pytest.raises(ValueError, match=r"head\.weight: made in torch\.inference_mode"):
        mgqe.load_model(other, folder)
    assert isinstance(other.user, nn.Embedding)


@pytest.mark.slow
def test_models_that_torch_distributes(plain_folder, tmp_path):
    """In a process group of one: DistributedDataParallel, FSDP with both kinds of parameters, and fully_shard."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.nn.parallel import DistributedDataParallel as DDP

    model, folder = plain_folder
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        cpu = torch.device("cpu")
        wraps = [DDP, lambda m: FSDP(m, use_orig_params=True, device_id=cpu), lambda m: FSDP(m, device_id=cpu)]
        for number, wrap in enumerate(wraps):
            wrapped = mgqe.load_model(wrap(Ranker()), folder)
            assert torch.equal(wrapped(*batch()), model(*batch()))
            mgqe.save_model(wrap(mgqe.load_model(Ranker(), folder)), tmp_path / str(number))
            assert torch.equal(mgqe.load_model(Ranker(), tmp_path / str(number))(*batch()), model(*batch()))
        fully_shard = getattr(torch.distributed.fsdp, "fully_shard", None)
        if fully_shard is not None:
            sharded = Ranker()
            fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
            with pytest.raises(ValueError, match=r"head\.weight: distributed in the model: load before"):
                mgqe.load_model(sharded, folder)
            sharded = mgqe.load_model(Ranker(), folder)
            fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
            with pytest.raises(ValueError, match=r"a DTensor of torch\.float32 .* gather a distributed model"):
                mgqe.save_model(sharded, tmp_path / "sharded")
    finally:
        dist.destroy_process_group()
