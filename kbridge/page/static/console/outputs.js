// @ts-check
// The outputs of one execution.

import { button, counted, element } from './dom.js';
import { HtmlFrame } from './html_frame.js';
import { jsonTree } from './json_tree.js';
import { formOf, imageUrl, sizeOf, svgUrl } from './mime.js';
import { LONGEST, richThread } from './rich_thread.js';
import { TextView } from './text_view.js';
import { Texts } from './texts.js';

/** Displays of one execution on the page; more are shown on demand. */
const MOST = 200;

/** @typedef {{data: Record<string, any>, metadata: Record<string, any>}} Bundle */

/**
 * Displays by their id, for updates from any execution. Executions may be read in another order than
 * they ran, so an update is kept for displays that are read later.
 */
export class Displays {
  /** @type {Map<string, {place: HTMLElement, order: number}[]>} */
  #places = new Map();
  /** @type {Map<string, {bundle: Bundle, order: number}>} */
  #updates = new Map();

  /**
   * @param {string} id
   * @param {HTMLElement} place
   * @param {number} order - The place of the execution among all.
   * @returns {Bundle | null} A newer value than that of the display itself.
   */
  add(id, place, order) {
    const known = this.#places.get(id)?.filter(each => each.place.isConnected) ?? [];
    this.#places.set(id, [...known, { place, order }]);
    const update = this.#updates.get(id);
    return update && update.order > order ? update.bundle : null;
  }

  /** @type {(id: string, bundle: Bundle, order: number) => Promise<void>} */
  async update(id, bundle, order) {
    const last = this.#updates.get(id);
    if (last && last.order > order) {
      return;
    }
    this.#updates.set(id, { bundle, order });
    for (const each of this.#places.get(id) ?? []) {
      if (each.order <= order) {
        await fill(each.place, bundle);
      }
    }
  }
}

/** The area below the code of a cell. */
export class Outputs {
  /**
   * @param {Displays} displays
   * @param {number} order - The place of the execution among all.
   */
  constructor(displays, order) {
    this.#displays = displays;
    this.#order = order;
    this.node = element('div.outputs');
    this.#texts = new Texts(this.node);
  }

  #displays;
  #order;
  #clearNext = false;
  #texts;
  #count = 0;
  /** @type {(() => Promise<void>)[]} */
  #held = [];
  /** @type {HTMLButtonElement | null} */
  #more = null;

  /** Show an output of kbridge.js. @param {any} output */
  async add(output) {
    if (output.type === 'clear_output') {
      output.wait ? (this.#clearNext = true) : this.clear();
      return;
    }
    if (output.type === 'update_display_data') {
      await this.#displays.update(output.displayId ?? '', output, this.#order);
      return;
    }
    if (this.#clearNext && !this.#reuse(output)) {
      this.clear();
    } else if (this.#clearNext) {
      this.#clearNext = false;
      return;
    }
    if (output.type === 'stream') {
      await this.#texts.write(output.name === 'stderr' ? 'stderr' : 'stdout', output.text);
    } else if (output.type === 'error') {
      await this.#error(output);
    } else if (output.type === 'gap') {
      this.notice(`Output is missing here: ${output.text}`, 'warning');
    } else if (output.type === 'display_data' || output.type === 'execute_result') {
      await this.#display(output);
    }
  }

  /**
   * Show HTML that replaces all outputs in the frame of the first one, if that is HTML, too. A new
   * frame would be blank for a moment, and a program that draws a progress bar does this all the time.
   *
   * @param {any} output
   * @returns {boolean} False if that is not possible.
   */
  #reuse(output) {
    const place = this.node.querySelector(':scope > .display:not(.named)');
    const isDisplay = output.type === 'display_data' && !output.displayId;
    if (!place || !isDisplay || !updated(place, output.data)) {
      return false;
    }
    // Moving a frame would load it again.
    [...this.node.children].forEach(child => child === place || child.remove());
    this.#texts.clear();
    this.#count = 1;
    this.#held = [];
    this.#more = null;
    return true;
  }

  /** Remove all outputs. */
  clear() {
    this.#clearNext = false;
    this.#texts.clear();
    this.#count = 0;
    this.#held = [];
    this.#more = null;
    // The area does not collapse and jump while a program redraws it.
    const height = this.node.offsetHeight;
    this.node.style.minHeight = `${height}px`;
    setTimeout(() => this.node.style.removeProperty('min-height'), 300);
    this.node.replaceChildren();
  }

  /** @type {(text: string, kind?: string) => HTMLElement} */
  notice(text, kind = '') {
    this.#texts.end();
    const made = element('p.notice', {}, text);
    if (kind) made.classList.add(kind);
    this.node.append(made);
    return made;
  }

  /** Append anything else, such as a form. @param {HTMLElement} node */
  append(node) {
    this.#texts.end();
    this.node.append(node);
  }

  /** The text of a pager, such as that of `print?`. @param {Record<string, any>} data */
  async page(data) {
    this.append(element('div.display', {}, ...(await render({ data, metadata: {} }))));
  }

  /** @param {any} output */
  async #error({ ename, evalue, traceback }) {
    this.#texts.end();
    const view = new TextView('.error');
    this.node.append(view.node);
    await view.write(traceback.length ? traceback.join('\n') : `${ename}: ${evalue}`);
  }

  /** @param {any} output */
  async #display(output) {
    this.#texts.end();
    if (this.#count >= MOST) {
      this.#hold(output);
      return;
    }
    this.#count++;
    const place = element('div.display');
    if (output.type === 'execute_result') place.classList.add('result');
    this.node.append(place);
    const { displayId } = output;
    if (displayId) place.classList.add('named');
    const newer = displayId ? this.#displays.add(displayId, place, this.#order) : null;
    await fill(place, newer ?? output);
  }

  /** @param {any} output */
  #hold(output) {
    this.#held.push(() => this.#display(output));
    if (!this.#more) {
      this.#more = button(
        '',
        async () => {
          this.#count = 0;
          const held = this.#held.splice(0);
          this.#more?.remove();
          this.#more = null;
          for (const show of held) await show();
        },
        '.more'
      );
      this.node.append(this.#more);
    }
    this.#more.textContent = `Show ${counted(this.#held.length)} more outputs`;
  }
}

/** Show HTML in the frame that is in a place; false if there is none. @type {(place: Element, data: Record<string, any>) => boolean} */
function updated(place, data) {
  const { kind, value, note } = formOf(data);
  return kind === 'html' && !note && (HtmlFrame.in(place)?.update(value) ?? false);
}

/** Show a value in a place. @type {(place: HTMLElement, bundle: Bundle) => Promise<void>} */
async function fill(place, bundle) {
  if (!updated(place, bundle.data)) {
    place.replaceChildren(...(await render(bundle)));
  }
}

/** @type {(text: string) => Promise<HTMLElement>} */
async function textNode(text) {
  const view = new TextView('.stdout');
  await view.write(text);
  return view.node;
}

/**
 * Return the nodes for a value. A value that cannot be rendered is shown as text, and does not end the
 * output of its execution.
 *
 * @param {Bundle} bundle
 * @returns {Promise<HTMLElement[]>}
 */
async function render({ data, metadata }) {
  const form = formOf(data);
  let nodes;
  try {
    nodes = await formNodes(form, data, metadata);
  } catch (error) {
    const text = typeof form.value === 'string' ? form.value : data['text/plain'];
    const reason = String(/** @type {any} */ (error)?.message ?? error).split('\n')[0];
    nodes = [
      await textNode(String(text ?? '')),
      element('p.notice', {}, `The console cannot show this ${form.type}: ${reason}`)
    ];
  }
  if (form.note) {
    nodes.push(element('p.notice', {}, form.note));
  }
  return nodes;
}

/** @type {(form: import('./mime.js').Form, data: Record<string, any>, metadata: Record<string, any>) => Promise<HTMLElement[]>} */
async function formNodes({ kind, type, value }, data, metadata) {
  switch (kind) {
    case 'html':
      return [new HtmlFrame(value).node];
    case 'markdown':
    case 'latex':
      return [await richNode(kind, value)];
    case 'svg':
      return [imageNode(svgUrl(value), data, sizeOf(metadata, type))];
    case 'image':
      return [imageNode(imageUrl(type, value), data, sizeOf(metadata, type))];
    case 'json':
      return [jsonTree(value)];
    default:
      return value ? [await textNode(value)] : [];
  }
}

/** @type {(kind: 'markdown' | 'latex', value: string) => Promise<HTMLElement>} */
async function richNode(kind, value) {
  if (value.length > LONGEST) {
    return textNode(value);
  }
  const markdown = kind === 'markdown';
  const html = await richThread.render(kind, value);
  return new HtmlFrame(html, { kind, title: markdown ? 'Markdown' : 'Formula' }).node;
}

/** @type {(src: string, data: Record<string, any>, size: {width?: number, height?: number}) => HTMLElement} */
function imageNode(src, data, size) {
  const text = data['text/plain'];
  const alt = typeof text === 'string' && text.length < 500 ? text : 'Image from the kernel';
  const image = element('img', { src, alt, ...size });
  image.onerror = () => image.replaceWith(element('p.notice', {}, 'This image cannot be shown.'));
  return element('div.image', {}, image);
}
