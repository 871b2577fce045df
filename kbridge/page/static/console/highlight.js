// @ts-check
// Colours for Python code. Other languages are shown without colours.

const KEYWORDS = new Set(
  (
    'and as assert async await break class continue def del elif else except finally for from ' +
    'global if import in is lambda nonlocal not or pass raise return try while with yield match case'
  ).split(' ')
);
const CONSTANTS = new Set(['True', 'False', 'None', 'NotImplemented', 'Ellipsis', 'self', 'cls']);

// One token: a comment, a string, a number, a decorator or magic command, a name, or anything else.
const TOKEN =
  /(#[^\n]*)|([bBfFrRuU]{0,2}(?:"""(?:[^\\]|\\[^])*?(?:"""|$)|'''(?:[^\\]|\\[^])*?(?:'''|$)|"(?:[^"\\\n]|\\[^])*"?|'(?:[^'\\\n]|\\[^])*'?))|(\b(?:0[xob][\da-f_]+|\d[\d_]*(?:\.[\d_]*)?(?:e[+-]?\d+)?j?))|([@%!][A-Za-z_][\w.]*)|([^\W\d]\w*)|([^]+?)(?=[#"'@%!\w]|$)/giu;

/**
 * @typedef {{text: string, kind: string}} Part
 */

/** Larger code is shown without colours. In characters. */
const LARGEST = 100_000;

/**
 * Return the parts of code; their texts together are the code.
 *
 * @param {string} code
 * @param {string} language
 * @returns {Part[]}
 */
export function highlight(code, language) {
  if (!/^i?python/i.test(language) || code.length > LARGEST) {
    return [{ text: code, kind: '' }];
  }
  /** @type {Part[]} */
  const parts = [];
  const push = (/** @type {string} */ text, /** @type {string} */ kind) => {
    const last = parts.at(-1);
    if (last && last.kind === kind) {
      last.text += text;
    } else {
      parts.push({ text, kind });
    }
  };
  let before = '';
  for (const match of code.matchAll(TOKEN)) {
    const [text, comment, string, number, magic, name] = match;
    if (comment) push(text, 'comment');
    else if (string) push(text, 'string');
    else if (number) push(text, 'number');
    else if (magic) push(text, lineIsEmpty(code, match.index) ? 'magic' : '');
    else if (name) push(text, kindOfName(name, before));
    else push(text, '');
    if (text.trim()) before = text.trim();
  }
  return parts;
}

/** @type {(code: string, at: number) => boolean} */
function lineIsEmpty(code, at) {
  return !code.slice(code.lastIndexOf('\n', at - 1) + 1, at).trim();
}

/** @type {(name: string, before: string) => string} */
function kindOfName(name, before) {
  if (before.endsWith('.')) return '';
  if (KEYWORDS.has(name)) return 'keyword';
  if (CONSTANTS.has(name)) return 'constant';
  return before === 'def' || before === 'class' ? 'defined' : '';
}
