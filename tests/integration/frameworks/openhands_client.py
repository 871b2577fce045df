"""Runs code with the client of OpenHands: `python openhands_client.py HOST:PORT`; prints JSON.

Only the file of the client is loaded. Its package imports hundreds of others.
"""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

NAME = "openhands/runtime/plugins/jupyter/execute_server.py"
[path] = [p for folder in sys.path if (p := Path(folder, NAME)).is_file()]
spec = importlib.util.spec_from_file_location("execute_server", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


async def main() -> None:
    kernel = module.JupyterKernel(sys.argv[1], "a-conversation")
    await kernel.initialize()
    found = [
        await kernel.execute(code, timeout=120)
        for code in (
            "x = 6",
            "print(x * 7)",
            "import base64\nfrom IPython.display import Image\nImage(base64.b64decode('AAAA'))",
            # Last: it does not wait for the end of code that fails, and kernels skip code that is
            # sent before that end.
            "1 / 0",
        )
    ]
    await kernel.shutdown_async()
    another = module.JupyterKernel(sys.argv[1], "another-conversation")
    await another.initialize()
    found.append(await another.execute("while True: pass", timeout=1))  # interrupts the kernel
    await another.shutdown_async()
    print(json.dumps(found))


asyncio.run(main())
