"""Which of the servers that were found a few words mean, the best first. Pure functions.

The command line comes in; nobody is called. A word counts most in a server's name, then in its title, in the names of
its tools, and in its description; a whole word counts twice as much as the beginning of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from composition.discovery.found import Found

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> set[str]:
    """The words of a text: lower case, and apart where `_`, `-` or a capital letter begins another."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return {word.lower() for word in _WORD.findall(apart)} | {word.lower() for word in _WORD.findall(text)}


def ranked(servers: Iterable[Found], query: str) -> list[Found]:
    """The servers in which a word of the query occurs: those with most of its words first, and of equals the one where
    they stand in the better place. Without a word: all, by name."""
    wanted = words_of(query)
    scored = [(_score(server, wanted), server) for server in servers]
    fitting = [(score, server) for score, server in scored if score[0] or not wanted]
    fitting.sort(key=lambda each: (-each[0][0], -each[0][1], each[1].name))
    return [server for _, server in fitting]


def _score(server: Found, wanted: set[str]) -> tuple[int, int]:
    fields = (
        (8, words_of(f"{server.original} {server.name}")),
        (6, words_of(server.title)),
        (4, words_of(" ".join(server.tools))),
        (2, words_of(server.description)),
    )
    points = [max(_points(word, words, weight) for weight, words in fields) for word in wanted]
    return sum(1 for each in points if each), sum(points)


def _points(word: str, words: set[str], weight: int) -> int:
    if word in words:
        return weight
    return weight // 2 if len(word) > 2 and any(each.startswith(word) for each in words) else 0
