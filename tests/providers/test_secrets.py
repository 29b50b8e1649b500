"""Secrets: what a record may name, where values come from, and whose they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from providers.errors import BackendUnavailable, ConfigurationError
from providers.identity import Identity
from providers.resource import McpServerResource
from providers.secret_keyring import KeyringSecrets
from providers.secrets import (
    EnvironmentSecrets,
    FileSecrets,
    FolderSecrets,
    Owner,
    SecretKeeper,
    SecretMissing,
    SecretStore,
)
from tests.helpers.gateway import ROOT

pytestmark = pytest.mark.core

ANN, BOB = Identity("ann", "Ann", issuer="x"), Identity("bob", "Bob", issuer="x")
OF_ANN = Owner(ANN.key, "docs")


def record(**keys: Any) -> McpServerResource:
    return McpServerResource.model_validate({"name": "docs", "url": "https://docs.example.com/mcp", **keys})


def store(tmp_path: Path, environ: dict[str, str] | None = None) -> SecretStore:
    file = FileSecrets(tmp_path / "state" / "secrets.json")
    return SecretStore(
        (EnvironmentSecrets({} if environ is None else environ), FolderSecrets(tmp_path / "run"), file), file
    )


# ------------------------------------------------------------------------------------------------------ the record


@pytest.mark.parametrize(
    "keys",
    [
        {"headers": {"Authorization": "Bearer ${secret:docs.token}"}},
        {"url": "https://docs.example.com/mcp?key=${secret:docs.token}"},
        {"url": None, "command": "run", "env": {"A": "x-${secret:docs.token}-y"}},
        {"url": None, "docker_image": "mcp/docs", "docker_secrets": {"TOKEN": "${secret:docs.token}"}},
    ],
    ids=lambda keys: next(reversed(keys)),
)
async def test_a_secret_may_stand_where_only_the_server_sees_it(tmp_path: Path, keys: dict[str, Any]) -> None:
    named = record(**keys)
    secrets = store(tmp_path)
    secrets.set("docs.token", "s3cr3t")
    filled = await secrets.filled(named, ANN)
    assert "s3cr3t" in json.dumps(filled.model_dump(mode="json"))
    assert "s3cr3t" not in repr(filled), "what is shown holds no secret"
    assert "s3cr3t" not in json.dumps(named.model_dump(mode="json")), "the record itself still names it"


@pytest.mark.parametrize(
    "keys",
    [
        {"url": None, "command": "run", "args": ["--token", "${secret:T}"]},
        {"url": None, "command": "${secret:T}"},
        {"url": None, "docker_image": "mcp/docs", "docker_command": ["run", "${secret:T}"]},
        {"url": None, "docker_image": "mcp/docs", "docker_volumes": ["/srv/${secret:T}:/data"]},
        {"headers": {"Authorization": "${secret:}"}},
        {"headers": {"Authorization": "${secret:a/b}"}},
        {"headers": {"Authorization": "${secret:../x}"}},
        {"headers": {"Authorization": "${secret:T"}},
        {"per_user": True, "isolation": "shared"},
    ],
    ids=str,
)
def test_elsewhere_it_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**keys)


async def test_a_value_with_a_line_break_makes_no_header_of_its_own(tmp_path: Path) -> None:
    secrets = store(tmp_path)
    secrets.set("T", "x\r\nX-Mcp-Roles: mcp.admin")
    with pytest.raises(BackendUnavailable, match="cannot stand in 'headers'") as refused:
        await secrets.filled(record(headers={"A": "${secret:T}"}), ANN)
    assert "mcp.admin" not in str(refused.value)


# ----------------------------------------------------------------------------------------------------- the sources


async def test_all_that_are_missing_are_named_before_anything_starts(tmp_path: Path) -> None:
    needy = record(headers={"A": "${secret:one}", "B": "${secret:two}${secret:three}"})
    secrets = store(tmp_path)
    secrets.set("two", "2")
    assert secrets.missing(needy, ANN) == ["one", "three"]
    with pytest.raises(
        SecretMissing, match=r"the secrets one, three\. Set each with: server.py secret set one"
    ) as lacks:
        await secrets.filled(needy, ANN)
    assert lacks.value.not_sent and not lacks.value.is_of_server


def test_the_first_source_that_has_it_decides(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    secrets = store(tmp_path, environ)
    secrets.set("github.token", "file")
    assert secrets.get("github.token") == "file"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "github.token").write_text("folder\n")
    assert secrets.get("github.token") == "folder"
    environ["APOLLOS_SECRET_GITHUB__TOKEN"] = "environment"
    assert secrets.get("github.token") == "environment"


def test_what_is_removed_is_gone_and_names_are_all_that_is_listed(tmp_path: Path) -> None:
    secrets = store(tmp_path, {"APOLLOS_SECRET_E": "e"})
    secrets.set("a", "value-a")
    secrets.set("a", "value-of-ann", OF_ANN)
    names = [("APOLLOS_SECRET_E", None, "environment"), ("a", None, "file"), ("a", OF_ANN, "file")]
    assert secrets.names() == names
    assert secrets.remove("a", OF_ANN) is True and secrets.remove("a", OF_ANN) is False
    assert secrets.get("a") == "value-a" and secrets.names() == names[:2]


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 70_000], ids=["empty", "NUL", "large"])
def test_what_is_no_value_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigurationError, match="a secret's value"):
        store(tmp_path).set("a", value)


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", ":names", "-x", "x" * 129, "ä"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="a secret's name"):
        store(tmp_path).set(name, "value")


# -------------------------------------------------------------------------------------------------------- the file


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    secrets = store(tmp_path)
    secrets.set("a", "value")
    file = tmp_path / "state" / "secrets.json"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        secrets.get("a")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"secrets": []}',
        '{"secrets": {}, "users": {"a": 1}}',
        "[" * 9999,
        '{"secrets": {}, "users": {"u": {"s": 5}}}',
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_not_overwritten(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(text)
    file.chmod(0o600)
    secrets = FileSecrets(file)
    with pytest.raises(ConfigurationError, match="is not what"):
        secrets.get("a", None)
    with pytest.raises(ConfigurationError, match="is not what"):
        secrets.set("a", "value", None)
    assert file.read_text() == text


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"secrets": {"a": "planted"}, "users": {}}')
    (tmp_path / "secrets.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        FileSecrets(tmp_path / "secrets.json").get("a", None)


WRITER = """
import sys
from pathlib import Path
from providers.secrets import FileSecrets
for each in range(10):
    FileSecrets(Path(sys.argv[1])).set(f"s{sys.argv[2]}-{each}", "value", None)
"""


def test_of_processes_that_write_at_once_none_loses_the_others(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(list(FileSecrets(path).names())) == 40


# ---------------------------------------------------------------------------------------------------------- whose


async def test_each_user_has_values_of_his_own(tmp_path: Path) -> None:
    secrets, own = store(tmp_path), record(per_user=True, headers={"A": "${secret:t}"})
    secrets.set("t", "everybody's")
    secrets.set("t", "ann's", OF_ANN)
    assert (await secrets.filled(own, ANN)).headers == {"A": "ann's"}
    for other in (BOB, Identity("ann", "Ann", issuer="y"), None):
        with pytest.raises(SecretMissing, match="of your own"):
            await secrets.filled(own, other)


async def test_what_a_user_gave_to_one_server_no_other_gets(tmp_path: Path) -> None:
    secrets = store(tmp_path, {"APOLLOS_SECRET_T": "the operator's"})
    secrets.set("t", "ann's", OF_ANN)
    thief = record(name="thief", per_user=True, headers={"A": "${secret:t}"})
    with pytest.raises(SecretMissing):
        await secrets.filled(thief, ANN)


# ------------------------------------------------------------------------------------------------------ the keyring


class Ring:
    """A keyring in memory, as a backend of the package `keyring`."""

    def __new__(cls) -> Any:
        keyring = pytest.importorskip("keyring")

        class Memory(keyring.backend.KeyringBackend):  # type: ignore[misc,name-defined]
            priority = 1

            def __init__(self) -> None:
                super().__init__()
                self.kept: dict[tuple[str, str], str] = {}

            def get_password(self, service: str, username: str) -> str | None:
                return self.kept.get((service, username))

            def set_password(self, service: str, username: str, password: str) -> None:
                self.kept[service, username] = password

            def delete_password(self, service: str, username: str) -> None:
                del self.kept[service, username]

        return Memory()


@pytest.fixture
def ring() -> Any:
    keyring = pytest.importorskip("keyring")
    before, ours = keyring.get_keyring(), Ring()
    keyring.set_keyring(ours)
    yield ours
    keyring.set_keyring(before)


def test_the_keyring_keeps_the_same_as_the_file(ring: Any, tmp_path: Path) -> None:
    for keeper in (KeyringSecrets(), FileSecrets(tmp_path / "secrets.json")):
        kept: SecretKeeper = keeper
        kept.set("a", "1", None)
        kept.set("a", "2", OF_ANN)
        kept.set("a", "3", None)
        assert (kept.get("a", None), kept.get("a", OF_ANN), kept.get("b", None)) == ("3", "2", None)
        assert sorted(kept.names(), key=str) == sorted([("a", None), ("a", OF_ANN)], key=str)
        assert kept.remove("a", None) is True and kept.remove("a", None) is False
        assert list(kept.names()) == [("a", OF_ANN)]


def test_a_keyring_that_cannot_be_used_is_told(ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring.errors

    def locked(*_: str) -> None:
        raise keyring.errors.KeyringLocked("no")

    monkeypatch.setattr(ring, "get_password", locked)
    with pytest.raises(ConfigurationError, match="KeyringLocked"):
        KeyringSecrets().get("a", None)


def test_no_servers_secret_is_anothers_in_the_environment(tmp_path: Path) -> None:
    secrets = store(tmp_path, {"APOLLOS_SECRET_MY_SERVER__TOKEN": "of my-server"})
    assert secrets.get("my-server.token") == "of my-server"
    for other in ("my.server-token", "my--server.token", "my.server.token", "my-server..token"):
        assert secrets.get(other) is None
