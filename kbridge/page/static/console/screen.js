// @ts-check
// What a terminal would show: text, and what programs do to lines that they have written.

import { PLAIN, Tokens, styled } from './ansi.js';

/** @typedef {import('./ansi.js').Style} Style */
/** @typedef {{text: string, style: Readonly<Style>}} Run */
/** @typedef {Run[]} Runs The runs of a line, or of several lines with `\n` in their text. */

/** Lines that the cursor can still reach. */
export const REACH = 60;
/** All of these lines together, so that drawing them again stays cheap. In characters. */
const REACHED_CHARACTERS = 65536;
/** A longer line is broken, as a terminal does at its width. In characters. */
export const WIDEST = 16384;

const SURROGATES = /[\ud800-\udfff]/;

/** One line. It is kept as runs, and as characters once a program writes over it. */
class Line {
  /** @type {Runs} */
  #runs = [];
  /** @type {{char: string, style: Readonly<Style>}[] | null} */
  #cells = null;
  /** The number of characters. */
  length = 0;

  /** @type {(text: string, style: Readonly<Style>) => void} */
  append(text, style) {
    if (this.#cells) {
      for (const char of text) {
        this.#cells.push({ char, style });
      }
      this.length = this.#cells.length;
      return;
    }
    const last = this.#runs.at(-1);
    if (last && last.style === style) {
      last.text += text;
    } else {
      this.#runs.push({ text, style });
    }
    this.length += SURROGATES.test(text) ? [...text].length : text.length;
  }

  /** Write over what is at a place. @type {(column: number, text: string, style: Readonly<Style>) => void} */
  write(column, text, style) {
    if (column > this.length) {
      this.append(' '.repeat(column - this.length), PLAIN);
    }
    if (column === this.length) {
      this.append(text, style);
      return;
    }
    const cells = this.#expanded();
    for (const char of text) {
      cells[column++] = { char, style };
    }
    this.length = cells.length;
  }

  /** Remove the characters from a place to the end. @type {(column: number) => void} */
  cut(column) {
    if (column < this.length) {
      const cells = this.#expanded();
      cells.length = column;
      this.length = column;
    }
  }

  /** Replace the characters before a place with spaces. @type {(column: number) => void} */
  blank(column) {
    const cells = this.#expanded();
    for (let i = 0; i < Math.min(column, cells.length); i++) {
      cells[i] = { char: ' ', style: PLAIN };
    }
  }

  #expanded() {
    if (!this.#cells) {
      this.#cells = [];
      for (const { text, style } of this.#runs) {
        for (const char of text) {
          this.#cells.push({ char, style });
        }
      }
      this.#runs = [];
    }
    return this.#cells;
  }

  /** @returns {Runs} */
  runs() {
    if (!this.#cells) {
      return this.#runs;
    }
    /** @type {{parts: string[], style: Readonly<Style>}[]} */
    const runs = [];
    for (const { char, style } of this.#cells) {
      const last = runs.at(-1);
      if (last && last.style === style) {
        last.parts.push(char);
      } else {
        runs.push({ parts: [char], style });
      }
    }
    return runs.map(({ parts, style }) => ({ text: parts.join(''), style }));
  }
}

/**
 * The lines that a program has written. The last `REACH` of them may change; earlier ones are final,
 * and are handed out once.
 */
export class Screen {
  #tokens = new Tokens();
  #style = PLAIN;
  /** Styles that are equal are the same object, so that comparing them is cheap. */
  #styles = new Map([[JSON.stringify(PLAIN), PLAIN]]);
  /** @type {Line[]} */
  #lines = [new Line()];
  #row = 0;
  #column = 0;
  /** @type {Runs[]} */
  #final = [];

  /** @param {string} text */
  write(text) {
    for (const token of this.#tokens.read(text)) {
      if (token.type === 'text') {
        this.#put(token.text);
      } else if (token.type === 'control') {
        this.#control(token.code);
      } else {
        this.#sequence(token.final, token.numbers);
      }
    }
  }

  /** Return the lines that became final since the last call. */
  takeFinal() {
    return this.#final.splice(0);
  }

  /** The lines that may still change; an empty one at the end is left out. */
  tail() {
    const lines = this.#lines.map(line => line.runs());
    if (lines.at(-1)?.length === 0) {
      lines.pop();
    }
    return lines;
  }

  /** @param {string} text */
  #put(text) {
    let rest = text;
    while (rest) {
      const line = this.#lines[this.#row];
      const room = WIDEST - this.#column;
      if (room <= 0) {
        this.#newline();
        continue;
      }
      let part = rest.slice(0, room);
      if (/[\ud800-\udbff]$/.test(part) && part.length > 1) {
        part = part.slice(0, -1); // the other half of the character follows
      }
      line.write(this.#column, part, this.#style);
      this.#column += SURROGATES.test(part) ? [...part].length : part.length;
      rest = rest.slice(part.length);
    }
  }

  #newline() {
    this.#row++;
    this.#column = 0;
    if (this.#row === this.#lines.length) {
      this.#lines.push(new Line());
    }
    while (this.#row > 0 && this.#tooMuch()) {
      this.#final.push(/** @type {Line} */ (this.#lines.shift()).runs());
      this.#row--;
    }
  }

  #tooMuch() {
    if (this.#lines.length > REACH) {
      return true;
    }
    // Most lines are short, so that the sum is rarely needed.
    const long = this.#lines[this.#row - 1].length > REACHED_CHARACTERS / REACH;
    return long && this.#lines.reduce((sum, line) => sum + line.length, 0) > REACHED_CHARACTERS;
  }

  /** @param {string} code */
  #control(code) {
    if (code === '\n') {
      this.#newline();
    } else if (code === '\r') {
      this.#column = 0;
    } else {
      this.#column = Math.max(0, this.#column - 1);
    }
  }

  /** @type {(final: string, numbers: number[]) => void} */
  #sequence(final, numbers) {
    const count = Math.max(1, numbers[0] || 0);
    const last = this.#lines.length - 1;
    switch (final) {
      case 'm':
        this.#setStyle(styled(this.#style, numbers));
        break;
      case 'A':
      case 'F':
        this.#row = Math.max(0, this.#row - count);
        this.#column = final === 'F' ? 0 : this.#column;
        break;
      case 'B':
      case 'E':
        this.#row = Math.min(last, this.#row + count);
        this.#column = final === 'E' ? 0 : this.#column;
        break;
      case 'C':
        this.#column = Math.min(WIDEST - 1, this.#column + count);
        break;
      case 'D':
        this.#column = Math.max(0, this.#column - count);
        break;
      case 'G':
        this.#column = Math.min(WIDEST, count) - 1;
        break;
      case 'H':
        this.#row = Math.min(last, count - 1);
        this.#column = Math.min(WIDEST, Math.max(1, numbers[1] || 0)) - 1;
        break;
      case 'K':
        this.#eraseInLine(numbers[0] || 0);
        break;
      case 'J':
        this.#erase(numbers[0] || 0);
        break;
    }
  }

  /** @param {Readonly<Style>} style */
  #setStyle(style) {
    const name = JSON.stringify(style);
    const known = this.#styles.get(name);
    if (!known && this.#styles.size < 10000) {
      this.#styles.set(name, style);
    }
    this.#style = known ?? style;
  }

  /** @param {number} what */
  #eraseInLine(what) {
    const line = this.#lines[this.#row];
    if (what === 0) {
      line.cut(this.#column);
    } else if (what === 1) {
      line.blank(this.#column + 1);
    } else if (what === 2) {
      line.cut(0);
    }
  }

  /** @param {number} what */
  #erase(what) {
    if (what === 0) {
      this.#lines.length = this.#row + 1;
      this.#eraseInLine(0);
    } else if (what === 1) {
      this.#lines.slice(0, this.#row).forEach(line => line.cut(0));
      this.#eraseInLine(1);
    } else if (what === 2) {
      this.#lines = [new Line()];
      this.#row = this.#column = 0;
    }
  }
}
