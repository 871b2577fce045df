// Receives samples from the server, and connects again.

const AGAIN = 3000;
const HIDDEN = 30000;

/** Server-sent events of `api/live`. A page that nobody looks at receives none after a while. */
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
    addEventListener('online', () => this.#open());
    this.#look();
  }

  #look() {
    clearTimeout(this.timer);
    if (document.visibilityState === 'visible') {
      if (!this.source) {
        this.#open();
      }
    } else {
      this.timer = setTimeout(() => this.#close('paused'), HIDDEN);
    }
  }

  #open() {
    this.#close('connecting');
    const source = (this.source = new EventSource(this.url));
    source.onmessage = event => {
      this.on.state('live');
      this.on.sample(JSON.parse(event.data));
    };
    source.onerror = () => {
      // A refusal ends an EventSource, a lost connection does not. Both may pass.
      this.#close('reconnecting');
      this.timer = setTimeout(() => this.#open(), AGAIN);
    };
  }

  #close(state) {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    this.on.state(state);
  }
}
