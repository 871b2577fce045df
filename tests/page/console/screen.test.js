/** Text of terminals: colours, carriage returns, progress bars. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  PLAIN,
  styled,
  Tokens,
  withoutColours
} from '../../../kbridge/page/static/console/ansi.js';
import { REACH, Screen, WIDEST } from '../../../kbridge/page/static/console/screen.js';

const ESC = '\x1b[';

/** The lines of a screen as text. */
function shown(...texts) {
  const screen = new Screen();
  texts.forEach(text => screen.write(text));
  return [...screen.takeFinal(), ...screen.tail()].map(line => line.map(run => run.text).join(''));
}

const CASES = [
  ['plain lines', 'one\ntwo\n', ['one', 'two']],
  ['a last line without an end', 'one\ntwo', ['one', 'two']],
  ['empty lines', 'one\n\ntwo\n\n', ['one', '', 'two', '']],
  ['a carriage return', 'old text\rnew', ['new text']],
  ['a longer line over a shorter one', '50%\r100%', ['100%']],
  ['the line ends of Windows', 'one\r\ntwo\r\n', ['one', 'two']],
  ['backspace', 'abc\b\bX', ['aXc']],
  ['backspace at the start', '\b\bX', ['X']],
  ['backspace over a character of two units', 'a😀\b-', ['a-']],
  ['a carriage return over such characters', '😀😀\rab', ['ab']],
  ['erase to the end', `old text\r${ESC}Knew`, ['new']],
  ['erase the line', `old${ESC}2K\rnew`, ['new']],
  ['erase to the start', `abcd${ESC}2D${ESC}1KX`, ['  Xd']],
  ['cursor up', `one\ntwo\n${ESC}2AONE`, ['ONE', 'two']],
  ['cursor up beyond the start', `one\n${ESC}99AX`, ['Xne']],
  ['cursor down again', `a\nb\nc${ESC}2A\rA${ESC}2B\rC`, ['A', 'b', 'C']],
  ['cursor to a column', `abc${ESC}2GX`, ['aXc']],
  ['cursor right', `a${ESC}3Cb`, ['a   b']],
  ['erase below', `one\ntwo\nthree${ESC}2A\r${ESC}J!`, ['!']],
  ['clear', `one\ntwo${ESC}H${ESC}2Jnew`, ['new']],
  ['a tab', 'a\tb', ['a\tb']],
  ['a bell and other controls', 'a\x07b\x00c', ['abc']],
  ['a title', '\x1b]0;title\x07text', ['text']],
  ['a link', '\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\', ['text']],
  ['a mode', `${ESC}?25lhidden cursor${ESC}?25h`, ['hidden cursor']],
  ['a character set', '\x1b(Btext', ['text']],
  ['a sequence in one byte', '\x9b31mred\x9b0m', ['red']],
  ['a malformed sequence', `${ESC}3\ntext`, ['', 'text']]
];

for (const [name, text, lines] of CASES) {
  test(`${name}: whole, and character by character`, () => {
    assert.deepEqual(shown(text), lines);
    assert.deepEqual(shown(...text), lines);
  });
}

test('a progress bar ends as its last state', () => {
  const bar = Array.from({ length: 101 }, (_, i) => `\r${i}%|${'█'.repeat(i / 10)}| ${i}/100`);
  assert.deepEqual(shown('start\n', ...bar, '\ndone\n'), [
    'start',
    '100%|██████████| 100/100',
    'done'
  ]);
});

test('nested progress bars, as tqdm draws them', () => {
  let text = '';
  for (let i = 1; i <= 3; i++) {
    text += `\router ${i}/3\n`;
    for (let j = 1; j <= 3; j++) text += `\rinner ${j}/3`;
    text += `${ESC}A`;
  }
  assert.deepEqual(shown(text), ['outer 3/3', 'inner 3/3']);
});

test('lines that the cursor can no longer reach are handed out once', () => {
  const screen = new Screen();
  screen.write(Array.from({ length: REACH + 10 }, (_, i) => `line ${i}\n`).join(''));
  const final = screen.takeFinal();
  assert.equal(final.length, 11);
  assert.equal(final[0][0].text, 'line 0');
  assert.deepEqual(screen.takeFinal(), []);
  assert.equal(screen.tail().length, REACH - 1);
});

test('a line without an end is broken', () => {
  const lines = shown('x'.repeat(3 * WIDEST + 1));
  assert.deepEqual(
    lines.map(line => line.length),
    [WIDEST, WIDEST, WIDEST, 1]
  );
});

test('writing over a long line costs what is written', () => {
  // Each carriage return would read the whole line if it were kept as text.
  const screen = new Screen();
  screen.write('x'.repeat(WIDEST - 1));
  for (let i = 0; i < 20_000; i++) screen.write('\ry');
  assert.equal(screen.tail()[0].length, 1);
  assert.equal(screen.tail()[0][0].text.length, WIDEST - 1);
});

test('a style lasts until it is reset, also over lines', () => {
  const screen = new Screen();
  screen.write(`${ESC}1;31mred\nstill${ESC}0m plain`);
  const [first, second] = screen.tail();
  assert.deepEqual(first, [{ text: 'red', style: { ...PLAIN, bold: true, fg: 1 } }]);
  assert.equal(second[0].style, first[0].style); // one object, which is compared fast
  assert.equal(second[1].style, PLAIN);
});

const STYLES = [
  [[1, 3, 4, 9], { bold: true, italic: true, underline: true, strike: true }],
  [[2, 7, 8], { dim: true, inverse: true, hidden: true }],
  [[1, 22], {}],
  [[31, 42], { fg: 1, bg: 2 }],
  [[91, 107], { fg: 9, bg: 15 }],
  [[31, 39], {}],
  [[38, 5, 9], { fg: 9 }],
  [[38, 5, 208], { fg: 'rgb(255, 135, 0)' }],
  [[48, 5, 232], { bg: 'rgb(8, 8, 8)' }],
  [[38, 5, 16], { fg: 'rgb(0, 0, 0)' }],
  [[38, 2, 1, 2, 300], { fg: 'rgb(1, 2, 255)' }],
  [[38, 2, 1, 2, 3, 1], { fg: 'rgb(1, 2, 3)', bold: true }],
  [[31, 0], {}],
  [[999], {}]
];

for (const [numbers, style] of STYLES) {
  test(`style ${numbers}`, () => {
    assert.deepEqual(styled(PLAIN, numbers), { ...PLAIN, ...style });
  });
}

test('colours with colons', () => {
  const [token] = new Tokens().read(`${ESC}38:2::1:2:3m`);
  assert.deepEqual(styled(PLAIN, token.numbers), { ...PLAIN, fg: 'rgb(1, 2, 3)' });
});

test('a sequence that never ends becomes text', () => {
  const text = `${ESC}${'1;'.repeat(5000)}`;
  assert.equal(shown(text, 'x').join('').length > 0, true);
});

test('text without colours', () => {
  assert.equal(withoutColours(`${ESC}31mred${ESC}0m\nplain`), 'red\nplain');
});
