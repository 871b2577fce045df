"""The live page and the console in Jupyter Server, at `/kbridge/`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any, Final

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web
from tornado.log import app_log

from kbridge.connection.channels import HUBS
from kbridge.errors import KbridgeError
from kbridge.hub.table import HubTable
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.page import events, files
from kbridge.page.sampler import Sampler, Source
from kbridge.server.api.client_module import client_module

__all__ = ["ROUTES", "JupyterSource", "close_samplers"]

_SAMPLER: Final = "kbridge_sampler"  # the name in the settings of the web application

# The samplers that somebody has watched, with their event loops.
_WATCHED: weakref.WeakKeyDictionary[Sampler, asyncio.AbstractEventLoop] = (
    weakref.WeakKeyDictionary()
)


class JupyterSource(Source):
    """The kernels of a Jupyter Server.

    Parameters
    ----------
    settings : dict
        The settings of its web application.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    @property
    def table(self) -> HubTable | None:
        """The hubs; None before the first websocket."""
        hubs = self._settings.get(HUBS)
        return hubs.table if isinstance(hubs, JupyterHubs) else None

    def kernels(self) -> list[tuple[str, str, str]]:
        """Return id, kernelspec and state of each kernel.

        Both are `unknown` for a kernel whose manager, which may come from another package, fails.
        """
        manager = self._settings["kernel_manager"]
        found = []
        for kernel_id in manager.list_kernel_ids():
            try:
                kernel = manager.get_kernel(kernel_id)
                name = str(kernel.kernel_name)
                state = str(getattr(kernel, "execution_state", "") or "starting")
            except Exception:  # noqa: BLE001 - the other kernels are shown
                app_log.debug("no state of kernel %s", kernel_id, exc_info=True)
                name = state = "unknown"
            found.append((str(kernel_id), name, state))
        return found

    def pids(self) -> Mapping[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""
        manager = self._settings["kernel_manager"]
        found = {}
        for kernel_id in manager.list_kernel_ids():
            try:
                provisioner = getattr(manager.get_kernel(kernel_id), "provisioner", None)
                process = getattr(provisioner, "process", None)
                if process is not None:
                    found[str(kernel_id)] = int(process.pid)
            except Exception:  # noqa: BLE001 - as above
                app_log.debug("no process of kernel %s", kernel_id, exc_info=True)
        return found

    def facts(self) -> Mapping[str, Any]:
        """Return the time of the start."""
        return {"started": self._settings["started"].timestamp(), "max_kernels": None}


async def close_samplers() -> None:
    """End the samplers of this event loop, because the server ends."""
    loop = asyncio.get_running_loop()
    for sampler, used in list(_WATCHED.items()):
        if used is loop:
            await sampler.aclose()


class _PageHandler(JupyterHandler):
    """Base of the handlers of pages, which anybody sees who may read kernels."""

    auth_resource = "kernels"

    def send_page(self, name: str) -> None:
        """Finish with a page, whose requests repeat the cookie `_xsrf`."""
        _ = self.xsrf_token  # sets the cookie
        files.send_page(self, name, self.base_url, can_log_out=False)


class LiveViewHandler(_PageHandler):
    """`/kbridge/`."""

    @web.authenticated
    @authorized
    def get(self) -> None:
        """Show the live view; its links need the slash at the end of its address."""
        if self.request.path.endswith("/"):
            self.send_page("index.html")
        else:
            self.redirect(f"{self.base_url}kbridge/")


class ConsoleHandler(_PageHandler):
    """`/kbridge/console`."""

    @web.authenticated
    @authorized
    def get(self) -> None:
        """Show the console."""
        self.send_page("console.html")


class FileHandler(_PageHandler):
    """`/kbridge/page/...`: the files of the pages."""

    @web.authenticated
    @authorized
    def get(self, name: str) -> None:
        """Send a file."""
        try:
            files.send_file(self, name)
        except KbridgeError as error:
            raise web.HTTPError(error.http_status, error.reason) from error


class ModuleHandler(_PageHandler):
    """`/kbridge/kbridge.js`: the client that the pages use."""

    @web.authenticated
    @authorized
    def get(self) -> None:
        """Send the module."""
        module = client_module()
        if not module:
            raise web.HTTPError(404, "this installation of kbridge does not have kbridge.js")
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        self.set_header("Cache-Control", "private, no-cache")
        self.finish(module)


class LiveHandler(APIHandler):
    """`/kbridge/api/live`: samples of all kernels as server-sent events."""

    auth_resource = "kernels"
    _track_activity = False

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Send them until the client goes."""
        sampler = self.settings.get(_SAMPLER)
        if sampler is None:
            sampler = self.settings[_SAMPLER] = Sampler(JupyterSource(self.settings))
        _WATCHED[sampler] = asyncio.get_running_loop()
        await events.stream(self, sampler.watch())


ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (r"/kbridge/?", LiveViewHandler),
    (r"/kbridge/console", ConsoleHandler),
    (r"/kbridge/page/(.+)", FileHandler),
    (r"/kbridge/kbridge\.js", ModuleHandler),
    (r"/kbridge/api/live", LiveHandler),
)
"""The routes below the server's `base_url`."""
