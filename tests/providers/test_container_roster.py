"""What a gateway does with each of its containers: a name that is had again is not confused with what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from providers import ownership
from providers.container import Container
from providers.container_roster import Roster, Use
from providers.ownership import Instance

NAME = "apollos-mcp-web"
OLD, NEW = (Container(f"id-{number}", NAME, "web", "shared", "print") for number in (1, 2))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    instance = ownership.claim(tmp_path / "state", tmp_path / "servers.toml")
    yield instance
    instance.release()


@pytest.fixture
def roster(instance: Instance) -> Roster:
    return Roster(instance)


def make(roster: Roster, container: Container) -> None:
    assert roster.reserve(container.name, container.server)
    roster.made(container)


def test_a_name_belongs_to_one_container_at_a_time(roster: Roster, instance: Instance) -> None:
    make(roster, OLD)
    assert not roster.reserve(NAME, "web")
    assert not roster.take(OLD)
    roster.gone(OLD)
    assert instance.containers() == {} and roster.servers == set()
    make(roster, NEW)


def test_a_late_word_about_an_old_container_does_nothing(roster: Roster, instance: Instance) -> None:
    make(roster, OLD)
    roster.gone(OLD)
    make(roster, NEW)
    for word in (roster.ending, roster.forsake, roster.gone):
        word(OLD)
    assert roster.use_of(NEW) is Use.IN_USE and roster.use_of(OLD) is None
    assert instance.containers() == {NAME: NEW.id}


def test_the_command_line_forgets_no_container_that_it_did_not_stop(roster: Roster, instance: Instance) -> None:
    """It saw OLD go just when the gateway did, which has made the next one of that name since."""
    beside = Instance(instance.folder, instance.key)
    beside.containers = lambda: {NAME: OLD.id}  # type: ignore[method-assign] # as it was a moment ago
    make(roster, OLD)
    other = Roster(beside)
    other.ending(OLD)
    roster.gone(OLD)
    make(roster, NEW)
    secret = Path(instance.write_secrets(NAME, {"token": "s"})) / "token"
    other.gone(OLD)
    assert instance.containers() == {NAME: NEW.id} and secret.exists()
    roster.gone(NEW)
    assert instance.containers() == {} and not secret.exists()


def test_a_late_word_when_nobody_has_the_name_leaves_it_free(roster: Roster) -> None:
    make(roster, OLD)
    roster.gone(OLD)
    roster.ending(OLD)
    roster.gone(OLD)
    roster.forsake(OLD)
    make(roster, NEW)


def test_an_orphan_is_taken_once_and_not_while_it_ends(roster: Roster, instance: Instance) -> None:
    instance.remember(NAME, OLD.id)
    assert roster.take(OLD) and not roster.take(OLD)
    roster.ending(OLD)
    assert not roster.take(OLD)
    roster.forsake(OLD)
    assert not roster.take(OLD)


def test_what_was_removed_since_it_was_listed_is_not_taken(roster: Roster) -> None:
    make(roster, OLD)
    roster.gone(OLD)
    assert not roster.take(OLD)
    make(roster, NEW)


def test_what_is_gone_is_forgotten_and_what_came_later_is_not_missed(roster: Roster, instance: Instance) -> None:
    instance.remember("apollos-mcp-gone", "id-0")
    known = instance.containers()
    make(roster, NEW)
    roster.forsake(NEW)
    roster.tidy(known, [], everything=False)
    assert instance.containers() == {NAME: NEW.id}
    roster.tidy(instance.containers(), [NAME], everything=False)
    assert instance.containers() == {NAME: NEW.id}
    roster.tidy(instance.containers(), [], everything=False)
    assert instance.containers() == {}


def test_what_may_have_been_made_is_looked_for_until_that_is_settled(
    roster: Roster, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert roster.reserve(NAME, "web")
    roster.perhaps_made(NAME)
    for everything in (False, True):  # the next gateway has to know it, too
        roster.tidy(instance.containers(), [], everything=everything)
        assert instance.containers() == {NAME: ""}
        assert not roster.reserve(NAME, "web")
    monkeypatch.setattr("providers.container_roster._DOUBT_SECONDS", -1)
    roster.tidy(instance.containers(), [], everything=False)
    assert instance.containers() == {}
