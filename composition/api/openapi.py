"""The OpenAPI 3.1 document of the REST API, made of the models that check its bodies.

`routes` comes in with its table of routes, so that what is served and what is described cannot differ. Here is what the
models do not know: parameters, answers, and which problem each operation can have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from composition.api.logs import DEFAULT_TAIL, MOST_LINES
from composition.api.problems import MEDIA_TYPE
from composition.api.requests import JSON_TYPE, MAX_PAGE, MERGE_PATCH_TYPE
from composition.api.shapes import WRITTEN_BY_US, Form

Json = dict[str, Any]

_NAME = "^[a-z0-9][a-z0-9-]{0,62}$"
_SAID = {
    200: "As asked",
    201: "Made",
    204: "Removed",
    304: "Not changed since",
    400: "Something in the request cannot be accepted",
    401: "No good token; the header says how to get one",
    403: "You may read this, and not do that",
    404: "Not there, or not for you",
    405: "Not at this address",
    408: "The body did not come in time",
    409: "The name is taken, or the server is not of a kind that this can be done with",
    412: "Changed since you read it",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "Too many requests of one user, or of one address; 'Retry-After' says when to come again",
    503: "The store, or a server, cannot be reached at the moment",
}
_ALWAYS = (401, 405, 429, 503)
_OF_A_BODY = (400, 408, 413, 415)
_STATUSES: dict[tuple[str, str], tuple[int, ...]] = {
    ("/adapters", "GET"): (200, 400),
    ("/adapters", "POST"): (201, 403, 409, *_OF_A_BODY),
    ("/adapters/{name}", "GET"): (200, 304, 404),
    ("/adapters/{name}", "PUT"): (200, 403, 404, 409, 412, *_OF_A_BODY),
    ("/adapters/{name}", "PATCH"): (200, 403, 404, 409, 412, *_OF_A_BODY),
    ("/adapters/{name}", "DELETE"): (204, 403, 404, 409, 412),
    ("/adapters/{name}/status", "GET"): (200, 404),
    ("/adapters/{name}/logs", "GET"): (200, 400, 403, 404, 409),
    ("/adapters/{name}/restart", "POST"): (200, 403, 404, 409, 415),
    ("/tools", "GET"): (200, 400),
    ("/tools/{name}", "GET"): (200, 404),
}
_BODIES = {"POST": "AdapterData", "PUT": "AdapterUpdate", "PATCH": "AdapterPatch"}
_EXAMPLES: dict[str, Json] = {
    "POST": {"name": "time", "command": "uvx", "args": ["mcp-server-time"], "requiredRoles": ["engineer"]},
    "PUT": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=UTC"], "requiredRoles": ["engineer"]},
    "PATCH": {"description": "What time it is", "isEnabled": False},
}
_ANSWERS: dict[str, Json] = {
    "/adapters": {"type": "array", "items": {"$ref": "#/components/schemas/AdapterResource"}},
    "/adapters/{name}": {"$ref": "#/components/schemas/AdapterResource"},
    "/adapters/{name}/status": {"$ref": "#/components/schemas/AdapterStatus"},
    "/adapters/{name}/restart": {"$ref": "#/components/schemas/AdapterStatus"},
    "/tools": {"type": "array", "items": {"$ref": "#/components/schemas/Tool"}},
    "/tools/{name}": {"$ref": "#/components/schemas/Tool"},
}
_PAGED = ("/adapters", "/tools")


def document(routes: Mapping[str, Mapping[str, Callable[..., Any]]], *, has_auth: bool) -> Json:
    """The document for these routes, each with its handler's own words."""
    paths: Json = {}
    for path, methods in routes.items():
        paths[path] = {method.lower(): _operation(path, method, handler) for method, handler in methods.items()}
        if "{name}" in path:
            pattern = {"minLength": 1, "maxLength": 256} if path.startswith("/tools") else {"pattern": _NAME}
            example = "time_get_current_time" if path.startswith("/tools") else "time"
            named = _parameter("name", "path", {"type": "string", **pattern}, required=True)
            paths[path]["parameters"] = [named | {"example": example}]
    components: Json = {"schemas": _schemas()}
    described: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Apollos MCP Gateway", "version": "1", "description": "Servers and tools of the gateway."},
        "paths": paths,
        "components": components,
    }
    if has_auth:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"bearer": []}]
    return described


def _operation(path: str, method: str, handler: Callable[..., Any]) -> Json:
    statuses = sorted({*_STATUSES[path, method], *_ALWAYS})
    operation: Json = {
        "operationId": to_camel(handler.__name__),
        "summary": (handler.__doc__ or "").strip().partition("\n")[0],
        "responses": {str(status): _response(path, method, status) for status in statuses},
    }
    if parameters := _parameters(path, method):
        operation["parameters"] = parameters
    if method in _BODIES and not path.endswith("/restart"):
        schema = {"$ref": f"#/components/schemas/{_BODIES[method]}"}
        media_type = MERGE_PATCH_TYPE if method == "PATCH" else JSON_TYPE
        content = {media_type: {"schema": schema, "example": _EXAMPLES[method]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(path: str, method: str) -> list[Json]:
    if path in _PAGED and method == "GET":
        limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
        return [_parameter("limit", "query", limit), _parameter("cursor", "query", {"type": "string", "minLength": 1})]
    if path.endswith("/logs"):
        tail = {"type": "integer", "minimum": 0, "maximum": MOST_LINES, "default": DEFAULT_TAIL}
        return [_parameter("tail", "query", tail), _parameter("follow", "query", {"type": "boolean"})]
    if path == "/adapters/{name}":
        names = ["If-None-Match"] if method == "GET" else ["If-Match", "If-None-Match"]
        return [_parameter(name, "header", {"type": "string"}) for name in names]
    return []


def _parameter(name: str, place: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _response(path: str, method: str, status: int) -> Json:
    response: Json = {"description": _SAID[status]}
    if status >= 400 and status != 401:
        response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    elif status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    elif status in (200, 201) and path.endswith("/logs"):
        response["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif status in (200, 201):
        schema = _ANSWERS["/adapters/{name}"] if method == "POST" and path == "/adapters" else _ANSWERS[path]
        response["content"] = {JSON_TYPE: {"schema": schema}}
        if "AdapterResource" in str(schema.get("$ref")):
            response["headers"] = {"ETag": {"schema": {"type": "string"}}}
    return response


def _schemas() -> Json:
    form = _in_camel_case(Form.model_json_schema(ref_template="#/components/schemas/{model}"))
    parts = form.pop("$defs", {})
    data = form | {"title": "AdapterData"}
    data["properties"]["name"] = {"type": "string", "pattern": _NAME, "description": "cannot be changed"}
    ours = [to_camel(name) for name in WRITTEN_BY_US]
    for name in ours:
        data["properties"][name] = {
            "description": "Written by the gateway; ignored, so that an answer can be sent back"
        }
    resource = {
        "title": "AdapterResource",
        "type": "object",
        "properties": {**data["properties"], **_WRITTEN},
        "required": ["name", "requiredRoles", "environmentVariables", "transportType", "isEnabled", *ours],
        "additionalProperties": False,
    }
    return {
        **parts,
        "AdapterData": data | {"required": ["name"]},
        "AdapterUpdate": data | {"title": "AdapterUpdate", "required": []},
        "AdapterPatch": {
            "title": "AdapterPatch",
            "description": "A JSON merge patch: null takes a member away, what is not named stays",
            "type": "object",
        },
        "AdapterResource": resource,
        **_OTHERS,
    }


def _in_camel_case(schema: Any) -> Any:
    """A model's schema with its members as the API spells them. Examples are of TOML and fall away."""
    if isinstance(schema, list):
        return [_in_camel_case(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {to_camel(name): _in_camel_case(each) for name, each in value.items()}
        elif key == "default" and isinstance(value, dict):
            result[key] = {to_camel(name): each for name, each in value.items()}
        elif key != "examples":
            result[key] = _in_camel_case(value)
    return result


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_MOMENT: Json = {"type": "string", "format": "date-time"}
_WRITTEN: Json = {
    "id": _TEXT,
    "createdBy": _TEXT,
    "createdAt": _MOMENT,
    "lastUpdatedAt": _MOMENT,
    "version": _COUNT,
    "source": {"type": "string", "enum": ["servers.toml", "api"]},
    "kind": {"type": "string", "enum": ["built-in", "client", "service"]},
    "transportType": {"type": "string", "enum": ["stdio", "streamable_http", "sse", "python"]},
    "environmentVariables": {"type": "object", "additionalProperties": _TEXT},
    "name": _TEXT,
    "url": {"type": ["string", "null"]},
}
_OTHERS: Json = {
    "AdapterStatus": {
        "type": "object",
        "properties": {
            "readyReplicas": _COUNT | {"description": "1 if a session with the server is open in this gateway"},
            "updatedReplicas": _COUNT | {"description": "1 if no session of an earlier version is left"},
            "availableReplicas": _COUNT | {"description": "1 if the server is switched on and does not fail"},
            "image": _TEXT,
            "replicaStatus": _TEXT | {"description": "Healthy, Disabled, or Degraded: 0/1 ready"},
            "pool": {"type": "object", "additionalProperties": _COUNT, "description": "sessions; for writers"},
            "health": {
                "type": "object",
                "properties": {"failures": _COUNT, "lastError": {"type": ["string", "null"]}},
                "required": ["failures", "lastError"],
                "description": "for writers",
            },
            "container": {"type": ["object", "null"], "description": "for writers"},
        },
        "required": ["readyReplicas", "updatedReplicas", "availableReplicas", "image", "replicaStatus"],
        "additionalProperties": False,
    },
    "Tool": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "server": _TEXT,
            "kind": _WRITTEN["kind"],
            "description": {"type": ["string", "null"]},
            "tokens": _COUNT | {"description": "a quarter of the bytes of name, description and input schema"},
        },
        "required": ["name", "server", "kind", "tokens"],
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": _TEXT,
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"key": _TEXT, "text": _TEXT},
                    "required": ["key", "text"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
    },
}
