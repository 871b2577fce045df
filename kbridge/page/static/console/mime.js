// @ts-check
// Which form of a value is shown, and how mathematics is found in text.

/** Forms of a value, best first, and what shows them. */
const FORMS = [
  ['text/html', 'html'],
  ['text/markdown', 'markdown'],
  ['image/svg+xml', 'svg'],
  ['image/png', 'image'],
  ['image/jpeg', 'image'],
  ['image/gif', 'image'],
  ['image/webp', 'image'],
  ['text/latex', 'latex'],
  ['application/json', 'json'],
  ['text/plain', 'text']
];
// These need programs in the page, which do not run here; their text is shown.
const NEEDS_PROGRAM =
  /^application\/(vnd\.jupyter\.widget-view|vnd\.plotly|vnd\.bokehjs|javascript)/;

/**
 * @typedef {object} Form
 * @property {string} kind `html`, `markdown`, `svg`, `image`, `latex`, `json` or `text`.
 * @property {string} type
 * @property {any} value
 * @property {string} [note] Something that a person should know.
 */

/**
 * Return the best form of a value.
 *
 * @param {Record<string, any>} data
 * @returns {Form}
 */
export function formOf(data) {
  const needing = Object.keys(data).filter(type => NEEDS_PROGRAM.test(type));
  for (const [type, kind] of FORMS) {
    if (!(type in data)) {
      continue;
    }
    const value = kind === 'json' ? data[type] : joined(data[type]);
    if (kind === 'image' && !isBase64(value)) {
      continue;
    }
    const plain = kind === 'text' || kind === 'html';
    const note = plain && needing.length ? `Scripts do not run here: ${needing.join(', ')}` : '';
    return { kind, type, value, ...(note ? { note } : {}) };
  }
  const types = Object.keys(data);
  const note = types.length ? `The console cannot show ${types.join(', ')}` : 'An empty value';
  return { kind: 'text', type: 'text/plain', value: '', note };
}

/** Notebooks have lists of lines in place of text. @type {(value: unknown) => string} */
function joined(value) {
  if (Array.isArray(value)) {
    return value.map(String).join('');
  }
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
}

/** @param {string} text */
const isBase64 = text => /^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(text);

/** Return the address of an image. @type {(type: string, base64: string) => string} */
export const imageUrl = (type, base64) => `data:${type};base64,${base64.replace(/\s/g, '')}`;

/**
 * Return the address of an SVG. An image runs no scripts and loads nothing. `data:` has no origin,
 * so this is also true after "open image in a new tab".
 *
 * @param {string} svg
 */
export function svgUrl(svg) {
  const start = svg.indexOf('<svg');
  const text = start > 0 ? svg.slice(start) : svg; // without <?xml and DOCTYPE
  const named = /^<svg[^>]*\sxmlns=/.test(text)
    ? text
    : text.replace(/^<svg/, '<svg xmlns="http://www.w3.org/2000/svg"');
  return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(named)}`;
}

/** Return the width and height for an image in the metadata. @type {(metadata: any, type: string) => {width?: number, height?: number}} */
export function sizeOf(metadata, type) {
  const all = { ...metadata, ...metadata?.[type] };
  /** @type {Record<string, number>} */
  const size = {};
  for (const name of ['width', 'height']) {
    if (Number.isFinite(all[name]) && all[name] > 0 && all[name] < 10000) {
      size[name] = all[name];
    }
  }
  return size;
}

/** Escape text for HTML. @param {string} text */
export const escaped = text => text.replace(/[&<>"']/g, char => `&#${char.charCodeAt(0)};`);

/**
 * @typedef {{math: false, text: string} | {math: true, text: string, display: boolean}} Piece
 */

/** Delimiters of mathematics: start, end, whether it stands on lines of its own. @type {[string, string, boolean][]} */
const DELIMITERS = [
  ['$$', '$$', true],
  ['\\[', '\\]', true],
  ['\\(', '\\)', false],
  ['$', '$', false]
];

/**
 * Split `text/latex` into text and mathematics.
 *
 * @param {string} source
 * @returns {Piece[]}
 */
export function mathPieces(source) {
  if (/^\s*\\begin\{/.test(source)) {
    return [{ math: true, text: source.trim(), display: true }];
  }
  /** @type {Piece[]} */
  const pieces = [];
  let from = 0;
  /** @type {Set<string>} */
  const unclosed = new Set();
  while (from < source.length) {
    const found = nextMath(source, from, unclosed);
    if (!found) {
      break;
    }
    if (found.start > from) {
      pieces.push({ math: false, text: source.slice(from, found.start) });
    }
    pieces.push({ math: true, text: found.text, display: found.display });
    from = found.end;
  }
  if (from < source.length) {
    pieces.push({ math: false, text: source.slice(from) });
  }
  return pieces;
}

/**
 * Return the next mathematics.
 *
 * @param {string} source
 * @param {number} from
 * @param {Set<string>} unclosed - Delimiters without an end in the rest of the text. They are noted
 *   here: a search to the end for each start would take time with the square of the length.
 * @returns {{start: number, end: number, text: string, display: boolean} | null}
 */
function nextMath(source, from, unclosed) {
  for (let at = from; at < source.length; at++) {
    const char = source[at];
    if (char !== '$' && char !== '\\') {
      continue;
    }
    const delimiter = DELIMITERS.find(([open]) => source.startsWith(open, at));
    if (delimiter && !unclosed.has(delimiter[0])) {
      const [open, close, display] = delimiter;
      const inner = at + open.length;
      const end = endOfMath(source, inner, close);
      if (end > inner) {
        const text = source.slice(inner, end);
        return { start: at, end: end + close.length, text, display };
      }
      if (end < 0) {
        unclosed.add(open);
      }
    }
    if (delimiter) {
      at += delimiter[0].length - 1;
      continue;
    }
    if (char === '\\') {
      at++; // an escaped dollar
    }
  }
  return null;
}

/** @type {(source: string, from: number, close: string) => number} */
function endOfMath(source, from, close) {
  for (let at = from; at < source.length; at++) {
    if (source.startsWith(close, at)) {
      return at;
    }
    if (source[at] === '\\') {
      at++;
    }
  }
  return -1;
}
