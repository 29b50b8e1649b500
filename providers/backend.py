"""The FastMCP provider of one sub-server: its components out of the catalogue, its calls through the leased session.

The sub-server's FastMCP asks here for components; each sends what it is asked through `current_lease`, which the pool
middleware has taken. Names are the backend's own, after the operator's rules (include, exclude, rename).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from fastmcp.exceptions import PromptError, ResourceError, ToolError
from fastmcp.prompts.base import Prompt, PromptResult
from fastmcp.resources.base import Resource, ResourceResult
from fastmcp.resources.template import ResourceTemplate
from fastmcp.server.dependencies import get_context
from fastmcp.server.providers import Provider
from fastmcp.tools.base import Tool, ToolResult

from providers import lines, verbatim
from providers.caller import Caller
from providers.catalogue import Catalogue, Listing
from providers.components import (
    Offer,
    OfferedPrompt,
    OfferedResource,
    OfferedTemplate,
    OfferedTool,
    RawPromptResult,
    RawResourceResult,
    RawToolResult,
    input_required,
    own_part,
)
from providers.lease import current_lease
from providers.lines import Json, MCPError
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)


class BackendProvider(Provider):
    """Components of one backend.

    Args:
        resource: the record as it is now.
        caller: who makes the current request.
    """

    def __init__(
        self, catalogue: Catalogue, resource: Callable[[], McpServerResource], caller: Callable[[], Caller]
    ) -> None:
        super().__init__()
        self._catalogue, self._resource, self._caller = catalogue, resource, caller
        self._offers: WeakKeyDictionary[Listing, tuple[McpServerResource, Offer]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"BackendProvider({self._resource().name!r})"

    def offer(self, listing: Listing) -> Offer:
        """What a listing amounts to under the operator's rules; made once for each."""
        resource, known = self._resource(), self._offers.get(listing)
        if known is None or known[0] is not resource:
            known = self._offers[listing] = (resource, make_offer(listing, resource))
        return known[1]

    async def _current_offer(self, patience: float | None) -> Offer:
        listing = await self._catalogue.get(self._caller(), patience)
        return self.offer(listing) if listing else Offer()

    async def _list_tools(self) -> Sequence[Tool]:
        return list((await self._current_offer(self._resource().timeouts.list)).tools.values())

    async def _list_resources(self) -> Sequence[Resource]:
        return list((await self._current_offer(self._resource().timeouts.list)).resources.values())

    async def _list_resource_templates(self) -> Sequence[ResourceTemplate]:
        return list((await self._current_offer(self._resource().timeouts.list)).templates.values())

    async def _list_prompts(self) -> Sequence[Prompt]:
        return list((await self._current_offer(self._resource().timeouts.list)).prompts.values())

    async def _get_tool(self, name: str, version: Any = None) -> Tool | None:
        return (await self._current_offer(None)).tools.get(name)

    async def _get_resource(self, uri: str, version: Any = None) -> Resource | None:
        # Not looked up: a backend may serve what it does not list, such as the links in a tool's result.
        return OfferedResource.of({"uri": uri, "name": uri}, lambda: _read_resource(uri))

    async def _get_resource_template(self, uri: str, version: Any = None) -> ResourceTemplate | None:
        return None

    async def _get_prompt(self, name: str, version: Any = None) -> Prompt | None:
        return (await self._current_offer(None)).prompts.get(name)

    async def get_tasks(self) -> Sequence[Any]:
        return []  # FastMCP asks at start, by listing everything; none of ours runs as a task


def make_offer(listing: Listing, resource: McpServerResource) -> Offer:
    """The components of a listing under a resource's rules."""
    offer, rules = Offer(), resource.tools
    for form in listing.tools:
        name = str(form.get("name"))
        if not rules.offers(name):
            continue
        public = rules.public_name(name)
        if public in offer.tools:
            logger.warning(
                "server '%s': its tools '%s' and '%s' would both be '%s'; the second is left out. Rename one.",
                resource.name,
                offer.tools[public].form.get("name"),
                name,
                public,
            )
            continue
        shown = form | {"name": public}
        if name in rules.description:
            shown["description"] = rules.description[name]
        offer.tools[public] = OfferedTool.of(shown, _tool_caller(name, form))
    for form in listing.resources:
        uri = str(form.get("uri"))
        offer.resources.setdefault(uri, OfferedResource.of(form | {"uri": uri}, _resource_reader(uri)))
    for form in listing.templates:
        template = str(form.get("uriTemplate"))
        offer.templates.setdefault(template, OfferedTemplate.of(form | {"uriTemplate": template}))
    for form in listing.prompts:
        name = str(form.get("name"))
        offer.prompts.setdefault(name, OfferedPrompt.of(form | {"name": name}, _prompt_getter(name)))
    return offer


def is_repeatable(form: Json) -> bool:
    """Whether a tool says of itself that calling it twice is like calling it once."""
    hints = form.get("annotations")
    if not isinstance(hints, dict) or hints.get("destructiveHint") is True:
        return False
    return hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True


def _tool_caller(name: str, form: Json) -> Callable[[Json], Any]:
    may_repeat, headers = is_repeatable(form), lines.param_headers_of(form.get("inputSchema"))

    async def call(arguments: Json) -> ToolResult:
        token = lines.param_headers.set(headers)
        try:
            return await _call_tool(name, arguments, may_repeat)
        finally:
            lines.param_headers.reset(token)

    return call


def _resource_reader(uri: str) -> Callable[[], Any]:
    async def read() -> ResourceResult:
        return await _read_resource(uri)

    return read


def _prompt_getter(name: str) -> Callable[[Json | None], Any]:
    async def get(arguments: Json | None) -> PromptResult:
        return await _get_prompt(name, arguments)

    return get


async def _call_tool(name: str, arguments: Json, is_repeatable: bool) -> ToolResult:
    params = _with_context({"name": name, "arguments": arguments})
    try:
        raw = await current_lease().request("tools/call", params, is_repeatable=is_repeatable)
    except MCPError as error:
        verbatim.refuse(error)
        raise ToolError(lines.error_data(error)["message"]) from None
    question: ToolResult | None = input_required("tool", raw)
    return question if question is not None else RawToolResult.of(own_part(raw))


async def _read_resource(uri: str) -> ResourceResult:
    try:
        raw = await current_lease().request("resources/read", _with_context({"uri": uri}))
    except MCPError as error:
        raise lines.passed_on(error, ResourceError) from None
    question: ResourceResult | None = input_required("resource", raw)
    return question if question is not None else RawResourceResult.of(own_part(raw))


async def _get_prompt(name: str, arguments: Json | None) -> PromptResult:
    params: Json = {"name": name} | ({"arguments": arguments} if arguments else {})
    try:
        raw = await current_lease().request("prompts/get", _with_context(params))
    except MCPError as error:
        raise lines.passed_on(error, PromptError) from None
    question: PromptResult | None = input_required("prompt", raw)
    return question if question is not None else RawPromptResult.of(own_part(raw))


async def complete(params: Json) -> Json:
    """What the backend suggests for an argument, word for word.

    Raises:
        MCPError: the backend refused.
    """
    return own_part(await current_lease().request("completion/complete", _with_context(params)))


def _with_context(params: Json) -> Json:
    """The request's params, with the client's `_meta` and its answers to an earlier question."""
    context = get_context()
    return params | lines.continuation(context) | {"_meta": lines.request_meta(context)}
