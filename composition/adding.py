"""How a server comes to be there that somebody adds through the own tools: who may, with which secrets, for whom.

`dynamic` comes in with a resource. It is allowed by a pattern of the operator's or by a person, its secrets are its
user's own, it is connected to once, and only then it is there: for one session, or in the store.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Callable, Mapping
from functools import partial

import anyio
import anyio.to_thread

from composition.asking import Person, cannot_ask
from composition.dynamic_rules import AllowList, runs_here, what_it_is
from composition.mount import Mount
from composition.registry import Registry
from composition.remote_addresses import url_problem
from composition.session_servers import MAX_SERVERS
from composition.settings import OWN_SERVER, DynamicScope, Settings
from providers.addresses import AddressRules
from providers.caller import Caller, ClientSessions
from providers.catalogue import Listing
from providers.container_log import harmless
from providers.errors import CallerError, ConfigurationError
from providers.identity import ADMIN_ROLE, Identity
from providers.lines import Json
from providers.resource import NAME_PATTERN, SERVERS_FILE, McpServerResource, may
from providers.secret_names import named_in
from providers.secrets import Owner, SecretStore
from providers.store import McpResourceStoreBase

_MOUNT_SECONDS = 5.0


_SET_BEFOREHAND = (
    "A secret is not asked for in a client's form, as MCP wants it. An operator sets it with 'server.py secret "
    "set NAME', and can then add the server."
)


class Adding:
    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        sessions: ClientSessions,
        store: McpResourceStoreBase,
        secrets: SecretStore,
        rules: AddressRules,
    ) -> None:
        self._settings, self._registry, self._sessions = settings, registry, sessions
        self._store, self._secrets, self._rules = store, secrets, rules
        self.allowed = AllowList(settings.dynamic_allow)

    def __repr__(self) -> str:
        return f"<Adding for a {self._settings.dynamic_scope}, {self.allowed!r}>"

    @property
    def is_lasting(self) -> bool:
        """Whether what is added is kept in the store."""
        return self._settings.dynamic_scope is DynamicScope.GATEWAY

    # --- what it may be

    def check_room(self, caller: Caller) -> None:
        """
        Raises:
            CallerError: as many were added as there may be.
        """
        if self.is_lasting:
            own = sum(each.resource.created_by == caller.identity.key for each in self._registry.mounts.values())
        else:
            own = len(self._registry.own_of(caller.session))
        if own >= MAX_SERVERS:
            raise CallerError(f"{own} servers have been added already, the most there may be. Remove one first.")

    def name(self, caller: Caller, wanted: str) -> str:
        """A free name. Only who sees every server gets the plain one: to others it would tell of hidden ones.

        Raises:
            CallerError: no server can be called so.
        """
        if not NAME_PATTERN.match(wanted) or wanted == OWN_SERVER:
            raise CallerError("'called' is lower-case letters, digits and '-', at most 63, and not 'gateway'.")
        is_taken = wanted in self._registry.mounts or self._registry.resource(wanted) is not None
        if ADMIN_ROLE in caller.identity.roles and not is_taken:
            return wanted
        return f"{wanted[:56].rstrip('-')}-{random.token_hex(3)}"

    def keys(self, caller: Caller) -> Json:
        """What the record of each server of a caller's has."""
        timeouts = self._settings.timeouts.model_dump()
        return {"created_by": caller.identity.key, "required_roles": [], "timeouts": timeouts}

    def approval(self, resource: McpServerResource, identity: Identity) -> str:
        """Who has to approve that a server is added, in words."""
        if self.allowed.covers(resource):
            return "not needed"
        return "its user is asked" if self._is_operator(identity) else "only an operator can add it"

    def _is_operator(self, identity: Identity) -> bool:
        return self._settings.operator_role in identity.roles

    async def permitted(self, caller: Caller, resource: McpServerResource, person: Person) -> McpServerResource:
        """The server with the secrets that it may have: its user's own, unless a person approved the gateway's.

        Raises:
            CallerError: it may not be added.
        """
        if resource.url is not None and (problem := await url_problem(resource.url, self._rules)) is not None:
            raise CallerError(f"It cannot be added: its address {problem}.")
        has_secrets, is_operator = bool(named_in(resource)), self._is_operator(caller.identity)
        could_share = has_secrets and is_operator and not await self._missing(resource, None)
        if not self.allowed.covers(resource):
            self._check_operator(resource, person, is_operator=is_operator)
            await self._approved(resource, person)
        elif could_share and person.can_be_asked:
            await self._approved(resource, person)
        else:
            could_share = False
        return resource.model_copy(update={"per_user": has_secrets and not could_share})

    def _check_operator(self, resource: McpServerResource, person: Person, *, is_operator: bool) -> None:
        if not is_operator:
            what = "Images and commands are" if runs_here(resource) else "This address is"
            raise CallerError(f"{what} not yours to add here. An operator can add it, or allow it with dynamic_allow.")
        if not person.can_be_asked:
            otherwise = "An operator can allow it with dynamic_allow, or add it on the command line."
            raise cannot_ask("It needs the approval of a person", otherwise)

    async def _approved(self, resource: McpServerResource, person: Person) -> None:
        told = [*what_it_is(resource), *(f"secret: {name}" for name in named_in(resource))]
        message = harmless("Add this server to the gateway? " + "; ".join(told))
        answer = await person.fill_in(message, {"approve": {"type": "boolean", "title": "Add this server"}})
        if answer is None or answer.get("approve") is not True:
            raise CallerError("It was not approved, and is not added. An operator can allow it with dynamic_allow.")

    # --- its secrets

    async def _missing(self, resource: McpServerResource, identity: Identity | None) -> list[str]:
        try:
            return await anyio.to_thread.run_sync(partial(self._secrets.missing, resource, identity))
        except ConfigurationError:
            raise CallerError("The gateway's secrets cannot be read. Its log says why.") from None

    async def ask_for_missing(self, caller: Caller, resource: McpServerResource, person: Person) -> list[str]:
        """Have the user give the secrets that are missing; which those were. The model never sees them.

        Raises:
            CallerError: they are not to be had.
        """
        missing = await self._missing(resource, caller.identity)
        await self.ask_for(caller, resource, person, missing)
        return missing

    async def ask_for(self, caller: Caller, resource: McpServerResource, person: Person, names: list[str]) -> None:
        """Have the user give these secrets.

        Raises:
            CallerError: they are not to be had.
        """
        if not names:
            return
        needed = f"It needs secrets: {', '.join(names)}"
        if not self._settings.dynamic_secrets:
            raise CallerError(f"{needed}. {_SET_BEFOREHAND}")
        if not person.can_be_asked:
            raise cannot_ask(needed, "Add it with a client that does, or have an operator add it.")
        fields = {name: {"type": "string", "title": name, "minLength": 1} for name in names}
        message = harmless(f"Server '{resource.name}' needs these secrets of yours. The model does not see them.")
        answer = await person.fill_in(message, fields)
        if answer is None or not all(isinstance(answer.get(name), str) for name in names):
            raise CallerError(f"{needed}. They were not given.")
        await self._give(Owner(caller.identity.key, resource.name), {name: str(answer[name]) for name in names})

    async def _give(self, owner: Owner, values: Mapping[str, str]) -> None:
        try:
            for name, value in values.items():
                if self.is_lasting:
                    await anyio.to_thread.run_sync(partial(self._secrets.set, name, value, owner))
                else:
                    self._secrets.passing.keep(name, value, owner)
        except ConfigurationError as error:
            raise CallerError(f"{error}.") from None

    async def take_back(self, caller: Caller, server: str, names: list[str]) -> None:
        """Forget secrets that a user gave for a server."""
        self._secrets.passing.forget(server)
        if self.is_lasting:
            owner = Owner(caller.identity.key, server)
            for name in names:
                await anyio.to_thread.run_sync(partial(self._secrets.remove, name, owner))

    # --- there, or not

    async def connected(self, caller: Caller, resource: McpServerResource) -> Listing:
        """Mount it for the caller's session and connect once; then it is there, or in the store. What does not answer
        is unmounted again, and was never there.

        Raises:
            CallerError: it could not be used, or the session has ended.
        """
        self.check_room(caller)  # others may have been added while a person was asked
        mount = self._mount(caller, resource)
        listing, problem = None, ""
        try:
            listing = await mount.catalogue.get(caller)
            problem = str(mount.catalogue.error(caller) or "it does not answer.")
        finally:
            if listing is None:
                self._registry.remove_for(caller.session, resource.name)
        if listing is None:
            raise CallerError(f"It was not added, because it could not be used: {problem}")
        if self._registry.mounts.get(resource.name) is not mount:
            raise CallerError("It was not added: this session has ended.")
        await self._settle(caller, mount)
        return listing

    def put_back(self, caller: Caller, resource: McpServerResource) -> None:
        """A server that was there before.

        Raises:
            CallerError: the session has ended, or the name is taken.
        """
        self._registry.offer(self._mount(caller, resource))

    def _mount(self, caller: Caller, resource: McpServerResource) -> Mount:
        """
        Raises:
            CallerError: the session has ended, or the name is taken.
        """
        if not self._sessions.is_alive(caller):
            raise CallerError("This session has ended.")
        return self._registry.add_for(caller.session, resource)

    async def _settle(self, caller: Caller, mount: Mount) -> None:
        """For the session now, or in the store for as long as that lasts."""
        resource = mount.resource
        if not self.is_lasting:
            self._registry.offer(mount)
            return
        self._registry.remove_for(caller.session, resource.name)
        await self._store.upsert(resource, expected_version=0)
        await self._until(lambda: resource.name in self._registry.mounts)

    def kept(self, caller: Caller, name: str) -> McpServerResource:
        """One in the store that this user made.

        Raises:
            CallerError: there is none; the same for one of somebody else.
        """
        resource = self._registry.resource(name) if self.is_lasting else None
        is_own = resource is not None and resource.created_by == caller.identity.key != SERVERS_FILE
        if resource is None or not is_own or not may(caller.identity, "write", resource):
            raise CallerError(f"There is no server '{harmless(name)}' that was added here.")
        return resource

    async def unkeep(self, caller: Caller, resource: McpServerResource) -> None:
        """Out of the store, with the secrets that its user gave for it."""
        await self._store.delete(resource.name, expected_version=resource.version)
        await self.take_back(caller, resource.name, named_in(resource))
        await self._until(lambda: resource.name not in self._registry.mounts)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until the registry has followed the store."""
        with anyio.move_on_after(_MOUNT_SECONDS):
            while not is_so():
                await self._next_sync()

    async def _next_sync(self) -> None:
        synced = anyio.Event()
        wake = synced.set
        self._registry.on_sync.append(wake)
        try:
            await synced.wait()
        finally:
            self._registry.on_sync.remove(wake)
