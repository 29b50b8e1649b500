"""Which values are secrets, by the name that they have or by what they look like. Pure functions, and they err to one
side: what is taken for a secret without being one is merely kept where secrets are.

The readers of clients' configurations and of registry entries come in; nobody is called.
"""

from __future__ import annotations

import math
import re
from collections import Counter

_NAMES = re.compile(
    r"token|secret|passw|passphrase|pwd|credential|cookie|bearer|authorization|auth[_-]?key|(?:api|access|private|"
    r"secret|account|service|subscription|app|admin|master|encryption|signing|webhook)[_-]?key|connection[_-]?string|"
    r"(?:^|[_-])(?:key|pat|auth|dsn|jwt|pin|sas)$",
    re.I,
)
_NOT_NAMES = re.compile(r"(?:file|path|dir|url|uri|name|type|limit|max[_-]?tokens|tokens?[_-]?(?:count|limit))$", re.I)
_KNOWN = re.compile(
    r"(?:gh[pousr]_|github_pat_|glpat-|sk-|sk_live_|rk_live_|xox[abeoprs]-|xapp-|AKIA|ASIA|AIza|ya29\.|npm_|pypi-|hf_|"
    r"eyJ[A-Za-z0-9_-]{8,}\.|-----BEGIN |SG\.|dop_v1_|lin_api_|ntn_|secret_|figd_|tvly-|pplx-|gsk_)"
)
_DENSE = re.compile(r"[A-Za-z0-9+/_=.~-]{20,}")
_LEAST_ENTROPY = 3.3
"""Bits for each sign. Words and paths of words stay below, random letters and digits of this length above."""


def is_secret(name: str, value: str) -> bool:
    """Whether a value with this name (of a variable, a header, an option) is to be kept as a secret."""
    return has_secret_name(name) or looks_secret(value)


def has_secret_name(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_NAMES.search(words)) and not _NOT_NAMES.search(words)


def looks_secret(value: str) -> bool:
    """Whether a text looks like a key or a token: by how it begins, by a password in its address, or because it is a
    long run of letters and digits without any order."""
    if _KNOWN.match(value) or re.match(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", value, re.I):
        return True
    if not _DENSE.fullmatch(value) or not re.search(r"\d", value) or not re.search(r"[A-Za-z]", value):
        return False
    if value.startswith(("/", "./", "../", "~")) or re.fullmatch(
        r"[\w.-]+@[\w.-]+|[a-z0-9-]+(?:[./][a-z0-9-]+)+", value
    ):
        return False
    if all(part.isalpha() or part.isdigit() for part in re.split(r"[-_./+=~]+", value) if part):
        return False  # words and numbers
    return _entropy(value) >= _LEAST_ENTROPY


def _entropy(text: str) -> float:
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
