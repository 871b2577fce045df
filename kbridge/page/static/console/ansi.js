// @ts-check
// Parses text for terminals: colours, and the movements of the cursor.

/**
 * @typedef {object} Style
 * @property {number | string | null} fg A colour of the palette (0 to 15), or `rgb(...)`.
 * @property {number | string | null} bg
 * @property {boolean} bold
 * @property {boolean} dim
 * @property {boolean} italic
 * @property {boolean} underline
 * @property {boolean} strike
 * @property {boolean} inverse
 * @property {boolean} hidden
 */

/** @type {Readonly<Style>} */
export const PLAIN = Object.freeze({
  fg: null,
  bg: null,
  bold: false,
  dim: false,
  italic: false,
  underline: false,
  strike: false,
  inverse: false,
  hidden: false
});

/**
 * @typedef {{type: 'text', text: string}
 *   | {type: 'control', code: string}
 *   | {type: 'csi', final: string, numbers: number[]}} Token
 */

/** A longer sequence is not one that a program for people writes. */
const LONGEST = 4096;

/**
 * Splits text into tokens. A sequence may be split between two calls.
 *
 * Sequences that only terminals understand (titles, links, modes) are left out.
 */
export class Tokens {
  #rest = '';

  /**
   * @param {string} text
   * @returns {Generator<Token>}
   */
  *read(text) {
    const all = this.#rest + text;
    this.#rest = '';
    let start = 0;
    let at = 0;
    for (; at < all.length; at++) {
      const code = all.charCodeAt(at);
      if (code >= 32 && code !== 127 && code !== 0x9b) {
        continue;
      }
      if (code === 9) {
        continue; // a tab is text
      }
      if (at > start) {
        yield { type: 'text', text: all.slice(start, at) };
      }
      if (code === 27 || code === 0x9b) {
        const end = endOfSequence(all, at);
        if (end < 0) {
          if (all.length - at < LONGEST) {
            this.#rest = all.slice(at);
            return;
          }
          start = at + 1; // not a sequence
          continue;
        }
        const token = csi(all.slice(at, end));
        if (token) {
          yield token;
        }
        at = end - 1;
      } else if (code === 10 || code === 13 || code === 8) {
        yield { type: 'control', code: all[at] };
      }
      start = at + 1;
    }
    if (at > start) {
      yield { type: 'text', text: all.slice(start, at) };
    }
  }
}

/**
 * @param {string} text
 * @param {number} at - The place of the escape character.
 * @returns {number} The place after the sequence; -1 if its end is not there.
 */
function endOfSequence(text, at) {
  let place = at + 1;
  let kind = '[';
  if (text.charCodeAt(at) === 27) {
    if (place >= text.length) {
      return -1;
    }
    kind = text[place++];
  }
  if (kind === '[') {
    for (; place < text.length; place++) {
      const code = text.charCodeAt(place);
      if (code >= 0x40 && code <= 0x7e) {
        return place + 1;
      }
      if (code < 0x20 || code > 0x3f) {
        return place; // malformed
      }
    }
    return -1;
  }
  if (']PX^_'.includes(kind)) {
    // A string, which ends in BEL or ESC \.
    for (; place < text.length; place++) {
      const code = text.charCodeAt(place);
      if (code === 7) {
        return place + 1;
      }
      if (code === 27) {
        return place + 1 < text.length ? place + 2 : -1;
      }
      if (place - at > LONGEST) {
        return at + 2;
      }
    }
    return -1;
  }
  if ('()*+#% '.includes(kind)) {
    return place < text.length ? place + 1 : -1;
  }
  return place;
}

/** @type {(sequence: string) => Token | null} */
function csi(sequence) {
  const body = sequence.startsWith('\x9b') ? sequence.slice(1) : sequence.slice(2);
  const second = sequence.startsWith('\x9b') ? '[' : sequence[1];
  const final = body.at(-1) ?? '';
  if (second !== '[' || !/^[\d;:]*$/.test(body.slice(0, -1))) {
    return null;
  }
  return { type: 'csi', final, numbers: parameters(body.slice(0, -1)) };
}

/**
 * Return the numbers of a sequence. Colours in the form `38:2::1:2:3` become `38;2;1;2;3`, and other
 * details after a colon are left out.
 *
 * @param {string} text
 * @returns {number[]}
 */
function parameters(text) {
  const numbers = [];
  for (const part of text.split(';')) {
    const [first, ...details] = part.split(':');
    numbers.push(Number(first || 0));
    if ((first === '38' || first === '48') && details[0] === '2') {
      const [red, green, blue] = details.slice(-3);
      numbers.push(2, Number(red), Number(green), Number(blue));
    } else if ((first === '38' || first === '48') && details[0] === '5') {
      numbers.push(5, Number(details[1] || 0));
    } else if (first === '4' && details[0] === '0') {
      numbers[numbers.length - 1] = 24;
    }
  }
  return numbers;
}

/** @type {Record<number, Partial<Style>>} */
const CHANGES = {
  1: { bold: true },
  2: { dim: true },
  3: { italic: true },
  4: { underline: true },
  7: { inverse: true },
  8: { hidden: true },
  9: { strike: true },
  21: { underline: true },
  22: { bold: false, dim: false },
  23: { italic: false },
  24: { underline: false },
  27: { inverse: false },
  28: { hidden: false },
  29: { strike: false },
  39: { fg: null },
  49: { bg: null }
};

/**
 * Return the style after the numbers of a sequence that ends in `m`.
 *
 * @param {Readonly<Style>} style
 * @param {number[]} numbers
 * @returns {Readonly<Style>}
 */
export function styled(style, numbers) {
  let now = style;
  for (let i = 0; i < numbers.length; i++) {
    const number = numbers[i];
    if (number === 0) {
      now = PLAIN;
    } else if (number === 38 || number === 48) {
      const [colour, used] = extended(numbers.slice(i + 1, i + 5));
      now = { ...now, [number === 38 ? 'fg' : 'bg']: colour };
      i += used;
    } else if (number in CHANGES) {
      now = { ...now, ...CHANGES[number] };
    } else {
      now = { ...now, ...basic(number) };
    }
  }
  return now;
}

/** @type {(number: number) => Partial<Style>} */
function basic(number) {
  const within = (/** @type {number} */ first) => number >= first && number < first + 8;
  if (within(30)) return { fg: number - 30 };
  if (within(40)) return { bg: number - 40 };
  if (within(90)) return { fg: number - 82 };
  if (within(100)) return { bg: number - 92 };
  return {};
}

/**
 * @param {number[]} numbers - Those after 38 or 48.
 * @returns {[number | string | null, number]} The colour, and how many numbers it took.
 */
function extended([kind, ...rest]) {
  const level = (/** @type {number | undefined} */ value) => Math.min(255, value || 0);
  if (kind === 5) {
    return [indexed(level(rest[0])), 2];
  }
  if (kind === 2) {
    return [`rgb(${rest.slice(0, 3).map(level).join(', ')})`, 4];
  }
  return [null, 1];
}

/** Return a colour of the 256. @type {(index: number) => number | string} */
function indexed(index) {
  if (index < 16) {
    return index;
  }
  if (index >= 232) {
    const grey = 8 + 10 * (index - 232);
    return `rgb(${grey}, ${grey}, ${grey})`;
  }
  const cube = index - 16;
  const level = (/** @type {number} */ step) => (step ? 55 + 40 * step : 0);
  const [red, green, blue] = [Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6];
  return `rgb(${level(red)}, ${level(green)}, ${level(blue)})`;
}

/** Return text without its sequences. @type {(text: string) => string} */
export function withoutColours(text) {
  let plain = '';
  for (const token of new Tokens().read(text)) {
    plain += token.type === 'text' ? token.text : token.type === 'control' ? token.code : '';
  }
  return plain;
}
