"""mgqe plan, through typer's runner; budgets in descriptions of embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import mgqe
from mgqe.cli.app import app
from mgqe.recsys.models.embeddings import Spec, build
from mgqe.recsys.tasks.base import TableInfo
from mgqe.recsys.tasks.registry import RunData
from mgqe.recsys.train.config import TrainConfig

COUNTS = np.arange(1000)[::-1].copy()
QUERIES = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)) ** 3
ROWS = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MGQE_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", COUNTS)
    np.save("rows.npy", ROWS.numpy())
    np.save("queries.npy", QUERIES.numpy())
    save_file({"item.weight": ROWS, "user.weight": ROWS[:5].clone()}, "model.safetensors")
    return CliRunner()


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help_teaches(runner: CliRunner) -> None:
    text = flat(runner.invoke(app, ["plan", "--help"]).output)
    for part in (
        "Examples",
        "--weight items.npy --queries users.npy",
        "--counts counts.npy --dim 64",
        "known data set",
        "--counted",
        "--json",
    ):
        assert part in text
    assert "plan" in runner.invoke(app, ["--help"]).output


def test_plan_from_counts(runner: CliRunner) -> None:
    command = ["plan", "--counts", "counts.npy", "--dim", "16", "--budget", "8%"]
    expected = mgqe.plan(1000, 16, "8%", counts=COUNTS)
    shown = runner.invoke(app, command)
    assert shown.exit_code == 0, shown.output
    for part in (expected.python(), f"{expected.nbytes:,}", "the even default, int8", "predicted for Gaussian rows"):
        assert part in shown.output
    found = json.loads(runner.invoke(app, [*command, "--json"]).output)
    assert found["nbytes"] == expected.nbytes
    assert found["loss"] == expected.loss
    assert found["tier_sizes"] == list(expected.tiers.sizes)
    assert found["python"] == expected.python()
    default = mgqe.MGQEmbedding(1000, 16, counts=COUNTS).freeze()
    assert 0 < found["default"]["nbytes"] - default.nbytes < 1500
    assert found["default"]["int8"]["nbytes"] < found["default"]["nbytes"]


def test_plan_of_a_trained_table(runner: CliRunner) -> None:
    expected = mgqe.plan(1000, 16, "8%", counts=COUNTS, weight=ROWS)
    for weight in (["--weight", "rows.npy"], ["--weight", "model.safetensors", "--tensor", "item.weight"]):
        result = runner.invoke(app, ["plan", *weight, "--counts", "counts.npy", "--budget", "8%"])
        assert result.exit_code == 0, result.output
        assert result.output.rstrip().endswith(f"\n{expected.python()}")
        text = flat(result.output)
        for tier, error in zip(expected.capacity.tiers, expected.errors, strict=True):
            assert f"{tier.ids:,} {sum(tier.code_bits)} {100 * error:.2f}%" in text
        for part in (
            "1,000 ids x 16: at most 5,120 bytes of 64,000",
            f"bytes {expected.nbytes:,}, {100 * expected.nbytes / 64_000:.2f}% of the table",
            f"{expected.capacity.num_coordinates} of 16 are kept",
            f"{len(expected.capacity.widths)}, of widths {' '.join(map(str, expected.capacity.widths))}",
            "alike in all directions",
            f"lost {100 * expected.loss:.2f}% of the weighted squares",
            "head, tail {:.2%} lost of the 10% of ids that are most frequent, {:.2%} of the others".format(
                *expected.head_and_tail
            ),
            f"look-up {expected.lookup_share:.1f} of nn.Embedding's time, estimated",
            "; ".join(
                f"{name}: {100 * loss:.2f}% lost"
                for name, (_, loss) in zip(("100 / 900 ids", "one tier"), expected.compared, strict=True)
            ),
        ):
            assert part in text


def test_plan_prefers(runner: CliRunner) -> None:
    np.save("many.npy", np.random.default_rng(0).standard_normal((20_000, 4), dtype=np.float32))
    command = ["plan", "--weight", "many.npy", "--budget", "15%"]
    speed, size = (
        json.loads(runner.invoke(app, [*command, "--prefer", prefer, "--json"]).output) for prefer in ("speed", "size")
    )
    assert size["prefer"] == "size"
    assert size["loss"] <= speed["loss"]
    assert speed["lookup_share"] <= size["lookup_share"]
    assert 'prefer="size"' in size["python"]
    assert "prefer must be one of" in runner.invoke(app, [*command, "--prefer", "fast"]).output
    assert "--weight" in runner.invoke(app, ["plan", "--rows=9", "--dim=8", "--budget=50%", "--prefer=size"]).output


def test_plan_prefers_the_tail(runner: CliRunner) -> None:
    command = ["plan", "--weight", "rows.npy", "--counts", "counts.npy", "--budget", "8%"]
    default, alike = (
        json.loads(runner.invoke(app, [*command, *more, "--json"]).output) for more in ([], ["--prefer-tail"])
    )
    assert (default["prefer_tail"], alike["prefer_tail"]) == (False, True)
    expected = mgqe.plan(1000, 16, "8%", counts=COUNTS, weight=ROWS, prefer_tail=True)
    assert alike["head_and_tail"] == list(expected.head_and_tail)
    assert alike["head_and_tail"] != default["head_and_tail"]
    assert "prefer_tail=True" in alike["python"]
    assert "ids count by the root of their counts" in flat(runner.invoke(app, command).output)
    assert "ids count alike (--prefer-tail)" in flat(runner.invoke(app, [*command, "--prefer-tail"]).output)
    without = runner.invoke(app, ["plan", "--weight", "rows.npy", "--budget", "8%", "--prefer-tail"])
    assert without.exit_code == 2
    assert "--prefer-tail goes with --weight and --counts" in flat(without.output)


def test_plan_by_queries(runner: CliRunner) -> None:
    command = ["plan", "--weight", "rows.npy", "--queries", "queries.npy", "--budget", "8%"]
    expected = mgqe.plan(1000, 16, "8%", weight=ROWS, queries=QUERIES)
    assert isinstance(expected, mgqe.RowsPlan)
    assert "by the queries" in runner.invoke(app, command).output
    found = json.loads(runner.invoke(app, [*command, "--json"]).output)
    assert found == {
        "num_embeddings": 1000,
        "embedding_dim": 16,
        "budget": 5120,
        "nbytes": expected.nbytes,
        "full_nbytes": 64_000,
        "tier_sizes": [1000],
        "loss": expected.loss,
        "errors": [expected.loss],
        "head_and_tail": None,
        "python": "mgqe.MGQEmbedding.from_pretrained(weight, queries=queries, budget=5_120)",
        "code_bits": [list(expected.capacity.tiers[0].code_bits)],
        "widths": list(expected.capacity.widths),
        "num_coordinates": expected.capacity.num_coordinates,
        "centroid_dtype": "int8",
        "matrix_dtype": "int8",
        "metric": "queries",
        "prefer": "speed",
        "prefer_tail": False,
        "lookup_share": expected.lookup_share,
        "compared": [{"tier_sizes": [1000], "loss": expected.loss}],
    }


@pytest.mark.parametrize("source", ["--weight rows.npy --counts counts.npy", "--counts counts.npy --dim 16"])
def test_plans_fit_into_80_columns(runner: CliRunner, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = runner.invoke(app, ["plan", *source.split(), "--budget", "40%"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if not line.startswith("mgqe.")]
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80


def test_plan_from_files_and_known_data(runner: CliRunner) -> None:
    import polars

    ids = np.repeat(np.arange(100), np.arange(100) + 1)
    polars.DataFrame({"item": ids}).write_parquet("clicks.parquet")
    polars.DataFrame({"n": np.arange(100) + 1}).write_csv("counts.csv")
    Path("log").mkdir()
    polars.DataFrame({"item": ids[:2000]}).write_parquet("log/part-0")
    polars.DataFrame({"item": ids[2000:]}).write_parquet("log/part-1")
    Path("log/_SUCCESS").touch()
    Path("log.dat").write_text("".join(f"x::{item}::1\n" for item in ids))
    Path("counts.tsv").write_text("".join(f'{n + 1}\t7" single\n' for n in range(100)))
    outputs = [
        runner.invoke(app, ["plan", *arguments, "--dim", "8", "--budget", "60%", "--json"]).output
        for arguments in (
            ["--counts", "clicks.parquet", "--column", "item", "--rows", "100"],
            ["--counts", "counts.csv", "--column", "n", "--counted"],
            ["--counts", "log", "--column", "item", "--rows", "100"],
            ["--counts", "log.dat", "--separator", "::", "--no-header", "--column", "2", "--rows", "100"],
            ["--counts", "counts.tsv", "--separator", r"\t", "--no-header", "--column", "1", "--counted"],
            ["--counts", "counts.tsv", "--separator", r"\t", "--no-header", "--column", "1", "--counted", "--no-quote"],
        )
    ]
    assert len(set(outputs)) == 1
    assert json.loads(outputs[0])["num_embeddings"] == 100
    planted = runner.invoke(app, ["plan", "--counts", "planted", "--field", "user", "--dim", "8", "--budget", "20%"])
    assert planted.exit_code == 0, planted.output
    assert "4,000 ids x 8" in planted.output
    assert runner.invoke(app, ["plan", "--rows", "1000", "--dim", "8", "--budget", "20%"]).exit_code == 0


def test_known_data_for_clicks_are_counted_field_by_field(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run counts them, of its training part; --counts frappe was listed, and then refused."""
    counts = {"user": torch.tensor([5, 1, 1]), "country": torch.arange(700, 0, -1)}
    asked = []

    def load(config: TrainConfig) -> RunData:
        asked.append((config.task, config.data, config.data_dir))
        tables = {f"fields.{name}": TableInfo(name, len(each), each) for name, each in counts.items()}
        return RunData(SimpleNamespace(tables=tables), "")

    monkeypatch.setattr(RunData, "load", load)
    command = ["plan", "--dim", "8", "--budget", "60%", "--data-dir", "DIR", "--field"]
    result = runner.invoke(app, [*command, "country", "--counts", "frappe"])
    assert result.exit_code == 0, result.output
    assert "700 ids x 8" in result.output
    refused = runner.invoke(app, [*command, "city", "--counts", "criteo"])
    assert "--field must be one of user, country, got 'city'" in flat(refused.stderr)
    assert asked == [("ctr", "frappe", "DIR"), ("ctr", "criteo", "DIR")]


def test_ids_of_any_type_are_counted_in_every_layout(runner: CliRunner) -> None:
    import polars

    names = [f"shoe-{n}" for n in np.repeat(np.arange(100), np.arange(100) + 1)]
    log = polars.DataFrame({"user": ["u1"] * len(names), "item": names})
    log.write_parquet("log.parquet")
    log.write_csv("log.csv")
    Path("log.dat").write_text("".join(f"u1::{name}\n" for name in names))
    Path("log.txt").write_text("".join(f"u1 {name}\n" for name in names))
    np.save("names.npy", np.array(names))
    for path in ("map", "map.safetensors"):
        mgqe.IdMap.from_log("log.csv", "item").save(path)
    polars.DataFrame({"item": np.repeat(np.arange(100) * 1000, np.arange(100) + 1)}).write_csv("numbers.csv")
    outputs = [
        runner.invoke(app, ["plan", "--counts", *arguments, "--dim", "8", "--budget", "60%", "--json"]).stdout
        for arguments in (
            ["log.parquet", "--column", "item"],
            ["log.parquet"],
            ["log.csv"],
            ["log.dat", "--separator", "::", "--no-header", "--column", "2"],
            ["log.txt", "--format", "pairs"],
            ["names.npy"],
            ["map"],
            ["map.safetensors"],
            ["numbers.csv", "--column", "item"],
            ["log.csv", "--rows", "100"],
        )
    ]
    assert len(set(outputs)) == 1
    assert json.loads(outputs[0])["num_embeddings"] == 100
    more = runner.invoke(
        app, ["plan", "--counts", "log.csv", "--rows", "120", "--dim", "8", "--budget", "60%", "--json"]
    )
    assert json.loads(more.stdout)["num_embeddings"] == 120
    result = runner.invoke(app, ["plan", "--counts", "log.csv", "--weight", "rows.npy", "--budget", "5%"])
    assert "the log's ids are of kind string, and rows have numbers" in flat(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--counts counts.npy --budget 5%", "--dim (d) is needed without --weight"),
        ("--dim 8 --budget 5%", "how many rows? Give --counts, --weight, or --rows"),
        ("--counts counts.npy --dim 16 --budget 20", "too small for 1,000 ids x 16: the least is"),
        ("--counts counts.npy --dim 16 --budget 64000", "uncompressed it takes 64,000"),
        ("--counts counts.npy --dim 16 --budget five", 'a budget is "5%"'),
        ("--counts counts.npy --dim 16 --budget 0", "--budget 0: a budget is"),
        ("--counts counts.npy --dim 16 --budget 200%", "--budget 200%: a budget is"),
        ("--counts nothing.npy --dim 16 --budget 5%", "no file nothing.npy"),
        ("--counts ml-2m --dim 16 --budget 5%", "expected a file (.npy, .safetensors, .parquet, .pq, .csv) or a known"),
        ("--counts ml-1m --dim 16 --budget 5%", "needs a data directory"),
        ("--counts planted --field genre --dim 16 --budget 5%", "--field must be one of user, item, got 'genre'"),
        ("--counts one.csv --field genre --dim 16 --budget 5%", "--field must be item or user of a log, got"),
        ("--counts rows.npy --dim 16 --budget 5%", "expected one number per id, got float32 (1000, 16): `mgqe"),
        ("--counts model.safetensors --dim 16 --budget 5%", "expected an id map, as `mgqe ids`"),
        ("--weight rows.npy --dim 8 --budget 5%", "--dim is 8, but rows.npy has rows of 16"),
        ("--weight counts.npy --budget 5%", "expected rows of numbers (N, d), got shape (1000,)"),
        ("--weight nothing.npy --budget 5%", "nothing.npy: there is no such file"),
        ("--weight rows.csv --budget 5%", "rows.csv: there is no such file"),
        ("--weight model.safetensors --budget 5%", "several matrices (item.weight 1000 x 16, user.weight 5 x 16)"),
        ("--weight model.safetensors --tensor items --budget 5%", "no tensor 'items': it holds item.weight"),
        ("--weight rows.npy --queries nothing.npy --budget 5%", "nothing.npy: there is no such file"),
        ("--weight rows.npy --queries counts.npy --budget 5%", "expected rows of numbers (N, d), got shape (1000,)"),
        ("--weight rows.npy --queries narrow.npy --budget 5%", "shape (n, 16), as many dimensions as rows, got (n, 3)"),
        ("--counts counts.npy --dim 16 --queries queries.npy --budget 5%", "--queries goes with --weight"),
        ("--weight rows.npy --max-tiers 2 --budget 5%", "max_tiers can be given only without weight"),
        ("--weight rows.npy --budget 20", "20 bytes is too small for 1,000 ids x 16: the least is"),
        ("--weight nan.npy --budget 5%", "1 rows of weight hold NaN or infinity, the first is row 0"),
        ("--weight bad.npy --budget 5%", "cannot be read as .npy"),
        ("--weight bad.safetensors --budget 5%", "cannot be read"),
        ("--counts one.csv --dim 8 --budget 5%", "say which column"),
        ("--counts one.csv --column n --rows 2 --dim 8 --budget 5%", "id 2 is outside the rows, 0 to 1"),
        ("--counts counts.npy --rows 900 --dim 16 --budget 5%", "expected 900 numbers, one per row, got int64 (1000,)"),
        ("--weight rows.npy --rows 900 --budget 5%", "--rows is 900, but rows.npy has 1000 rows"),
        ("--counts empty.csv --column n --counted --dim 8 --budget 5%", "cannot be read"),
        ("--counts words.npy --dim 8 --budget 5% --rows 2", "3 ids occur, more than --rows 2"),
        ("--counts one.csv --column m --rows 9 --dim 8 --budget 5%", "no column 'm': the file has n"),
        ("--counts one.csv --column m --counted --dim 8 --budget 5%", "no column 'm': the file has n"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(runner: CliRunner, arguments: str, words: str) -> None:
    Path("bad.npy").write_bytes(b"nothing")
    Path("bad.safetensors").write_bytes(b"nothing")
    Path("one.csv").write_text("n\n1\n2\n")
    Path("empty.csv").write_text("")
    np.save("narrow.npy", QUERIES[:, :3].numpy())
    np.save("nan.npy", np.where(np.arange(10)[:, None] == 0, np.nan, np.ones((10, 100))))
    np.save("words.npy", np.array(["a", "b", "c"]))
    result = runner.invoke(app, ["plan", *arguments.split()])
    assert result.exit_code == 2, result.output
    assert words in flat(result.stderr)
    assert "Traceback" not in result.output


def test_descriptions_take_a_budget() -> None:
    counts = torch.from_numpy(COUNTS)
    for text, most in (("mgqe:budget=8%", 5_120), ("dpq:budget=5120", 5_120), ("mgqe:item.budget=0.08", 5_120)):
        spec = Spec.parse(text)
        assert str(Spec.parse(str(spec))) == str(spec)
        layer = build(spec, "item", 1000, 16, counts, 0.1, 0)
        assert layer.freeze().nbytes <= most
    with pytest.raises(ValueError, match="budget= chooses num_centroids"):
        build(Spec.parse("mgqe:budget=8%,K=16"), "item", 1000, 16, counts, 0.1, 0)
