// @ts-check
// The texts of one execution, each from one stream.

import { button, counted } from './dom.js';
import { TextView } from './text_view.js';
import { turns } from './turns.js';

/** Texts on the page. A program that writes to both streams in turn makes one for each change. */
const MOST = 200;
/** A longer text is kept with its element, so that it is not laid out again. In characters. */
const LONG = 20_000;
/** Characters that are kept of the texts that are not on the page. */
const KEPT = 32_000_000;

/**
 * @typedef {object} Part
 * @property {string} name - The stream.
 * @property {string} text - What was written; empty if it was long.
 * @property {TextView | null} view - Null if it is made again from the text.
 * @property {number} length
 */

/** Shows the texts; the oldest make room for a button, in the place where they were. */
export class Texts {
  /** @param {HTMLElement} area - The element of all outputs, to which texts are added. */
  constructor(area) {
    this.#area = area;
  }

  #area;
  #most = MOST;
  /** The text that is being written. @type {Part | null} */
  #open = null;
  /** Those on the page. @type {Part[]} */
  #drawn = [];
  /** Those that have made room, by the button in their place. @type {Map<Element, Part[]>} */
  #hidden = new Map();
  #kept = 0;

  /** @type {(name: string, text: string) => Promise<void>} */
  async write(name, text) {
    if (this.#open?.name !== name) {
      const view = new TextView(`.${name}`);
      this.#area.append(view.node);
      this.#open = { name, text: '', view, length: 0 };
      this.#drawn.push(this.#open);
      this.#trim();
    }
    const part = this.#open;
    part.length += text.length;
    part.text = part.length > LONG ? '' : part.text + text;
    await part.view?.write(text);
  }

  /** Something else follows. */
  end() {
    this.#open = null;
  }

  /** The area has been emptied. */
  clear() {
    this.#open = null;
    this.#drawn = [];
    this.#hidden.clear();
    this.#kept = 0;
  }

  #trim() {
    while (this.#drawn.length > this.#most) {
      this.#hide(/** @type {Part} */ (this.#drawn.shift()));
    }
  }

  /** @param {Part} part */
  #hide(part) {
    const { node } = /** @type {TextView} */ (part.view);
    let place = node.previousElementSibling;
    if (!place || !this.#hidden.has(place)) {
      const made = button('', () => this.#show(made), '.more');
      node.before(made);
      this.#hidden.set(made, []);
      place = made;
    }
    node.remove();
    if (part.length <= LONG) part.view = null;
    const parts = /** @type {Part[]} */ (this.#hidden.get(place));
    parts.push(part);
    this.#kept += part.length;
    while (this.#kept > KEPT && parts.length) {
      this.#kept -= /** @type {Part} */ (parts.shift()).length;
    }
    place.textContent = `Show ${counted(parts.length)} earlier texts`;
  }

  /** @param {Element} place */
  async #show(place) {
    const parts = this.#hidden.get(place) ?? [];
    this.#hidden.delete(place);
    this.#most = Infinity;
    for (const { name, text, view, length } of parts) {
      this.#kept -= length;
      const shown = view ?? new TextView(`.${name}`);
      place.before(shown.node);
      if (!view) await shown.write(text);
      await turns.spare();
    }
    place.remove();
  }
}
