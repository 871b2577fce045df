// @ts-check
// Shows the text of a terminal. A view of a million lines is as fast as one of ten.

import { PLAIN } from './ansi.js';
import { counted, button, element } from './dom.js';
import { Screen } from './screen.js';
import { pieces, redraw, turns } from './turns.js';

/** @typedef {import('./screen.js').Runs} Runs */
/** @typedef {import('./ansi.js').Style} Style */

// Lines are drawn in blocks, each laid out by itself, and only when it is in view.
const BLOCK_LINES = 200;
const BLOCK_CHARACTERS = 65536;
/** Blocks on the page. Earlier ones are kept in memory, for "show all". */
const DRAWN_BLOCKS = 25;
/** Blocks that are drawn in one turn; during a flood, most would be removed in the next one. */
const DRAWN_AT_ONCE = 4;
/** Characters that are kept in memory. */
const KEPT = 32_000_000;

/** Lines that are drawn together. */
class Block {
  /** @type {Runs} */
  #runs = [];
  /** The element; null while the block is not on the page. @type {HTMLElement | null} */
  node = null;
  lines = 0;
  characters = 0;

  get full() {
    return this.lines >= BLOCK_LINES || this.characters >= BLOCK_CHARACTERS;
  }

  /** @param {Runs} line */
  add(line) {
    for (const run of [...line, { text: '\n', style: PLAIN }]) {
      const last = this.#runs.at(-1);
      if (last?.style === run.style) {
        last.text += run.text;
      } else {
        this.#runs.push({ ...run });
      }
      this.characters += run.text.length;
      if (this.node) draw(this.node, run.text, run.style);
    }
    this.lines++;
  }

  hide() {
    this.node?.remove();
    this.node = null;
  }

  /** @returns {HTMLElement} */
  show() {
    const node = element('div.block');
    for (const { text, style } of this.#runs) {
      draw(node, text, style);
    }
    this.node = node;
    return node;
  }
}

/** @type {(to: HTMLElement, text: string, style: Readonly<Style>) => void} */
function draw(to, text, style) {
  if (!text) {
    return;
  }
  if (style === PLAIN) {
    const last = to.lastChild;
    last instanceof Text ? last.appendData(text) : to.append(text);
    return;
  }
  const { fg, bg, inverse } = style;
  const span = element('span', {}, text);
  paint(span, 'fg', inverse ? (bg ?? 'canvas') : fg);
  paint(span, inverse ? 'solid' : 'bg', inverse ? (fg ?? 'text') : bg);
  for (const name of /** @type {const} */ ([
    'bold',
    'dim',
    'italic',
    'underline',
    'strike',
    'hidden'
  ])) {
    if (style[name]) span.classList.add(`ansi-${name}`);
  }
  to.append(span);
}

/** @type {(span: HTMLElement, side: 'fg' | 'bg' | 'solid', colour: number | string | null) => void} */
function paint(span, side, colour) {
  if (typeof colour === 'string' && colour.startsWith('rgb')) {
    span.classList.add(`ansi-${side}-rgb`);
    span.style.setProperty(`--${side}`, colour);
  } else if (colour !== null) {
    span.classList.add(`ansi-${side}-${colour}`);
  }
}

/** The text that a program writes. */
export class TextView {
  /** @param {string} classes - Of the element, with a dot before each. */
  constructor(classes) {
    this.#tail = element('div.block.tail');
    this.node = element(`div.text${classes}`, {}, this.#tail);
  }

  #screen = new Screen();
  /** @type {Block[]} */
  #blocks = [];
  /** The number of blocks at the start that are not drawn. */
  #hidden = 0;
  #limit = DRAWN_BLOCKS;
  #characters = 0;
  #dropped = 0;
  /** @type {HTMLElement | null} */
  #more = null;
  #tail;

  /** Write text, in turns. @param {string} text */
  async write(text) {
    for (const piece of pieces(text)) {
      this.#screen.write(piece);
      redraw.soon(this.#draw);
      await turns.spare();
    }
  }

  #draw = () => {
    for (const line of this.#screen.takeFinal()) {
      this.#add(line);
    }
    this.#trim();
    const lines = this.#screen.tail();
    this.#tail.replaceChildren();
    lines.forEach((line, i) => {
      if (i) draw(this.#tail, '\n', PLAIN);
      line.forEach(({ text, style }) => draw(this.#tail, text, style));
    });
    this.#tail.hidden = !lines.length;
    if (lines.length && !lines.at(-1)?.length) {
      draw(this.#tail, '\n', PLAIN);
    }
  };

  /** @param {Runs} line */
  #add(line) {
    let block = this.#blocks.at(-1);
    if (!block || block.full) {
      block = new Block();
      this.#blocks.push(block);
    }
    const before = block.characters;
    block.add(line);
    this.#characters += block.characters - before;
  }

  /** Have the last blocks on the page, and no others. */
  #trim() {
    while (this.#blocks.length - this.#hidden > this.#limit) {
      this.#blocks[this.#hidden++].hide();
    }
    let budget = DRAWN_AT_ONCE;
    for (let i = this.#blocks.length - 1; i >= this.#hidden; i--) {
      if (!this.#blocks[i].node) {
        if (budget-- === 0) {
          redraw.soon(this.#draw); // the others next time
          break;
        }
        (this.#blocks[i + 1]?.node ?? this.#tail).before(this.#blocks[i].show());
      }
    }
    while (this.#characters > KEPT && this.#hidden > 0) {
      const block = /** @type {Block} */ (this.#blocks.shift());
      this.#hidden--;
      this.#characters -= block.characters;
      this.#dropped += block.lines;
    }
    this.#tell();
  }

  /** Say how many lines are not drawn. */
  #tell() {
    const lines = this.#blocks.slice(0, this.#hidden).reduce((sum, each) => sum + each.lines, 0);
    const gone = this.#dropped ? `${counted(this.#dropped)} lines are not kept. ` : '';
    if (!lines && !gone) {
      this.#more?.remove();
      this.#more = null;
      return;
    }
    if (!this.#more) {
      this.#more = element(
        'div.more',
        {},
        element('span'),
        button('', () => this.#showAll())
      );
      this.node.prepend(this.#more);
    }
    const [text, all] = /** @type {any} */ (this.#more).children;
    text.textContent = gone;
    const label = `Show ${counted(lines)} earlier lines`;
    if (all.textContent !== label) all.textContent = label;
    all.hidden = !lines;
  }

  async #showAll() {
    this.#limit = Infinity;
    while (this.#hidden > 0) {
      const block = this.#blocks[--this.#hidden];
      const next = this.#blocks[this.#hidden + 1]?.node ?? this.#tail;
      next.before(block.show());
      await turns.spare();
    }
    this.#tell();
  }
}
