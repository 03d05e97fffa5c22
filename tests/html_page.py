"""A page of HTML as tests look at it: texts, elements and attributes, and what is inside scripts and styles apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """``scripts`` are the texts of script and style elements by ``tag#id``; ``tagged`` are the elements' attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tagged: list[tuple[str, dict[str, str | None]]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tagged.append((tag, dict(attrs)))
        self.attributes += attrs
        self._inside = f"{tag}#{dict(attrs).get('id', '')}" if tag in {"script", "style"} else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.texts.append(data)

    @property
    def elements(self) -> list[str]:
        return [tag for tag, _ in self.tagged]

    @property
    def ids(self) -> set[str]:
        return {value for name, value in self.attributes if name == "id" and value}

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["script#data"])
