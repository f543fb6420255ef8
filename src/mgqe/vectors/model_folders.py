"""Vectors in the folders of models: the input embeddings of a Hugging Face model, and those of a model2vec one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgqe.vectors.tensors import read_safetensors, read_state_dict
from mgqe.vectors.vectors import Vectors

TOKENIZER = "tokenizer.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What input embeddings are called, the most particular first.
INPUT_NAMES = (
    "embeddings",
    "wte.weight",
    "embed_tokens.weight",
    "shared.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model's weights."""
    return any((folder / name).is_file() for name in (*WEIGHTS, *INDEXES))


def read_model_folder(folder: Path, name: str | None) -> Vectors:
    """The input embeddings of a model, with its tokens as ids where its tokenizer lists as many as there are rows.

    Raises ValueError for a folder without weights, or whose embeddings cannot be told by name.
    """
    vectors = _read(folder, name)
    tokens = _tokens(folder / TOKENIZER)
    return Vectors(
        vectors.rows, tokens if tokens is not None and len(tokens) == len(vectors.rows) else None, vectors.name
    )


def _read(folder: Path, name: str | None) -> Vectors:
    for index in INDEXES:
        if (folder / index).is_file():
            files = _json(folder / index).get("weight_map", {})
            if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
                raise ValueError(f"{index} has no weight_map from names of tensors to names of files")
            chosen = name or _input_name(list(files))
            if chosen not in files:
                raise ValueError(f"{index} has no tensor {chosen!r}: name one with tensor= (--tensor)")
            if Path(files[chosen]).name != files[chosen]:
                raise ValueError(f"{index} names a file outside the folder: {files[chosen]!r}")
            if not (folder / files[chosen]).is_file():
                raise ValueError(f"{index} names {files[chosen]}, which is not in the folder: download it too")
            return _of_file(folder / files[chosen], chosen)
    for weights in WEIGHTS:
        if (folder / weights).is_file():
            path = folder / weights
            return _of_file(path, name or _input_name(_names(path)))
    raise ValueError(f"the folder has no weights: expected one of {', '.join((*WEIGHTS, *INDEXES))}")


def _of_file(path: Path, name: str | None) -> Vectors:
    return read_safetensors(path, name) if path.suffix == ".safetensors" else read_state_dict(path, name)


def _names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return []
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as safetensors: {error}") from error


def _input_name(names: list[str]) -> str | None:
    for ending in INPUT_NAMES:
        found = [name for name in names if name == ending or name.endswith(f".{ending}")]
        if found:
            return min(found, key=len)
    return None


def _tokens(path: Path) -> list[str] | None:
    """The tokens by their numbers; None where there is no tokenizer, or its numbers have gaps."""
    if not path.is_file():
        return None
    content = _json(path)
    try:
        vocabulary = content.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # of (token, score)
            numbers = {entry[0]: number for number, entry in enumerate(vocabulary)}
        else:
            numbers = dict(vocabulary)
        numbers.update({entry["content"]: entry["id"] for entry in content.get("added_tokens", [])})
        tokens = {int(number): str(token) for token, number in numbers.items()}
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path.name} has no vocabulary as tokenizers write it: {error!r}") from error
    return [tokens[number] for number in range(len(tokens))] if set(tokens) == set(range(len(tokens))) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return content
