"""Where the `url` of an adapter may lead, as the REST API says it.

`adapters` comes in; `remote_addresses` decides.
"""

from __future__ import annotations

from composition.api.problems import Wrong, invalid
from composition.remote_addresses import url_problem
from providers.addresses import AddressRules


async def check_url(url: str, rules: AddressRules) -> None:
    """
    Raises:
        Refusal: 400; it leads where servers that come through the API may not be.
    """
    if (problem := await url_problem(url, rules)) is not None:
        raise invalid([Wrong("url", problem)])
