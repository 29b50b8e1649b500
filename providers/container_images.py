"""Which image a server has, and whether it is another one than last time.

The supervisor comes in; asked is the container manager.
"""

from __future__ import annotations

import logging

import anyio.to_thread

from providers.docker import McpContainerManager
from providers.docker_engine import ImageMissing
from providers.hardening import ImageFacts
from providers.resource import McpServerResource

logger = logging.getLogger(__name__)


def with_each_image(resource: McpServerResource) -> list[McpServerResource]:
    """The record once for each image that it names: its tools may have their own."""
    images = [resource.docker_image, *(tool.image for tool in resource.docker_tools.values() if tool.image)]
    return [resource.model_copy(update={"docker_image": image}) for image in dict.fromkeys(images)]


async def image_of(manager: McpContainerManager, resource: McpServerResource) -> ImageFacts | None:
    """What is known of a server's image; None while it is not here."""
    try:
        return await manager.image(resource)
    except ImageMissing:
        return None


async def compare_image(manager: McpContainerManager, resource: McpServerResource, image: ImageFacts | None) -> None:
    """Write down which image a server has, and tell when it is another one than last time."""
    if image is None:
        return
    facts = {"image": resource.docker_image, "id": image.id, "digest": image.digest}
    whose = f"{resource.name} {resource.docker_image}" if resource.docker_tools else resource.name
    known = await anyio.to_thread.run_sync(manager.instance.note, "images", whose, facts)
    if isinstance(known, dict) and known.get("image") == resource.docker_image and known.get("id") != image.id:
        changed = "server '%s': '%s' is another image now: %s, it was %s. Pin it with @sha256:… if that is not wanted."
        logger.warning(changed, resource.name, resource.docker_image, image.id[:19], str(known.get("id"))[:19])
