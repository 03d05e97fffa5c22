"""The peers of a test run: each engine is asked once, in one process, for everything that any test wants of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.bar_samples import REAL_DATA
from tests.peers.engine_runs import answers
from tests.peers.engines.cases import Answer
from tests.peers.questions import ASKED, DIFFERENT
from tests.peers.samples import REAL_FILES, Question


class Engines:
    """What the engines answered."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._answered: dict[str, Mapping[str, Answer]] = {}

    def ask(self, engine: str, question: Question) -> Answer:
        """The engine's answer; an engine that failed is not run again for the next question."""
        if engine not in self._answered:
            self._answered[engine] = {}
            wanted = [*ASKED[engine], *DIFFERENT[engine]]
            there = [one for one in wanted if one.series not in REAL_FILES or REAL_DATA.is_dir()]
            cases = [one.case() for one in there]
            self._answered[engine] = answers(self._folders.mktemp(engine), engine, cases)
        answered = self._answered[engine]
        if question.name not in answered:
            pytest.fail(f"{engine} has no answer: see the first failure")
        return answered[question.name]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory)
