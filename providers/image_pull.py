"""One image on its way from a registry. No Docker here: the container manager says where the events come from.

It has a thread of its own, and one that the end of the program does not wait for: an engine is silent for as long as
a registry is, and no deadline of ours can end that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio

from providers.errors import GatewayError

_TELL_EVERY = 0.2


class ImagePull(threading.Thread):
    """Args:
    events: what the engine tells while it fetches, as its API gives it; raises a GatewayError where it cannot.
    """

    def __init__(self, events: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        super().__init__(name="apollos-pull", daemon=True)
        self._events = events
        self._layers: dict[str, tuple[int, int]] = {}
        self.error = ""
        self._is_complete = False

    def run(self) -> None:
        try:
            for event in self._events():
                self._note(event)
            self._is_complete = True
        except GatewayError as error:
            self.error = str(error)

    def _note(self, event: Mapping[str, Any]) -> None:
        self.error = " ".join(str(event.get("error") or self.error).split())
        detail = event.get("progressDetail") or {}
        if event.get("id") and detail.get("total"):
            self._layers[event["id"]] = (detail.get("current", 0), detail["total"])

    @property
    def words(self) -> str:
        """How far it is."""
        layers = list(self._layers.values())
        if not layers:
            return "asking the registry"
        done, total = sum(each[0] for each in layers), sum(each[1] for each in layers)
        return f"{done / 2**20:.0f} of {total / 2**20:.0f} MiB"

    async def wait(self, deadline: float, progress: Callable[[str], None]) -> str:
        """Wait until it is there; why it is not, or nothing.

        Args:
            deadline: seconds.
            progress: told now and then how far it is.
        """
        self.start()
        with anyio.move_on_after(deadline):
            while self.is_alive():
                await anyio.sleep(_TELL_EVERY)
                progress(self.words)
        if self.is_alive():
            return f"it was not there after {deadline:g} s (timeouts.pull)"
        return self.error or ("" if self._is_complete else "it ended for a reason that nobody knows; see the log")
