/** Updates on two connections: the replay may be behind the page's own one, or ahead. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Updates } from '../src/updates';
import { stream, update } from './helpers';

const messages = ['1', '2', '3', '4'].map(text => update(text, 'x'));

function released(steps: ['held' | 'replayed', number][]): unknown[] {
  const updates = new Updates();
  for (const [kind, i] of steps) {
    if (kind === 'held') {
      updates.hold(messages[i]);
    } else {
      updates.received(messages[i]);
    }
  }
  return updates.release().map(held => messages.indexOf(held));
}

test('updates that the replay did not bring remain, in order', () => {
  assert.deepEqual(
    released([
      ['held', 0],
      ['held', 1]
    ]),
    [0, 1]
  );
});

test('an update that the replay brings ends all before it, also those that it left out', () => {
  assert.deepEqual(
    released([
      ['held', 0],
      ['held', 1],
      ['held', 2],
      ['replayed', 1]
    ]),
    [2]
  );
});

test('the replay may be ahead', () => {
  assert.deepEqual(
    released([
      ['replayed', 1],
      ['replayed', 2],
      ['held', 0],
      ['held', 1],
      ['held', 2],
      ['held', 3]
    ]),
    [3]
  );
});

test('other messages do not count', () => {
  const updates = new Updates();
  const text = stream('a');
  updates.received(text);
  updates.hold(messages[0]);
  assert.deepEqual(updates.release(), [messages[0]]);
});

test('what is held is bounded: the newest stay', () => {
  const updates = new Updates();
  const many = Array.from({ length: 10_001 }, (_, i) => update(`${i}`, 'x'));
  many.forEach(each => updates.hold(each));
  const held = updates.release();
  assert.equal(held.length, 10_000);
  assert.equal(held[held.length - 1], many[many.length - 1]);
});
