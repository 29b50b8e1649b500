"""Which store an address means, and which one a gateway has that was told of none.

The gateway and the commands come in, with the configuration; called are the stores of `providers/`, each made here and
opened by who asked for it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from composition.servers_file import Configuration
from providers.errors import ConfigurationError
from providers.ownership import check_state, folder_for, state_folder
from providers.store import InMemoryMcpResourceStore, McpResourceStoreBase
from providers.store_sqlite import SqliteMcpResourceStore

MEMORY = "memory://"
_FILE = "servers.db"


def store_at(url: str) -> McpResourceStoreBase:
    """
    Args:
        url: `memory://`, `sqlite:///whole/path.db`, `redis://…` or `rediss://…`.

    Raises:
        ConfigurationError: it is not one of these.
    """
    if url.startswith(("redis://", "rediss://")):
        from providers.store_redis import RedisMcpResourceStore  # loads redis, which no other gateway needs

        return RedisMcpResourceStore(url)
    parts = urlsplit(url)
    if parts.scheme == "memory" and not parts.netloc and not parts.path:
        return InMemoryMcpResourceStore()
    if parts.scheme == "sqlite" and not parts.netloc and not parts.query and parts.path.strip("/"):
        return SqliteMcpResourceStore(Path(parts.path))
    raise ConfigurationError("store must be memory://, sqlite:///whole/path.db or redis://:PASSWORD@HOST:6379/0")


def default_store(configuration: Configuration) -> str:
    """The address of a file in the state folder, for the gateways with this servers.toml. Its folder is made.

    Raises:
        ConfigurationError: it cannot be made, or is somebody else's.
    """
    state = state_folder(configuration.settings.state_dir)
    folder = folder_for(state, configuration.path)
    try:
        check_state(state)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"servers cannot be stored in '{folder}' ({error.strerror}). "
            'Name a folder under [gateway]: state_dir = "…", or a store: store = "memory://"'
        ) from None
    return f"sqlite://{folder / _FILE}"


def existing_store(configuration: Configuration) -> str | None:
    """The address of that file if there is one: somebody has added servers. Nothing is made."""
    file = folder_for(state_folder(configuration.settings.state_dir), configuration.path) / _FILE
    return f"sqlite://{file}" if file.is_file() else None
