"""A Parquet file as pandas, polars and DuckDB read it, as JSON: ``python -m tests.peers.engines.readers FILE``."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import duckdb
import pandas as pd
import polars as pl


def main() -> None:
    """Columns with their types, and all rows, by library; a number that is none and a null are both null here."""
    path = sys.argv[1]
    read_by_pandas, read_by_polars = pd.read_parquet(path), pl.read_parquet(path)
    relation = duckdb.read_parquet(path)
    report: dict[str, Any] = {
        "pandas": _of([(str(name), str(kind)) for name, kind in read_by_pandas.dtypes.items()], _rows(read_by_pandas)),
        "polars": _of([(name, str(kind)) for name, kind in read_by_polars.schema.items()], read_by_polars.rows()),
        "duckdb": _of(
            [(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)],
            relation.fetchall(),
        ),
    }
    if {"strategy", "sharpe"} <= set(relation.columns):
        report["best_by_duckdb"] = duckdb.sql(
            "SELECT strategy, max(sharpe) FROM read_parquet($path) WHERE NOT isnan(sharpe) GROUP BY 1 ORDER BY 1",
            params={"path": path},
        ).fetchall()
    print(json.dumps(report))


def _rows(frame: Any) -> list[tuple[Any, ...]]:
    return list(frame.astype(object).itertuples(index=False, name=None))


def _of(types: list[tuple[str, str]], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {"types": dict(types), "rows": [[_plain(value) for value in row] for row in rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, str) or value is None or value is pd.NA:
        return None if value is pd.NA else value
    if hasattr(value, "__len__"):
        return [_plain(one) for one in value]
    number = float(value)
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    main()
