"""The examples in the docstrings of public names run and print what they show."""

from __future__ import annotations

import doctest
import importlib.util
import inspect

import pytest

import mgqe

PUBLIC = [getattr(mgqe, name) for name in mgqe.__all__ if not inspect.ismodule(getattr(mgqe, name))]
EXAMPLES = [test for thing in PUBLIC for test in doctest.DocTestFinder().find(thing, thing.__name__) if test.examples]
WITH_EXAMPLES = [
    "CompressConfig",
    "DPQEmbedding",
    "MGQEmbedding",
    "MGQEmbeddingBag",
    "Quantization",
    "calibrate",
    "compress_",
    "export_onnx",
    "freeze_",
    "load_model",
    "portable",
    "quantization_loss",
    "save_model",
]


class Checker(doctest.OutputChecker):
    """Lines that show no output may print: the ONNX exporter does, in some versions."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_of_docstrings(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "onnx" in example.docstring and not importlib.util.find_spec("onnxruntime"):
        pytest.skip("needs onnxruntime")
    result = doctest.DocTestRunner(Checker()).run(example)
    assert result.failed == 0


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_calls_used_most_have_an_example(name):
    assert name in {example.name for example in EXAMPLES}
