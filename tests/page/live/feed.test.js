/** The connection of the live page, with timers that a test lets pass. */

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { Feed } from '../../../kbridge/page/static/live/feed.js';

const page = {};

class Source {
  constructor() {
    page.sources.push(this);
  }

  close() {
    page.sources = page.sources.filter(each => each !== this);
  }
}

Object.assign(globalThis, {
  document: {
    get visibilityState() {
      return page.visibility;
    },
    addEventListener: (name, listener) => (page.listeners[name] = listener)
  },
  addEventListener: (name, listener) => (page.listeners[name] = listener),
  EventSource: Source,
  setTimeout: (action, delay) => {
    page.timers.set(++page.last, { action, delay });
    return page.last;
  },
  clearTimeout: timer => page.timers.delete(timer)
});

beforeEach(() => {
  Object.assign(page, {
    visibility: 'visible',
    sources: [],
    listeners: {},
    timers: new Map(),
    last: 0
  });
  page.states = [];
  page.samples = [];
});

function makeFeed() {
  return new Feed('/api/live', {
    sample: sample => page.samples.push(sample),
    state: state => page.states.push(state)
  });
}

/** Show or hide the page. */
function look(visibility) {
  page.visibility = visibility;
  page.listeners.visibilitychange();
}

/** Let the time of the only timer pass; return its delay. */
function pass() {
  assert.equal(page.timers.size, 1);
  const [[timer, { action, delay }]] = page.timers;
  page.timers.delete(timer);
  action();
  return delay;
}

/** The connection is paused, and nothing will open it but a look at the page. */
function assertPaused() {
  assert.deepEqual([page.sources.length, page.timers.size], [0, 0]);
  assert.equal(page.states.at(-1), 'paused');
}

/** Let the open connection receive a sample. */
const receive = sample => page.sources[0].onmessage({ data: JSON.stringify(sample) });

test('samples are received, and completed from changes', () => {
  makeFeed();
  assert.deepEqual(page.states, ['connecting']);
  receive({ now: 1, kernels: [{ id: 'a', cpu: 0 }] });
  assert.equal(page.states.at(-1), 'live');
  receive({ now: 2, changes: true, kernels: [{ id: 'a', state: 'idle' }] });
  assert.deepEqual(
    page.samples.map(sample => sample.kernels),
    [[{ id: 'a', cpu: 0 }], [{ id: 'a', cpu: 0, state: 'idle' }]]
  );
});

test('a visible page connects again after each loss', () => {
  makeFeed();
  for (let loss = 0; loss < 3; loss += 1) {
    page.sources[0].onerror();
    assert.deepEqual([page.states.at(-1), page.sources.length], ['reconnecting', 0]);
    assert.equal(pass(), 3000);
    assert.equal(page.sources.length, 1);
  }
  page.sources[0].onerror();
  page.listeners.online();
  assert.deepEqual([page.sources.length, page.timers.size], [1, 0]);
});

test('a page that is hidden for a moment stays connected', () => {
  makeFeed();
  const [source] = page.sources;
  look('hidden');
  look('visible');
  assert.deepEqual(page.sources, [source]);
  assert.equal(page.timers.size, 0);
});

test('a page that is hidden for longer disconnects until it is shown', () => {
  makeFeed();
  look('hidden');
  assert.equal(page.sources.length, 1);
  assert.equal(pass(), 30000);
  assertPaused();
  page.listeners.online();
  assertPaused();
  look('visible');
  assert.deepEqual([page.sources.length, page.timers.size], [1, 0]);
});

test('a hidden page that loses its connection does not connect again', () => {
  makeFeed();
  look('hidden');
  page.sources[0].onerror();
  assertPaused();
  look('visible');
  assert.equal(page.sources.length, 1);
});

test('a page that is hidden while it waits to connect again does not do so', () => {
  makeFeed();
  page.sources[0].onerror();
  look('hidden');
  assertPaused();
});

test('a page that is opened in the background connects when it is shown', () => {
  page.visibility = 'hidden';
  makeFeed();
  assertPaused();
  look('visible');
  assert.equal(page.sources.length, 1);
});
