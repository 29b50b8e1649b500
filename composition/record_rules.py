"""What is asked of a server besides its own model: its folders may be seen, and its command is a program.

`servers_file` comes in, and the commands that add a server, so that all refuse the same. It looks at the file system.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from composition.settings import Settings, unseen
from composition.tables import Problem
from providers.mounts import volume_problems
from providers.resource import McpServerResource


def folder_problems(volumes: list[Any], settings: Settings, configuration: Path) -> list[Problem]:
    """What is wrong with where docker_volumes lead. Paths in the list are made absolute.

    Args:
        configuration: the whole path of the servers.toml in use.
    """
    private = unseen(settings, configuration)
    looked = volume_problems(volumes, configuration.parent, settings.docker_allowed_paths, private)
    return [Problem(("docker_volumes", place), text) for place, text in looked]


def refused_folders(resource: McpServerResource, settings: Settings, configuration: Path) -> list[str]:
    """The same of a server that is to be stored, each as a sentence; its start would refuse it."""
    found = folder_problems(list(resource.docker_volumes), settings, configuration.absolute())
    return [f"docker_volumes item {int(key[1]) + 1}: {text}" for key, text in found if key]


def is_command_line(command: str, path: str | None = None) -> bool:
    """Whether a command is a program with arguments behind it, where the program alone is meant.

    Args:
        path: where programs are looked for, as in the variable PATH; None: that of this process.
    """
    program, *rest = command.split() or [""]
    return bool(rest) and not shutil.which(command, path=path) and shutil.which(program, path=path) is not None
