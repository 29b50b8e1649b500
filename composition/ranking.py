"""Which tools a text is about: BM25 over names, titles, descriptions and arguments.

`own_tools` comes in with the tools of each server that a caller may read. What a server offers is indexed once; what
words are worth is worked out over all the servers asked, so that everybody has the ranking of what he can see.
FastMCP's search was measured and not taken: it hashes every tool's text anew with each question, and knows a word in
one spelling only.

Sources: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), for the fields.
"""

from __future__ import annotations

import heapq
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from providers.lines import Json

_K1, _B = 1.2, 0.5
_NAME, _SERVER, _TITLE, _DESCRIPTION, _ARGUMENT, _ABOUT_ARGUMENT = 4.0, 2.0, 2.0, 1.0, 0.7, 0.2
"""What a word counts for, by where it stands."""
_AKIN = 0.45
"""What another word for the same counts for."""
_MAX_DESCRIPTION, _MAX_ARGUMENTS, _MAX_QUERY_WORDS = 2_000, 60, 40

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")
"""Words within names, too: `listOpenIssues`, `read_file`, `get-URL2`."""

_EMPTY = frozenset(
    """a an and are as at be by can do for from has have how i if in into is it its me my of on or please should so that
    the their them then there these this to use used using want we what when where which will with would you
    your""".split()  # noqa: SIM905  # a list of words, for people
)

_ALIKE = (
    "create add new make insert register open",
    "delete remove erase destroy drop",
    "list show all enumerate every browse",
    "get read fetch retrieve show view lookup display",
    "search find query lookup look",
    "update edit change modify set rename",
    "send post publish",
    "run execute start launch trigger invoke",
    "stop cancel abort end kill terminate",
    "folder directory",
    "file document",
    "picture image photo screenshot",
    "person user people member employee contact",
    "issue ticket bug",
    "message mail email",
    "web internet website site page",
    "repository repo",
    "customer client",
    "company organization organisation business",
    "info information detail",
    "price cost quote",
)


def _akin() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for line in _ALIKE:
        words = [stem(word) for word in line.split()]
        for word in words:
            found[word].update(words)
    return {word: frozenset(others - {word}) for word, others in found.items()}


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """A word without the endings that matter least in English: `issues`, `listing` and `listed` are
    `issu`, `list` and `list`."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    for ending, shortest in (("ment", 8), ("ing", 6), ("ed", 5), ("es", 5), ("s", 4)):
        if word.endswith(ending) and len(word) >= shortest and not word.endswith("ss"):
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def words_of(text: str) -> list[str]:
    """The stems of a text, in order."""
    plain = unicodedata.normalize("NFKC", text)
    return [stem(word) for each in _WORD.findall(plain) if (word := each.casefold()) not in _EMPTY]


AKIN = _akin()


class Found(NamedTuple):
    """A tool, by its public name, and how well it fits."""

    name: str
    score: float


class ToolIndex:
    """The tools of one server.

    Args:
        tools: their forms by public name; a public name begins with the server's.
    """

    def __init__(self, server: str, tools: Mapping[str, Json]) -> None:
        self.names = list(tools)
        self.lengths: list[float] = []
        self.postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, (name, form) in enumerate(tools.items()):
            weights = _weights(server, name.partition("_")[2], form)
            self.lengths.append(sum(weights.values()))
            for word, weight in weights.items():
                self.postings[word].append((place, weight))


def _weights(server: str, name: str, form: Json) -> Counter[str]:
    weights: Counter[str] = Counter()
    for text, weight in _texts(server, name, form):
        for word in words_of(text):
            weights[word] += weight  # type: ignore[assignment]
    return weights


def _texts(server: str, name: str, form: Json) -> Iterator[tuple[str, float]]:
    """Backends may put anything anywhere: what is no text is passed over."""
    yield server, _SERVER
    yield name, _NAME
    annotations = form.get("annotations")
    for title in (form.get("title"), annotations.get("title") if isinstance(annotations, dict) else None):
        if isinstance(title, str):
            yield title, _TITLE
    if isinstance(description := form.get("description"), str):
        yield description[:_MAX_DESCRIPTION], _DESCRIPTION
    for argument, schema in arguments_of(form):
        yield argument, _ARGUMENT
        if isinstance(about := schema.get("description"), str):
            yield about[:_MAX_DESCRIPTION], _ABOUT_ARGUMENT


def arguments_of(form: Json) -> list[tuple[str, dict[str, Any]]]:
    """A tool's arguments and their schemas, as far as they are what they should be."""
    schema = form.get("inputSchema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return []
    found = [(str(name), inner if isinstance(inner, dict) else {}) for name, inner in properties.items()]
    return found[:_MAX_ARGUMENTS]


def rank(indexes: Sequence[ToolIndex], query: str, limit: int) -> list[Found]:
    """The tools that fit a question best, the best first; among equals by name."""
    count = sum(len(index.names) for index in indexes)
    if not count:
        return []
    average = sum(sum(index.lengths) for index in indexes) / count or 1.0
    best: list[Found] = []
    worth = _worth(indexes, query, count)
    for index in indexes:
        scores: dict[int, float] = defaultdict(float)
        for word, weight in worth.items():
            for place, often in index.postings.get(word, ()):
                scores[place] += weight * often / (often + _K1 * (1 - _B + _B * index.lengths[place] / average))
        best += heapq.nsmallest(limit, (Found(index.names[at], score) for at, score in scores.items()), key=_order)
    return heapq.nsmallest(limit, best, key=_order)


def _order(found: Found) -> tuple[float, str]:
    return (-found.score, found.name)


def _worth(indexes: Sequence[ToolIndex], query: str, count: int) -> dict[str, float]:
    """What finding each word is worth: the rarer, the more. Another word for the same is worth less."""
    asked = list(dict.fromkeys(words_of(query)))[:_MAX_QUERY_WORDS]
    wanted: dict[str, float] = dict.fromkeys(asked, 1.0)
    for word in asked:
        for other in AKIN.get(word, ()):
            wanted.setdefault(other, _AKIN)
    return {word: share * _rarity(indexes, word, count) for word, share in wanted.items()}


def _rarity(indexes: Iterable[ToolIndex], word: str, count: int) -> float:
    having = sum(len(index.postings.get(word, ())) for index in indexes)
    return math.log((count - having + 0.5) / (having + 0.5) + 1.0)
