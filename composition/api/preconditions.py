"""Optimistic concurrency of the REST API: entity tags, `If-Match` and `If-None-Match` (RFC 9110, 13).

`adapters` comes in. A tag names one version of one record, and the moment when the record was made: a server that is
removed and made again does not meet its own past.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from composition.api.problems import Refusal
from providers.resource import McpServerResource

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def etag(resource: McpServerResource) -> str:
    return f'"{resource.version}-{int(resource.created_at.timestamp() * 1_000_000):x}"'


def check_write(headers: Headers, resource: McpServerResource) -> None:
    """
    Raises:
        Refusal: 412, the record is not the one that the caller has read.
    """
    if "if-match" in headers:
        is_met = _names(headers.getlist("if-match"), resource, may_be_weak=False)
    else:
        is_met = not _names(headers.getlist("if-none-match"), resource, may_be_weak=True)
    if not is_met:
        raise Refusal(412, "The server was changed since you read it. Read it again and repeat the change.")


def is_known(headers: Headers, resource: McpServerResource) -> bool:
    """Whether the reader has this version."""
    return _names(headers.getlist("if-none-match"), resource, may_be_weak=True)


def _names(lines: list[str], resource: McpServerResource, *, may_be_weak: bool) -> bool:
    text = ",".join(lines).strip()
    if text == "*":
        return True
    return any(f'"{tag}"' == etag(resource) and (may_be_weak or not weak) for weak, tag in _TAG.findall(text))
