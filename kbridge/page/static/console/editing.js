// @ts-check
// What keys do to the text of the editor, without the editor.

/**
 * @typedef {object} Edit Replace the characters from `start` to `end`.
 * @property {number} start
 * @property {number} end
 * @property {string} text
 */

export const INDENT = '    ';

/** @type {(text: string, at: number) => number} */
const lineStart = (text, at) => text.lastIndexOf('\n', at - 1) + 1;

/** True if the cursor is on the first line. @type {(text: string, at: number) => boolean} */
export const onFirstLine = (text, at) => lineStart(text, at) === 0;

/** True if the cursor is on the last line. @type {(text: string, at: number) => boolean} */
export const onLastLine = (text, at) => !text.includes('\n', at);

/** True if only white space is before the cursor, so that Tab indents. @type {(text: string, at: number) => boolean} */
export const inIndentation = (text, at) => !text.slice(lineStart(text, at), at).trim();

/**
 * Return what Enter does: a line with the indentation of this one, and one step more after a colon
 * or an open bracket.
 *
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @returns {Edit}
 */
export function newline(text, start, end) {
  const line = text.slice(lineStart(text, start), start);
  const indent = /^[ \t]*/.exec(line)?.[0] ?? '';
  const deeper = /[:([{]\s*$/.test(line) ? INDENT : '';
  return { start, end, text: `\n${indent}${deeper}` };
}

/**
 * Return what Tab (or Shift-Tab) does to the selected lines.
 *
 * @param {string} text
 * @param {number} start
 * @param {number} end
 * @param {boolean} out - True to make the indentation smaller.
 * @returns {Edit}
 */
export function indent(text, start, end, out) {
  if (start === end && !out) {
    const column = start - lineStart(text, start);
    return { start, end, text: INDENT.slice(column % INDENT.length) };
  }
  const first = lineStart(text, start);
  const lines = text.slice(first, end).split('\n');
  const changed = lines.map(line =>
    out ? line.replace(/^( {1,4}|\t)/, '') : line && INDENT + line
  );
  return { start: first, end, text: changed.join('\n') };
}

/**
 * Return what Backspace does in indentation: it removes a whole step; null if it does as usual.
 *
 * @param {string} text
 * @param {number} at
 * @returns {Edit | null}
 */
export function backspace(text, at) {
  const before = text.slice(lineStart(text, at), at);
  if (!before || before.trim() || before.includes('\t')) {
    return null;
  }
  const width = before.length % INDENT.length || INDENT.length;
  return { start: at - width, end: at, text: '' };
}

/** Return a place in Unicode characters, as kernels count. @type {(text: string, at: number) => number} */
export const toCharacters = (text, at) => [...text.slice(0, at)].length;

/** Return a place in UTF-16 units, as browsers count. @type {(text: string, place: number) => number} */
export const fromCharacters = (text, place) => [...text].slice(0, place).join('').length;

/**
 * @typedef {object} Completions
 * @property {number} start
 * @property {number} end
 * @property {{text: string, type: string}[]} items
 */

/** Lists longer than this are of no use to a person. */
const MOST = 400;

/**
 * Return the completions in the reply of a kernel.
 *
 * @param {string} code - The code that was sent.
 * @param {Record<string, any>} reply
 * @returns {Completions}
 */
export function completionsOf(code, reply) {
  const texts = Array.isArray(reply.matches) ? reply.matches : [];
  const types = reply.metadata?._jupyter_types_experimental;
  const items = texts.slice(0, MOST).map((text, i) => {
    const known =
      Array.isArray(types) && types[i]?.text === text ? String(types[i].type ?? '') : '';
    return { text: String(text), type: known === '<unknown>' ? '' : known };
  });
  const end = Number.isInteger(reply.cursor_end)
    ? reply.cursor_end
    : toCharacters(code, code.length);
  const start = Number.isInteger(reply.cursor_start) ? reply.cursor_start : end;
  return { start: fromCharacters(code, start), end: fromCharacters(code, end), items };
}

/**
 * Return the longest text that all completions begin with.
 *
 * @param {string[]} texts
 */
export function commonStart(texts) {
  let common = texts[0] ?? '';
  for (const text of texts) {
    while (!text.startsWith(common)) {
      common = common.slice(0, -1);
    }
  }
  return common;
}
