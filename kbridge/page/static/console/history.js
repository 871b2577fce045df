// @ts-check
// The code that was run earlier, for the keys Up and Down.

const LONGEST = 500; // entries
const LARGEST = 200_000; // characters of all entries of a kernel
const KERNELS = 20;
const PREFIX = 'kbridge.history.';

/** The earlier inputs, and the place of a person who goes through them. */
export class History {
  /** @type {string[]} */
  #entries;
  /** The edited form of entries, until something is run. @type {Map<number, string>} */
  #drafts = new Map();
  #at;

  /** @param {string[]} [entries] - Oldest first. */
  constructor(entries = []) {
    this.#entries = bounded(entries);
    this.#at = this.#entries.length;
  }

  /** The inputs, oldest first. */
  get entries() {
    return [...this.#entries];
  }

  /** Note that code was run. @param {string} code */
  add(code) {
    if (code.trim() && code !== this.#entries.at(-1)) {
      this.#entries = bounded([...this.#entries, code]);
    }
    this.#drafts.clear();
    this.#at = this.#entries.length;
  }

  /**
   * Return the input before the one that is shown.
   *
   * @param {string} shown - The text of the editor; it comes back with `down`.
   * @returns {string | null} Null if there is none.
   */
  up(shown) {
    return this.#go(-1, shown);
  }

  /** Return the input after the one that is shown. @param {string} shown */
  down(shown) {
    return this.#go(1, shown);
  }

  /** @type {(step: number, shown: string) => string | null} */
  #go(step, shown) {
    const place = this.#at + step;
    if (place < 0 || place > this.#entries.length) {
      return null;
    }
    this.#drafts.set(this.#at, shown);
    this.#at = place;
    return this.#drafts.get(place) ?? this.#entries[place] ?? '';
  }
}

/** Leave out the oldest entries. @param {string[]} entries */
function bounded(entries) {
  const kept = [];
  let size = 0;
  for (const entry of entries.slice(-LONGEST).reverse()) {
    size += entry.length;
    if (size > LARGEST && kept.length) {
      break;
    }
    kept.push(entry);
  }
  return kept.reverse();
}

/**
 * Read the history of a kernel.
 *
 * @param {Storage} storage
 * @param {string} kernelId
 */
export function readHistory(storage, kernelId) {
  return new History(parsed(storage.getItem(PREFIX + kernelId)).entries);
}

/**
 * Write the history of a kernel, and remove those of the kernels that were not used for longest.
 *
 * @param {Storage} storage
 * @param {string} kernelId
 * @param {History} history
 * @param {number} now - Milliseconds.
 */
export function writeHistory(storage, kernelId, history, now) {
  const names = Array.from({ length: storage.length }, (_, i) => storage.key(i) ?? '');
  const others = names.filter(name => name.startsWith(PREFIX) && name !== PREFIX + kernelId);
  const used = new Map(others.map(name => [name, parsed(storage.getItem(name)).used]));
  others.sort((a, b) => (used.get(b) ?? 0) - (used.get(a) ?? 0));
  others.slice(KERNELS - 1).forEach(name => storage.removeItem(name));
  storage.setItem(PREFIX + kernelId, JSON.stringify({ used: now, entries: history.entries }));
}

/** @param {string | null} text @returns {{used: number, entries: string[]}} */
function parsed(text) {
  try {
    const { used, entries } = JSON.parse(text ?? '');
    const strings = Array.isArray(entries) ? entries.filter(one => typeof one === 'string') : [];
    return { used: Number(used) || 0, entries: strings };
  } catch {
    return { used: 0, entries: [] };
  }
}
