// @ts-check
// Turns Markdown and LaTeX into HTML, which is shown in a sandboxed frame only.
// The libraries are loaded for the first such output. `rich_worker.js` does this in a thread.

import { escaped, mathPieces } from './mime.js';

/**
 * Return a function that loads something once, and again after a failure: the network may be back.
 *
 * @param {() => Promise<any>} load
 * @returns {() => Promise<any>}
 */
export function loadedOnce(load) {
  /** @type {Promise<any> | null} */
  let loaded = null;
  return () =>
    (loaded ??= load().catch(error => {
      loaded = null;
      throw error;
    }));
}

const temml = loadedOnce(async () => (await import('../vendor/temml.js')).default);
const marked = loadedOnce(loadMarked);

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
  const library = await temml();
  return mathPieces(source)
    .map(piece => (piece.math ? mathHtml(library, piece.text, piece.display) : escaped(piece.text)))
    .join('');
}

async function loadMarked() {
  const [{ Lexer, Marked }, library] = await Promise.all([import('../vendor/marked.js'), temml()]);
  const renderer = (/** @type {any} */ token) => mathHtml(library, token.text, token.display);
  /** @type {(name: string, level: string, pattern: RegExp, display: boolean) => object} */
  const rule = (name, level, pattern, display) => ({
    name,
    level,
    tokenizer(/** @type {string} */ source) {
      const match = pattern.exec(source);
      return match ? { type: name, raw: match[0], text: match[1].trim(), display } : undefined;
    },
    renderer
  });
  return new Marked({
    hooks: {
      provideLexer: () => (/** @type {string} */ source, /** @type {any} */ options) =>
        endAtMath(new Lexer(options)).lex(source)
    },
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

/**
 * Let paragraphs end before mathematics, and text before a dollar. The option `start` of an extension
 * would do the same, but marked then searches the rest of the document for each paragraph.
 *
 * @param {any} lexer
 */
function endAtMath(lexer) {
  const { rules } = lexer.tokenizer;
  /** @type {(pattern: RegExp, before: string, after: string) => RegExp} */
  const edited = (pattern, before, after) =>
    new RegExp(pattern.source.replace(before, () => after));
  const ending = String.raw`\n(?!\$\$[^$]+\$\$(?:\n|$)|`;
  const paragraph = edited(rules.block.paragraph, '\\n(?!', ending);
  const lheading = edited(rules.block.lheading, '\\n(?!', ending); // with a line below
  const text = edited(rules.inline.text, '|$)', '|\\$|$)');
  lexer.tokenizer.rules = {
    ...rules,
    block: { ...rules.block, lheading, paragraph },
    inline: { ...rules.inline, text }
  };
  return lexer;
}

/** @param {string} source */
export async function markdownHtml(source) {
  return (await marked()).parse(source);
}
