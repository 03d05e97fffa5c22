"""study.json of a run that searches: sets added to its budget later, and what a clock decided.

Everything else of a study follows from the specification and the results, so it is repeated and never stored; these two
cannot be repeated. The file is absent until there is something to say.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.run_folder import RunError, RunFolder, RunState, replace_file, to_json

EXTENSIONS_MAX: Final = 100


class StudyNotes(BaseModel):
    """``extensions`` are sets, in the order they were added. Stage 0 is the first budget, stage i the i-th extension.

    ``spent_s`` is how long drivers worked on each stage, ``time_stops`` after which generation a stage ran out of time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    extensions: tuple[int, ...] = Field((), max_length=EXTENSIONS_MAX)
    spent_s: dict[int, float] = Field(default_factory=dict)
    time_stops: dict[int, int] = Field(default_factory=dict)


def study_file(folder: RunFolder) -> Path:
    """Where the notes are."""
    return folder.path / "study.json"


def read_notes(folder: RunFolder) -> StudyNotes:
    """The notes, empty where there is no file; raises ``RunError`` where it is damaged."""
    path = study_file(folder)
    try:
        return StudyNotes.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return StudyNotes()
    except (OSError, ValidationError) as error:
        raise RunError(path.name, str(path), f"the notes of a study ({error})") from error


def write_notes(folder: RunFolder, notes: StudyNotes) -> None:
    """Replace the notes atomically."""
    replace_file(study_file(folder), to_json(notes))


def extend_study(folder: RunFolder, sets: int) -> int:
    """Add ``sets`` to the budget of a search that has ended; how many extensions there are now.

    The run is PENDING afterwards: its next driver repeats the study from the parts and goes on. Raises ``RunError``
    where the run does not search, has not succeeded, has no room or is another cluster's, ``RunBusy`` where a driver
    is at work on it.
    """
    from strategies.search_spec import MODEL_SETS_MAX, SETS_MAX

    search = folder.spec().search
    if search is None:
        raise RunError("run_id", folder.run_id, "a run with a search (a grid is complete)")
    if folder.remote_file.exists():
        raise RunError("run_id", folder.run_id, "a run of this desk: its parts are where it was computed")
    notes = read_notes(folder)
    most = MODEL_SETS_MAX if search.method in {"tpe", "cmaes"} else SETS_MAX
    if isinstance(sets, bool) or not 1 <= sets <= most - search.sets - sum(notes.extensions):
        raise RunError("sets", sets, f"1 or more, and at most {most} sets in all for {search.method}")
    if len(notes.extensions) >= EXTENSIONS_MAX:
        raise RunError("sets", sets, f"at most {EXTENSIONS_MAX} extensions")
    with folder.driving():
        progress = folder.progress()
        if progress.state is not RunState.SUCCEEDED:
            raise RunError("run_id", progress.state, "a run that has SUCCEEDED; start this one again first")
        # First the state: killed in between, the run is done again as it was, and nothing is half extended.
        pending = {"state": RunState.PENDING, "phase": "", "updated_ns": time.time_ns(), "error": None}
        folder.write_progress(progress.model_copy(update=pending))
        write_notes(folder, notes.model_copy(update={"extensions": (*notes.extensions, sets)}))
    return len(notes.extensions) + 1
