"""What differs between a server and the same server in a gateway: the names. Here they are put on and taken off.

The suite asks for tools, prompts and resources by fixed names. `Names` puts the namespace in front of what the client
says and takes it from what the gateway says, and changes nothing else.
"""

from __future__ import annotations

import base64
from typing import Any

from composition.names import SEPARATOR, into_namespace, out_of_namespace, server_of

Json = dict[str, Any]

_NAMED = ("tools/call", "prompts/get")
_BY_URI = ("resources/read", "resources/subscribe", "resources/unsubscribe")
_URIS = ("uri", "uriTemplate")


class Names:
    def __init__(self, namespace: str) -> None:
        self._namespace, self._prefix = namespace, namespace + SEPARATOR

    # --- from the client to the gateway

    def inward(self, message: Any) -> Any:
        """A request of the client, as the gateway is to see it. What is not well-formed stays as it is."""
        params = message.get("params") if isinstance(message, dict) else None
        if not isinstance(params, dict):
            return message
        method = message.get("method")
        if method in _NAMED:
            params = self._changed(params, "name", self._prefix.__add__)
        elif method in _BY_URI:
            params = self._changed(params, "uri", self._into)
        elif method == "completion/complete" and isinstance(params.get("ref"), dict):
            ref = self._changed(self._changed(params["ref"], "name", self._prefix.__add__), "uri", self._into)
            params = params | {"ref": ref}
        elif method == "subscriptions/listen" and isinstance(params.get("notifications"), dict):
            wanted = params["notifications"]
            uris = wanted.get("resourceSubscriptions")
            if isinstance(uris, list):
                uris = [self._into(uri) for uri in uris]
                params = params | {"notifications": wanted | {"resourceSubscriptions": uris}}
        return message | {"params": params}

    def header(self, method: str, value: str) -> str:
        """The header `Mcp-Name` of a request."""
        encoded = value.startswith("=?base64?") and value.endswith("?=")
        try:
            name = base64.b64decode(value[9:-2], validate=True).decode() if encoded else value
        except ValueError:
            return value
        if method in _BY_URI:
            name = self._into(name)
        elif method in _NAMED:
            name = self._prefix + name
        return f"=?base64?{base64.b64encode(name.encode()).decode()}?=" if encoded else name

    def _into(self, uri: Any) -> Any:
        return into_namespace(uri, self._namespace) if isinstance(uri, str) and ":" in uri else uri

    @staticmethod
    def _changed(params: Json, key: str, change: Any) -> Json:
        return params | {key: change(params[key])} if isinstance(params.get(key), str) else params

    # --- from the gateway to the client

    def outward(self, message: Any) -> Any:
        """An answer, a notification or a question of the gateway, as the server itself would have said it."""
        message = self._without_namespace(message)
        result = message.get("result") if isinstance(message, dict) else None
        if isinstance(result, dict):
            for kind in ("tools", "prompts"):
                if isinstance(result.get(kind), list):
                    result[kind] = [self._changed(one, "name", self._bare) for one in result[kind]]
        return message

    def _bare(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _without_namespace(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._without_namespace(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._without_namespace(inner, key) for inner in value]
        is_ours = isinstance(value, str) and (key in _URIS or key == "resourceSubscriptions")
        return out_of_namespace(value) if is_ours and server_of(value) == self._namespace else value
