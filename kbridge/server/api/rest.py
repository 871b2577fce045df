"""REST handlers: the server itself, kernelspecs, kernels and sessions."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tornado.log import app_log

from kbridge._version import __version__
from kbridge.errors import InvalidRequest, KernelError, KernelspecNotFound, NotFound, NotSupported
from kbridge.hub.clock import timestamp
from kbridge.kernels.lifecycle.launchable import is_passable
from kbridge.kernels.users import User, visible
from kbridge.server.api.access import AccessMixin, ApiHandler, expect
from kbridge.server.api.pass_on import KernelApiHandler
from kbridge.server.api.services import Model, maybe_await

__all__ = [
    "InterruptHandler",
    "KernelHandler",
    "KernelsHandler",
    "KernelspecHandler",
    "KernelspecsHandler",
    "MeHandler",
    "ResourceHandler",
    "RestartHandler",
    "SessionHandler",
    "SessionsHandler",
    "ShutdownHandler",
    "StatusHandler",
    "VersionHandler",
    "env_of",
    "find_resource",
]


def identity_of(user: User) -> Model:
    """Return the identity of a client, with the fields of Jupyter Server.

    Clients that have the token of the server share one identity.
    """
    name = user.name or "Anonymous"
    return {
        "username": user.name or "anonymous",
        "name": name,
        "display_name": name,
        "initials": name[0].upper(),
        "avatar_url": None,
        "color": None,
    }


class VersionHandler(ApiHandler):
    """`/api`: the version. Needs no token, as in Jupyter Server, so health checks can use it."""

    public = True
    activity = False

    def get(self) -> None:
        """Answer `{"version"}`."""
        self.reply({"version": __version__})

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()


class StatusHandler(ApiHandler):
    """`/api/status`."""

    activity = False

    def get(self) -> None:
        """Return the status of the server; the request does not count as activity.

        With `?statistics=1`, include the counters of each kernel's hub, with the kernel's id only
        if kernels may be listed, and those of the journals on disk.
        """
        services, user = self.services, self.user
        models = visible(user, services.kernels.models())
        # Other users' requests are not shown to a user.
        last = services.activity.last_request if user.admin else services.activity.started
        status = {
            "connections": sum(int(model["connections"]) for model in models),
            "kernels": len(models),
            # All timestamps have one format, so that the latest is also the largest string.
            "last_activity": max(
                [
                    timestamp(last),
                    *(str(m["last_activity"]) for m in models),
                ]
            ),
            "started": timestamp(services.activity.started),
        }
        if self.get_query_argument("statistics", "0") not in ("", "0", "false"):
            named = services.list_kernels
            users = services.kernels.users()
            status["hubs"] = [
                {**({"kernel_id": kernel_id} if named else {}), **statistics}
                for kernel_id, statistics in services.hubs.statistics().items()
                if user.may_reach(users.get(kernel_id, ""))
            ]
            if user.admin:
                status["journals"] = services.hubs.journal_statistics()
        self.reply(status)


class MeHandler(ApiHandler):
    """`/api/me`: the identity and the permissions of the client."""

    activity = False

    def get(self) -> None:
        """Answer `{"identity", "permissions"}`; the permissions are those that were asked for."""
        try:
            wanted = json.loads(self.get_argument("permissions", "{}"))
        except (ValueError, RecursionError):
            raise InvalidRequest("permissions is not JSON") from None
        if not isinstance(wanted, dict) or not all(
            isinstance(actions, list) and all(isinstance(action, str) for action in actions)
            for actions in wanted.values()
        ):
            raise InvalidRequest("permissions is not an object of lists of strings")
        self.reply({"identity": identity_of(self.user), "permissions": wanted})


class ShutdownHandler(ApiHandler):
    """`/api/shutdown`: shuts the server down, as `kbridge stop` and SIGTERM do."""

    def post(self) -> None:
        """Reply, then start the shutdown."""
        self.require_admin()
        shutdown = self.services.shutdown
        if shutdown is None:
            raise NotSupported("this server cannot be shut down by a request")
        app_log.info("%s requests the shutdown of the server", self.request.remote_ip)
        self.reply({"message": "the server is shutting down"})
        shutdown()


class ServerRestartHandler(ApiHandler):
    """`/api/restart`: starts the installed program in the process, as `kbridge restart` does."""

    async def post(self) -> None:
        """Check that nothing is lost, request the restart, and reply with the version."""
        self.require_admin()
        restart = self.services.restart
        if restart is None:
            raise NotSupported("this server cannot be restarted by a request")
        force = self.body().get("force", False)
        if not isinstance(force, bool):
            raise InvalidRequest("force is not true or false")
        app_log.info("%s requests a restart of the server", self.request.remote_ip)
        version = await restart(force=force)
        self.reply({"message": "the server is restarting", "version": version})


_DAYS = 30 * 24 * 3600


def find_resource(root: str, path: str) -> Path | None:
    """Return the path of a file in a kernelspec's directory; None if it does not exist there.

    Links are resolved before the check, so neither `..` nor a link leads outside.
    """
    if "\0" in path:
        return None
    home = Path(root).resolve()
    try:
        found = (home / path).resolve()
        return found if found.is_relative_to(home) and found.is_file() else None
    except OSError:  # the name is too long
        return None


def spec_model(name: str, spec: Model, root: str, base_url: str) -> Model:
    """Return the REST model of a kernelspec; only files that exist are listed.

    Returns
    -------
    dict
        `name`, `spec`, and `resources`: paths by name, logos without their suffix.
    """
    resources: dict[str, str] = {}
    folder = Path(root)
    if root and folder.is_dir():
        logos = sorted(folder.glob("logo-*"))
        for file in (folder / "kernel.js", folder / "kernel.css", *logos):
            if file.is_file() and _is_text(file.name):
                key = file.stem if file.name.startswith("logo-") else file.name
                resources[key] = f"{base_url}kernelspecs/{quote(name)}/{quote(file.name)}"
    return {"name": name, "spec": spec, "resources": resources}


def _is_text(name: str) -> bool:
    """Return True if a file name is UTF-8; other files do not have URLs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def spec_models(specs: Mapping[str, Any], base_url: str) -> dict[str, Model]:
    """Return the REST models of all kernelspecs; a broken one does not hide the others."""
    found: dict[str, Model] = {}
    for name, info in specs.items():
        if "resources" in info and "name" in info:  # the manager is a client of a gateway
            found[name] = dict(info)
            continue
        try:
            found[name] = spec_model(name, info["spec"], info["resource_dir"], base_url)
        except (KeyError, OSError) as error:
            app_log.warning("kernelspec %s cannot be read: %r", name, error)
    return found


class KernelspecsHandler(ApiHandler):
    """`/api/kernelspecs`."""

    async def get(self) -> None:
        """List the kernelspecs, and the name of the default one."""
        kernels = self.services.kernels
        specs = await maybe_await(kernels.specs.get_all_specs())
        models = await asyncio.to_thread(spec_models, specs, self.services.base_url)
        self.reply({"default": kernels.default_kernel_name, "kernelspecs": models})


class KernelspecHandler(ApiHandler):
    """`/api/kernelspecs/{name}`."""

    async def get(self, name: str) -> None:
        """Describe a kernelspec."""
        spec = await find_spec(self.services.kernels.specs, name)
        model = await asyncio.to_thread(
            spec_model, name, spec.to_dict(), spec.resource_dir, self.services.base_url
        )
        self.reply(model)


class ResourceHandler(AccessMixin):
    """`/kernelspecs/{name}/{path}`: a file of a kernelspec, most often its logo."""

    async def get(self, name: str, path: str) -> None:
        """Send the file."""
        spec = await find_spec(self.services.kernels.specs, name)
        file = await asyncio.to_thread(find_resource, spec.resource_dir, path)
        if file is None:
            raise NotFound("the kernelspec has no such file")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self.set_header("Content-Type", kind)
        if kind.startswith("image/"):
            self.set_header("Cache-Control", f"private, max-age={_DAYS}")
        # A script or SVG of a kernelspec must not act as a page of this server.
        self.set_header("Content-Security-Policy", "default-src 'none'; sandbox")
        self.finish(await asyncio.to_thread(file.read_bytes))

    async def head(self, name: str, path: str) -> None:
        """Answer like `get`, without the body."""
        await self.get(name, path)


async def find_spec(manager: Any, name: str) -> Any:
    """Return a `KernelSpec`.

    Raises
    ------
    KernelspecNotFound
        If no kernelspec has that name.
    KernelError
        If it cannot be read; the message says why.
    """
    try:
        return await maybe_await(manager.get_kernel_spec(name))
    except KeyError:  # NoSuchKernel is one
        raise KernelspecNotFound(f"no kernelspec is named {name}") from None
    except Exception as error:  # any error that a kernel.json can cause
        raise KernelError(f"The kernelspec {name!r} cannot be read: {error}") from error


def env_of(body: Model) -> dict[str, str] | None:
    """Return the environment variables in the body of a request.

    Raises
    ------
    InvalidRequest
        If `env` is not an object of strings, or has names or values that the operating system
        cannot pass on.
    """
    env: dict[object, object] | None = expect(body, "env", dict)
    if env is None:
        return None
    found: dict[str, str] = {}
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidRequest("env is not an object of strings")
        if not name or "=" in name or not is_passable(name) or not is_passable(value):
            raise InvalidRequest("env has a name or value that cannot be an environment variable")
        found[name] = value
    return found


class KernelsHandler(ApiHandler):
    """`/api/kernels`."""

    async def get(self) -> None:
        """List the kernels, in a cluster those of all replicas."""
        self.require_listing()
        cluster = self.services.cluster
        if cluster is not None:
            await cluster.view.refresh()
        # Not earlier: kernels come and go while the database is asked.
        models = self.services.kernels.models()
        if cluster is not None:
            models += cluster.models({str(model["id"]) for model in models})
        self.reply(visible(self.user, models))

    async def post(self) -> None:
        """Start a kernel."""
        body = self.body()
        kernels = self.services.kernels
        kernel_id = await kernels.start_kernel(
            kernel_name=expect(body, "name", str) or None,
            env=env_of(body),
            path=expect(body, "path", str),
            user=self.user.name,
        )
        self.reply_created(kernels.model(kernel_id), "kernels", kernel_id)


class KernelHandler(KernelApiHandler):
    """`/api/kernels/{id}`."""

    def get(self, kernel_id: str) -> None:
        """Describe a kernel."""
        self.reply(self.services.kernels.model(kernel_id))

    async def delete(self, kernel_id: str) -> None:
        """Shut a kernel down."""
        await self.services.kernels.shutdown_kernel(kernel_id)
        self.set_status(204)


class InterruptHandler(KernelApiHandler):
    """`/api/kernels/{id}/interrupt`."""

    async def post(self, kernel_id: str) -> None:
        """Interrupt a kernel."""
        await self.services.kernels.interrupt_kernel(kernel_id)
        self.set_status(204)


class RestartHandler(KernelApiHandler):
    """`/api/kernels/{id}/restart`."""

    async def post(self, kernel_id: str) -> None:
        """Restart a kernel; reply when its new process runs."""
        await self.services.kernels.restart_kernel(kernel_id)
        self.reply(self.services.kernels.model(kernel_id))


class SessionsHandler(ApiHandler):
    """`/api/sessions`."""

    async def get(self) -> None:
        """List the sessions."""
        self.require_listing()
        self.reply(await maybe_await(self.services.sessions.list(self.user)))

    async def post(self) -> None:
        """Create a session with its kernel, or return the session of the same path."""
        model = await self.services.sessions.create(self.body(), self.user)
        self.reply_created(model, "sessions", str(model["id"]))


class SessionHandler(ApiHandler):
    """`/api/sessions/{id}`."""

    async def get(self, session_id: str) -> None:
        """Describe a session."""
        self.reply(await maybe_await(self.services.sessions.get(session_id, self.user)))

    async def patch(self, session_id: str) -> None:
        """Rename a session, or give it another kernel."""
        self.reply(await self.services.sessions.patch(session_id, self.body(), self.user))

    async def delete(self, session_id: str) -> None:
        """Delete a session and its kernel."""
        await self.services.sessions.delete(session_id, self.user)
        self.set_status(204)
