// @ts-check
// Markdown and LaTeX in a thread: some texts need minutes, and the page must not wait for them.

/** Longer texts are shown as source. In characters. */
export const LONGEST = 300_000;

/** Milliseconds that one text may take. */
export const PATIENCE = 5000;

/**
 * @typedef {object} Job
 * @property {'markdown' | 'latex'} kind
 * @property {string} source
 * @property {(html: string) => void} resolve
 * @property {(error: Error) => void} reject
 */

/** A thread that is started for the first text, and again after one that takes too long. */
export class RichThread {
  /** @type {Worker | null} */
  #worker = null;
  #ready = false;
  /** @type {Job[]} The first one is at work once the thread is ready. */
  #jobs = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #make;

  /** @param {() => Worker} make */
  constructor(make) {
    this.#make = make;
  }

  /**
   * Return the HTML of a text. One text is rendered at a time.
   *
   * @param {'markdown' | 'latex'} kind
   * @param {string} source
   * @returns {Promise<string>}
   */
  render(kind, source) {
    return new Promise((resolve, reject) => {
      this.#jobs.push({ kind, source, resolve, reject });
      if (this.#jobs.length === 1) this.#begin();
    });
  }

  #begin() {
    if (!this.#worker) {
      this.#start();
    } else if (this.#ready && this.#jobs.length) {
      const { kind, source } = this.#jobs[0];
      this.#worker.postMessage({ kind, source });
      this.#timer = setTimeout(() => this.#fail('it takes too long'), PATIENCE);
    }
  }

  #start() {
    this.#ready = false;
    this.#worker = this.#make();
    this.#worker.onmessage = ({ data }) => {
      if (data.ready) {
        this.#ready = true;
        this.#begin();
      } else {
        this.#finish(data);
      }
    };
    this.#worker.onerror = () => this.#fail('its program cannot be loaded');
  }

  /** @param {{html?: string, error?: string}} result */
  #finish({ html, error }) {
    clearTimeout(this.#timer);
    const job = this.#jobs.shift();
    if (error === undefined) {
      job?.resolve(html ?? '');
    } else {
      job?.reject(new Error(error));
    }
    this.#begin();
  }

  /** End the thread, whatever it does; the next text has another one. @param {string} error */
  #fail(error) {
    this.#worker?.terminate();
    this.#worker = null;
    clearTimeout(this.#timer);
    this.#jobs.shift()?.reject(new Error(error));
    if (this.#jobs.length) this.#begin();
  }
}

/** The thread of this page. */
export const richThread = new RichThread(
  () => new Worker(new URL('./rich_worker.js', import.meta.url), { type: 'module' })
);
