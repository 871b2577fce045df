/** How often a restoration looks at the server. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { ExecutionsApi } from '../src/api';
import type { RestoredCell } from '../src/cell';
import type { Execution } from '../src/plan';
import { Restoration } from '../src/restoration';
import type { RestorationOptions } from '../src/restoration';

/** A websocket that never opens. */
class Socket {
  readonly readyState = 0;
  close(): void {}
}

const CELL = { id: 'a', count: null, outputs: [], showRunning() {}, stopAsking() {} };

/** The server, with one execution that goes on. */
class Server {
  readonly execution = { id: 'r1', cell_id: 'a', state: 'running', lines: 0 } as Execution;
  readonly settings = { WebSocket: Socket };
  looks = 0;

  channels(): string {
    return '';
  }

  list(): Promise<Execution[]> {
    this.looks++;
    return Promise.resolve([{ ...this.execution }]);
  }
}

test('the server is asked less and less often, and more often after an event', async t => {
  Object.assign(globalThis, { window: globalThis, WebSocket: { OPEN: 1 } });
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const server = new Server();
  const restoration = new Restoration([server.execution], {
    api: server as unknown as ExecutionsApi,
    kernel: 'k',
    trans: {},
    opened: true,
    cell: () => CELL as unknown as RestoredCell,
    onChange: () => undefined
  } as unknown as RestorationOptions);

  /** Return after how many seconds the next look comes. */
  async function next(): Promise<number> {
    const looks = server.looks;
    for (let tenths = 1; ; tenths++) {
      t.mock.timers.tick(100);
      if (server.looks > looks) {
        await new Promise(setImmediate); // the answer
        return tenths / 10;
      }
    }
  }

  const delays = [];
  for (let i = 0; i < 6; i++) {
    delays.push(await next());
  }
  assert.deepEqual(delays, [5, 10, 20, 40, 60, 60]);
  restoration.check();
  assert.deepEqual([await next(), await next(), await next()], [0.2, 5, 10]);
  server.execution.state = 'waiting'; // another state than the one that the page knows
  assert.deepEqual([await next(), await next(), await next()], [20, 5, 10]);
  restoration.dispose();
});
