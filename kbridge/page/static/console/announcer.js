// @ts-check
// Tells people who use a screen reader what happens, in few words and not too often.

/** Between two announcements. In milliseconds. */
const PAUSE = 1200;

/** Writes into a live region. Of several messages that wait, only the last two are said. */
export class Announcer {
  /** @param {HTMLElement} region */
  constructor(region) {
    this.#region = region;
  }

  #region;
  /** @type {string[]} */
  #waiting = [];
  #paused = false;

  /** @param {string} text */
  say(text) {
    this.#waiting = [...this.#waiting.slice(-1), text];
    this.#next();
  }

  #next() {
    const text = this.#paused ? undefined : this.#waiting.shift();
    if (text !== undefined) {
      this.#paused = true;
      this.#region.textContent = text;
      setTimeout(() => {
        this.#paused = false;
        this.#next();
      }, PAUSE);
    }
  }
}
