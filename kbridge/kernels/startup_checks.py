"""Checks, before the server starts, the settings that name a kernelspec or a directory."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from pathlib import Path

from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_core.paths import jupyter_path

from kbridge.errors import InvalidRequest, KernelspecNotFound, KernelStartError
from kbridge.kernels.lifecycle.provisioners import LOCAL, provisioner_name
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.specs import Specs

__all__ = ["check_settings", "warn_of_shared_account"]

_CLASS = "BridgeKernelManager"


async def check_settings(kernels: BridgeKernelManager, *, starts_kernels: bool = True) -> None:
    """Raise an error if a setting cannot work.

    Parameters
    ----------
    kernels : BridgeKernelManager
    starts_kernels : bool
        True if clients may start kernels, so that at least one kernelspec must exist.

    Raises
    ------
    KernelspecNotFound
        If a setting names a kernelspec that is not installed, or none is installed at all.
    KernelStartError
        If a kernelspec that a setting names cannot be read.
    InvalidRequest
        If `attach_dir` is not a directory.
    """
    attach_dir = kernels.attach_dir
    if attach_dir and not await asyncio.to_thread(_is_directory, attach_dir):
        raise InvalidRequest(f"{_CLASS}.attach_dir: {attach_dir!r} is not a directory")
    named = list(_named(kernels))
    if not named and await asyncio.to_thread(_has_native, kernels):
        return
    installed = sorted(await kernels.specs.get_all_specs())
    for name, setting in named:
        await _check(name, setting, installed, kernels.specs)
    default = kernels.default_kernel_name
    if kernels.force_kernel_name or default.lower() in installed:
        return
    if default != NATIVE_KERNEL_NAME:
        await _check(default, "default_kernel_name", installed, kernels.specs)
    elif not starts_kernels:
        return
    elif installed:
        kernels.log.warning(
            "There is no kernelspec %r, so requests that name none fail: install ipykernel, or set"
            " %s.default_kernel_name to one of: %s",
            default,
            _CLASS,
            _listing(installed),
        )
    elif not attach_dir:
        raise KernelspecNotFound(
            "There is no kernelspec at all, so no kernel can be started: install a kernel where"
            " this server runs (pip install ipykernel), or see `jupyter kernelspec list` and"
            " JUPYTER_PATH"
        )


async def warn_of_shared_account(kernels: BridgeKernelManager) -> None:
    """Log a warning if the kernels of all users would run as the account of this server."""
    here = []
    for name, info in (await kernels.specs.get_all_specs()).items():
        metadata = info.get("spec", {}).get("metadata") or {}
        if provisioner_name(metadata, kernels) == LOCAL:
            here.append(name)
    if here:
        kernels.log.warning(
            "Users are not protected from the code of other users in kernels that run as the"
            " account of this server: %s. See docs/jupyterhub.md",
            _listing(sorted(here)),
        )


def _has_native(kernels: BridgeKernelManager) -> bool:
    """Return True if the default kernelspec is ipykernel's and its file exists.

    For that, jupyter_client would import IPython, which costs each start 80 ms of CPU and 10 MiB.
    """
    manager = kernels.specs.manager
    if type(manager) is not KernelSpecManager or manager.allowed_kernelspecs:
        return False
    name = kernels.default_kernel_name
    chosen = manager.trait_has_value("kernel_dirs")  # without making the default, which imports
    folders = manager.kernel_dirs if chosen else jupyter_path("kernels")
    return name == NATIVE_KERNEL_NAME and any(
        Path(folder, name, "kernel.json").is_file() for folder in folders
    )


def _is_directory(path: str) -> bool:
    return Path(path).expanduser().is_dir()


def _named(kernels: BridgeKernelManager) -> Iterable[tuple[str, str]]:
    """Yield the names of kernelspecs in the settings, each with the name of the setting."""
    if kernels.force_kernel_name:
        yield kernels.force_kernel_name, "force_kernel_name"
        return
    for name in kernels.pool:
        yield name, "pool"


async def _check(name: str, setting: str, installed: list[str], specs: Specs) -> None:
    where = f"{_CLASS}.{setting}"
    found = NATIVE_KERNEL_NAME if name == "python" else name
    try:
        await specs.get_kernel_spec(found)
    except KeyError:  # NoSuchKernel is one
        near = difflib.get_close_matches(name.lower(), installed, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise KernelspecNotFound(
            f"There is no kernelspec {name!r}, which {where} names{meant}."
            f" Installed: {_listing(installed)}"
        ) from None
    except Exception as error:  # any fault of a kernel.json
        reason = f"The kernelspec {name!r}, which {where} names, cannot be read: {error}"
        raise KernelStartError(reason) from error


def _listing(installed: list[str]) -> str:
    shown = ", ".join(installed[:20])
    return shown + (", ..." if len(installed) > 20 else "") if installed else "none"
