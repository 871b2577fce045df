"""A client of kbridge servers, and of other Jupyter servers, for asyncio (docs/client.md).

`kbridge.client.sync` is the same client for programs without an event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports

if TYPE_CHECKING:
    from kbridge.client import sync as sync
    from kbridge.client.comms import Comm as Comm
    from kbridge.client.comms import CommMessage as CommMessage
    from kbridge.client.execution import Execution as Execution
    from kbridge.client.execution import ExecutionInfo as ExecutionInfo
    from kbridge.client.kernel import Kernel as Kernel
    from kbridge.client.outputs import ClearOutput as ClearOutput
    from kbridge.client.outputs import DisplayData as DisplayData
    from kbridge.client.outputs import Error as Error
    from kbridge.client.outputs import ExecuteResult as ExecuteResult
    from kbridge.client.outputs import Gap as Gap
    from kbridge.client.outputs import Output as Output
    from kbridge.client.outputs import Result as Result
    from kbridge.client.outputs import Stream as Stream
    from kbridge.client.outputs import UpdateDisplayData as UpdateDisplayData
    from kbridge.client.server import Server as Server
    from kbridge.client.server import connect as connect

_HOMES = {
    "Comm": "comms",
    "CommMessage": "comms",
    "ClearOutput": "outputs",
    "DisplayData": "outputs",
    "Error": "outputs",
    "ExecuteResult": "outputs",
    "Execution": "execution",
    "ExecutionInfo": "execution",
    "Gap": "outputs",
    "Kernel": "kernel",
    "Output": "outputs",
    "Result": "outputs",
    "Server": "server",
    "Stream": "outputs",
    "UpdateDisplayData": "outputs",
    "connect": "server",
    "sync": "sync",
}

__all__ = [
    "ClearOutput",
    "Comm",
    "CommMessage",
    "DisplayData",
    "Error",
    "ExecuteResult",
    "Execution",
    "ExecutionInfo",
    "Gap",
    "Kernel",
    "Output",
    "Result",
    "Server",
    "Stream",
    "UpdateDisplayData",
    "connect",
    "sync",
]

__getattr__, __dir__ = exports(
    __name__, {name: f"kbridge.client.{home}" for name, home in _HOMES.items()}
)
