"""ARCHITECTURE.md, "## Files", names every file of the tree with one line about it, and no other."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "ARCHITECTURE.md"
UNLISTED: Final = frozenset({"__init__.py", ".gitignore", "LICENSE"})
_LINE: Final = re.compile(r"- `(?P<path>[^`]+)`: (?P<about>\S.*)")


def test_the_page_lists_exactly_the_files_of_the_tree() -> None:
    assert PAGE.is_file(), "ARCHITECTURE.md is missing from the repository's root"
    assert _differences(PAGE.read_text(encoding="utf-8"), _tracked_files(ROOT)) == []


@pytest.mark.parametrize(
    ("page", "files", "expected"),
    [
        ("# A\n## Files\n- `a.py`: does a\n- `b/c.lua`: does c\n## Next\n", ["a.py", "b/c.lua", "b/__init__.py"], []),
        ("## Files\n### conf\nProse in between.\n\n- `a.py`: does a\n", ["a.py", "LICENSE", "x/.gitignore"], []),
        ("## Files\n- `a.py`: does a\n", ["a.py", "b.py"], ["b.py: in the tree, not on the page"]),
        ("## Files\n- `a.py`: does a\n", [], ["a.py: on the page, not in the tree"]),
        ("## Files\n- `a.py`: x\n- `a.py`: y\n", ["a.py"], ["a.py: on the page 2 times"]),
        ("## Files\n- `a.py`:\n", [], ["line 2: expected - `path`: one line, was '- `a.py`:'"]),
        ("## Files\n- a.py: does a\n", [], ["line 2: expected - `path`: one line, was '- a.py: does a'"]),
        ("- `a.py`: above\n## Files\n## More\n- `a.py`: below\n", ["a.py"], ["a.py: in the tree, not on the page"]),
        ("# Architecture\n", ["a.py"], ["no section ## Files"]),
    ],
)
def test_a_difference_is_named(page: str, files: list[str], expected: list[str]) -> None:
    assert _differences(page, files) == expected


def test_without_git_the_tree_is_what_git_would_not_ignore(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("# made\n.venv/\n__pycache__/\n/build/\nconf/secrets.env\n*.egg-info/\n")
    kept = ["a.py", "conf/x.yaml", "conf/build/kept.py", ".ci/run", ".gitignore"]
    left = [".venv/lib/b.py", "a/__pycache__/c.pyc", "build/d.py", "conf/secrets.env", "x.egg-info/PKG", ".git/HEAD"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert _walked_files(tmp_path) == sorted(kept)


def _differences(page: str, files: Iterable[str]) -> list[str]:
    """What the page's section and the files disagree about, one clause each."""
    lines = page.splitlines()
    if "## Files" not in lines:
        return ["no section ## Files"]
    start = lines.index("## Files") + 1
    end = next((i for i in range(start, len(lines)) if lines[i].startswith("## ")), len(lines))
    entries = [(number, line, _LINE.fullmatch(line)) for number, line in enumerate(lines[start:end], start + 1)]
    listed = Counter(match["path"] for _, _, match in entries if match)
    wanted = {name for name in files if name.rsplit("/", 1)[-1] not in UNLISTED}
    broken = [(number, line) for number, line, match in entries if line.startswith("- ") and not match]
    return [
        *(f"line {number}: expected - `path`: one line, was {line!r}" for number, line in broken),
        *(f"{name}: on the page {times} times" for name, times in sorted(listed.items()) if times > 1),
        *(f"{name}: on the page, not in the tree" for name in sorted(set(listed) - wanted)),
        *(f"{name}: in the tree, not on the page" for name in sorted(wanted - set(listed))),
    ]


def _tracked_files(root: Path) -> list[str]:
    """What git tracks; in an unpacked archive, which has no .git, the files .gitignore does not leave out."""
    if not (root / ".git").exists():
        return _walked_files(root)
    # Inside a git hook these variables would point git at another index.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    return sorted(name for name in listed.stdout.split("\0") if name)


def _walked_files(root: Path) -> list[str]:
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if name != ".git" and not _ignored(here / name, patterns, folder=True)]
        found += [(here / name).as_posix() for name in names if not _ignored(here / name, patterns, folder=False)]
    return sorted(found)


def _ignored(path: Path, patterns: Iterable[str], *, folder: bool) -> bool:
    """The part of gitignore's rules this project uses: names anywhere, paths from the root, folders by a slash."""
    for pattern in patterns:
        only_folder, bare = pattern.endswith("/"), pattern.strip("/")
        anchored = "/" in pattern.rstrip("/")
        if (folder or not only_folder) and fnmatchcase(path.as_posix() if anchored else path.name, bare):
            return True
    return False
