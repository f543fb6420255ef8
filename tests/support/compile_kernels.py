"""Compiles every kernel for a GPU that need not be there, and prints which instructions each has, as JSON.

``python compile_kernels.py 90`` is for compute capability 9.0. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import importlib
import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

adagrad, assign, bag, bag_codes, ids, lookup, rounding, scores, search, soft, transform = (
    importlib.import_module(f"mgqe.ops.triton_kernels.{name}")
    for name in (
        "adagrad",
        "assign",
        "bag",
        "bag_codes",
        "ids",
        "lookup",
        "rounding",
        "scores",
        "search",
        "soft",
        "transform",
    )
)
FLOATS, LONGS, INTS, BYTES = "*fp32", "*i64", "*i32", "*i8"
POINTERS = {
    "assign": {"book": FLOATS, "searches": LONGS, "middle": FLOATS, "longest": "*fp64", "codes": INTS, "tiers": LONGS}
    | dict.fromkeys(("rows", "bias", "units", "steps", "weights", "taken", "errors", "losses", "scale", "sums"), FLOATS)
    | {"weight": "fp32", "factor": "fp32"},
    "rows": dict.fromkeys(("rows", "shift", "mean", "matrix", "scales", "out", "weights"), FLOATS)
    | {"ids": LONGS, "offsets": LONGS},
    "adagrad": {"rows": LONGS, "order": LONGS, "noise": INTS}
    | dict.fromkeys(("values", "sums", "state", "gradients", "parameter"), FLOATS)
    | dict.fromkeys(("rate", "eps", "decay"), "fp32"),
    "lookup": {"ids": LONGS, "starts": LONGS, "levels": LONGS, "first_entry": LONGS, "tiers": INTS, "places": LONGS}
    | {"addresses": LONGS, "row_bytes": LONGS, "fields": LONGS, "out": FLOATS, "scales": FLOATS, "mean": FLOATS},
}
SOFT = dict.fromkeys(
    (
        "rows",
        "keys",
        "values",
        "means",
        "scales",
        "sums",
        "grad",
        "of_keys",
        "of_rows",
        "vectors",
        "pulls",
        "grad_keys",
    ),
    FLOATS,
) | {"running_mean": FLOATS, "running_variance": FLOATS, "moments": "*fp64", "partial": "*fp64", "codes": INTS}
SOFT |= dict.fromkeys(("tiers", "counts", "searches", "value_searches"), LONGS) | dict.fromkeys(
    ("momentum", "eps"), "fp32"
)
WHOLE = {"book": BYTES, "matrix": BYTES}
TILE = {"IDS": lookup.IDS, "COORDINATES": lookup.COORDINATES}
BLOCKS = {"ROWS": assign.ROWS, "CENTROIDS": assign.CENTROIDS}
FLAGS = ("HAS_BIAS", "HAS_TIERS", "HAS_STEPS", "HAS_WEIGHTS", "DECODES")


def nearest(*flags):
    return assign._nearest, POINTERS["assign"], {flag: flag in flags for flag in FLAGS} | BLOCKS


BAG_FLAGS = ("IS_MEAN", "HAS_WEIGHTS", "HAS_MATRIX", "HAS_SCALES")


def bags_of_codes(types, *flags):
    types = POINTERS["lookup"] | {"offsets": LONGS, "weights": FLOATS, "book": FLOATS, "matrix": FLOATS} | types
    constants = {flag: flag in flags for flag in BAG_FLAGS}
    return bag_codes._bag_codes, types, constants | {"BAGS": bag_codes.BAGS, "COORDINATES": 64, "COLUMNS": 64}


COLUMNS = {"ROWS": transform.ROWS, "COLUMNS": transform.COLUMNS, "HAS_SHIFT": True, "HAS_MEAN": True}
ADAGRAD = {"HAS_DECAY": True, "HAS_NOISE": True}
RUNS = {"BLOCK": adagrad.BLOCK, "COLUMNS": 64}
KEEP = {"HAS_ENTRIES": True, "HAS_ROOTS": True, "HAS_BIAS": True, "HAS_ALLOWED": True, "IDS": search.IDS}
KEEP |= {"QUERIES": search.QUERIES}
KERNELS = {
    "frame": (assign._frame, POINTERS["assign"], {"HAS_STEPS": True, "BLOCK": 256}),
    "nearest": nearest(),
    "nearest with bias": nearest("HAS_BIAS"),
    "nearest of tiers, decoded": nearest("HAS_TIERS", "HAS_WEIGHTS", "DECODES"),
    "nearest of steps, decoded": nearest("HAS_TIERS", "HAS_STEPS", "DECODES"),
    "scatter": (
        assign._scatter,
        POINTERS["assign"],
        {"HAS_TIERS": True, "HAS_UNITS": True, "PART": assign.PART, **BLOCKS},
    ),
    "transform": (transform._transform, POINTERS["rows"], {**COLUMNS, "HAS_SCALES": False}),
    "transform with scales": (transform._transform, POINTERS["rows"], {**COLUMNS, "HAS_SCALES": True}),
    "sum of runs": (adagrad._sum_runs, POINTERS["adagrad"], RUNS),
    "Adagrad of rows": (adagrad._move_rows, POINTERS["adagrad"], {**ADAGRAD, **RUNS, "PARTS": adagrad.PARTS}),
    "Adagrad of bfloat16": (
        adagrad._move_all,
        POINTERS["adagrad"] | {"parameter": "*bf16"},
        {**ADAGRAD, "ELEMENTS": adagrad.ELEMENTS},
    ),
    "ids": (ids._admit, {"ids": LONGS, "extremes": LONGS, "out": LONGS}, {"IDS": ids.IDS}),
    "rounding": (
        rounding._round_subspaces,
        {"values": FLOATS, "units": FLOATS, "spans": LONGS, "out": FLOATS},
        {"BLOCK": rounding.BLOCK},
    ),
    "SX: moments": (soft._moments, SOFT, {"HAS_TIERS": True, "HAS_COUNTS": True, "PART": soft.PART}),
    "SX: statistics": (soft._fold, SOFT, {"CENTROIDS": soft.CENTROIDS}),
    "SX: codes": (soft._choose, SOFT, {"HAS_TIERS": True, **BLOCKS}),
    "SX: softmax": (soft._soften, SOFT, {"HAS_TIERS": True, **BLOCKS}),
    "SX: keys": (soft._unfold, SOFT, {"CENTROIDS": soft.CENTROIDS}),
    "SX: rows": (soft._settle, SOFT, {"HAS_TIERS": True, "HAS_COUNTS": True, "ROWS": soft.ROWS}),
    "sum": (bag._bag, POINTERS["rows"], {"MODE": 0, "HAS_WEIGHTS": True, "COLUMNS": 64}),
    "mean": (bag._bag, POINTERS["rows"], {"MODE": 1, "HAS_WEIGHTS": False, "COLUMNS": 64}),
    "max": (bag._bag, POINTERS["rows"], {"MODE": 2, "HAS_WEIGHTS": False, "COLUMNS": 64}),
    "sum of codes": bags_of_codes({}, "HAS_WEIGHTS"),
    "mean of codes, a matrix": bags_of_codes({}, "IS_MEAN", "HAS_MATRIX"),
    "sum of codes, whole numbers": bags_of_codes(WHOLE, "HAS_WEIGHTS", "HAS_MATRIX", "HAS_SCALES"),
    "locate": (lookup._locate, POINTERS["lookup"], {"HAS_MAP": True, "IDS": lookup.IDS}),
    "score": (scores._score, POINTERS["lookup"] | {"entries": INTS, "partial": FLOATS}, {"IDS": scores.IDS}),
    "keep": (
        search._keep,
        POINTERS["lookup"]
        | {"entries": INTS, "counts": INTS, "kept": LONGS, "thresholds": LONGS, "allowed": "*u8"}
        | dict.fromkeys(("partial", "roots", "bias"), FLOATS),
        KEEP,
    ),
    "decode": (lookup._decode, POINTERS["lookup"] | {"book": FLOATS}, TILE),
    "decode whole": (
        lookup._decode_whole,
        POINTERS["lookup"] | {"book": BYTES, "matrix": BYTES},
        {**TILE, "COLUMNS": 64},
    ),
}
INSTRUCTIONS = {"fma.f64": r"fma\.rn\.f64", "fma.f32": r"fma\.rn\.f32", "tensor cores": r"mma\S*s8|imma"}


def compiled(kernel, types, constants, capability):
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})


def main() -> None:
    found = {}
    for name, (kernel, types, constants) in KERNELS.items():
        made = compiled(kernel, types, constants, int(sys.argv[1]))
        counts = {what: len(re.findall(pattern, made.asm["ptx"])) for what, pattern in INSTRUCTIONS.items()}
        numbers = [p for p in kernel.params if not p.is_constexpr and p.name not in types]
        specialised = [p.name for p in numbers if not p.do_not_specialize]
        found[name] = {"cubin bytes": len(made.asm["cubin"]), "specialised": specialised, **counts}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
