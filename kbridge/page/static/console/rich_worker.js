// Turns Markdown and LaTeX into HTML in a thread, for `RichText`.

import { latexHtml, markdownHtml } from './rich_text.js';

const RENDER = { markdown: markdownHtml, latex: latexHtml };

addEventListener('message', async ({ data: { kind, source } }) => {
  try {
    postMessage({ html: await RENDER[kind](source) });
  } catch (error) {
    postMessage({ error: String(error?.message ?? error) });
  }
});
postMessage({ ready: true });
