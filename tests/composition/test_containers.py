"""What the commands for containers print: nothing that a server wrote is obeyed by a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from composition.cli import main
from composition.containers import harmless
from providers import ownership
from tests.helpers.containers import over_stdio
from tests.helpers.gateway import servers_toml

TIME = "2026-01-01T00:00:00.000Z"
OBEYED = {
    "colour": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "window title": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "one-byte escape": ("\x9b2J", r"\x9b2J"),
    "overwriting": ("all is well\rerror", r"all is well\rerror"),
    "backspace and delete": ("ab\x08\x7f", r"ab\x08\x7f"),
    "turned text": ("\u202egnp.exe", r"\u202egnp.exe"),
    "other ends of lines": ("a\x0bb\x0cc\x1cd\x85e\u2028f", r"a\x0bb\x0cc\x1cd\x85e\u2028f"),
}


@pytest.mark.parametrize("kind", OBEYED)
def test_what_a_terminal_would_obey_is_shown_instead(kind: str) -> None:
    written, shown = OBEYED[kind]
    assert harmless(written) == shown


def test_words_stay_as_they_are() -> None:
    text = "tab\tquote' Größe 漢字\u3000א 5\u00a0€ \\x1b 🙂"
    assert harmless(text) == text


def test_a_log_is_printed_line_by_line_and_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that ends early would be taken for one with the time "zzz", after which no other is newer."""
    servers = tmp_path / "servers.toml"
    servers.write_text(servers_toml({"files": over_stdio()}, state_dir=str(tmp_path / "state")))
    instance = ownership.claim(tmp_path / "state", servers)
    written = f"{TIME} \x1b[2Jfirst\rzzz\x85zzz\u2028zzz\n{TIME.replace('00Z', '01Z')} second\n"
    instance.log_file("files").write_bytes(written.encode())
    instance.release()
    monkeypatch.setenv("APOLLOS_SERVERS", str(servers))
    assert main(["logs", "files"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        rf"{TIME} \x1b[2Jfirst\rzzz\x85zzz\u2028zzz",
        f"{TIME.replace('00Z', '01Z')} second",
    ]


def test_secrets_are_printed_by_their_names_also_when_they_have_several_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = tmp_path / "servers.toml"
    table = over_stdio(env={"TOKEN": "hunter2hunter2"}, docker_secrets={"key": "-BEGIN-\nfirst-line\r\nlast-line\n}\n"})
    servers.write_text(servers_toml({"files": table}, state_dir=str(tmp_path / "state")))
    instance = ownership.claim(tmp_path / "state", servers)
    lines = ["my token is hunter2hunter2.", "first-line", "{ last-line }"]
    instance.log_file("files").write_text("".join(f"{TIME} {line}\n" for line in lines))
    instance.release()
    monkeypatch.setenv("APOLLOS_SERVERS", str(servers))
    assert main(["logs", "files"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{TIME} [key]", f"{TIME} my token is [TOKEN].", f"{TIME} {{ [key] }}"]
