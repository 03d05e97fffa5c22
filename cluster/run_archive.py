"""Ended runs put away: a run's folder as one compressed file, and back again, whole or not at all.

The order of steps makes a crash harmless: the file is complete and on disk before the folder disappears, and the folder
is complete before the file does. A run that is found in both places is the folder.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.run_folder import RunError, RunFolder

SUFFIX: Final = ".tar.gz"
FOLDER: Final = ".archive"
_DAMAGE: Final = (tarfile.TarError, zlib.error, OSError, EOFError, ValueError)


@dataclass(frozen=True, slots=True)
class Archived:
    """A run that was put away."""

    run_id: str
    bytes: int
    archived_ns: int


class RunArchive:
    """The archive beside the run folders. Every error names the run and what was expected (``RunError``)."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._folder = runs_dir / FOLDER

    def put_away(self, folder: RunFolder) -> Path:
        """Move an ended run into the archive; its file. Raises ``RunBusy`` while a driver is at work."""
        if folder.ticket_file.exists() or not folder.progress().state.ended:
            raise RunError("run_id", folder.run_id, "a run that has ended (desk jobs stop)")
        self._folder.mkdir(exist_ok=True)
        place = self._file(folder.run_id)
        with folder.driving():
            _write(folder.path, place)
            # From here on the run is in the archive; what is left of the folder is not found under its name.
            gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self._runs_dir))
            folder.path.rename(gone / folder.run_id)
        shutil.rmtree(gone)
        return place

    def bring_back(self, run_id: str) -> RunFolder:
        """Lay a run out again as it was, and forget the file."""
        folder, place = RunFolder(self._runs_dir / run_id), self._file(run_id)
        if Path(run_id).name != run_id or not run_id:
            raise RunError("run_id", run_id, "a run's name")
        if folder.path.exists():
            raise RunError("run_id", run_id, "a run that is not among the runs already")
        if not place.is_file():
            raise RunError("run_id", run_id, f"a run in {self._folder}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._runs_dir) as staging:
            try:
                _read_through(place)
                with tarfile.open(place) as archive:
                    archive.extractall(staging, filter="data")
            except _DAMAGE as error:
                raise RunError("run_id", run_id, f"a whole archive file ({error})") from error
            whole = RunFolder(Path(staging) / run_id)
            if not whole.run_file.is_file():
                raise RunError("run_id", run_id, "an archive file with a run in it")
            whole.path.rename(folder.path)
        place.unlink()
        return folder

    def ls(self) -> list[Archived]:
        """What is in the archive, newest first."""
        found = [
            Archived(path.name.removesuffix(SUFFIX), path.stat().st_size, path.stat().st_mtime_ns)
            for path in self._folder.glob(f"*{SUFFIX}")
        ]
        return sorted(found, key=lambda each: (-each.archived_ns, each.run_id))

    def _file(self, run_id: str) -> Path:
        return self._folder / f"{run_id}{SUFFIX}"


def _write(folder: Path, place: Path) -> None:
    """The folder as one file at ``place``, read back before it counts."""
    with tempfile.NamedTemporaryFile(prefix=".new-", dir=place.parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
                archive.add(folder, arcname=folder.name, filter=_without_locks)
            file.flush()
            os.fsync(file.fileno())
            _require_whole(folder, temporary)
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_through(file: Path) -> None:
    """To the checksum at its end: ``tarfile`` takes a file cut between two members for a shorter one."""
    with gzip.open(file) as content:
        while content.read(1 << 20):
            pass


def _without_locks(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(".lock") else member


def _require_whole(folder: Path, file: Path) -> None:
    wanted = {
        f"{folder.name}/{path.relative_to(folder)}": path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }
    with tarfile.open(file) as archive:
        found = {member.name: member.size for member in archive if member.isfile()}
    if found != wanted:
        changed = sorted(set(found.items()) ^ set(wanted.items()))[:3]
        raise RunError("run_id", folder.name, f"a folder that stays as it is while it is put away (changed: {changed})")
