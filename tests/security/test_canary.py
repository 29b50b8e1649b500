"""No secret is to be read anywhere but where it must be. What is lived through is in `drama.py`."""

from __future__ import annotations

import anyio
import pytest

from tests.security.drama import CANARIES, Evidence, play

pytestmark = [pytest.mark.core, pytest.mark.timeout(300)]

ALLOWED = {"answers to the owner"}
"""A call's own caller hears its arguments and its result."""
OWN = {"everything.py": {"env"}, "hang.py": {"env"}, "secretive.py": {"secret"}}
"""What stands in the environment of a backend, by its program."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return anyio.run(play, tmp_path_factory.mktemp("drama"))


def test_no_secret_is_anywhere(seen: Evidence) -> None:
    hits = [hit for hit in seen.hits() if not any(f" in {where}:" in hit for where in ALLOWED)]
    assert not hits, "\n".join(hits)


def test_a_secret_would_be_found(seen: Evidence) -> None:
    """All places were looked at, and the play did what it says."""
    assert any("argument in answers to the owner" in hit for hit in seen.hits())
    expected = {
        "the log": "DEBUG",
        "the audit": '"server": "dying"',
        "command lines": "secretive.py",
        "commands check": "asks for credentials",
        "commands inspect": "local_echo",
        "the error of denied": "asks for credentials",
        "GET /adapters/made of bob": "***",
        "commands list": "redis",
    }
    missing = [where for where, text in expected.items() if text not in seen.texts.get(where, "")]
    assert missing == []
    assert len(seen.secrets) > len(CANARIES) + 4


def test_a_backend_knows_no_secret_but_its_own(seen: Evidence) -> None:
    found = {}
    for program in OWN:
        environment = "".join(text for command, text in seen.environments.items() if program in command)
        found[program] = {name for name, secret in seen.secrets.items() if secret in environment}
    assert found == OWN
