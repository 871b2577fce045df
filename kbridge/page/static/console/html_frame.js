// @ts-check
// Shows HTML of kernels in a document without rights: see frame.html and its policy in frame.py.

import { button, counted, element } from './dom.js';

const SANDBOX = 'allow-scripts allow-popups allow-popups-to-escape-sandbox';
const DOCUMENT = new URL('frame.html', import.meta.url).href;

/** Higher frames scroll, or are shown whole on demand. In pixels. */
const HIGH = 560;
const HIGHEST = 30000;
/** Larger HTML is shown on demand. In characters. */
const LARGE = 3_000_000;

/** After so many reports for the same HTML and width, a frame only grows. */
const REPORTS = 50;

/** Frames by their element. @type {WeakMap<Element, HtmlFrame>} */
const byNode = new WeakMap();
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
  /** Return the frame that is all of an element. @type {(place: Element) => HtmlFrame | null} */
  static in(place) {
    const { firstElementChild: first, childElementCount } = place;
    return (first && childElementCount === 1 && byNode.get(first)) || null;
  }

  /**
   * @param {string} html
   * @param {{kind?: string, title?: string}} [options] - `kind` is a class of the body.
   */
  constructor(html, { kind = 'html', title = 'HTML output' } = {}) {
    this.#html = html;
    this.#kind = kind;
    this.#title = title;
    this.node = element('div.html-output');
    byNode.set(this.node, this);
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
  #reports = 0;
  #width = 0;
  #whole = false;
  #height = 0;
  /** @type {HTMLIFrameElement | null} */
  #frame = null;
  /** @type {HTMLButtonElement | null} */
  #more = null;

  /**
   * Show other HTML in the same frame, which would be blank for a moment if it were a new one.
   *
   * @param {string} html
   * @returns {boolean} False if that is not possible.
   */
  update(html) {
    if (!this.#frame?.isConnected || html.length > LARGE || this.#kind !== 'html') {
      return false;
    }
    this.#html = html;
    this.#reports = 0;
    this.#post();
    return true;
  }

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
      this.#frame = null;
      this.node.replaceChildren(
        element('p.notice', {}, 'This output tried to leave its frame, and was removed.')
      );
      return;
    }
    frames.set(contentWindow, this);
    this.#post();
  }

  #post() {
    if (this.#loads === 1) {
      // The frame has no origin that could be named here.
      const message = { html: this.#html, kind: this.#kind };
      this.#frame?.contentWindow?.postMessage(message, '*');
      this.#html = '';
    }
  }

  /** The frame has reported its height. @param {number} height */
  resize(height) {
    const width = this.#frame?.offsetWidth ?? 0;
    if (width !== this.#width) {
      this.#width = width;
      this.#reports = 0;
    }
    // The height of the content may depend on that of the frame, and change with it for ever.
    const least = ++this.#reports > REPORTS ? this.#height : 0;
    this.#height = Math.max(least, Math.min(height, HIGHEST));
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
