"""jupyter-kernel-client against a server; arguments: URL, token."""

import json
import sys

from jupyter_kernel_client import JupyterKernelClient

url, token = sys.argv[1:]
with JupyterKernelClient(server_url=url, token=token) as kernel:
    client = kernel._manager.client
    met = {
        "id": kernel.id,
        "result": kernel.execute("print('to PyPI'); 6 * 7"),
        "error": kernel.execute("1 / 0"),
        "stdin": kernel.execute(
            "print(input('? '))", allow_stdin=True, stdin_hook=lambda msg: client.input("typed")
        ),
    }
    kernel.set_variable("there", {"a": 1})
    met["there"] = kernel.execute("there")
    kernel.restart()
    met["restarted"] = kernel.execute("print('again')")
print(json.dumps(met))
