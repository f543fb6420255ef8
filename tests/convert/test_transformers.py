"""Converted models of the real transformers, small ones: their own save_pretrained and from_pretrained."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch

import mgqe

transformers = pytest.importorskip("transformers", "5.0", reason="needs transformers: requirements-third-party.txt")
safetensors = pytest.importorskip("safetensors.torch")
load_file = safetensors.load_file

TOKENS, DIM = 2000, 32
IDS = torch.randint(1, TOKENS, (2, 8), generator=torch.Generator().manual_seed(1))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=DIM, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    sizes = {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(vocab_size=TOKENS, tie_word_embeddings=True, **sizes, **heads)
    return transformers.LlamaForCausalLM(config)


def bert():
    sizes = {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=TOKENS, max_position_embeddings=64, **sizes)
    return transformers.BertForMaskedLM(config)


def t5():
    sizes = {"d_model": DIM, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=TOKENS, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


ALL = pytest.mark.parametrize("make", [gpt2, llama, bert, t5], ids=lambda make: make.__name__)


def training(make, **options):
    torch.manual_seed(0)
    model = make()
    mgqe.compress_(model, **options)
    return model


def frozen(make):
    model = training(make, init="from_weight")
    mgqe.freeze_(model)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, labels=IDS).logits


@ALL
def test_a_frozen_model_comes_back_whole(make, tmp_path):
    model = frozen(make)
    expected, plain = logits(model), type(make())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [plain.__name__]
    assert not hasattr(model.config, "quantization_config")
    loaded = plain.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert isinstance(loaded.get_input_embeddings(), mgqe.CompactEmbedding)
    assert not hasattr(loaded.config, "quantization_config")  # a plain model can be made of it
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "again")), expected)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    assert torch.equal(logits(copied), expected)
    copied.save_pretrained(tmp_path / "again")


def test_the_file_is_small_and_the_vectors_have_the_dtype_that_is_asked_for(tmp_path):
    plain, model = gpt2(), frozen(gpt2)
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "small")]
    saved = plain.transformer.wte.weight.nbytes - model.transformer.wte.table.nbytes
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=4000)
    half = type(plain).from_pretrained(tmp_path / "small", dtype=torch.bfloat16)
    assert half.transformer.wte(IDS).dtype == logits(half).dtype == torch.bfloat16
    assert torch.equal(half.transformer.wte.table.lookup(IDS), model.transformer.wte.table.lookup(IDS))


def test_models_inside_and_around_the_saved_one_load_its_tables(tmp_path):
    model = frozen(gpt2)
    model.save_pretrained(tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(base(IDS).last_hidden_state, model.transformer(IDS).last_hidden_state)
    model.transformer.save_pretrained(tmp_path / "base")
    whole = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(whole), logits(model))


@ALL
def test_a_model_that_trains_is_saved_for_load_state_dict(make, tmp_path):
    """As the Trainer resumes: a model made in the same way takes the checkpoint."""
    config = mgqe.CompressConfig(num_centroids=16, warmup_steps=0)
    model = training(make, config=config)
    (model.train()(input_ids=IDS, labels=IDS).loss + mgqe.quantization_loss(model)).backward()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    twin = training(make, config=config)
    saved = load_file(tmp_path / "model.safetensors")
    missing, unexpected = twin.load_state_dict(saved, strict=False)
    assert unexpected == []
    assert set(missing) <= {"cls.predictions.decoder.bias"}  # which transformers itself leaves out
    assert twin.get_input_embeddings().quantizing
    layer = twin.get_input_embeddings()
    path = next(path for path, module in twin.named_modules() if module is layer)
    assert torch.equal(layer.raw_weight, saved[f"{path}.rows"])
    with pytest.raises(ValueError, match="still trained when it was saved"):
        type(make()).from_pretrained(tmp_path)


@ALL
def test_a_frozen_checkpoint_is_resumed(make, tmp_path):
    model = frozen(make)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    for parameter in model.parameters():
        parameter.data.add_(0.1)
    layer = model.get_input_embeddings()
    layer.table.update(torch.arange(1, 9), torch.zeros(8, DIM))
    result = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert result.unexpected_keys == []
    assert torch.equal(logits(model), expected)


def test_transformers_without_mgqe_refuses(tmp_path):
    makers = (gpt2, llama, bert, t5)
    folders = {
        str(tmp_path / f"{make.__name__}-{state.__name__}"): (state(make), type(make()).__name__)
        for make in makers
        for state in (frozen, training)
    }
    for folder, (model, _) in folders.items():
        model.save_pretrained(folder)
    code = f"""
import transformers
for folder, name in { {folder: name for folder, (_, name) in folders.items()}!r}.items():
    try:
        getattr(transformers, name).from_pretrained(folder)
    except RuntimeError as error:
        print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.count("refused: You set `ignore_mismatched_sizes` to `False`") == len(folders), done.stderr
    assert done.stderr.count("Unknown quantization type, got mgqe") == len(folders)


@ALL
@pytest.mark.parametrize("mean_resizing", [True, False])
def test_a_frozen_model_grows(make, mean_resizing, tmp_path):
    model = frozen(make)
    before = logits(model)
    layer = model.resize_token_embeddings(TOKENS + 3, mean_resizing=mean_resizing)
    assert layer is model.get_input_embeddings()
    assert layer.num_embeddings == model.config.vocab_size == TOKENS + 3
    after = logits(model)
    assert after.shape == (2, 8, TOKENS + 3)
    torch.testing.assert_close(after[..., :TOKENS], before)
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 2048
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_a_model_inside_ones_own_is_saved(tmp_path):
    own = torch.nn.ModuleDict({"encoder": bert(), "rank": torch.nn.Linear(DIM, 1)})
    mgqe.compress_(own, init="from_weight")
    mgqe.freeze_(own)
    own["encoder"].save_pretrained(tmp_path)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(own["encoder"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables.update(version=9), "version 9 of mgqe's tables, this release reads 1"),
        (lambda tables: tables["ties"][0].update(table="nowhere"), "'ties' names 'nowhere'"),
        (lambda tables: tables["tables"][0].update(paths=[]), "'paths' must be a list"),
        (lambda tables: tables["tables"][0].update(mode="most"), "'mode' must be one of"),
        (lambda tables: tables.pop("tables"), "no entry 'tables'"),
        (lambda tables: tables["ties"][0].update(name="forward"), "ties 'forward' of a Linear"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change, message, tmp_path):
    frozen(gpt2).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    with pytest.raises(mgqe.ArtifactError, match=message):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_a_model_whose_output_layer_is_its_own_grows():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=DIM, n_layer=1, n_head=2, n_positions=64, tie_word_embeddings=False
    )
    model = transformers.GPT2LMHeadModel(config)
    mgqe.compress_(model, init="from_weight")
    mgqe.freeze_(model)
    before = logits(model)
    model.resize_token_embeddings(TOKENS + 5)
    assert logits(model).shape[-1] == TOKENS + 5
    torch.testing.assert_close(logits(model)[..., :TOKENS], before)


@pytest.mark.parametrize(
    ("make_state", "tokens", "message"),
    [(training, TOKENS + 3, r"still trains: resize the model first.*or mgqe.freeze_"), (frozen, 9, "can only grow")],
)
def test_other_changes_of_size_are_refused(make_state, tokens, message):
    model = make_state(gpt2)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(tokens)
    assert model.config.vocab_size == TOKENS


def test_a_damaged_table_is_refused(tmp_path):
    frozen(gpt2).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.wte.weight"][-200] ^= 1
    safetensors.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(mgqe.ArtifactError, match=r"transformer\.wte: .*checksum"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path)


def test_model_folders_and_transformers_folders_hold_the_same_model(tmp_path):
    model = frozen(t5)
    mgqe.save_model(model, tmp_path / "folder")
    loaded = mgqe.load_model(t5(), tmp_path / "folder")
    loaded.save_pretrained(tmp_path / "hub")
    assert torch.equal(logits(type(t5()).from_pretrained(tmp_path / "hub")), logits(model))


def test_a_model_that_was_not_converted_is_as_it_was(tmp_path):
    model = gpt2()
    assert type(model) is transformers.GPT2LMHeadModel
    import mgqe.integrations.transformers

    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))
    with pytest.raises(ValueError, match="pre-quantized"):
        type(model).from_pretrained(tmp_path, quantization_config=mgqe.integrations.transformers.MGQEConfig(version=1))
