/** The parts of the console that need no browser. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as editing from '../../../kbridge/page/static/console/editing.js';
import { highlight } from '../../../kbridge/page/static/console/highlight.js';
import {
  History,
  readHistory,
  writeHistory
} from '../../../kbridge/page/static/console/history.js';
import * as mime from '../../../kbridge/page/static/console/mime.js';
import {
  latexHtml,
  loadedOnce,
  markdownHtml
} from '../../../kbridge/page/static/console/rich_text.js';
import { pieces, Turns } from '../../../kbridge/page/static/console/turns.js';

// -- history --------------------------------------------------------------------------------------

test('Up and Down go through the history, and come back to what was typed', () => {
  const history = new History(['a', 'b']);
  assert.equal(history.up('draft'), 'b');
  assert.equal(history.up('b'), 'a');
  assert.equal(history.up('a'), null);
  assert.equal(history.down('a'), 'b');
  assert.equal(history.down('b'), 'draft');
  assert.equal(history.down('draft'), null);
});

test('an edited entry keeps its edit until something is run', () => {
  const history = new History(['a', 'b']);
  history.up('');
  history.up('b changed');
  assert.equal(history.down('a'), 'b changed');
  history.add('c');
  assert.deepEqual(history.entries, ['a', 'b', 'c']);
  assert.equal(history.up(''), 'c');
  assert.equal(history.up('c'), 'b');
});

test('repeated and empty inputs are not noted', () => {
  const history = new History();
  ['a', 'a', ' \n', 'b', 'a'].forEach(code => history.add(code));
  assert.deepEqual(history.entries, ['a', 'b', 'a']);
});

test('the history is bounded', () => {
  const many = new History(Array.from({ length: 900 }, (_, i) => String(i)));
  assert.equal(many.entries.length, 500);
  assert.equal(many.entries.at(-1), '899');
  const large = new History(['x'.repeat(150_000), 'y'.repeat(150_000)]);
  assert.deepEqual(large.entries, ['y'.repeat(150_000)]);
});

/** A `Storage` in memory. */
class FakeStorage {
  items = new Map();
  get length() {
    return this.items.size;
  }
  key = i => [...this.items.keys()][i];
  getItem = name => this.items.get(name) ?? null;
  setItem = (name, text) => this.items.set(name, text);
  removeItem = name => this.items.delete(name);
}

test('each kernel has its history, and those of old kernels are removed', () => {
  const storage = new FakeStorage();
  storage.setItem('other', 'stays');
  for (let i = 0; i < 30; i++) {
    writeHistory(storage, `kernel-${i}`, new History([`code ${i}`]), i);
  }
  assert.equal(storage.length, 21);
  assert.equal(storage.getItem('other'), 'stays');
  assert.deepEqual(readHistory(storage, 'kernel-29').entries, ['code 29']);
  assert.deepEqual(readHistory(storage, 'kernel-3').entries, []);
});

test('a damaged history is empty', () => {
  const storage = new FakeStorage();
  for (const text of ['{', 'null', '[]', '{"entries": 3}', '{"entries": [1, "a"]}']) {
    storage.setItem('kbridge.history.k', text);
    assert.deepEqual(readHistory(storage, 'k').entries, text.includes('"a"') ? ['a'] : []);
  }
});

// -- editing --------------------------------------------------------------------------------------

/** Apply an edit. `|` is the cursor. */
function after(before, action) {
  const at = before.indexOf('|');
  const text = before.replace('|', '');
  const edit = action(text, at);
  return edit && `${text.slice(0, edit.start)}${edit.text}|${text.slice(edit.end)}`;
}

const EDITS = [
  ['Enter keeps the indentation', (t, at) => editing.newline(t, at, at), '  x|', '  x\n  |'],
  ['Enter after a colon', (t, at) => editing.newline(t, at, at), 'if x:|', 'if x:\n    |'],
  ['Enter after a bracket', (t, at) => editing.newline(t, at, at), 'f(|)', 'f(\n    |)'],
  ['Tab indents to the next step', (t, at) => editing.indent(t, at, at, false), ' |x', '    |x'],
  ['Shift-Tab', (t, at) => editing.indent(t, at, at, true), 'a\n    |', 'a\n|'],
  ['Backspace removes a step', editing.backspace, 'a\n        |x', 'a\n    |x'],
  ['Backspace after an odd number', editing.backspace, '     |x', '    |x']
];

for (const [name, action, before, wanted] of EDITS) {
  test(name, () => assert.equal(after(before, action), wanted));
}

test('Backspace after text is not ours', () => {
  assert.equal(editing.backspace('x', 1), null);
  assert.equal(editing.backspace('a\n', 2), null);
});

test('several lines are indented and back, and empty ones stay empty', () => {
  const text = 'a\n\n  b';
  const inner = editing.indent(text, 0, text.length, false);
  assert.equal(inner.text, '    a\n\n      b');
  assert.equal(editing.indent(inner.text, 2, inner.text.length, true).text, text);
});

test('the place of the cursor', () => {
  assert.equal(editing.onFirstLine('a\nb', 1), true);
  assert.equal(editing.onFirstLine('a\nb', 2), false);
  assert.equal(editing.onLastLine('a\nb', 1), false);
  assert.equal(editing.onLastLine('a\nb', 2), true);
  assert.equal(editing.inIndentation('x\n  ', 4), true);
  assert.equal(editing.inIndentation('x.', 2), false);
});

test('kernels count characters, browsers count halves of them', () => {
  const code = '"😀".upp';
  assert.equal(editing.toCharacters(code, code.length), 7);
  const reply = { matches: ['upper'], cursor_start: 4, cursor_end: 7, metadata: {} };
  assert.deepEqual(editing.completionsOf(code, reply), {
    start: 5,
    end: 8,
    items: [{ text: 'upper', type: '' }]
  });
});

test('completions with types, and replies without sense', () => {
  const types = [{ text: 'a', type: 'function' }];
  const reply = { matches: ['a'], metadata: { _jupyter_types_experimental: types } };
  assert.deepEqual(editing.completionsOf('x', reply).items, [{ text: 'a', type: 'function' }]);
  assert.deepEqual(editing.completionsOf('x', {}), { start: 1, end: 1, items: [] });
  assert.equal(editing.commonStart(['upper', 'upto']), 'up');
  assert.equal(editing.commonStart([]), '');
});

// -- colours of code ------------------------------------------------------------------------------

test('Python is coloured', () => {
  const code = '%time f\n@d\ndef go(x):  # note\n    return f"{x} in" + 0x1f + None or x.in_';
  const parts = highlight(code, 'python');
  assert.equal(parts.map(part => part.text).join(''), code);
  const kinds = Object.fromEntries(
    parts.filter(part => part.kind).map(part => [part.text, part.kind])
  );
  assert.deepEqual(kinds, {
    '%time': 'magic',
    '@d': 'magic',
    def: 'keyword',
    go: 'defined',
    '# note': 'comment',
    return: 'keyword',
    'f"{x} in"': 'string',
    '0x1f': 'number',
    None: 'constant',
    or: 'keyword'
  });
});

test('unfinished strings, other alphabets and other languages', () => {
  for (const code of [
    '"""open\nfor',
    "'open\nfor",
    'größe = "naïve" % 2',
    '😀 + \ud800',
    '\\',
    ''
  ]) {
    assert.equal(
      highlight(code, 'python')
        .map(part => part.text)
        .join(''),
      code
    );
  }
  assert.equal(highlight('"""open\nfor', 'python').length, 1);
  assert.deepEqual(highlight('for (i in 1:3) x', 'R'), [{ text: 'for (i in 1:3) x', kind: '' }]);
});

test('colouring takes time in proportion to the code', () => {
  const cost = size => {
    const code = `${'"a" + x.y # z\n'.repeat(size)}"""`;
    return highlight(code, 'python').length / size;
  };
  assert.ok(cost(2000) < 1.1 * cost(1000));
});

// -- forms of values ------------------------------------------------------------------------------

const FORMS = [
  [{ 'text/plain': 'x', 'text/html': '<b>' }, 'html', '<b>'],
  [{ 'text/plain': 'x', 'image/png': 'aGk=\n' }, 'image', 'aGk=\n'],
  [{ 'text/plain': 'x', 'image/png': '"><script>' }, 'text', 'x'],
  [{ 'text/plain': 'x', 'image/svg+xml': ['<svg', '/>'] }, 'svg', '<svg/>'],
  [{ 'text/plain': 'x', 'text/latex': '$x$' }, 'latex', '$x$'],
  [{ 'text/plain': 'x', 'application/json': [1] }, 'json', [1]],
  [{ 'text/plain': ['a', 'b'] }, 'text', 'ab'],
  [{ 'application/pdf': 'x' }, 'text', ''],
  [{}, 'text', '']
];

for (const [data, kind, value] of FORMS) {
  test(`the best form of ${Object.keys(data)}`, () => {
    const form = mime.formOf(data);
    assert.deepEqual([form.kind, form.value], [kind, value]);
  });
}

test('forms that need a program are named', () => {
  const data = { 'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'IntSlider()' };
  assert.match(mime.formOf(data).note, /widget-view/);
  assert.match(mime.formOf({ 'application/pdf': '' }).note, /application\/pdf/);
});

test('an SVG becomes an address without an origin', () => {
  const url = mime.svgUrl('<?xml version="1.0"?>\n<svg width="1"><a/></svg>');
  assert.ok(url.startsWith('data:image/svg+xml'));
  const text = decodeURIComponent(url.slice(url.indexOf(',') + 1));
  assert.equal(text, '<svg xmlns="http://www.w3.org/2000/svg" width="1"><a/></svg>');
});

test('sizes are numbers of pixels', () => {
  assert.deepEqual(mime.sizeOf({ 'image/png': { width: 10, height: '2' } }, 'image/png'), {
    width: 10
  });
  assert.deepEqual(mime.sizeOf({ width: -1, height: 5 }, 'image/png'), { height: 5 });
});

const math = (text, display = false) => ({ math: true, text, display });
const words = text => ({ math: false, text });
const PIECES = [
  ['$x$', [math('x')]],
  ['a $x$ b', [words('a '), math('x'), words(' b')]],
  ['$$x$$', [math('x', true)]],
  ['\\[x\\] and \\(y\\)', [math('x', true), words(' and '), math('y')]],
  ['$a\\$b$', [math('a\\$b')]],
  ['costs \\$5', [words('costs \\$5')]],
  ['costs $5', [words('costs $5')]],
  ['\\begin{align}x\\end{align}', [math('\\begin{align}x\\end{align}', true)]],
  ['', []]
];

for (const [source, wanted] of PIECES) {
  test(`mathematics in ${source || 'nothing'}`, () =>
    assert.deepEqual(mime.mathPieces(source), wanted));
}

test('LaTeX becomes MathML, and its text stays text', async () => {
  const html = await latexHtml('<b> $x<y$');
  assert.ok(html.startsWith('&#60;b&#62; <math>'));
  assert.match(await latexHtml('$\\frac{1}{2}$'), /<mfrac>/);
  assert.match(await latexHtml('$\\unknowncommand{$'), /unknowncommand/);
});

test('Markdown with mathematics', async () => {
  assert.match(await markdownHtml('# T\n\n*e* $x$'), /<h1>T<\/h1>\s*<p><em>e<\/em> <math>/);
  assert.equal(await markdownHtml('costs $5 and $10'), '<p>costs $5 and $10</p>\n');
  assert.equal(await markdownHtml('`$x$`'), '<p><code>$x$</code></p>\n');
  assert.match(await markdownHtml('$$\nx\n$$\n'), /^<math display="block"/);
});

test('mathematics ends paragraphs and headings, and only if it is complete', async () => {
  const formula = /<math display="block".*?<\/math>/s;
  const html = async source => (await markdownHtml(source)).replace(formula, 'MATH');
  assert.equal(await html('a\n$$x$$\nb'), '<p>a</p>\nMATH<p>b</p>\n');
  assert.equal(await html('a\n$$ 5\nb'), '<p>a\n$$ 5\nb</p>\n');
  assert.equal(await html('> a\n> $$x$$'), '<blockquote>\n<p>a</p>\nMATH</blockquote>\n');
  assert.equal(await html('a\n==='), '<h1>a</h1>\n');
  assert.equal(await html('a\n---\n\n$$x$$'), '<h2>a</h2>\nMATH');
  assert.match(await html('*a* and $x$, b_c $y$'), /and <math>.*<\/math>, b_c <math>/s);
});

/** Call a function and return how many characters a method of a prototype was given. */
async function searched(prototype, name, counted, call) {
  const method = prototype[name];
  let sum = 0;
  prototype[name] = function (...given) {
    sum += counted(this, ...given);
    return method.apply(this, given);
  };
  try {
    await call();
  } finally {
    prototype[name] = method;
  }
  return sum;
}

test('delimiters that do not close are searched once', async () => {
  for (const open of ['\\(', '\\[', '$$', '$ \\( \\[ $$ ']) {
    const text = `a${open.repeat(500)}`;
    const steps = await searched(
      String.prototype,
      'startsWith',
      () => 1,
      () => assert.ok(mime.mathPieces(text).length)
    );
    assert.ok(steps < 12 * text.length, `${steps} steps for ${text.length} characters`);
  }
});

test('no paragraph makes a search through the rest of the document', async () => {
  for (const piece of ['a paragraph\n\n', '*a* ', '# a\nb\n']) {
    const text = piece.repeat(300);
    // A pattern that is not bound to the place may go to the end.
    const free = (pattern, source) =>
      pattern.source.includes('\\$') && (pattern.multiline || !pattern.source.startsWith('^'))
        ? source.length
        : 0;
    const sum = await searched(RegExp.prototype, 'exec', free, () => markdownHtml(text));
    assert.ok(sum < 10 * text.length, `${sum} characters for ${text.length}`);
  }
});

test('a library that could not be loaded is loaded again, and only then', async () => {
  let calls = 0;
  const load = loadedOnce(async () => {
    if (++calls === 1) throw new Error('no network');
    return calls;
  });
  await assert.rejects(load, /no network/);
  assert.equal(await load(), 2);
  assert.equal(await load(), 2);
});

// -- turns ----------------------------------------------------------------------------------------

test('work pauses after its time, and not before', async () => {
  let now = 0;
  let pauses = 0;
  const turns = new Turns(
    () => now,
    async () => void pauses++
  );
  assert.equal(turns.spare(), null);
  now = 100;
  await turns.spare();
  assert.equal(pauses, 1);
  assert.equal(turns.spare(), null);
});

test('large texts are handled in pieces, and no character is cut', () => {
  const text = `${'x'.repeat(32767)}😀${'y'.repeat(100_000)}`;
  const all = [...pieces(text)];
  assert.equal(all.join(''), text);
  assert.ok(all.length > 3);
  assert.ok(all.every(piece => !/^[\udc00-\udfff]/.test(piece)));
  assert.deepEqual([...pieces('')], []);
});
