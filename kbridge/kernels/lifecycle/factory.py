"""Makes kernels: from a request, for a pool, and from a row of the registry."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, NoSuchKernel
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from traitlets import TraitError

from kbridge.errors import InvalidRequest, KernelspecNotFound, KernelStartError
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.environment import kernel_environment
from kbridge.kernels.lifecycle.kernel_process import Launch
from kbridge.kernels.lifecycle.launchable import check_launchable
from kbridge.kernels.lifecycle.provisioners import LOCAL, provisioner_name
from kbridge.kernels.lifecycle.resource_limits import ResourceLimits
from kbridge.kernels.lifecycle.seed import Seed, load_seed
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.models import KernelRow
from kbridge.kernels.registry.persistent import USERNAME
from kbridge.kernels.services import KernelServices
from kbridge.kernels.specs import Specs

__all__ = ["KernelFactory", "KernelRequest"]

_KERNEL_ID = re.compile(r"(?=.{9,64}$)[0-9A-Za-z_]+(-[0-9A-Za-z_]+){4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """A request for a new kernel.

    Attributes
    ----------
    name : str
        The name of an installed kernelspec.
    spec : KernelSpec
        The kernelspec.
    cwd : Path or None
        The working directory; None for `root_dir`.
    env : mapping or None
        Environment variables; see `kernel_environment` for those that are used.
    kernel_id : str or None
        The id of the kernel; None for a new one.
    session_name : str or None
        The value of JPY_SESSION_NAME.
    user : str
        The name of the user whose kernel it is; empty for the operator.
    """

    name: str
    spec: KernelSpec
    cwd: Path | None = None
    env: Mapping[str, Any] | None = None
    kernel_id: str | None = None
    session_name: str | None = None
    user: str = ""


class KernelFactory:
    """Makes kernels of kernelspecs.

    Parameters
    ----------
    jupyter : AsyncMultiKernelManager
        The parent of each kernel's manager, whose class it names. Its `default_kernel_name` is the
        kernelspec of a request that names none.
    specs : Specs
        The kernelspecs.
    services : KernelServices
        The objects that all kernels share.
    index : KernelIndex
        Kernels are registered in it before they have a process.
    """

    def __init__(
        self,
        jupyter: AsyncMultiKernelManager,
        specs: Specs,
        services: KernelServices,
        index: KernelIndex,
    ) -> None:
        self._jupyter = jupyter
        self._specs = specs
        self._services = services
        self._index = index
        self._options = services.options
        self._seed: Seed | None = None
        options = services.options
        self._resources = ResourceLimits(options.kernel_cpus_limit, options.kernel_memory_limit)

    # -- kernelspecs ----------------------------------------------------------------------------

    async def resolve(self, name: str | None) -> tuple[str, KernelSpec]:
        """Return the installed kernelspec that a request for `name` gets, and its name.

        Raises
        ------
        InvalidRequest
            If `name` is not a string.
        KernelspecNotFound, KernelStartError
            See `spec`.
        """
        if name is not None and not isinstance(name, str):
            raise InvalidRequest("The name of a kernelspec is a string")
        name = self._options.force_kernel_name or name or self._jupyter.default_kernel_name
        if name == "python":
            name = NATIVE_KERNEL_NAME
        return name, await self.spec(name)

    async def spec(self, name: str) -> KernelSpec:
        """Return an installed kernelspec.

        Raises
        ------
        KernelspecNotFound
            If there is none with that name, or its provisioner is not installed.
        KernelStartError
            If its kernel.json cannot be read.
        """
        try:
            spec: KernelSpec = await self._specs.get_kernel_spec(name)
        except NoSuchKernel:
            if provisioner := await self._specs.missing_provisioner(name):
                raise KernelspecNotFound(
                    f"The kernelspec {name!r} needs the provisioner {provisioner!r}, which is not"
                    " installed in the environment of this server"
                ) from None
            raise KernelspecNotFound(f"There is no kernelspec {name!r}") from None
        except Exception as error:  # any fault of a kernel.json
            reason = f"The kernelspec {name!r} cannot be read: {error}"
            raise KernelStartError(reason) from error
        return spec

    async def load_seed(self) -> None:
        """Read the seed notebook, if the settings name one.

        Raises
        ------
        BridgeError
            If it cannot be read.
        KernelspecNotFound
            If its kernelspec is not installed.
        """
        if not self._options.seed_uri:
            return
        seed = await load_seed(self._options.seed_uri)
        name = self._options.force_kernel_name or seed.kernel_name
        self._seed = Seed((await self.resolve(name))[0] if name else "", seed.cells)

    async def pool_plan(self) -> dict[str, tuple[int, str]]:
        """Return how many kernels to start in advance, and their fingerprint.

        The keys are the names of the kernelspecs. For the fingerprint, see `fingerprint`.

        Raises
        ------
        KernelspecNotFound
            If a kernelspec in the settings is not installed.
        """
        sizes: dict[str, int] = {}
        for wanted, size in self._options.pool.items():
            name, _ = await self.resolve(wanted)
            sizes[name] = size
        if self._options.prespawn_count:
            # The kernel gateway prespawns kernels of the seed notebook's kernelspec.
            name, _ = await self.resolve(self._seed.kernel_name if self._seed else None)
            sizes[name] = max(sizes.get(name, 0), self._options.prespawn_count)
        return {name: (size, await self.fingerprint(name)) for name, size in sizes.items()}

    # -- kernels --------------------------------------------------------------------------------

    async def launch(self, request: KernelRequest) -> StartedKernel:
        """Start a kernel, which is not in use yet.

        Raises
        ------
        InvalidRequest
            If the kernel id is not a uuid or is taken, or the environment cannot be passed on, or
            asks for more than the limits allow.
        KernelStartError, Busy
            See `StartedKernel.launch`.
        """
        spec = request.spec
        environment = self.environment(request.env)
        if request.session_name:
            environment["JPY_SESSION_NAME"] = request.session_name
        if request.user:  # a request must not name another user
            environment[USERNAME] = request.user
        provisioner = provisioner_name(spec.metadata, self._jupyter)
        self._resources.apply(environment, request.name, provisioner, spec.metadata)
        check_launchable(request.name, spec.argv, {**environment, **spec.env})
        manager = self._make(request.name, self._new_id(request.kernel_id))
        manager.configure(
            self._options,
            spec,
            inherits_env=request.env is None,
            independent=self._services.writer.enabled,
        )
        manager.user = request.user
        kernel = StartedKernel(manager, self._services)
        seed = self._seed if self._seed is not None and self._seed.fits(request.name) else None
        cwd = request.cwd or Path(self._options.root_dir)
        self._index.register(kernel)
        await kernel.launch(Launch(environment, cwd, seed))
        return kernel

    async def launch_for_pool(self, name: str) -> StartedKernel:
        """Start a kernel in advance.

        Raises
        ------
        KbridgeError
            As `spec` and `launch`.
        """
        fingerprint = await self.fingerprint(name)
        kernel = await self.launch(KernelRequest(name, await self.spec(name)))
        kernel.pool(fingerprint)
        return kernel

    def remake(self, row: KernelRow) -> StartedKernel:
        """Make the kernel that a row of the registry describes, without its process."""
        manager = self._make(row.kernel_name, row.kernel_id, Path(row.log_path))
        return StartedKernel(manager, self._services)

    def may_give(self, spec: KernelSpec, user: str) -> bool:
        """Return True if a user may get a kernel that was started in advance.

        Provisioners other than jupyter_client's own may start a process as its user, and nobody is
        the user of a kernel in a pool.
        """
        return not user or provisioner_name(spec.metadata, self._jupyter) == LOCAL

    def environment(self, requested: Mapping[str, Any] | None) -> dict[str, str]:
        """Return the environment of a kernel; see `kernel_environment`."""
        return kernel_environment(
            os.environ,
            requested,
            allowed=self._options.allowed_envs,
            inherited=self._options.inherited_envs,
            secrets=self._services.writer.secret_variables | self._services.hubs.secret_variables,
        )

    async def fingerprint(self, name: str) -> str:
        """Return a digest of the settings and files that a pooled kernel is made from.

        A kernel that an earlier server started with another fingerprint is not handed out.
        """
        cells = self._seed.cells if self._seed is not None and self._seed.fits(name) else ()
        try:
            spec = (await self._specs.get_kernel_spec(name)).to_dict()
        except NoSuchKernel:  # removed in the meantime; no client must get a kernel of it
            spec = {}
        options = self._options
        links = (options.transport, options.kernel_ip, options.transport_encryption)
        limits = (options.kernel_cpus_limit, options.kernel_memory_limit)
        parts = repr((options.root_dir, cells, sorted(spec.items()), links, limits))
        return hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()

    def _new_id(self, kernel_id: str | None) -> str:
        if kernel_id is None:
            return self._jupyter.new_kernel_id()
        if not isinstance(kernel_id, str) or not _KERNEL_ID.fullmatch(kernel_id):
            raise InvalidRequest("The id of a kernel is a uuid")
        if self._index.is_known(kernel_id):
            raise InvalidRequest(f"Kernel {kernel_id} is being started already")
        if self._services.writer.has_kernel(kernel_id):  # it could not be adopted
            raise InvalidRequest(f"The id {kernel_id} is that of a kernel in the registry")
        return kernel_id

    def _make(self, name: str, kernel_id: str, log_path: Path | None = None) -> BridgeKernel:
        jupyter = self._jupyter
        manager = jupyter.kernel_manager_factory(
            connection_file=str(Path(jupyter.connection_dir) / f"kernel-{kernel_id}.json"),
            parent=jupyter,
            log=jupyter.log,
            kernel_name=name,
            kernel_spec_manager=jupyter.kernel_spec_manager,
        )
        if not isinstance(manager, BridgeKernel):
            kind = self._jupyter.kernel_manager_class
            raise TraitError(f"{kind} is not a subclass of BridgeKernel")
        manager.identify(kernel_id, log_path, self._options.log_limit)
        manager.encryption = self._options.transport_encryption
        return manager
