"""The scenarios of the official suite, and those that are expected to fail, each with its reason.

An expected failure that passes is a failure too: the list never says more than is true.
"""

from __future__ import annotations

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"


def _names(text: str) -> list[str]:
    return text.split()


_BOTH = _names("""
completion-complete tools-list tools-call-simple-text tools-call-image tools-call-audio tools-call-embedded-resource
tools-call-mixed-content tools-call-error tools-call-with-progress json-schema-2020-12 server-sse-multiple-streams
resources-list resources-read-text resources-read-binary resources-templates-read prompts-list prompts-get-simple
prompts-get-with-args prompts-get-embedded-resource prompts-get-with-image dns-rebinding-protection
""")

SCENARIOS = {
    HANDSHAKE: [
        *_BOTH,
        *_names("""
        server-initialize server-session-lifecycle logging-set-level ping tools-call-with-logging tools-call-sampling
        tools-call-elicitation elicitation-sep1034-defaults elicitation-sep1330-enums server-sse-polling
        resources-subscribe resources-unsubscribe
        """),
    ],
    NEWEST: [
        *_BOTH,
        *_names("""
        server-stateless sep-2164-resource-not-found caching http-header-validation
        http-custom-header-server-validation input-required-result-basic-elicitation
        input-required-result-basic-sampling input-required-result-basic-list-roots
        input-required-result-request-state input-required-result-multiple-input-requests
        input-required-result-multi-round input-required-result-missing-input-response
        input-required-result-non-tool-request input-required-result-result-type
        input-required-result-unsupported-methods input-required-result-tampered-state
        input-required-result-capability-check input-required-result-ignore-extra-params
        input-required-result-validate-input
        """),
    ],
}

WAYS = ("direct", "http", "stdio", "alone")
"""How the suite reaches the reference server: by itself; through the gateway, which reaches it over HTTP or stdio; at
the gateway's address for that server alone."""

FAILURES: dict[tuple[str, str], dict[str, str]] = {}
"""By way and protocol version: the scenarios that fail, and by which rule of the protocol."""
