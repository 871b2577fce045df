import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { TranslationBundle } from '@jupyterlab/translation';

import type { RestoreState } from '../src/state';
import { IDLE } from '../src/state';
import { wording } from '../src/wording';

/** English, with the placeholders of JupyterLab's translations. */
const trans = {
  __: (text: string, ...args: unknown[]) => fill(text, args),
  _n: (one: string, many: string, count: number, ...args: unknown[]) =>
    fill(count === 1 ? one : many, [count, ...args])
} as unknown as TranslationBundle;

function fill(text: string, args: unknown[]): string {
  return text.replace(/%(\d)/g, (_, place) => String(args[Number(place) - 1]));
}

function text(connected: boolean, roundTrip: number | null, state: RestoreState = IDLE): string {
  return wording({ connected, roundTrip, state }, trans, 'en-US').text;
}

const behind = (linesBehind: number): RestoreState => ({
  phase: 'catching-up',
  linesBehind,
  cells: 2
});

test('the round trip is shown in whole milliseconds', () => {
  assert.equal(text(true, 2.6), 'kbridge 3 ms');
  assert.equal(text(true, 1234.2), 'kbridge 1,234 ms');
});

test('there is a text before the first round trip', () => {
  assert.equal(text(true, null), 'kbridge');
});

test('lines that are missing are counted', () => {
  assert.equal(text(true, 3, behind(12340)), 'kbridge: catching up, 12,340 lines behind');
  assert.equal(text(true, 3, behind(1)), 'kbridge: catching up, 1 line behind');
});

test('output without lines is not counted', () => {
  assert.equal(text(true, 3, behind(0)), 'kbridge: catching up');
});

test('a lost connection comes before everything else', () => {
  assert.equal(text(false, 3, behind(5)), 'kbridge: disconnected');
});

test('the tooltip says how many cells were restored', () => {
  const state: RestoreState = { phase: 'restored', linesBehind: 0, cells: 1 };
  const shown = wording({ connected: true, roundTrip: 3, state }, trans);
  assert.equal(shown.text, 'kbridge: output restored');
  assert.match(shown.title, /output of 1 cell\./);
});

test('a notebook in which nothing was missing does not say that it was restored', () => {
  assert.equal(text(true, 3, { phase: 'restored', linesBehind: 0, cells: 0 }), 'kbridge 3 ms');
});

test('an unknown locale is no reason to show nothing', () => {
  const shown = wording({ connected: true, roundTrip: 3, state: IDLE }, trans, 'not a locale');
  assert.equal(shown.text, 'kbridge 3 ms');
});
