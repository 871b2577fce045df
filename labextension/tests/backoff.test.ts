import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Backoff } from '../src/backoff';

test('delays are doubled up to the limit', () => {
  const backoff = new Backoff(5, 30);
  const delays = [1, 2, 3, 4, 5].map(() => backoff.next());
  assert.deepEqual(delays, [5, 10, 20, 30, 30]);
});

test('they begin again when something has happened', () => {
  const backoff = new Backoff(5, 30);
  backoff.next();
  backoff.next();
  backoff.reset();
  assert.equal(backoff.next(), 5);
});
