/** A program in TypeScript that uses the published types. It is compiled, and does not run. */

import type { Execution, ExecutionModel, Output, Result } from 'kbridge';
import { connect, decode, KbridgeError, KernelDied } from 'kbridge';

const server = connect({ url: new URL('http://localhost:8888'), token: 'secret' });
const kernel = await server.startKernel('python3', { env: { KERNEL_A: 'b' } });

const execution: Execution = kernel.execute('1', {
  cellId: 'a',
  storeHistory: false,
  onInput: async ({ prompt, password }) => (password ? '' : prompt)
});

function show(output: Output): string {
  switch (output.type) {
    case 'stream':
      return output.name + output.text;
    case 'display_data':
    case 'update_display_data':
      return String(output.displayId) + output.data['text/plain'];
    case 'execute_result':
      return String(output.executionCount);
    case 'error':
      return output.ename + output.traceback.join('\n');
    case 'clear_output':
      return String(output.wait);
    case 'execute_input':
      return output.code;
    case 'input_request':
      output.reply(output.prompt);
      return '';
    case 'gap':
      return output.text;
    default: {
      const never: never = output;
      return never;
    }
  }
}

for await (const output of execution) {
  show(output);
}
const { status, error }: Result = await execution.result;
if (status === 'error') {
  error?.ename.trim();
}
// @ts-expect-error a status is one of three
status === 'dead';
// @ts-expect-error executions are made by kernels
new (Object.getPrototypeOf(execution).constructor as typeof Execution)();

const models: ExecutionModel[] = await kernel.executions({ state: ['running'], limit: 1 });
kernel.follow(models[0].id, { onInput: ({ prompt }) => prompt });
const comm = kernel.openComm('target', { a: 1 }, { buffers: [new Uint8Array(3)] });
comm.addEventListener('message', event => (event as CustomEvent).detail.buffers);
try {
  await kernel.complete('pri');
  decode(new ArrayBuffer(8)).header.msg_type.trim();
} catch (failure) {
  if (failure instanceof KernelDied || failure instanceof KbridgeError) {
    failure.status?.toFixed();
  }
}
