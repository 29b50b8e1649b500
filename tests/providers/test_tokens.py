"""The file of static tokens: what it holds, when it lets somebody in, and when nobody."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from providers.errors import ConfigurationError
from providers.tokens import PREFIX, TokenFile, TokenFileState, digest_of

pytestmark = pytest.mark.core


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def rewritten(file: TokenFile, **changed: object) -> None:
    """Change the first token behind the file's back."""
    document = json.loads(file.path.read_text())
    document["tokens"][0] |= changed
    file.path.write_text(json.dumps(document))


async def test_a_token_is_known_by_what_the_file_holds_of_it(file: TokenFile) -> None:
    token, made = file.add("ann", "Ann Lee", ["dev", "dev", "ops"])
    found = await file.find(token)
    assert found == made
    assert (made.user, made.name, made.roles, made.expires_at) == ("ann", "Ann Lee", ("dev", "ops"), None)
    assert token.startswith(PREFIX) and len(token) == len(PREFIX) + 43  # 256 bits
    assert file.state is TokenFileState.READ


async def test_the_file_is_closed_and_holds_no_token(file: TokenFile) -> None:
    tokens = [file.add(user, user, [])[0] for user in ("ann", "bob")]
    assert file.path.stat().st_mode & 0o777 == 0o600
    text = file.path.read_text()
    assert all(token not in text and token.removeprefix(PREFIX) not in text for token in tokens)
    assert all(digest_of(token) in text for token in tokens)
    await file.find(tokens[0])
    assert not any(token in repr(file) + repr(file.read()) for token in tokens)
    assert digest_of(tokens[0]) not in repr(file.read())


@pytest.mark.parametrize("wrong", ["", PREFIX, f"{PREFIX}no", "no", "eyJ", f"{PREFIX}\udcff", f"{PREFIX}é\0"])
async def test_other_tokens_are_none(file: TokenFile, wrong: str) -> None:
    token, made = file.add("ann", "Ann", [])
    assert await file.find(wrong) is None
    assert await file.find(token[:-1]) is None and await file.find(token + "x") is None
    assert await file.find(made.sha256) is None and await file.find(PREFIX + made.sha256) is None


async def test_a_change_counts_at_once(file: TokenFile) -> None:
    token, made = file.add("ann", "Ann", ["dev"])
    assert await file.find(token)
    other, _ = file.add("bob", "Bob", [])
    assert await file.find(other) and await file.find(token)
    rewritten(file, roles=["ops"])
    found = await file.find(token)
    assert found is not None and found.roles == ("ops",)
    assert file.revoke(made.id) == found
    assert await file.find(token) is None and await file.find(other)
    assert file.revoke(made.id) is None


async def test_an_expired_token_is_none(file: TokenFile) -> None:
    token, made = file.add("ann", "Ann", [], timedelta(days=1))
    assert await file.find(token) == made and made.expires_at == made.created_at + timedelta(days=1)
    rewritten(file, expires_at="2020-01-01T00:00:00Z")
    assert await file.find(token) is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text('{"version": 2, "tokens": []}'),
        lambda path: path.write_text('{"version": 1}'),
        lambda path: path.write_text(path.read_text().replace("ann", "a,b")),
        lambda path: path.write_text(path.read_text().replace("sha256", "sha512")),
        lambda path: path.chmod(0o640),
        lambda path: path.chmod(0o602),
        lambda path: (path.unlink(), path.mkdir(mode=0o700)),
    ],
)
async def test_a_file_that_cannot_be_trusted_lets_nobody_in(
    file: TokenFile, harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = file.add("ann", "Ann", [])
    assert await file.find(token)
    good = file.path.read_bytes()
    assert callable(harm)
    with caplog.at_level(logging.ERROR):
        harm(file.path)
        assert [await file.find(token) for _ in range(3)] == [None] * 3
    assert file.state is TokenFileState.UNUSABLE
    [record] = caplog.records  # told once
    assert str(file.path) in record.getMessage() and token not in record.getMessage()
    if file.path.is_dir():
        file.path.rmdir()
    file.path.unlink(missing_ok=True)
    file.path.touch(mode=0o600)
    file.path.write_bytes(good)
    assert await file.find(token) and file.state is TokenFileState.READ


def test_what_is_refused_is_told(file: TokenFile) -> None:
    with pytest.raises(ConfigurationError, match=r"no such file\. Make a token"):
        file.read()
    file.add("ann", "Ann", [])
    file.path.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"has mode 644.*chmod 600"):
        file.add("bob", "Bob", [])
    file.path.chmod(0o600)
    document = json.loads(file.path.read_text())
    document["tokens"] *= 2
    file.path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="a token twice"):
        file.read()


@pytest.mark.parametrize("word", ["", "a,b", "a\nb", "a\0", " a", "a\x85b", "a\u2028b"])
def test_users_and_roles_that_could_forge_others_are_refused(file: TokenFile, word: str) -> None:
    with pytest.raises(ConfigurationError, match="A user or a role"):
        file.add(word, "Ann", [])
    with pytest.raises(ConfigurationError, match="A user or a role"):
        file.add("ann", "Ann", [word])
    assert not file.path.exists()


def test_many_processes_make_tokens_at_once_and_none_is_lost(file: TokenFile) -> None:
    code = (
        "import sys; from pathlib import Path; from providers.tokens import TokenFile\n"
        "for number in range(5): TokenFile(Path(sys.argv[1])).add(f'{sys.argv[2]}-{number}', 'x', [])"
    )
    root = Path(__file__).parents[2]
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(file.path), f"user{maker}"], cwd=root) for maker in range(4)
    ]
    assert [maker.wait(60) for maker in makers] == [0] * 4
    assert {token.user for token in file.read()} == {f"user{maker}-{n}" for maker in range(4) for n in range(5)}
    assert [path.name for path in file.path.parent.iterdir()] == ["tokens.json"]
