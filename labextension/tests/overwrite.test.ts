/** Overwritten text is left out; a small terminal is the reference. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { withoutOverwritten } from '../src/overwrite';

/** Return the lines of a terminal that does what JupyterLab does with stream text. */
function terminal(text: string): string[] {
  const lines = [''];
  let column = 0;
  for (const char of text) {
    const line = lines[lines.length - 1];
    if (char === '\n') {
      lines.push('');
      column = 0;
    } else if (char === '\r') {
      column = 0;
    } else if (char === '\b') {
      if (column > 0) {
        lines[lines.length - 1] = line.slice(0, column - 1) + line.slice(column);
        column--;
      }
    } else {
      lines[lines.length - 1] = line.slice(0, column) + char + line.slice(column + 1);
      column++;
    }
  }
  return lines;
}

/** All texts of the characters, up to a length. */
function* texts(chars: string, length: number): Generator<string> {
  yield '';
  if (length > 0) {
    for (const rest of texts(chars, length - 1)) {
      for (const char of chars) {
        yield char + rest;
      }
    }
  }
}

test('a terminal shows the same, whatever comes before and after', () => {
  for (const text of texts('a\r\nb\b', 5)) {
    for (const after of ['', 'x', '\rx', 'x\n', '\bx']) {
      const alone = withoutOverwritten(text, true);
      assert.deepEqual(terminal(alone + after), terminal(text + after), JSON.stringify(text));
      for (const before of ['p', 'pqrs', 'pqrs\rt', 'p\n']) {
        const shorter = before + withoutOverwritten(text, false) + after;
        const whole = before + text + after;
        assert.deepEqual(terminal(shorter), terminal(whole), JSON.stringify([before, text, after]));
      }
    }
  }
});

test('a progress bar becomes its last state', () => {
  const states = Array.from({ length: 1000 }, (_, i) => `${i} of 1000`);
  assert.equal(withoutOverwritten(states.join('\r'), true), '999 of 1000');
  assert.equal(withoutOverwritten(`${states.join('\r')}\ndone\n`, true), '999 of 1000\ndone\n');
  assert.equal(withoutOverwritten('long state\rend', true), 'endg state\rend');
});

test('text without a carriage return is the same object', () => {
  const text = 'line\n'.repeat(3);
  assert.equal(withoutOverwritten(text, true), text);
});
