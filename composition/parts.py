"""What a gateway is made of, as its configuration says: its store, its secrets, its audit, its pool, its containers.

The gateway comes in while it is constructed; commands that need one part without the rest come in, too. Nothing is
opened here.
"""

from __future__ import annotations

from composition.servers_file import Configuration
from composition.settings import AuditMode, Settings, unseen
from composition.stores import store_at
from providers.audit_log import AuditLog
from providers.connection import PoolLimits
from providers.container_managers import ContainerOptions, Marks
from providers.ownership import state_folder
from providers.secret_keyring import KeyringSecrets
from providers.secrets import EnvironmentSecrets, FileSecrets, FolderSecrets, SecretStore
from providers.store import InMemoryMcpResourceStore
from providers.store_layers import LayeredStore, Patience
from providers.store_sqlite import SqliteMcpResourceStore


def open_secrets(settings: Settings) -> SecretStore:
    """Where the values of `${secret:NAME}` come from, as the settings say."""
    file = FileSecrets(state_folder(settings.state_dir) / "secrets.json")
    if not settings.keyring:
        return SecretStore((EnvironmentSecrets(), FolderSecrets(), file), file)
    keyring = KeyringSecrets()
    return SecretStore((EnvironmentSecrets(), FolderSecrets(), keyring, file), keyring)


def audit_log(settings: Settings) -> AuditLog | None:
    if settings.audit is AuditMode.OFF:
        return None
    return AuditLog(settings.audit_file, is_strict=settings.audit is AuditMode.STRICT)


def layered_store(configuration: Configuration, store: str, patience: Patience) -> LayeredStore:
    """The servers of servers.toml over those of a store. Those of a file are read now, so that `fastmcp inspect` shows
    them, too."""
    records = store_at(store)
    known = records.read_now() if isinstance(records, SqliteMcpResourceStore) else None
    files = InMemoryMcpResourceStore(configuration.resources.values())
    return LayeredStore(files, records, known=known, patience=patience)


def container_options(configuration: Configuration, marks: Marks | None = None) -> ContainerOptions:
    """Where containers are, and how many there may be, as the configuration says."""
    settings = configuration.settings
    return ContainerOptions(
        configuration=configuration.path.absolute(),
        state=state_folder(settings.state_dir),
        host=settings.docker_host,
        allowed_paths=settings.docker_allowed_paths,
        max_containers=settings.max_containers,
        marks=marks,
        unseen=unseen(settings, configuration.path),
    )


def pool_limits(settings: Settings, max_connections: int) -> PoolLimits:
    """
    Args:
        max_connections: where the settings say nothing.
    """
    return PoolLimits(
        max_connections=settings.max_connections or max_connections,
        acquire_timeout=settings.acquire_timeout,
        idle_timeout=settings.idle_timeout,
        max_lifetime=settings.max_lifetime,
        health_interval=settings.health_interval,
    )
