/** The thread for Markdown and LaTeX, with a worker and timers that a test lets go on. */

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { PATIENCE, RichThread } from '../../../kbridge/page/static/console/rich_thread.js';

let workers = [];
let timers = new Map();

globalThis.setTimeout = (action, delay) => {
  const timer = { action, delay };
  timers.set(timer, timer);
  return timer;
};
globalThis.clearTimeout = timer => timers.delete(timer);

class FakeWorker {
  constructor() {
    this.received = [];
    this.ended = false;
    workers.push(this);
  }

  postMessage(message) {
    this.received.push(message);
  }

  terminate() {
    this.ended = true;
  }

  say(data) {
    this.onmessage({ data });
  }
}

beforeEach(() => {
  workers = [];
  timers = new Map();
});

const makeThread = () => new RichThread(() => new FakeWorker());

test('one text is rendered at a time, by one worker', async () => {
  const thread = makeThread();
  const first = thread.render('markdown', 'a');
  const second = thread.render('latex', 'b');
  const [worker] = workers;
  assert.deepEqual(worker.received, [], 'it is not loaded yet');
  assert.equal(timers.size, 0, 'loading is not counted');
  worker.say({ ready: true });
  assert.deepEqual(worker.received, [{ kind: 'markdown', source: 'a' }]);
  worker.say({ html: '<p>a</p>' });
  assert.equal(await first, '<p>a</p>');
  assert.deepEqual(worker.received[1], { kind: 'latex', source: 'b' });
  worker.say({ error: 'no LaTeX' });
  await assert.rejects(second, /^Error: no LaTeX$/);
  assert.deepEqual([workers.length, timers.size], [1, 0]);
  const third = thread.render('markdown', 'c');
  worker.say({ html: 'c' });
  assert.equal(await third, 'c');
});

test('a text that takes too long is given up, and others are rendered', async () => {
  const thread = makeThread();
  const slow = thread.render('markdown', 'slow');
  const other = thread.render('markdown', 'other');
  workers[0].say({ ready: true });
  const [{ action, delay }] = timers.values();
  assert.equal(delay, PATIENCE);
  action();
  await assert.rejects(slow, /takes too long/);
  assert.equal(workers[0].ended, true);
  workers[1].say({ ready: true });
  assert.deepEqual(workers[1].received, [{ kind: 'markdown', source: 'other' }]);
  workers[1].say({ html: 'other' });
  assert.equal(await other, 'other');
});

test('a worker that cannot be loaded is tried again for the next text', async () => {
  const thread = makeThread();
  const first = thread.render('markdown', 'a');
  workers[0].onerror();
  await assert.rejects(first, /cannot be loaded/);
  const second = thread.render('markdown', 'b');
  workers[1].say({ ready: true });
  workers[1].say({ html: 'b' });
  assert.equal(await second, 'b');
});
