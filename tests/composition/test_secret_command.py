"""`secret set`, `list` and `remove`, and what a server gets of it; as processes and over HTTP, as a user would."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from providers.identity import Identity
from providers.secrets import Owner
from tests.helpers.gateway import ROOT, gateway_over_http, local, servers_toml
from tests.helpers.people import ISSUER, tokens, window

VALUE = "s3cr3t-of-the-house"


def run(folder: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    places = {"APOLLOS_SERVERS": str(folder / "servers.toml"), "APOLLOS_STATE_DIR": str(folder / "state")}
    command = [sys.executable, str(ROOT / "server.py"), *words]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=os.environ | places, timeout=60, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    server = local("secretive.py", env={"TOKEN": "${secret:house.token}"})
    (tmp_path / "servers.toml").write_text(servers_toml({"den": server}))
    return tmp_path


def test_a_value_is_set_listed_by_name_and_removed(folder: Path) -> None:
    lacking = run(folder, "secret", "list")
    assert lacking.stdout.split() == ["NAME", "FROM", "OF", "NEEDED", "BY", "house.token", "missing", "-", "den"]
    checked = run(folder, "check")
    assert checked.returncode == 1 and "needs the secret house.token" in checked.stdout
    kept = run(folder, "secret", "set", "house.token", stdin=VALUE + "\n")
    assert kept.returncode == 0 and "is kept in the file" in kept.stderr
    listed = run(folder, "secret", "list", "--json")
    assert json.loads(listed.stdout) == [{"name": "house.token", "source": "file", "owner": "", "servers": ["den"]}]
    assert run(folder, "check").returncode == 0
    assert VALUE not in kept.stdout + kept.stderr + listed.stdout + listed.stderr
    assert run(folder, "secret", "remove", "house.token").returncode == 0
    assert run(folder, "secret", "remove", "house.token").returncode == 1


def test_servers_of_the_store_need_their_secrets_too(folder: Path) -> None:
    assert run(folder, "secret", "set", "kept.token", stdin=VALUE).returncode == 0
    for name in ("kept", "lacking"):
        words = ["--env", f"TOKEN=${{secret:{name}.token}}", "--command", sys.executable]
        added = run(folder, "add", name, *words)
        assert added.returncode == 0, added.stderr
    listed = json.loads(run(folder, "secret", "list", "--json").stdout)
    assert {row["name"]: (row["source"], row["servers"]) for row in listed} == {
        "house.token": ("", ["den"]),
        "kept.token": ("file", ["kept"]),
        "lacking.token": ("", ["lacking"]),
    }


def test_a_wrong_name_is_refused(folder: Path) -> None:
    refused = run(folder, "secret", "set", "../x", stdin=VALUE)
    assert refused.returncode == 2 and "a secret's name" in refused.stderr and VALUE not in refused.stderr


async def test_a_server_has_it_once_it_is_set_and_its_log_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    toml = servers_toml({"den": local("secretive.py", env={"TOKEN": "${secret:t}"})}, state_dir=str(tmp_path / "state"))
    async with gateway_over_http(toml) as served, window(served.url) as ada:
        with pytest.raises(Exception, match="server 'den': needs the secret t"):
            await ada.call("den_secret")
        served.gateway.secrets.set("t", VALUE)
        assert await ada.call("den_secret") == VALUE
        await ada.call("den_said")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("apollos.server")]
    assert any("my token is [TOKEN]" in line for line in said) and VALUE not in "".join(said)


async def test_two_users_of_one_server_have_each_their_own(tmp_path: Path) -> None:
    own = local("secretive.py", env={"TOKEN": "${secret:t}"}, per_user=True, required_roles=["*"])
    toml = servers_toml({"den": own}, state_dir=str(tmp_path / "state"))
    async with gateway_over_http(toml, auth=tokens("cyd")) as served:
        for user in ("ada", "bob"):
            owner = Owner(Identity(user, user, issuer=ISSUER).key, "den")
            served.gateway.secrets.set("t", f"of-{user}", owner)
        served.gateway.secrets.set("t", "everybody's")
        async with window(served.url, "ada") as ada, window(served.url, "bob") as bob, window(served.url, "cyd") as cyd:
            assert [await ada.call("den_secret"), await bob.call("den_secret")] == ["of-ada", "of-bob"]
            with pytest.raises(Exception, match="of your own"):
                await cyd.call("den_secret")


def test_a_value_comes_without_the_end_of_its_line_and_is_text(tmp_path: Path) -> None:
    environ = os.environ | {"APOLLOS_SERVERS": str(tmp_path / "servers.toml"), "APOLLOS_STATE_DIR": str(tmp_path / "s")}
    (tmp_path / "servers.toml").write_text("")
    command = [sys.executable, str(ROOT / "server.py"), "secret", "set", "a.b"]

    def keep(value: bytes) -> int:
        return subprocess.run(
            command, input=value, capture_output=True, env=environ, timeout=60, check=False
        ).returncode

    assert keep(b"a\nb\r\n") == 0
    assert json.loads((tmp_path / "s" / "secrets.json").read_text())["secrets"] == {"a.b": "a\nb"}
    assert keep(b"a\xff\n") == 2
