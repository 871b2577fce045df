import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import { test } from 'node:test';

import type { Output } from '../src/feed';
import { sameOutputs } from '../src/same';

const text = (value: string, name = 'stdout'): Output => ({
  output_type: 'stream',
  name,
  text: value
});
const image = { output_type: 'display_data', data: { 'image/png': 'x' }, metadata: {} };

const cases: [string, Output[], Output[], boolean][] = [
  ['equal', [text('a'), image], [text('a'), image], true],
  ['a part', [text('a')], [text('ab')], false],
  ['another order', [text('a'), image], [image, text('a')], false],
  ['an answer to input()', [text('ab')], [text('a'), text('? 1', 'stdin'), text('b')], true],
  ['an answer beside other text', [text('ab')], [text('a'), text('1', 'stdin'), text('c')], false],
  ['text of two names', [text('a'), text('b', 'stderr')], [text('ab')], false],
  ['nothing', [], [], true]
];

for (const [name, wanted, shown, same] of cases) {
  test(name, () => assert.equal(sameOutputs(wanted, shown, isDeepStrictEqual), same));
}
