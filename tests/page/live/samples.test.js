/** Samples that are completed from changes. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Samples } from '../../../kbridge/page/static/live/samples.js';

const whole = {
  now: 1,
  kernels: [
    { id: 'a', state: 'idle', cpu: 0 },
    { id: 'b', state: 'busy' }
  ]
};

test('a whole sample is shown as it is, and replaces all before it', () => {
  const samples = new Samples();
  assert.deepEqual(samples.complete(whole), whole);
  const next = { now: 2, kernels: [{ id: 'b', state: 'idle' }] };
  assert.deepEqual(samples.complete(next), next);
});

test('changes are added to the kernels before', () => {
  const samples = new Samples();
  samples.complete(whole);
  const changed = samples.complete({ now: 2, changes: true, kernels: [{ id: 'a', cpu: 1 }] });
  assert.equal(changed.now, 2);
  assert.deepEqual(changed.kernels, [
    { id: 'a', state: 'idle', cpu: 1 },
    { id: 'b', state: 'busy' }
  ]);
  assert.equal(whole.kernels[0].cpu, 0);
});

test('kernels come and go, in the order of the server', () => {
  const samples = new Samples();
  samples.complete(whole);
  const changed = samples.complete({ changes: true, kernels: [{ id: 'c' }], ids: ['c', 'b'] });
  assert.deepEqual(changed.kernels, [{ id: 'c' }, { id: 'b', state: 'busy' }]);
  const again = samples.complete({ changes: true, kernels: [] });
  assert.deepEqual(again.kernels, changed.kernels);
});
