"""Which folders of the host a container may see. No engine is needed; the file system is the real one."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from providers.container_keys import Volume
from providers.errors import BackendUnavailable
from providers.mounts import MountRefused, real_path, resolved, resolved_volumes, volume_problem, volume_problems


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder in ("home/.ssh", "home/.aws", "home/projects", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "home/projects/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "home/projects/keys").symlink_to(tmp_path / "home/.ssh")
    return tmp_path / "home"


def problem(source: str, home: Path, allowed: list[str] | None = None, forbidden: tuple[str, ...] = ()) -> str | None:
    allowed = ["/"] if allowed is None else allowed
    try:
        resolved(Volume(source, "/data", True), allowed, forbidden, home=str(home))
    except ValueError as error:
        return str(error)
    return None


def test_a_folder_below_an_allowed_one_is_mounted(home: Path) -> None:
    assert problem(f"{home}/projects", home, [str(home)]) is None
    assert problem(f"{home}/projects/../projects", home, [f"{home}/projects"]) is None
    assert problem("named", home, []) is None


@pytest.mark.parametrize(
    "source",
    ["/", "//", "/etc", "/etc/ssl", "/proc/1", "/sys", "/dev", "/run", "/var/run", "/var/run/docker.sock", "/boot",
     "/var", "/var/lib/docker/volumes", "/srv/../etc", "/./etc/", "/run/../etc/passwd"],
)  # fmt: skip
def test_the_host_itself_is_never_mounted(home: Path, source: str) -> None:
    """However generous the operator is: all of `/` is allowed here."""
    assert "no container may see that" in (problem(source, home) or "")


@pytest.mark.parametrize(
    "source", ["{home}", "{home}/.ssh", "{home}/.aws/x", "{home}/projects/keys", "{home}/projects/../.ssh"]
)
def test_credentials_and_what_holds_them_are_never_mounted(home: Path, source: str) -> None:
    assert "no container may see that" in (problem(source.format(home=home), home) or "")


def test_a_link_out_of_the_allowed_folder_is_refused(home: Path) -> None:
    assert "below none of docker_allowed_paths" in (problem(f"{home}/projects/up", home, [f"{home}/projects"]) or "")
    assert "there are none" in (problem(f"{home}/projects", home, []) or "")


def test_a_folder_whose_name_only_begins_alike_is_not_below(home: Path) -> None:
    assert problem(f"{home}/projects-2", home, [f"{home}/projects"])


def test_the_engines_socket_is_never_mounted_wherever_it_is(home: Path) -> None:
    engine = f"{home}/projects/engine.sock"
    assert problem(f"{home}/projects", home, ["/"], (engine,))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{home}/projects/other.sock")
        assert "a socket" in (problem(f"{home}/projects/other.sock", home) or "")


def test_what_was_looked_at_is_what_is_mounted(home: Path) -> None:
    """A path is resolved once. Docker is given no link that could lead elsewhere a moment later."""
    (home / "link").symlink_to(home / "projects")
    [found] = resolved_volumes("s", [f"{home}/link:/data:rw"], [str(home)], ())
    assert found == Volume(str(home / "projects"), "/data", is_read_only=False)
    (home / "link").unlink()
    (home / "link").symlink_to("/etc")
    assert found.source == str(home / "projects")
    with pytest.raises(MountRefused, match="no container may see that"):
        resolved_volumes("s", [f"{home}/link:/data:rw"], [str(home)], ())


def test_a_resolved_path_may_hold_a_colon(home: Path) -> None:
    """It is never taken apart again: what follows the colon would be another place in the container."""
    (home / "a:").mkdir()
    (home / "a:" / "etc").mkdir()
    (home / "link").symlink_to(home / "a:" / "etc")
    [found] = resolved_volumes("s", [f"{home}/link:/data"], [str(home)], ())
    assert (found.source, found.target) == (f"{home}/a:/etc", "/data")


def test_what_is_not_there_is_told_when_a_container_is_made(home: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"is not there\. Create it"):
        resolved_volumes("s", [f"{home}/gone:/data"], [str(home)], ())


def test_an_engine_that_sees_other_files_gets_named_volumes_alone(home: Path) -> None:
    with pytest.raises(MountRefused, match=r"the engine is far away\. Use a named volume"):
        resolved_volumes("s", [f"{home}/projects:/data"], [str(home)], (), "the engine is far away")
    assert resolved_volumes("s", ["named:/data"], [], (), "the engine is far away")


def test_a_home_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container may run as a uid without a name."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ValueError, match="Write the whole path"):
        real_path("~/data")
    with pytest.raises(ValueError, match="Write the whole path"):
        real_path("~no-such-user/data")
    assert resolved(Volume(str(tmp_path), "/data", True), [str(tmp_path)]).source == str(tmp_path)
    volumes = ["~/x:/data"]
    assert [place for place, _ in volume_problems(volumes, tmp_path, [str(tmp_path)])] == [0]


def test_a_path_that_no_machine_has_is_told(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert real_path(str(tmp_path / "round"))  # a circle leads to itself, and is not there
    with pytest.raises(ValueError, match="is not a path of this machine"):
        real_path("/a\0b")


def test_a_volume_with_options_is_refused() -> None:
    assert volume_problem(None) is None
    assert "driver options" in (volume_problem({"o": "bind", "device": "/etc"}) or "")


# ------------------------------------------------------------------------------------------- the gateway's own files


def test_a_hidden_file_is_hidden_under_each_of_its_names(home: Path) -> None:
    """Who may put another link in the place of one has the file replaced, without ever seeing it."""
    for folder in ("real", "linked", "next/deep"):
        (home / folder).mkdir(parents=True)
    (home / "real/servers.toml").touch()
    (home / "next/deep/second").symlink_to(home / "real/servers.toml")
    (home / "linked/folder").symlink_to("../next/deep")
    hidden = (f"{home}/linked/folder/second",)
    for source in ("real", "real/servers.toml", "linked", "next", "next/deep", "linked/folder"):
        assert "no container may see that" in (problem(f"{home}/{source}", home, forbidden=hidden) or ""), source
    (home / "next/other").mkdir()
    assert problem(f"{home}/next/other", home, forbidden=hidden) is None
    assert problem(f"{home}/projects", home, forbidden=hidden) is None


def test_a_circle_of_links_has_an_end(home: Path) -> None:
    (home / "round").symlink_to(home / "round")
    assert problem(f"{home}/projects", home, forbidden=(f"{home}/round/servers.toml",)) is None


CODE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "folder", [CODE, CODE / "providers", CODE / "composition", CODE / "server.py", Path(sys.executable).parent]
)
def test_what_the_gateway_runs_is_mounted_read_only_if_at_all(home: Path, folder: Path) -> None:
    """The next start of the gateway would run on this machine what a server has written there."""
    real = os.path.realpath(folder)
    with pytest.raises(ValueError, match=r"the gateway runs what is there.*without ':rw'"):
        resolved(Volume(real, "/data", False), ["/"], home=str(home))
    assert resolved(Volume(real, "/data", True), ["/"], home=str(home)).source == real


def test_a_folder_beside_the_gateways_code_may_be_written_to(home: Path) -> None:
    assert resolved(Volume(f"{CODE}/data", "/data", False), ["/"], home=str(home))


def test_the_run_time_folder_of_this_user_is_never_mounted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets may be kept in it, and it has sockets such as that of a rootless engine."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{home}/projects")
    assert "no container may see that" in (problem(f"{home}/projects/x", home) or "")
