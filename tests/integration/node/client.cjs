// JupyterLab's own client against a server: URL and token come in the environment. Prints one JSON
// object with what it met; any fault is an uncaught rejection and so a non-zero exit.
"use strict";

const { CommsOverSubshells, KernelManager, KernelSpecManager, ServerConnection, SessionManager } =
  require("@jupyterlab/services");
const WebSocket = require("ws");

const baseUrl = process.env.KBRIDGE_URL;

async function run(kernel, code, onStdin) {
  const outputs = [];
  const future = kernel.requestExecute({ code, allow_stdin: Boolean(onStdin) });
  future.onIOPub = (msg) => outputs.push(msg);
  if (onStdin) {
    future.onStdin = onStdin;
  }
  const reply = await future.done;
  const text = outputs
    .filter((m) => m.header.msg_type === "stream")
    .map((m) => m.content.text)
    .join("");
  // ipykernel may cut a line in two: streams that follow each other count as one.
  const types = outputs
    .map((m) => m.header.msg_type)
    .filter((type, i, all) => type !== "stream" || all[i - 1] !== "stream");
  return { status: reply.content.status, text, types };
}

function nextMessage(comm) {
  return new Promise((resolve) => {
    comm.onMsg = resolve;
  });
}

async function echoBuffers(kernel) {
  await run(
    kernel,
    `def opened(comm, _msg):
    @comm.on_msg
    def _(msg):
        comm.send({}, buffers=[bytes(b)[::-1] for b in msg["buffers"]])
get_ipython().kernel.comm_manager.register_target("mirror", opened)`,
  );
  const comm = kernel.createComm("mirror");
  await comm.open().done;
  const answer = nextMessage(comm);
  await comm.send({}, {}, [new Uint8Array([1, 2, 250]).buffer]).done;
  const { buffers } = await answer;
  await comm.close().done;
  return buffers.map((view) =>
    Array.from(new Uint8Array(view.buffer, view.byteOffset, view.byteLength)),
  );
}

async function main() {
  const serverSettings = ServerConnection.makeSettings({
    baseUrl,
    wsUrl: baseUrl.replace(/^http/, "ws"),
    token: process.env.KBRIDGE_TOKEN,
    appendToken: true,
    WebSocket,
  });
  const specs = new KernelSpecManager({ serverSettings });
  await specs.ready;
  const kernels = new KernelManager({ serverSettings });
  const sessions = new SessionManager({ kernelManager: kernels, serverSettings });
  await sessions.ready;
  const session = await sessions.startNew({
    name: "a notebook",
    path: "a.ipynb",
    type: "notebook",
    kernel: { name: "python3" },
  });
  const kernel = session.kernel;
  // A comm would create a subshell in the background; the restart would cancel that request, and
  // nobody catches the rejection.
  kernel.commsOverSubshells = CommsOverSubshells.Disabled;
  const met = { specs: Object.keys(specs.specs.kernelspecs), id: kernel.id };
  met.info = (await kernel.info).language_info.name;
  met.output = await run(kernel, "print('to JupyterLab'); 6 * 7");
  met.error = await run(kernel, "1 / 0");
  met.stdin = await run(kernel, "print(input('? '))", (msg) => {
    kernel.sendInputReply({ status: "ok", value: "typed" }, msg.header);
  });
  met.buffers = await echoBuffers(kernel);
  met.statuses = []; // what a user of JupyterLab is shown during a restart
  kernel.statusChanged.connect((_, status) => met.statuses.push(status));
  await kernel.restart();
  met.restarted = await run(kernel, "print('again')");
  met.subprotocol = kernel._ws.protocol;
  await session.shutdown();
  await kernels.refreshRunning();
  met.left = Array.from(kernels.running()).map((k) => k.id);
  process.stdout.write(JSON.stringify(met) + "\n", () => process.exit(0));
}

main();
