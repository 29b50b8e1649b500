"""The names under which clients know a server's components: its own, or those within the server's namespace.

`composition.mount` makes components under either, and `composition.registry` routes by what stands before the first
underscore. The way into a namespace and the way out are exact opposites, for URIs of any form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from providers.lines import Json

ALONE = "/adapters/{name}/mcp"
"""Where one server is served alone."""

SEPARATOR = "_"


class Names:
    """A server's own names, word for word: what it is known by where it stands alone."""

    def name(self, own: str) -> str:
        """Of a tool or prompt."""
        return own

    def uri(self, own: str) -> str:
        """Of a resource, or of a template."""
        return own

    def tool_result(self, raw: Json) -> Json:
        return raw

    def resource_result(self, raw: Json) -> Json:
        return raw

    def prompt_result(self, raw: Json) -> Json:
        return raw


OWN_NAMES = Names()


@dataclass(frozen=True, slots=True)
class Namespace(Names):
    """`server_tool` and `scheme://server/path`; what a result points at can be read through the gateway."""

    server: str

    def name(self, own: str) -> str:
        return f"{self.server}{SEPARATOR}{own}"

    def uri(self, own: str) -> str:
        return into_namespace(own, self.server)

    def tool_result(self, raw: Json) -> Json:
        if "content" not in raw:
            return raw
        return raw | {"content": [self._content(item) for item in raw["content"]]}

    def resource_result(self, raw: Json) -> Json:
        return raw | {"contents": [self._pointing(item) for item in raw.get("contents", [])]}

    def prompt_result(self, raw: Json) -> Json:
        messages = [message | {"content": self._content(message.get("content"))} for message in raw.get("messages", [])]
        return raw | {"messages": messages}

    def _pointing(self, item: Any) -> Any:
        if isinstance(item, dict) and isinstance(item.get("uri"), str):
            return item | {"uri": self.uri(item["uri"])}
        return item

    def _content(self, item: Any) -> Any:
        """A content block whose URIs can be read through the gateway."""
        if not isinstance(item, dict):
            return item
        match item.get("type"):
            case "resource_link":
                return self._pointing(item)
            case "resource":
                return item | {"resource": self._pointing(item.get("resource"))}
            case _:
                return item


def into_namespace(uri: str, server: str) -> str:
    """`scheme://path` as `scheme://server/path`. Any other URI keeps all that follows its scheme, colon included, so
    that the way back is exact: `urn:a:b` is `urn://server/:a:b`, and `x://:80` is `x://server/://:80`."""
    scheme, _, rest = uri.partition(":")
    if rest.startswith("//") and not rest.startswith("//:"):
        return f"{scheme}://{server}/{rest[2:]}"
    return f"{scheme}://{server}/:{rest}"


def out_of_namespace(uri: str) -> str:
    """The backend's own URI for one within its namespace."""
    scheme, _, rest = uri.partition("://")
    _, _, path = rest.partition("/")
    return f"{scheme}{path}" if path.startswith(":") else f"{scheme}://{path}"


def server_of(uri: str) -> str:
    """The server that a URI within the registry belongs to."""
    return uri.partition("://")[2].partition("/")[0]
