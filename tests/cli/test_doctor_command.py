"""mgqe doctor and mgqe --version."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import mgqe
from mgqe import ops
from mgqe.cli import doctor
from mgqe.cli.app import app


def test_the_version_names_the_kernels():
    for flag in (["--version"],):
        done = CliRunner().invoke(app, flag)
        assert done.exit_code == 0
        assert done.output.startswith(f"mgqe {mgqe.__version__}, torch ")
        assert ops.native_isa() in done.output or not ops.native_available()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_two_names(flag):
    done = CliRunner().invoke(app, [flag])
    assert done.exit_code == 0
    assert "mgqe compress items.npy" in " ".join(done.output.split())
    assert CliRunner().invoke(app, ["compress", flag]).exit_code == 0


def test_doctor_names_versions_and_what_is_missing(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torchrec" else real(name))
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    assert f"mgqe {mgqe.__version__}" in text
    assert f"filelock {version('filelock')}" in text
    assert "torchrec not installed: mgqe.torchrec (mgqe[torchrec])" in text
    assert max(map(len, done.output.splitlines())) <= 80
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert found["extras"]["torchrec"] is None
    assert found["mgqe"] == mgqe.__version__


def test_doctor_says_why_there_are_no_kernels(monkeypatch):
    def warned() -> bool:
        import warnings

        warnings.warn("mgqe runs on its slower pure-torch operations: libmgqe_native.so was not built", stacklevel=1)
        return False

    monkeypatch.setattr(ops, "native_available", warned)
    assert "was not built" in " ".join(CliRunner().invoke(app, ["doctor"]).output.split())
