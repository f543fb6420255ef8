"""What the command inspect says of each artefact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mgqe
from mgqe.cli.artefacts import CONFIG, METRICS, RESULTS, STUDY, TABLES, Artefact, artefacts_in
from mgqe.cli.counts_files import load_counts
from mgqe.cli.lookups import table_lookup_share
from mgqe.codec.planning.speed import in_words
from mgqe.collection import Collection
from mgqe.collection.folder import table_of
from mgqe.convert.manifest import MANIFEST, decode_manifest
from mgqe.convert.read import manifest_bytes
from mgqe.files.atomic import read_json
from mgqe.ids import IdMap
from mgqe.recsys.study.text_table import TextTable
from mgqe.table.base import FrozenTable
from mgqe.table.segment_files import all_records, all_segment_files
from mgqe.table.sharded import files_of

SHARES = (1, 10)  # per cent of ids


@dataclass
class Inspection:
    """What there is to say: in one line, in tables and further lines, and as JSON."""

    summary: str
    facts: dict[str, Any] = field(default_factory=dict)
    blocks: list[TextTable | str] = field(default_factory=list)


def inspection_of(artefact: Artefact) -> Inspection:
    """The inspection of an artefact; errors are those of reading it."""
    return _OF_KIND[artefact.kind](artefact.path)


def _of_table(path: Path) -> Inspection:
    table = mgqe.load(path)
    is_folder = path.is_dir()
    appended = [] if is_folder else all_segment_files(path.resolve())
    files = files_of(path) if is_folder else [path, *appended, *all_records(path.resolve())]
    on_disk = sum(file.stat().st_size for file in files)
    by_part = table.nbytes_by_part()
    nbytes = {**by_part, "header": on_disk - sum(by_part.values()), "file": on_disk}
    found = Inspection(
        f"{type(table).__name__}, {_shape(table)}",
        {
            "type": type(table).__name__,
            "num_embeddings": table.num_embeddings,
            "embedding_dim": table.embedding_dim,
            "nbytes": nbytes,
            "appended_files": len(appended),
        },
    )
    if appended:
        found.blocks.append(
            f"with ids appended in {len(appended)} file{'s'[: len(appended) > 1]} beside it; saving the loaded table "
            "over the file makes one file of them"
        )
    full = 4 * table.num_embeddings * table.embedding_dim
    sizes = TextTable("Bytes", ["part", "bytes", "of float32"])
    for name, size in nbytes.items():
        sizes.rows.append([name, f"{size:,}", f"{100 * size / full:.2f}%" if full else ""])
    found.blocks.append(sizes)
    if isinstance(table, mgqe.CompactTable):
        _add_tiers(found, table)
    return found


def _shape(table: FrozenTable) -> str:
    return f"{table.num_embeddings:,} ids x {table.embedding_dim} dimensions"


def _add_tiers(found: Inspection, table: mgqe.CompactTable) -> None:
    tiers = TextTable(
        "Tiers, most frequent first",
        ["tier", "ids", "subspaces", "centroids", "bits/code", "bytes/id", "in use", "perplexity"],
    )
    found.facts["tiers"] = []
    for stats in table.codebook_stats():
        tier = table.config.tiers[stats.tier]
        bits = tier.code_bits or (tier.bits,)
        used = {"usage": stats.usage, "perplexity": stats.perplexity}
        shape = {
            "num_subspaces": stats.num_subspaces,
            "num_centroids": stats.num_centroids,
            "row_bytes": tier.row_bytes,
        }
        found.facts["tiers"].append({"ids": stats.num_ids, **shape, "code_bits": bits, **used})
        tiers.rows.append(
            [
                str(stats.tier),
                f"{stats.num_ids:,}",
                str(stats.num_subspaces),
                str(stats.num_centroids),
                str(tier.bits) if not tier.code_bits else f"{min(bits)} to {max(bits)}",
                str(tier.row_bytes),
                f"{100 * stats.usage:.0f}%",
                f"{stats.perplexity:.1f}",
            ]
        )
    share = table_lookup_share(table)
    found.facts["lookup_share"] = share
    found.blocks += [tiers, f"{in_words(share)}, for ids that are alike frequent"]


def _of_map(path: Path) -> Inspection:
    id_map = IdMap.load(path)
    table, facts = map_figures(id_map, path.stat().st_size)
    return Inspection(f"{len(id_map):,} ids of kind {id_map.kind}", facts, [table])


def map_figures(id_map: IdMap, nbytes: int) -> tuple[TextTable, dict[str, Any]]:
    """The figures of an id map in a file of so many bytes, as a table and as JSON."""
    shares = {percent: id_map.share(max(1, len(id_map) * percent // 100)) for percent in SHARES}
    table = TextTable("", ["figure", "value"])
    table.rows.extend(
        [
            ["interactions", f"{id_map.interactions:,}"],
            ["different ids", f"{id_map.distinct:,}"],
            ["rows", f"{len(id_map):,} with {100 * id_map.share(len(id_map)):.1f}% of the interactions"],
            *(
                [f"the most frequent {percent}%", f"{100 * share:.1f}% of the interactions"]
                for percent, share in shares.items()
            ),
            ["bytes of the map", f"{nbytes:,} = {nbytes / len(id_map):.1f} per id"],
        ]
    )
    facts = {
        "ids": id_map.kind,
        "rows": len(id_map),
        "interactions": id_map.interactions,
        "distinct": id_map.distinct,
        "share_of_most_frequent": {f"{percent}%": share for percent, share in shares.items()},
        "nbytes": nbytes,
    }
    return table, facts


def _of_collection(path: Path) -> Inspection:
    items = Collection.load(path)
    found = _of_table(table_of(path))
    kind = "rows" if items.ids is None else items.ids.kind
    nbytes = 0 if items.ids is None else items.ids.nbytes
    found.facts |= {"ids": kind, "ids_nbytes": nbytes}
    ids = "numbered rows" if items.ids is None else f"ids of kind {kind} in {nbytes:,} bytes"
    found.summary += f", {ids}"
    return found


def _of_run(path: Path) -> Inspection:
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    metrics = read_json(path / METRICS) if (path / METRICS).is_file() else {}
    named = {name: config.get(name) for name in ("data", "model", "embedding", "seed") if name in config}
    state = "finished" if metrics else "not finished"
    summary = ", ".join([*(f"{name} {value}" for name, value in named.items()), state])
    found = Inspection(summary, {**named, "finished": bool(metrics)})
    _add_tables(found, sorted(path.glob(TABLES)))
    quality = {name: value for name, value in metrics.get("quality", {}).items() if isinstance(value, float)}
    if quality:
        found.facts["quality"] = quality
        figures = TextTable("Quality", ["figure", "value"])
        figures.rows.extend([[name, f"{value:.4f}"] for name, value in quality.items()])
        found.blocks.append(figures)
    collections = sorted(each for each in artefacts_in(path) if each.is_dir())
    found.facts["collections"] = [str(each) for each in collections]
    if collections:
        found.blocks.append(f"\ncollections: {', '.join(map(str, collections))}")
    return found


def _add_tables(found: Inspection, files: list[Path], names: list[str] | None = None) -> None:
    tables = TextTable("Tables", ["table", "kind", "ids", "dimensions", "bytes"], left=2)
    found.facts["tables"] = []
    for file, name in zip(files, names or [file.name for file in files], strict=True):
        table = mgqe.load(file)
        kind, n, d = type(table).__name__, table.num_embeddings, table.embedding_dim
        nbytes = sum(part.stat().st_size for part in files_of(file)) if file.is_dir() else file.stat().st_size
        fact = {"name": name, "type": kind, "num_embeddings": n, "embedding_dim": d, "nbytes": nbytes}
        found.facts["tables"].append(fact)
        tables.rows.append([name, kind, f"{n:,}", str(d), f"{nbytes:,}"])
    found.blocks.append(tables)


def _of_model(path: Path) -> Inspection:
    manifest = decode_manifest(manifest_bytes(path), path / MANIFEST)
    facts = {"class": manifest.class_name, "version": manifest.version, "dense_nbytes": manifest.dense.nbytes}
    found = Inspection(f"{manifest.class_name}, written by mgqe.save_model", facts)
    _add_tables(found, [path / entry.file for entry in manifest.tables], [", ".join(e.paths) for e in manifest.tables])
    found.blocks.append(f"\nother weights: {manifest.dense.nbytes:,} bytes; mgqe.load_model(model, folder) reads them")
    return found


def _of_torchrec(path: Path) -> Inspection:
    tables = sorted(each for each in artefacts_in(path) if each.is_dir())
    found = Inspection(f"{len(tables)} table{'s'[: len(tables) != 1]}")
    _add_tables(found, tables, [each.name for each in tables])
    return found


def _of_study(path: Path) -> Inspection:
    lines = (path / RESULTS).read_text(encoding="utf-8").splitlines() if (path / RESULTS).is_file() else []
    records = [record for record in map(_record, lines) if record]
    done = Counter((record.get("pair", ""), record.get("status", "")) for record in records)
    runs = TextTable("Runs", ["task and data", "state", "runs"], left=2)
    runs.rows.extend([[pair, state, str(number)] for (pair, state), number in sorted(done.items())])
    facts = [{"pair": pair, "status": state, "runs": number} for (pair, state), number in sorted(done.items())]
    declared = (path / STUDY).is_file()  # else mgqe compare wrote it
    command = f"mgqe report {path}" if declared else f"the same mgqe compare, with --out {path},"
    blocks: list[TextTable | str] = [runs, f"\n{command} shows the results"] if records else []
    return Inspection(f"{len(records)} runs recorded", {"runs": facts}, blocks)


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:  # a line that a kill cut short
        return {}
    return record if isinstance(record, dict) else {}


def _of_counts(path: Path) -> Inspection:
    counts = load_counts(path).double().sort(descending=True).values
    n, total = len(counts), float(counts.sum())
    table = TextTable("", ["figure", "value"])
    never = int((counts == 0).sum())
    table.rows.extend([["sum", f"{total:,.0f}"], ["ids that never occur", f"{never:,}"]])
    shares = {}
    for percent in SHARES if total else ():
        share = float(counts[: max(1, n * percent // 100)].sum()) / total
        shares[f"{percent}%"] = share
        table.rows.append([f"the most frequent {percent}%", f"{100 * share:.1f}% of the sum"])
    facts = {"num_embeddings": n, "sum": total, "never": never, "share_of_most_frequent": shares}
    return Inspection(f"of {n:,} ids", facts, [table])


_OF_KIND: dict[str, Callable[[Path], Inspection]] = {
    "table": _of_table,
    "shards": _of_table,
    "id map": _of_map,
    "collection": _of_collection,
    "run": _of_run,
    "model": _of_model,
    "torchrec": _of_torchrec,
    "study": _of_study,
    "counts": _of_counts,
}
