"""How the text of Criteo's and of Avazu's logs becomes fields of whole numbers, as in the benchmark papers.

BARS ("BARS: Towards Open Benchmarking for Recommender Systems", 2022, its sets Criteo_x4 and Avazu_x4) is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from mgqe.ids.logs.text import excerpt
from mgqe.recsys.data.clicks.text_blocks import TextBlock

LABEL = "label"  # the column that is 1 for a click


@dataclass(frozen=True)
class Kind:
    """What a column holds. expected: in the words of an error. required: whether it may not be empty."""

    expected: str
    required: bool = False


NUMBER, HEX = Kind("a whole number or nothing"), Kind("a number in base 16 or nothing")
CLICK, HOUR = Kind("0 or 1", required=True), Kind("an hour as YYMMDDHH", required=True)


def _read(kind: Kind, name: str) -> pl.Expr:
    """The column as int64, null where it is empty or holds something else; of an hour, the hours since 1970."""
    text = pl.col(name)
    if kind is HEX:
        return text.str.to_integer(base=16, strict=False).cast(pl.Int64)
    if kind is HOUR:
        day = text.str.slice(0, 6).str.to_date("%y%m%d", strict=False).dt.epoch("d").cast(pl.Int64)
        hour = pl.when(text.str.contains(r"^\d{8}$")).then(text.str.slice(6)).cast(pl.Int64, strict=False)
        return 24 * day + pl.when(hour < 24).then(hour)
    number = text.cast(pl.Int64, strict=False)
    return pl.when(number.is_in([0, 1])).then(number) if kind is CLICK else number


@dataclass(frozen=True)
class Layout:
    """The layout of a log's text.

    kinds: of the columns, by name, in the order of the file; None: not read. header: whether the first line names them.
    label: the column that says whether there was a click. fields: name -> what the field is, of the columns as numbers.
    """

    separator: str
    header: bool
    label: str
    kinds: Mapping[str, Kind | None]
    fields: Mapping[str, pl.Expr]

    def parse(self, block: TextBlock) -> pl.DataFrame:
        """LABEL, uint8, and the fields, int64, null where one is missing; ValueError names the line that is wrong."""
        text = pl.read_csv(
            block.content,
            has_header=False,
            new_columns=list(self.kinds),
            separator=self.separator,
            quote_char=None,
            infer_schema_length=0,  # all text
            encoding="utf8-lossy",
        )
        read = {name: kind for name, kind in self.kinds.items() if kind is not None}
        numbers = text.select(_read(kind, name).alias(name) for name, kind in read.items())
        for name, kind in read.items():
            wrong = numbers[name].is_null() & (kind.required | text[name].is_not_null())
            if wrong.any():
                at = int(wrong.arg_true()[0])
                raise ValueError(
                    f"{block.where(at)}, column {name!r}: expected {kind.expected}, got "
                    f"{excerpt(text[name][at] or '')}: correct or drop that line"
                )
        return numbers.select(
            pl.col(self.label).cast(pl.UInt8).alias(LABEL),
            *(field.cast(pl.Int64).alias(name) for name, field in self.fields.items()),
        )

    def texts(self, field: str, values: Sequence[int]) -> list[str]:
        """Values of a field as the file has them; of numbers in base 16, all 8 digits."""
        return [f"{value:08x}" if self.kinds.get(field) is HEX else str(value) for value in values]


def _bucket(name: str) -> pl.Expr:
    """floor(ln(x)^2) of numbers above 2, others as they are, and 0 for a missing one."""
    number = pl.col(name).fill_null(0)
    bucket = number.clip(lower_bound=1).cast(pl.Float64).log().pow(2).floor().cast(pl.Int64)
    return pl.when(number > 2).then(bucket).otherwise(number)


_COUNTS = [f"I{number}" for number in range(1, 14)]
_CATEGORIES = [f"C{number}" for number in range(1, 27)]
CRITEO = Layout(
    separator="\t",
    header=False,
    label="label",
    kinds={"label": CLICK, **dict.fromkeys(_COUNTS, NUMBER), **dict.fromkeys(_CATEGORIES, HEX)},
    fields={**{name: _bucket(name) for name in _COUNTS}, **{name: pl.col(name) for name in _CATEGORIES}},
)

_NAMES = [f"{what}_{kind}" for what in ("site", "app") for kind in ("id", "domain", "category")]
_DEVICE = ["device_id", "device_ip", "device_model"]
_NUMBERED = ["device_type", "device_conn_type", *(f"C{number}" for number in range(14, 22))]
_WEEKDAY = (pl.col("hour") // 24 + 3) % 7  # 0 is Monday; the first day of 1970 was a Thursday
AVAZU = Layout(
    separator=",",
    header=True,
    label="click",
    kinds={
        **{"id": None, "click": CLICK, "hour": HOUR, "C1": NUMBER, "banner_pos": NUMBER},
        **dict.fromkeys([*_NAMES, *_DEVICE], HEX),
        **dict.fromkeys(_NUMBERED, NUMBER),
    },
    fields={
        **{"hour": pl.col("hour") % 24, "weekday": _WEEKDAY, "weekend": _WEEKDAY >= 5},
        **{name: pl.col(name) for name in ("C1", "banner_pos", *_NAMES, *_DEVICE, *_NUMBERED)},
    },
)
