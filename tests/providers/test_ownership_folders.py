"""Where a gateway keeps its state and its secrets: nobody else's folder is trusted, and no home is needed."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from composition.gateway import Gateway
from composition.servers_file import load_configuration
from providers import ownership
from providers.errors import ConfigurationError
from providers.mounts import MountRefused, resolved_volumes
from providers.ownership import GATEWAY, Instance, default_state_folder, state_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    mine = ownership.claim(tmp_path / "state", tmp_path / "servers.toml")
    yield mine
    mine.drop_secrets("apollos-mcp-web")
    mine.release()


# ------------------------------------------------------------------------------------------------------------ secrets


def test_secrets_are_closed_to_others_and_go_with_their_container(instance: Instance) -> None:
    before = os.umask(0o077)
    try:
        folder = Path(instance.write_secrets("apollos-mcp-web", {"token": "s", "other": "\udcff"}))
    finally:
        os.umask(before)
    assert (folder / "token").read_text() == "s"
    assert (folder / "other").read_bytes() == b"\xff"
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o755  # a server is another user, and sees this folder alone
    assert (folder / "token").stat().st_mode & 0o777 == 0o444
    instance.write_secrets("apollos-mcp-b", {"token": "t"})
    instance.drop_secrets("apollos-mcp-web")
    assert not folder.exists() and (folder.parent / "apollos-mcp-b" / "token").exists()
    instance.drop_secrets("apollos-mcp-b")
    assert not folder.parent.exists()
    instance.drop_secrets("apollos-mcp-b")


def test_secrets_of_a_killed_gateway_are_written_anew(instance: Instance, tmp_path: Path) -> None:
    folder = Path(instance.write_secrets("apollos-mcp-web", {"old": "1", "token": "1"}))
    (folder / "token").unlink()
    (folder / "token").symlink_to(tmp_path / "elsewhere")
    assert instance.write_secrets("apollos-mcp-web", {"token": "2"}) == str(folder)
    assert [each.name for each in folder.iterdir()] == ["token"]
    assert not (folder / "token").is_symlink() and not (tmp_path / "elsewhere").exists()


def test_a_link_in_place_of_the_secrets_folder_is_refused(instance: Instance, tmp_path: Path) -> None:
    """Everybody may write to /dev/shm, so somebody may have been there before us."""
    folder, theirs = instance.secrets_folder("apollos-mcp-web").parent, tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "apollos-mcp-web").mkdir()
    folder.symlink_to(theirs)
    try:
        with pytest.raises(
            ConfigurationError, match=r"is not a folder\. Somebody else may have put it there: remove it"
        ):
            instance.write_secrets("apollos-mcp-web", {"token": "s"})
        instance.drop_secrets("apollos-mcp-web")
        assert list(theirs.rglob("*")) == [theirs / "apollos-mcp-web"]  # nothing written, nothing removed
    finally:
        folder.unlink()


def test_a_file_in_place_of_the_secrets_folder_is_refused(instance: Instance) -> None:
    folder = instance.secrets_folder("apollos-mcp-web").parent
    folder.touch()
    try:
        with pytest.raises(ConfigurationError, match="is not a folder"):
            instance.write_secrets("apollos-mcp-web", {"token": "s"})
    finally:
        folder.unlink()


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o750, 0o1700])
def test_a_secrets_folder_that_is_open_to_others_is_refused(instance: Instance, mode: int) -> None:
    folder = instance.secrets_folder("apollos-mcp-web").parent
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"has mode {mode:03o}; it has to belong to user .* closed to others"):
        instance.write_secrets("apollos-mcp-web", {"token": "s"})
    assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_secrets_folder_of_another_user_is_refused(instance: Instance) -> None:
    folder = instance.secrets_folder("apollos-mcp-web").parent
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        instance.write_secrets("apollos-mcp-web", {"token": "s"})
    folder.rmdir()


# -------------------------------------------------------------------------------------------------------------- state


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without HOME and without an entry in /etc/passwd, as containers have; the folder for temporary files."""

    def nobody(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    return shared


def test_the_state_is_where_the_specification_says() -> None:
    assert default_state_folder({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s") / GATEWAY
    assert default_state_folder({"XDG_STATE_HOME": "s", "HOME": "/h"}) == Path("/h/.local/state") / GATEWAY
    assert default_state_folder({"HOME": "/h"}) == Path("/h/.local/state") / GATEWAY
    assert state_folder("/srv/state") == Path("/srv/state")


def test_a_user_without_a_home_has_a_folder_of_his_own(homeless: Path) -> None:
    state = default_state_folder()
    assert state == homeless / f"{GATEWAY}-{os.getuid()}"
    assert not state.exists()  # nothing is made before it is needed
    mine = ownership.claim(state, homeless / "servers.toml")
    assert state.stat().st_mode & 0o777 == 0o700
    assert [each.id for each in ownership.known(state, homeless / "servers.toml")] == [mine.id]
    mine.release()


def test_a_folder_that_somebody_else_may_have_made_is_not_trusted(homeless: Path) -> None:
    state = default_state_folder()
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(ConfigurationError, match="has mode 777"):
        ownership.claim(state, homeless / "servers.toml")
    state.rmdir()
    (homeless / "theirs").mkdir(mode=0o700)
    state.symlink_to(homeless / "theirs")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        ownership.claim(state, homeless / "servers.toml")
    assert list((homeless / "theirs").iterdir()) == []


def test_keys_in_somebody_elses_folder_are_not_even_read(homeless: Path) -> None:
    state, file = default_state_folder(), homeless / "servers.toml"
    ownership.claim(state, file).release()
    state.chmod(0o755)
    for look in (ownership.known, ownership.abandoned):
        with pytest.raises(ConfigurationError, match="has mode 755"):
            look(state, file)


def test_a_gateway_without_container_servers_needs_no_home(homeless: Path) -> None:
    file = homeless / "servers.toml"
    file.write_text('[servers.a]\ncommand = "true"\n')
    assert Gateway(load_configuration(file, {})).mcp
    assert not default_state_folder().exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that nobody knows")
def test_a_uid_without_a_name_runs_the_gateway(tmp_path: Path) -> None:
    """The same, without any stand-in: a process of such a user."""
    file = tmp_path / "servers.toml"
    file.write_text('[servers.a]\ncommand = "true"\n')
    code = (
        "import os; from pathlib import Path; from composition.gateway import Gateway; "
        "from composition.servers_file import load_configuration; "
        "configuration = load_configuration(Path(os.environ['FILE'])); "
        "os.setgroups([]); os.setgid(54321); os.setuid(54321); print(Gateway(configuration))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"FILE": str(file)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert "1 servers" in done.stdout


# ------------------------------------------------------------------------------------------------------------- hidden


def test_every_identity_hides_servers_toml_and_all_that_gateways_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below `state` are the keys of gateways with another servers.toml; and those that say nothing keep theirs
    at the usual place."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    state, file = tmp_path / "state", tmp_path / "servers.toml"
    mine = ownership.claim(state, file)
    [seen] = ownership.known(state, file)
    mine.release()
    [taken] = ownership.abandoned(state, file)
    taken.release()
    for each in (mine, seen, taken):
        assert each.hidden == (str(file), str(state), str(tmp_path / "xdg" / GATEWAY))
    with pytest.raises(MountRefused, match="no container may see that"):
        resolved_volumes("s", [f"{state}/another/0:/data"], [str(tmp_path)], mine.hidden)
