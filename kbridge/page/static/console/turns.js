// @ts-check
// Long work in short turns, so that the page answers to keys meanwhile.

/** A turn takes at most so long. In milliseconds. */
const TURN = 8;

/** Divides the work of the whole page into turns. */
export class Turns {
  /**
   * @param {() => number} clock - Milliseconds.
   * @param {() => Promise<void>} pause - Resolves after the browser has handled other events.
   */
  constructor(clock, pause) {
    this.#clock = clock;
    this.#pause = pause;
    this.#end = clock() + TURN;
  }

  #clock;
  #pause;
  #end;

  /** Wait until there is time, if the turn has been used up. Returns null if nobody must wait. */
  spare() {
    return this.#clock() < this.#end ? null : this.#next();
  }

  async #next() {
    await this.#pause();
    this.#end = Math.max(this.#end, this.#clock() + TURN);
  }
}

/** Resolve after other events of the browser. @returns {Promise<void>} */
function afterEvents() {
  return new Promise(resolve => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

export const turns = new Turns(() => performance.now(), afterEvents);

/** Larger texts are handled in pieces of so many characters. */
const PIECE = 32768;

/** Split text into pieces that fit into a turn. @param {string} text @returns {Generator<string>} */
export function* pieces(text) {
  for (let at = 0; at < text.length;) {
    let end = at + PIECE;
    if (/[\ud800-\udbff]/.test(text.charAt(end - 1))) {
      end++; // the other half of the character
    }
    yield text.slice(at, end);
    at = end;
  }
}

/**
 * Call functions before the browser draws the next time, each once. While the page is hidden the
 * browser does not draw, so a timer calls them.
 */
class Redraw {
  /** @type {Set<() => void>} */
  #waiting = new Set();
  #asked = false;

  /** @param {() => void} draw */
  soon(draw) {
    this.#waiting.add(draw);
    if (!this.#asked) {
      this.#asked = true;
      document.hidden ? setTimeout(() => this.now(), 200) : requestAnimationFrame(() => this.now());
    }
  }

  /** Call them now. */
  now() {
    this.#asked = false;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    waiting.forEach(draw => draw());
  }
}

export const redraw = new Redraw();

// A page that becomes hidden is not drawn any more.
globalThis.document?.addEventListener('visibilitychange', () => redraw.now());
