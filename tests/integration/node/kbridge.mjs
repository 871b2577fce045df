// kbridge.js against a server: prints one JSON object per line. A fault ends it with an exit code.
const { connect } = await import(
  process.env.KBRIDGE_MODULE
);
const { KBRIDGE_URL: url, KBRIDGE_TOKEN: token, KBRIDGE_CODE: code } = process.env;
const server = connect({ url, token });
const say = (object) => process.stdout.write(JSON.stringify(object) + "\n");

async function all(execution) {
  const outputs = [];
  for await (const output of execution) outputs.push(output);
  return outputs;
}

const textOf = (outputs) =>
  outputs
    .filter(({ type }) => type === "stream")
    .map(({ text }) => text)
    .join("");

/** Return the class of the error with which a promise is rejected. */
const nameOf = (promise) =>
  promise.then(
    () => "",
    (error) => error.name,
  );

const ECHO = `def opened(comm, _msg):
    @comm.on_msg
    def echo(msg):
        comm.send({"got": msg["content"]["data"]}, buffers=msg["buffers"])
    comm.send({"ready": True})
get_ipython().kernel.comm_manager.register_target("echo", opened)`;

const scenarios = {
  /** Every method once. */
  async methods() {
    const kernel = await server.startKernel("python3");
    const hello = kernel.execute("import sys; print('héllo'); 6 * 7");
    const outputs = await all(hello);
    say({ text: textOf(outputs), types: [...new Set(outputs.map(({ type }) => type))] });
    say({ result: await hello.result });
    const failed = await kernel.execute("1 / 0").result;
    say({ status: failed.status, error: failed.error.ename });
    const answered = kernel.execute("print(input('who? '))", { onInput: ({ prompt }) => prompt });
    say({ answered: textOf(await all(answered)) });
    say({ matches: (await kernel.complete("prin")).matches.includes("print") });
    say({ found: (await kernel.inspect("print")).found });
    say({ complete: (await kernel.isComplete("for x in y:")).status });
    say({ language: (await kernel.kernelInfo()).language_info.name });
    say({ history: (await kernel.history({ n: 1 })).history.at(-1)[2] });

    await kernel.execute(ECHO).result;
    const comm = kernel.openComm("echo");
    await new Promise((resolve) => comm.addEventListener("message", resolve, { once: true }));
    const echoed = new Promise((resolve) => comm.addEventListener("message", resolve));
    comm.send({ a: 1 }, { buffers: [new Uint8Array([1, 2, 255])] });
    const { detail } = await echoed;
    const [buffer] = detail.buffers;
    say({ echo: detail.data, buffer: [...new Uint8Array(buffer.buffer, buffer.byteOffset, 3)] });

    const cell = kernel.execute("print('from a cell')", { cellId: "c1" });
    await cell.result;
    const [model] = await kernel.executions({ cellId: "c1", limit: 1 });
    say({ listed: model.id === cell.id, state: model.state });
    const followed = kernel.follow(model.id);
    say({ followed: (await all(followed)).map(({ type, text }) => text ?? type) });
    say({ followedResult: (await followed.result).status });
    say({ unknown: await nameOf(kernel.follow("nobody").result) });

    const sleep = "import time; print('sleeping', flush=True)\nwhile True: time.sleep(0.01)";
    const sleeping = kernel.execute(sleep);
    for await (const { type } of sleeping) if (type === "stream") await kernel.interrupt();
    say({ interrupted: (await sleeping.result).error.ename });
    // A shutdown begins with an interrupt, after which other code might still end by itself.
    const deaf = `import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('sleeping', flush=True)
while True: time.sleep(0.01)`;
    const restarted = kernel.execute(deaf);
    for await (const { type } of restarted) if (type === "stream") break;
    await kernel.restart();
    say({ restarted: await nameOf(restarted.result) });
    say({ afterwards: (await kernel.execute("1").result).executionCount });
    const lost = kernel.execute(deaf);
    for await (const { type } of lost) if (type === "stream") break;
    await kernel.shutdown();
    say({ shutDown: await nameOf(lost.result) });
    say({ gone: await nameOf(kernel.execute("1").result) });
    say({ token: await nameOf(connect({ url, token: "wrong" }).kernels()) });
    say({ spec: await nameOf(server.startKernel("no such spec")) });
  },

  /** Print the numbers that a cell prints, as they arrive, and how often each line came. */
  async count() {
    const kernel = await server.startKernel("python3");
    kernel.addEventListener("connection", ({ detail }) => say({ connection: detail.state }));
    const execution = kernel.execute(code);
    let text = "";
    for await (const output of execution) {
      if (output.type !== "stream") continue;
      text += output.name === "stdout" ? output.text : `?${JSON.stringify(output)}`;
      say({ lines: text.split("\n").length });
    }
    say({ text, status: (await execution.result).status });
  },

  /** Read nothing until the module pauses, then everything. */
  async lag() {
    const kernel = await server.startKernel("python3");
    const paused = new Promise((resolve) => kernel.addEventListener("lag", resolve, { once: true }));
    const execution = kernel.execute(code);
    const loop = execution[Symbol.asyncIterator]();
    say({ paused: (await paused).detail.paused });
    const numbers = [];
    for await (const output of loop) {
      if (output.type === "display_data") numbers.push(Number(output.data["text/plain"].slice(0, 9)));
      else if (output.type !== "execute_input") numbers.push(output);
    }
    say({ numbers, status: (await execution.result).status });
  },
};

await scenarios[process.argv[2]]();
server.close();
