"""A submission over HTTP: from a body to a checked specification with its id, and every refusal as a problem."""

from __future__ import annotations

import hashlib
import logging
import re
import reprlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from cluster.market_data import MarketDataError, MissingData
from cluster.run_queue import Priority
from cluster.runs import RunConflict, RunError, default_run_id
from serve_apps.api_problems import invalid_request
from serve_apps.api_shapes import Shape
from serve_apps.problem import Problem
from strategies.backtest import BacktestSpec, SpecError, SweepSpec, parse_backtest, parse_spec
from strategies.base import RULE_NAMES

# Validating a grid expands it in this process, so the API takes smaller ones than the command line.
SETS_MAX: Final = 1_000_000
_RUN_ID: Final = r"^[a-z0-9-]{1,64}$"
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")

logger = logging.getLogger("ray.serve")

RunId = Annotated[str | None, Field(pattern=_RUN_ID, description="the caller's own id; a repeat of it is the same run")]


class SweepSubmission(SweepSpec):
    """A sweep, and optionally the id its run shall have."""

    max_sets: Annotated[int, Field(strict=True, ge=1, le=SETS_MAX)] = SETS_MAX
    run_id: RunId = None
    priority: Priority = Priority.NORMAL


class BacktestSubmission(Shape):
    """One strategy with one set of parameters: a sweep of one."""

    backtest: BacktestSpec
    run_id: RunId = None
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Submission:
    """What shall be run, under which id."""

    run_id: str
    spec: SweepSpec
    kind: Literal["sweep", "backtest"]
    priority: Priority


def read_submission(body: Mapping[str, Any], idempotency_key: str | None, key_id: str) -> Submission:
    """The submission in a JSON body; raises ``SpecError`` naming the field, or ``Problem``.

    An ``Idempotency-Key`` belongs to the API key that sent it, so that two callers never meet in one run.
    """
    content = dict(body)
    run_id = content.pop("run_id", None)
    if run_id is not None and not (isinstance(run_id, str) and re.fullmatch(_RUN_ID, run_id)):
        raise SpecError("run_id", run_id, "1 to 64 of a-z, 0-9 and -")
    priority = _priority(content.pop("priority", Priority.NORMAL))
    if idempotency_key is not None:
        if run_id is not None:
            raise invalid_request("Idempotency-Key", idempotency_key, "either this header or run_id, not both")
        if not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
            raise invalid_request("Idempotency-Key", idempotency_key, "1 to 255 printable ASCII characters")
        run_id = "key-" + hashlib.sha256(f"{key_id}:{idempotency_key}".encode()).hexdigest()[:32]
    kind: Literal["sweep", "backtest"] = "backtest" if "backtest" in content else "sweep"
    _names_no_file(content)
    spec = _backtest(content) if kind == "backtest" else _sweep(content)
    return Submission(run_id or default_run_id(spec, time.time_ns()), spec, kind, priority)


def _names_no_file(content: Mapping[str, Any]) -> None:
    """A user's own strategy is code: the API takes neither files nor paths, nor the name of one that is here already.

    (This process loads none, so ``get`` would know none; that must not be all that stands between.)
    """
    backtest, grids = content.get("backtest"), content.get("grids")
    named = {"backtest": backtest} | {
        f"grids[{i}]": one for i, one in enumerate(grids if isinstance(grids, list) else [])
    }
    for place, part in named.items():
        name = part.get("strategy") if isinstance(part, dict) else None
        if isinstance(name, str) and re.search(r"[@/\\.\0]", name):
            raise SpecError(f"{place}.strategy", name, "a shipped strategy; your own files run by `desk sweep FILE`")


def _priority(value: object) -> Priority:
    if not isinstance(value, str) or value not in set(Priority):
        raise SpecError("priority", value, f"one of {', '.join(Priority)}")
    return Priority(value)


def sweep_of(backtest: BacktestSpec) -> SweepSpec:
    """The sweep of one set that a backtest is."""
    rules = {name: value for name, value in backtest.params.items() if name in RULE_NAMES}
    return SweepSpec.model_validate(
        {
            **backtest.model_dump(exclude={"strategy", "params"}),
            "grids": [
                {
                    "strategy": backtest.strategy,
                    "grid": {name: [value] for name, value in {**backtest.parameters().model_dump(), **rules}.items()},
                }
            ],
        }
    )


@contextmanager
def refusals() -> Iterator[None]:
    """Within, the typed errors of specification, bars and run id become problems."""
    try:
        yield
    except SpecError as error:
        raise _invalid_spec(error.field, error.value, error.rule) from None
    except RunConflict as error:
        detail = f"run_id: {error.value} was already used for another specification"
        raise Problem(409, "RUN_ID_CONFLICT", detail, {"field": "run_id", "value": error.value}) from None
    except RunError as error:
        if error.field not in {"start", "run_id"}:
            logger.exception("a run of this id is damaged")
            raise Problem(500, "DAMAGED_RUN", "a run of this id is there and damaged; the fault is logged") from None
        raise _invalid_spec(error.field, error.value, error.rule) from None
    except MissingData as error:
        extra = {
            "field": "product_id",
            "value": f"{error.product_id} {error.granularity}",
            "rule": "bars in the store",
            "available": list(error.available),
        }
        raise Problem(422, "MISSING_DATA", str(error), extra) from None
    except MarketDataError:
        logger.exception("bars not read")
        detail = "the stored bars cannot be read now; `desk data check` says more"
        raise Problem(503, "DATA_UNAVAILABLE", detail, headers={"retry-after": "5"}) from None


def _invalid_spec(field: str, value: object, rule: str) -> Problem:
    shown = reprlib.repr(value)
    extra = {"field": field, "value": shown, "rule": rule}
    return Problem(422, "INVALID_SPEC", f"{field}: expected {rule}, was {shown}", extra)


def _sweep(content: dict[str, Any]) -> SweepSpec:
    wanted = content.get("max_sets")
    if isinstance(wanted, int) and wanted > SETS_MAX:
        raise SpecError("max_sets", wanted, f"at most {SETS_MAX} over the API; `desk sweep` takes more")
    return parse_spec(content)


def _backtest(content: dict[str, Any]) -> SweepSpec:
    for name, value in content.items():
        if name != "backtest":
            raise SpecError(name, value, "no such field beside backtest")
    if not isinstance(content["backtest"], dict):
        raise SpecError("backtest", content["backtest"], "an object")
    try:
        return sweep_of(parse_backtest(content["backtest"]))
    except SpecError as error:
        raise error.under("backtest") from None
