// @ts-check
// The editor at the bottom: a text area, with colours behind it, completion and history.

import { element } from './dom.js';
import * as editing from './editing.js';
import { highlight } from './highlight.js';

/** Waits for completions no longer than this; a busy kernel answers when it is idle. In milliseconds. */
const PATIENCE = 60_000;

/** Dispatches `run` (`detail` is the code) and `say` (`detail` is text for people who listen). */
export class Editor extends EventTarget {
  /**
   * @param {object} parts
   * @param {HTMLTextAreaElement} parts.area
   * @param {HTMLElement} parts.colours - An element behind the area with the same text.
   * @param {HTMLElement} parts.list - The listbox of completions.
   * @param {(code: string, place: number) => Promise<Record<string, any>>} parts.complete
   * @param {import('./history.js').History} parts.history
   */
  constructor({ area, colours, list, complete, history }) {
    super();
    this.#area = area;
    this.#colours = colours;
    this.#list = list;
    this.#complete = complete;
    this.#history = history;
    area.addEventListener('keydown', event => this.#onKey(event));
    area.addEventListener('input', () => this.#changed());
    area.addEventListener('blur', () => this.#close());
    area.addEventListener('click', () => this.#close());
    list.addEventListener('mousedown', event => this.#onPick(event));
    this.#changed();
  }

  /** The language of the kernel. */
  language = 'python';
  #area;
  #colours;
  #list;
  #complete;
  #history;
  /** @type {editing.Completions | null} */
  #offered = null;
  #chosen = 0;
  /** True after Escape: the next Tab leaves the editor. */
  #leaving = false;
  #asked = 0;

  /** Move the focus here. The editor is always in view, so nothing has to scroll. */
  focus() {
    this.#area.focus({ preventScroll: true });
  }

  get value() {
    return this.#area.value;
  }

  /** Replace the whole text; the change can be undone. @param {string} text */
  set(text) {
    this.focus();
    this.#edit({ start: 0, end: this.#area.value.length, text });
  }

  /** Run what is there. */
  run() {
    const code = this.#area.value;
    if (!code.trim()) {
      return;
    }
    this.#close();
    this.#history.add(code);
    this.#area.value = '';
    this.#changed();
    this.dispatchEvent(new CustomEvent('run', { detail: code }));
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.isComposing) {
      return;
    }
    const leaving = this.#leaving;
    this.#leaving = leaving && event.key === 'Shift';
    const action = this.#offered ? this.#listAction(event) : null;
    const chosen = action ?? this.#action(event, leaving);
    if (chosen) {
      event.preventDefault();
      chosen();
    }
  }

  /** @type {(event: KeyboardEvent) => (() => void) | null} */
  #listAction({ key, shiftKey, ctrlKey, metaKey }) {
    const count = this.#offered?.items.length ?? 0;
    switch (key) {
      case 'ArrowDown':
        return () => this.#choose((this.#chosen + 1) % count);
      case 'ArrowUp':
        return () => this.#choose((this.#chosen + count - 1) % count);
      case 'PageDown':
        return () => this.#choose(Math.min(count - 1, this.#chosen + 8));
      case 'PageUp':
        return () => this.#choose(Math.max(0, this.#chosen - 8));
      case 'Tab':
        return shiftKey
          ? () => this.#choose((this.#chosen + count - 1) % count)
          : () => this.#accept(this.#chosen);
      case 'Enter':
        return shiftKey || ctrlKey || metaKey ? null : () => this.#accept(this.#chosen);
      case 'Escape':
        return () => this.#close();
      default:
        return null;
    }
  }

  /** @type {(event: KeyboardEvent, leaving: boolean) => (() => void) | null} */
  #action(event, leaving) {
    const { value: text, selectionStart: start, selectionEnd: end } = this.#area;
    const plain = !event.ctrlKey && !event.altKey && !event.metaKey;
    switch (event.key) {
      case 'Enter':
        if (event.shiftKey || event.ctrlKey || event.metaKey) {
          return () => this.run();
        }
        return plain ? () => this.#edit(editing.newline(text, start, end)) : null;
      case 'Tab':
        return plain && !leaving ? this.#tab(text, start, end, event.shiftKey) : null;
      case 'Escape':
        return () => {
          this.#leaving = true;
          this.#say('Tab now leaves the editor');
        };
      case 'Backspace': {
        const edit = plain && start === end ? editing.backspace(text, start) : null;
        return edit && (() => this.#edit(edit));
      }
      case 'ArrowUp':
        return plain && !event.shiftKey && start === end && editing.onFirstLine(text, start)
          ? () => this.#recall(this.#history.up(text), true)
          : null;
      case 'ArrowDown':
        return plain && !event.shiftKey && start === end && editing.onLastLine(text, end)
          ? () => this.#recall(this.#history.down(text), false)
          : null;
      default:
        return null;
    }
  }

  /** @type {(text: string, start: number, end: number, out: boolean) => (() => void) | null} */
  #tab(text, start, end, out) {
    if (start !== end) {
      return () => {
        const edit = editing.indent(text, start, end, out);
        this.#edit(edit);
        this.#area.setSelectionRange(edit.start, edit.start + edit.text.length);
      };
    }
    if (out) {
      // Without indentation, Shift-Tab leaves the editor, as everywhere.
      const inside = editing.inIndentation(text, start) && /[ \t]/.test(text[start - 1] ?? '');
      return inside ? () => this.#edit(editing.indent(text, start, end, true)) : null;
    }
    if (!text) {
      return null; // an empty editor is left
    }
    if (editing.inIndentation(text, start)) {
      return () => this.#edit(editing.indent(text, start, end, false));
    }
    return () => void this.#offer();
  }

  /** Replace text so that it can be undone. @param {editing.Edit} edit */
  #edit({ start, end, text }) {
    this.#area.setSelectionRange(start, end);
    const command = text ? 'insertText' : 'delete';
    if (start !== end || text) {
      if (!document.execCommand(command, false, text)) {
        this.#area.setRangeText(text, start, end, 'end');
        this.#changed();
      }
    }
  }

  /** @type {(entry: string | null, toStart: boolean) => void} */
  #recall(entry, toStart) {
    if (entry === null) {
      return;
    }
    this.#area.value = entry;
    const place = toStart ? entry.indexOf('\n') : -1;
    const at = place < 0 ? entry.length : place;
    this.#area.setSelectionRange(at, at);
    this.#changed();
  }

  #changed() {
    this.#close();
    const text = this.#area.value;
    // A line break at the end needs something after it to have a height.
    const parts = highlight(`${text}\n`, this.language);
    this.#colours.replaceChildren(
      ...parts.map(({ text, kind }) => (kind ? element(`span.code-${kind}`, {}, text) : text))
    );
    this.dispatchEvent(new CustomEvent('change'));
  }

  /** Draw the colours again, when the language has become known. */
  redraw() {
    this.#changed();
  }

  // -- completion -----------------------------------------------------------------------------

  async #offer() {
    const { value: code, selectionStart: at } = this.#area;
    const asked = ++this.#asked;
    const late = new Promise(resolve => setTimeout(resolve, PATIENCE, null));
    let reply = null;
    try {
      reply = await Promise.race([this.#complete(code, editing.toCharacters(code, at)), late]);
    } catch {
      // no completions
    }
    if (asked !== this.#asked || this.#area.value !== code || this.#area.selectionStart !== at) {
      return; // the person went on
    }
    if (!reply) {
      this.#say('No answer from the kernel');
      return;
    }
    const offered = editing.completionsOf(code, reply);
    if (!offered.items.length) {
      this.#say('No completions');
      return;
    }
    const common = editing.commonStart(offered.items.map(item => item.text));
    if (offered.items.length === 1 || common.length > offered.end - offered.start) {
      this.#edit({ start: offered.start, end: offered.end, text: common });
      offered.end = offered.start + common.length;
    }
    if (offered.items.length > 1) {
      this.#open(offered);
    }
  }

  /** @param {editing.Completions} offered */
  #open(offered) {
    this.#offered = offered;
    this.#list.replaceChildren(
      ...offered.items.map(({ text, type }, i) =>
        element(
          'li',
          { id: `completion-${i}`, role: 'option', 'aria-selected': 'false' },
          element('span', {}, text),
          type ? element('span.kind', {}, type) : null
        )
      )
    );
    this.#list.hidden = false;
    this.#place(offered.start);
    this.#area.setAttribute('aria-controls', this.#list.id);
    this.#say(`${offered.items.length} completions`);
    this.#choose(0);
  }

  /** Put the list above the place of the text that it replaces. @param {number} start */
  #place(start) {
    const range = document.createRange();
    const walker = document.createTreeWalker(this.#colours, NodeFilter.SHOW_TEXT);
    let rest = start;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const length = node.textContent?.length ?? 0;
      if (rest <= length) {
        range.setStart(node, rest);
        break;
      }
      rest -= length;
    }
    const place = range.getBoundingClientRect();
    const parent = /** @type {HTMLElement} */ (this.#list.offsetParent).getBoundingClientRect();
    const most = Math.max(0, parent.width - this.#list.offsetWidth);
    this.#list.style.left = `${Math.min(Math.max(0, place.left - parent.left - 12), most)}px`;
    this.#list.style.bottom = `${parent.bottom - place.top + 6}px`;
  }

  /** @param {number} index */
  #choose(index) {
    const options = this.#list.children;
    options[this.#chosen]?.setAttribute('aria-selected', 'false');
    this.#chosen = index;
    options[index].setAttribute('aria-selected', 'true');
    options[index].scrollIntoView({ block: 'nearest' });
    this.#area.setAttribute('aria-activedescendant', options[index].id);
  }

  /** @param {number} index */
  #accept(index) {
    const { start, end, items } = /** @type {editing.Completions} */ (this.#offered);
    this.#close();
    this.#edit({ start, end, text: items[index].text });
  }

  /** @param {MouseEvent} event */
  #onPick(event) {
    event.preventDefault(); // the editor keeps the focus
    const option = /** @type {HTMLElement} */ (event.target).closest('li');
    if (option && this.#offered) {
      this.#accept([...this.#list.children].indexOf(option));
    }
  }

  #close() {
    this.#asked++;
    if (this.#offered) {
      this.#offered = null;
      this.#chosen = 0;
      this.#list.hidden = true;
      this.#list.replaceChildren();
      this.#area.removeAttribute('aria-activedescendant');
      this.#area.removeAttribute('aria-controls');
    }
  }

  /** @param {string} text */
  #say(text) {
    this.dispatchEvent(new CustomEvent('say', { detail: text }));
  }
}
