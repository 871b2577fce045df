// @ts-check
// Shows HTML of kernels in a document without rights: see frame.html and its policy in files.py.

import { button, counted, element } from './dom.js';

const SANDBOX = 'allow-scripts allow-popups allow-popups-to-escape-sandbox';
const DOCUMENT = new URL('frame.html', import.meta.url).href;

/** Higher frames scroll, or are shown whole on demand. In pixels. */
const HIGH = 560;
const HIGHEST = 30000;
/** Larger HTML is shown on demand. In characters. */
const LARGE = 3_000_000;

/** Frames by their window, which is the sender of their messages. @type {WeakMap<object, HtmlFrame>} */
const frames = new WeakMap();

globalThis.addEventListener?.('message', ({ source, data }) => {
  const height = Number(data?.height);
  if (source && Number.isFinite(height)) {
    frames.get(source)?.resize(height);
  }
});

/** HTML in a sandboxed frame. */
export class HtmlFrame {
  /**
   * @param {string} html
   * @param {{kind?: string, title?: string}} [options] - `kind` is a class of the body.
   */
  constructor(html, { kind = 'html', title = 'HTML output' } = {}) {
    this.#html = html;
    this.#kind = kind;
    this.#title = title;
    this.node = element('div.html-output');
    if (html.length > LARGE) {
      const megabytes = counted(Math.round(html.length / 1e6));
      this.node.append(button(`Show ${megabytes} MB of HTML`, () => this.#open()));
    } else {
      this.#open();
    }
  }

  #html;
  #kind;
  #title;
  #loads = 0;
  #whole = false;
  #height = 0;
  /** @type {HTMLIFrameElement | null} */
  #frame = null;
  /** @type {HTMLButtonElement | null} */
  #more = null;

  #open() {
    const frame = element('iframe', { title: this.#title, sandbox: SANDBOX, src: DOCUMENT });
    frame.onload = () => this.#loaded();
    this.#frame = frame;
    this.node.replaceChildren(frame);
  }

  #loaded() {
    const frame = /** @type {HTMLIFrameElement} */ (this.#frame);
    const { contentWindow } = frame;
    if (++this.#loads > 1 || !contentWindow) {
      this.node.replaceChildren(
        element('p.notice', {}, 'This output tried to leave its frame, and was removed.')
      );
      return;
    }
    frames.set(contentWindow, this);
    // The frame has no origin that could be named here.
    contentWindow.postMessage({ html: this.#html, kind: this.#kind }, '*');
    this.#html = '';
  }

  /** The frame has reported its height. @param {number} height */
  resize(height) {
    this.#height = Math.max(0, Math.min(height, HIGHEST));
    this.#fit();
  }

  #fit() {
    const high = this.#height > HIGH;
    if (high && !this.#more) {
      this.#more = button('', () => {
        this.#whole = !this.#whole;
        this.#fit();
      });
      this.node.append(this.#more);
    }
    if (this.#more) {
      this.#more.hidden = !high;
      this.#more.textContent = this.#whole ? 'Show less' : 'Show all';
    }
    const height = high && !this.#whole ? HIGH : this.#height;
    if (this.#frame) this.#frame.style.height = `${height}px`;
  }
}
