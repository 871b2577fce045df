import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

from kbridge.errors import InvalidRequest, KernelNotFound, KernelStartError, SessionNotFound
from kbridge.kernels.registry.models import Claim, KernelRow, Owner, SessionRow
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.sessions import Sessions
from kbridge.kernels.users import User
from tests.support.waiting import TIMEOUT

NOTEBOOK = {"path": "a/nb.ipynb", "type": "notebook", "name": "nb", "kernel": {"name": "py"}}


class FakeKernels:
    def __init__(self) -> None:
        self.kernels: dict[str, str | None] = {}
        self.starts: list[dict[str, str | None]] = []
        self.renamed: list[tuple[str, str]] = []
        self.users: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0  # clients that wait for a start

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        self.waiting += 1
        yield
        self.waiting -= 1

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    def model(self, kernel_id):
        user = self.users.get(kernel_id)
        return {
            "id": kernel_id,
            "name": self.kernels[kernel_id],
            **({"user": user} if user else {}),
        }

    async def start_kernel(
        self, kernel_name=None, *, path=None, kernel_id=None, session_name=None, user=""
    ) -> str:
        assert self.waiting, "a restart of the server waits until the session has its kernel"
        self.starts.append({"name": kernel_name, "path": path, "session": session_name})
        await self.gate.wait()
        if kernel_name == "broken":
            raise KernelStartError("broken")
        kernel_id = kernel_id or f"k{len(self.starts)}"
        self.kernels[kernel_id] = kernel_name or "default"
        self.users[kernel_id] = user
        return kernel_id

    async def shutdown_kernel(self, kernel_id: str) -> None:
        if self.kernels.pop(kernel_id, None) is None:
            raise KernelNotFound(kernel_id)

    def rename_session(self, kernel_id: str, session_name: str) -> None:
        self.renamed.append((kernel_id, session_name))


@pytest.fixture
def kernels():
    return FakeKernels()


@pytest.fixture
def sessions(kernels):
    return Sessions(kernels)


async def test_create_get_list_delete(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    assert model == {
        "id": model["id"],
        "path": "a/nb.ipynb",
        "name": "nb",
        "type": "notebook",
        "kernel": {"id": "k1", "name": "py"},
        "notebook": {"path": "a/nb.ipynb", "name": "nb"},
    }
    assert kernels.starts == [{"name": "py", "path": "a/nb.ipynb", "session": "nb"}]
    assert sessions.get(model["id"]) == model
    assert sessions.list() == [model]
    await sessions.delete(model["id"])
    assert kernels.kernels == {}
    assert sessions.list() == []
    for call in (sessions.delete, sessions.patch):
        with pytest.raises(SessionNotFound):
            await (call(model["id"]) if call == sessions.delete else call(model["id"], {}))


async def test_other_types_have_no_notebook(sessions):
    model = await sessions.create({"path": "p", "type": "console"})
    assert "notebook" not in model
    assert model["name"] is None
    assert model["kernel"]["name"] == "default"


async def test_a_path_has_one_session_also_when_two_ask_at_once(sessions, kernels):
    kernels.gate.clear()
    both = asyncio.gather(sessions.create(NOTEBOOK), sessions.create(NOTEBOOK))
    await asyncio.sleep(0)
    kernels.gate.set()
    first, second = await both
    assert first == second
    assert len(kernels.starts) == 1


async def test_two_paths_start_side_by_side(sessions, kernels):
    kernels.gate.clear()
    both = asyncio.gather(
        sessions.create({"path": "a", "type": "file"}),
        sessions.create({"path": "b", "type": "file"}),
    )
    await asyncio.sleep(0)
    assert len(kernels.starts) == 2
    kernels.gate.set()
    await both


async def test_an_existing_kernel_is_shared(sessions, kernels):
    first = await sessions.create(NOTEBOOK)
    second = await sessions.create({"path": "c", "type": "console", "kernel": {"id": "k1"}})
    assert second["kernel"] == first["kernel"]
    assert len(kernels.starts) == 1


async def test_a_new_kernel_may_bring_its_id(sessions):
    model = await sessions.create({"path": "c", "type": "console", "kernel": {"id": "mine"}})
    assert model["kernel"]["id"] == "mine"


async def test_a_user_does_not_learn_from_an_id_whether_it_is_taken(sessions, kernels):
    kernels.kernels["hers"], kernels.users["hers"] = "py", "alice"
    for kernel_id in ("hers", "free"):
        body = {"path": kernel_id, "type": "console", "kernel": {"id": kernel_id}}
        model = await sessions.create(body, User("bob"))
        assert model["kernel"]["id"] not in ("hers", "free")
        assert model["kernel"]["user"] == "bob"
    body = {"path": "c", "type": "console", "kernel": {"id": "free"}}
    model = await sessions.create(body, User("root", admin=True))
    assert model["kernel"]["id"] == "free"


async def test_the_older_notebook_body(sessions):
    model = await sessions.create({"notebook": {"path": "x.ipynb"}, "kernel": None})
    assert (model["path"], model["type"]) == ("x.ipynb", "notebook")


async def test_sessions_go_with_their_kernels(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    kernels.kernels.clear()
    with pytest.raises(SessionNotFound):
        sessions.get(model["id"])
    assert sessions.list() == []
    assert (await sessions.create(NOTEBOOK))["id"] != model["id"]


async def test_a_start_that_fails_leaves_no_session(sessions):
    with pytest.raises(KernelStartError):
        await sessions.create({**NOTEBOOK, "kernel": {"name": "broken"}})
    assert len(sessions) == 0


async def test_patch_renames_and_retypes(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    patched = await sessions.patch(model["id"], {"path": "b.py", "name": None, "type": "file"})
    assert patched == {**sessions.get(model["id"])}
    assert (patched["path"], patched["name"], patched["type"]) == ("b.py", None, "file")
    assert patched["kernel"] == model["kernel"]
    assert kernels.renamed[-1] == ("k1", "b.py")


async def test_patch_to_a_new_kernel_shuts_the_old_one_down(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    patched = await sessions.patch(model["id"], {"kernel": {"name": "r"}})
    assert patched["kernel"] == {"id": "k2", "name": "r"}
    assert list(kernels.kernels) == ["k2"]


async def test_patch_spares_an_old_kernel_that_another_session_uses(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    await sessions.create({"path": "c", "type": "console", "kernel": {"id": "k1"}})
    await sessions.patch(model["id"], {"kernel": {"name": "r"}})
    assert set(kernels.kernels) == {"k1", "k2"}


async def test_patch_to_an_existing_kernel(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    with kernels.starting():
        await kernels.start_kernel("r")
    patched = await sessions.patch(model["id"], {"kernel": {"id": "k2", "name": "ignored"}})
    assert patched["kernel"]["id"] == "k2"
    assert list(kernels.kernels) == ["k2"]
    with pytest.raises(InvalidRequest, match="no kernel none"):
        await sessions.patch(model["id"], {"kernel": {"id": "none"}})


async def test_patch_of_a_session_that_is_deleted_meanwhile_leaves_no_kernel(sessions, kernels):
    model = await sessions.create(NOTEBOOK)
    kernels.gate.clear()
    patch = asyncio.ensure_future(sessions.patch(model["id"], {"kernel": {"name": "r"}}))
    await asyncio.sleep(0)
    await sessions.delete(model["id"])
    kernels.gate.set()
    with pytest.raises(SessionNotFound):
        await patch
    assert kernels.kernels == {}


class SlowRegistry:
    """A registry that writes on request and records the rows."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self.rows: dict[tuple[str, str], object] = {}
        self.may = threading.Event()

    def prepare(self) -> None:
        pass

    def claim(self, owner, is_alive) -> Claim:
        return self._claim

    def write(self, owner, rows) -> None:
        assert self.may.wait(TIMEOUT)
        self.rows |= rows

    def close(self) -> None:
        pass


@pytest.fixture
async def make_ledger():
    made = []

    async def make(claim=Claim()):  # noqa: B008 - it is frozen
        registry = SlowRegistry(claim)
        ledger = RegistryWriter(registry, Owner("a", "h", 1, "b"))
        made.append((registry, ledger))
        await ledger.open()
        return registry, ledger

    yield make
    for registry, ledger in made:
        registry.may.set()
        await ledger.aclose()


async def test_a_patch_is_written_down_before_its_old_kernel_ends(kernels, make_ledger):
    registry, ledger = await make_ledger()
    registry.may.set()
    sessions = Sessions(kernels, ledger)
    model = await sessions.create(NOTEBOOK)
    registry.may.clear()
    patch = asyncio.ensure_future(sessions.patch(model["id"], {"kernel": {"name": "r"}}))
    async with asyncio.timeout(TIMEOUT):
        while not kernels.renamed:  # noqa: ASYNC110 - the fake sets no event
            await asyncio.sleep(0)
    assert not patch.done()
    assert "k1" in kernels, "a crash would leave a session without a kernel"
    registry.may.set()
    await patch
    assert registry.rows["session", model["id"]].kernel_id == "k2"
    assert "k1" not in kernels


async def test_sessions_of_a_kernel_that_could_not_be_reached_are_kept(kernels, make_ledger):
    records = [SessionRow(f"of {k}", k, k, None, "file") for k in ("here", "far", "gone")]
    far = KernelRow("far", "py", "used", 0, "", "/log", "{}")
    registry, ledger = await make_ledger(Claim([far], records))
    kernels.kernels["here"] = "py"
    sessions = Sessions(kernels, ledger)
    sessions.adopt(records)
    registry.may.set()
    await ledger.settled()
    assert [model["id"] for model in sessions.list()] == ["of here"]
    assert registry.rows == {("session", "of gone"): None}


BAD = [
    (None, "not a JSON object"),
    ([], "not a JSON object"),
    ({"type": "notebook"}, "needs a path"),
    ({"path": "p"}, "needs a type"),
    ({"path": None, "type": "file"}, "path is not a string"),
    ({"path": 5, "type": "file"}, "path is not a string"),
    ({"path": "p", "type": "file", "name": 5}, "name is not a string"),
    ({"path": "p", "type": "file", "kernel": "py"}, "kernel is not an object"),
    ({"path": "p", "type": "file", "kernel": {"name": 5}}, "kernel.name is not a string"),
    ({"path": "p", "type": "file", "kernel": {"id": [1]}}, "kernel.id is not a string"),
    ({"notebook": "x"}, "notebook is not an object"),
    ({"path": "half \ud800", "type": "file"}, "path is not text"),
    ({"path": "p", "type": "file", "name": "a\0b"}, "name is not text"),
]


@pytest.mark.parametrize(("body", "reason"), BAD)
async def test_bad_bodies(sessions, kernels, body, reason):
    with pytest.raises(InvalidRequest, match=reason):
        await sessions.create(body)
    assert not kernels.starts


@pytest.mark.parametrize("field", ["path", "name", "type"])
async def test_a_name_that_no_variable_could_hold_is_refused(sessions, kernels, field):
    model = await sessions.create(NOTEBOOK)
    for request in (
        sessions.create({**NOTEBOOK, field: "x" * 100_000}),
        sessions.patch(model["id"], {field: "x" * 100_000}),
    ):
        with pytest.raises(InvalidRequest, match=f"{field} has more than 16384 characters"):
            await request
    assert sessions.get(model["id"]) == model
    assert len(kernels.starts) == 1
