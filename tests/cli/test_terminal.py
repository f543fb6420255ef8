"""What all commands do when they are interrupted."""

from __future__ import annotations

import pytest
import typer

from mgqe.cli.terminal import clean_errors


@pytest.mark.parametrize(("name", "goes_on"), [("train", True), ("inspect", False)])
def test_an_interruption_says_how_to_go_on(name, goes_on, capsys):
    def command() -> None:
        raise KeyboardInterrupt

    command.__name__ = name
    with pytest.raises(typer.Exit) as ended:
        clean_errors(command)()
    assert ended.value.exit_code == 130
    said = capsys.readouterr().err
    assert "mgqe: interrupted" in said
    assert ("goes on from the last epoch" in said) == goes_on
