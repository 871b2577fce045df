// @ts-check
// Turns Markdown and LaTeX into HTML, which is shown in a sandboxed frame only.
// The libraries are loaded when the first such output arrives.

import { escaped, mathPieces } from './mime.js';

/** Longer texts are shown as source. In characters. */
export const LONGEST = 300_000;

/** @type {Promise<any> | null} */
let temml = null;
/** @type {Promise<any> | null} */
let marked = null;

const loadTemml = () => (temml ??= import('../vendor/temml.js').then(module => module.default));

/** @type {(library: any, source: string, display: boolean) => string} */
function mathHtml(library, source, display) {
  try {
    return library.renderToString(source, { displayMode: display, throwOnError: false });
  } catch {
    return `<code>${escaped(source)}</code>`;
  }
}

/** @param {string} source */
export async function latexHtml(source) {
  const library = await loadTemml();
  return mathPieces(source)
    .map(piece => (piece.math ? mathHtml(library, piece.text, piece.display) : escaped(piece.text)))
    .join('');
}

async function loadMarked() {
  const [{ Marked }, library] = await Promise.all([import('../vendor/marked.js'), loadTemml()]);
  const renderer = (/** @type {any} */ token) => mathHtml(library, token.text, token.display);
  /** @type {(name: string, level: string, pattern: RegExp, display: boolean) => object} */
  const rule = (name, level, pattern, display) => ({
    name,
    level,
    // Where a paragraph may end, or a piece of text.
    start: (/** @type {string} */ source) =>
      (level === 'block' ? /^\$\$/m : /\$/).exec(source)?.index,
    tokenizer(/** @type {string} */ source) {
      const match = pattern.exec(source);
      return match ? { type: name, raw: match[0], text: match[1].trim(), display } : undefined;
    },
    renderer
  });
  return new Marked({
    extensions: [
      rule('mathBlock', 'block', /^\$\$([^$]+)\$\$(?:\n|$)/, true),
      rule('mathLine', 'inline', /^\$\$([^$]+)\$\$/, true),
      // As in other programs, no space inside the dollars, and no digit after them.
      rule(
        'math',
        'inline',
        /^\$((?:[^\s$\\]|\\.)(?:(?:[^$\\\n]|\\.)*?(?:[^\s$\\]|\\.))?)\$(?!\d)/,
        false
      )
    ]
  });
}

/** @param {string} source */
export async function markdownHtml(source) {
  return (await (marked ??= loadMarked())).parse(source);
}
