"""Compiles every kernel for a GPU that need not be there, and prints which instructions each has, as JSON.

``python compile_kernels.py 90`` is for compute capability 9.0. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import importlib
import json
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mgqe.ops.triton_kernels.tuning import Tuned

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
TILE = {"COORDINATES": lookup.COORDINATES}
CENTROIDS = {"CENTROIDS": assign.CENTROIDS}
BLOCKS = {"ROWS": assign.ROWS} | CENTROIDS
FLAGS = ("HAS_BIAS", "HAS_TIERS", "HAS_STEPS", "HAS_WEIGHTS", "DECODES")


def nearest(*flags):
    return assign._nearest, POINTERS["assign"], {flag: flag in flags for flag in FLAGS} | CENTROIDS


BAG_FLAGS = ("IS_MEAN", "HAS_WEIGHTS", "HAS_MATRIX", "HAS_SCALES")


def bags_of_codes(types, *flags):
    types = POINTERS["lookup"] | {"offsets": LONGS, "weights": FLOATS, "book": FLOATS, "matrix": FLOATS} | types
    constants = {flag: flag in flags for flag in BAG_FLAGS}
    return bag_codes._bag_codes, types, constants | {"COORDINATES": 64, "COLUMNS": 64}


COLUMNS = {"COLUMNS": transform.COLUMNS, "HAS_SHIFT": True, "HAS_MEAN": True}
ADAGRAD = {"HAS_DECAY": True, "HAS_NOISE": True}
RUNS = {"BLOCK": adagrad.BLOCK, "COLUMNS": 64}
KEEP = {"HAS_ROOTS": True, "HAS_BIAS": True, "HAS_ALLOWED": True, "QUERIES": search.QUERIES}
KEPT = POINTERS["lookup"] | {"entries": INTS, "counts": INTS, "kept": LONGS, "thresholds": LONGS, "allowed": "*u8"}
KEPT |= dict.fromkeys(("partial", "roots", "bias"), FLOATS)


@triton.jit
def gather(partial, codes, out, num_subspaces, num_ids, CENTROIDS: tl.constexpr, IDS: tl.constexpr, Q: tl.constexpr):
    """For comparison with "keep": blocks of partial scores that stay on the chip, and are read by tl.gather."""
    at, query = tl.program_id(0) * IDS + tl.arange(0, IDS), tl.arange(0, Q)
    score = tl.zeros((IDS, Q), tl.float32)
    for j in range(0, num_subspaces):
        block = tl.load(partial + (j * CENTROIDS + tl.arange(0, CENTROIDS))[:, None] * Q + query[None, :])
        code = tl.load(codes + j * num_ids + at)[:, None] + tl.zeros((IDS, Q), tl.int32)
        score += tl.gather(block, code, 0)
    tl.store(out + at[:, None] * Q + query[None, :], score)


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
    "keep": (search._keep, KEPT, {**KEEP, "HAS_ENTRIES": False}),
    "keep of tiers": (search._keep, KEPT, {**KEEP, "HAS_ENTRIES": True}),
    "gather": (
        gather,
        {"partial": FLOATS, "codes": INTS, "out": FLOATS},
        {"CENTROIDS": 256, "IDS": 256, "Q": search.QUERIES},
    ),
    "decode": (lookup._decode, POINTERS["lookup"] | {"book": FLOATS}, TILE),
    "decode whole": (
        lookup._decode_through,
        POINTERS["lookup"] | {"book": BYTES, "matrix": BYTES},
        {**TILE, "WHOLE": True, "COLUMNS": 64},
    ),
    "decode floats": (
        lookup._decode_through,
        POINTERS["lookup"] | {"book": FLOATS, "matrix": FLOATS},
        {**TILE, "WHOLE": False, "COLUMNS": 64},
    ),
}
INSTRUCTIONS = {"fma.f64": r"fma\.rn\.f64", "fma.f32": r"fma\.rn\.f32", "tensor cores": r"mma\S*s8|imma|mma\S*tf32"}
INSTRUCTIONS |= {"loads": r"ld\.global", "loads of 16 bytes": r"ld\.global\S*\.v4"}
INSTRUCTIONS |= {"shuffles": r"shfl", "selects": r"selp"}
ALL_SHAPES = (
    "nearest of tiers, decoded", "transform", "decode", "decode whole", "decode floats", "sum of codes, whole numbers",
    "keep",
)  # fmt: skip


def compiled(kernel, types, constants, capability, num_warps):
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    options = {"enable_fp_fusion": False, "num_warps": num_warps}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    found = {}
    for name, (kernel, types, constants) in KERNELS.items():
        shapes = [{"num_warps": 4}]
        if isinstance(kernel, Tuned):
            shapes = kernel.shapes if name in ALL_SHAPES else kernel.shapes[:1]
            kernel = kernel.kernel
        made = []
        for shape in shapes:
            of_shape = {key: value for key, value in shape.items() if key != "num_warps"}
            made.append(compiled(kernel, types, constants | of_shape, int(sys.argv[1]), shape["num_warps"]))
        counts = {what: len(re.findall(pattern, made[0].asm["ptx"])) for what, pattern in INSTRUCTIONS.items()}
        numbers = [p for p in kernel.params if not p.is_constexpr and p.name not in types]
        specialised = [p.name for p in numbers if not p.do_not_specialize and kernel is not gather]
        found[name] = {"cubin bytes": [len(each.asm["cubin"]) for each in made], "specialised": specialised, **counts}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
