// Receives samples from the server, and connects again.

import { Samples } from './samples.js';

const AGAIN = 3000;
const HIDDEN = 30000;

const visible = () => document.visibilityState === 'visible';

/**
 * Server-sent events of `api/live`. A page that nobody looks at receives none after a while, and
 * does not connect again until it is shown.
 */
export class Feed {
  /**
   * @param {string | URL} url
   * @param {{sample: (sample: any) => void, state: (state: string) => void}} on
   */
  constructor(url, on) {
    this.url = url;
    this.on = on;
    /** @type {EventSource | null} */
    this.source = null;
    this.timer = 0;
    document.addEventListener('visibilitychange', () => this.#look());
    addEventListener('online', () => visible() && this.#open());
    this.#look();
  }

  #look() {
    clearTimeout(this.timer);
    if (visible()) {
      if (!this.source) {
        this.#open();
      }
    } else if (this.source) {
      this.timer = setTimeout(() => this.#close('paused'), HIDDEN);
    } else {
      this.#close('paused');
    }
  }

  #open() {
    this.#close('connecting');
    const source = (this.source = new EventSource(this.url));
    const samples = new Samples();
    source.onmessage = event => {
      this.on.state('live');
      this.on.sample(samples.complete(JSON.parse(event.data)));
    };
    source.onerror = () => {
      // A refusal ends an EventSource, a lost connection does not. Both may pass.
      if (visible()) {
        this.#close('reconnecting');
        this.timer = setTimeout(() => this.#open(), AGAIN);
      } else {
        this.#close('paused');
      }
    };
  }

  #close(state) {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    this.on.state(state);
  }
}
