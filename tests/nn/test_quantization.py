"""One configuration for the layers, compress_ and the command line: its checks, and how keywords join it."""

import dataclasses
import inspect
import pickle
import typing

import pytest
import torch

import mgqe
from mgqe import CompressConfig, Quantization
from mgqe.nn.quantization import CHOSEN_BY_BUDGET, QuantizationOptions

N, DIM = 200, 8
COUNTS = torch.arange(N, 0, -1)
LAYERS = [mgqe.MGQEmbedding, mgqe.MGQEmbeddingBag, mgqe.DPQEmbedding, mgqe.DPQEmbeddingBag]


def test_keywords_are_the_attributes():
    assert typing.get_type_hints(QuantizationOptions) == typing.get_type_hints(Quantization)
    assert set(CHOSEN_BY_BUDGET) < {field.name for field in dataclasses.fields(Quantization)}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_configuration_and_the_same_keywords_make_the_same_layer(layer):
    source = {} if layer.one_tier else {"counts": COUNTS}
    settings = {"num_subspaces": 4, "num_centroids": 8, "centroid_dtype": "int8", "warmup_steps": 3}
    made = []
    for arguments in (settings, {"config": Quantization(**settings)}, {"config": CompressConfig(**settings)}):
        torch.manual_seed(0)
        module = layer(N, DIM, **source, **arguments)
        made.append((repr(module), module.freeze().to_tensors()[0]))
    text, tensors = made[0]
    for other_text, other_tensors in made[1:]:
        assert other_text == text
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in other_tensors.items())


def test_keywords_replace_the_attributes_of_a_configuration():
    config = Quantization(num_subspaces=4, num_centroids=8)
    layer = mgqe.MGQEmbedding(N, DIM, counts=COUNTS, config=config, num_centroids=(16, 4))
    assert layer.capacity.num_subspaces == (4, 4)
    assert layer.capacity.num_centroids == (16, 4)
    with pytest.raises(ValueError, match="budget= chooses num_subspaces, num_centroids"):
        mgqe.MGQEmbedding(N, DIM, counts=COUNTS, config=config, budget="50%")


def test_trained_rows_have_no_warm_up_unless_a_configuration_or_a_keyword_says_so():
    rows = torch.randn(N, DIM)
    made = mgqe.DPQEmbedding.from_pretrained
    assert made(rows).warmup_steps == 0
    assert made(rows, config=Quantization(warmup_steps=7)).warmup_steps == 7
    assert made(rows, config=Quantization(warmup_steps=7), warmup_steps=2).warmup_steps == 2


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("wrong", "nearest"), [("num_centroid", "num_centroids"), ("padding_id", "padding_idx"), ("budgets", "budget")]
)
def test_an_unknown_keyword_names_the_nearest_one(layer, wrong, nearest):
    message = rf"{layer.__name__}\(\) got an unexpected keyword argument '{wrong}' \(did you mean '{nearest}'\?\)"
    with pytest.raises(TypeError, match=message):
        layer(N, DIM, **{wrong: 3})


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.one_tier])
@pytest.mark.parametrize("name", ["counts", "tiers", "fractions", "capacity", "share_codebook"])
def test_a_layer_of_one_tier_takes_nothing_about_tiers(layer, name):
    with pytest.raises(TypeError, match=f"{layer.__name__} has one tier and takes no {name}: use MGQEmbedding"):
        layer(N, DIM, **{name: COUNTS})


def test_a_mapping_is_no_configuration():
    with pytest.raises(TypeError, match=r"config must be a Quantization, got dict: mgqe\.Quantization\(\.\.\.\)"):
        mgqe.MGQEmbedding(N, DIM, counts=COUNTS, config={"num_centroids": 8})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "pq"}, "quantizer must be one of"),
        ({"capacity": "rows"}, "capacity must be one of"),
        ({"centroid_dtype": "int4"}, "centroid_dtype must be one of"),
        ({"commitment": -0.5}, "commitment must be a finite number of 0 or more"),
        ({"commitment": "much"}, "commitment must be a number"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of 0 or more"),
        ({"num_centroids": (8, "4")}, r"num_centroids must be a whole number, or one per tier, got \(8, '4'\)"),
        ({"rows": "disk"}, "rows must be one of"),
        ({"budget": "small"}, "a budget is"),
    ],
)
def test_values_that_fit_no_table(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Quantization(**settings)
    with pytest.raises((ValueError, TypeError), match=message):
        mgqe.MGQEmbedding(N, DIM, counts=COUNTS, **settings)


def test_configurations_are_values():
    config = Quantization(num_centroids=[16, 4], fractions=torch.tensor([0.5, 0.5]))
    assert config == Quantization(num_centroids=(16, 4), fractions=(0.5, 0.5))
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_centroids = 8


def test_torchs_arguments_keep_torchs_order():
    torch_order = list(inspect.signature(torch.nn.Embedding).parameters)
    assert list(inspect.signature(mgqe.MGQEmbedding).parameters)[: len(torch_order)] == torch_order
    torch_order = list(inspect.signature(torch.nn.EmbeddingBag).parameters)
    assert list(inspect.signature(mgqe.MGQEmbeddingBag).parameters)[: len(torch_order)] == torch_order
