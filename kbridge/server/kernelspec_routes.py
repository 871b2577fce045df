"""`/api/kernelspecs` and the files of kernelspecs."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tornado.log import app_log

from kbridge.errors import KernelError, KernelspecNotFound, NotFound
from kbridge.server.access import AccessMixin
from kbridge.server.handlers import ApiHandler
from kbridge.server.services import Model, maybe_await

__all__ = ["KernelspecHandler", "KernelspecsHandler", "ResourceHandler", "find_resource"]

_DAYS = 30 * 24 * 3600


def find_resource(root: str, path: str) -> Path | None:
    """Return a file of a kernelspec's directory, None where there is none.

    Links are followed first and judged after, so neither `..` nor a link leads out.
    """
    if "\0" in path:
        return None
    home = Path(root).resolve()
    try:
        found = (home / path).resolve()
        return found if found.is_relative_to(home) and found.is_file() else None
    except OSError:  # a name too long to be a file's
        return None


def spec_model(name: str, spec: Model, root: str, base_url: str) -> Model:
    """Describe a kernelspec as REST does; lists only files that exist.

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
    """Return True if a file's name is UTF-8; the server has no URLs for other files."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def spec_models(specs: Mapping[str, Any], base_url: str) -> dict[str, Model]:
    """Describe what `get_all_specs` returned; a broken kernelspec does not hide the others."""
    found: dict[str, Model] = {}
    for name, info in specs.items():
        if "resources" in info and "name" in info:  # a manager that is a gateway's client
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
        """List the kernelspecs, and which is the default."""
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
        # A kernelspec's script or SVG, opened on its own, must not act as a page of ours.
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
        If it cannot be read; says why.
    """
    try:
        return await maybe_await(manager.get_kernel_spec(name))
    except KeyError:  # NoSuchKernel is one
        raise KernelspecNotFound(f"no kernelspec is named {name}") from None
    except Exception as error:  # whatever is wrong with somebody's kernel.json
        raise KernelError(f"The kernelspec {name!r} cannot be read: {error}") from error
