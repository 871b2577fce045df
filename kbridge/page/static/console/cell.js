// @ts-check
// One execution: its code, its state and its outputs.

import { withoutColours } from './ansi.js';
import { button, element } from './dom.js';
import { highlight } from './highlight.js';
import { Outputs } from './outputs.js';

/** @typedef {'waiting' | 'running' | 'ok' | 'error' | 'aborted' | 'lost'} CellState */

/** @type {Record<CellState, string>} */
const SAID = {
  waiting: 'waiting',
  running: 'running',
  ok: 'finished',
  error: 'failed',
  aborted: 'skipped',
  lost: 'ended without a result'
};

/** Longer code is folded. In lines. */
const FOLDED = 30;

/** Return a duration for people. @param {number} milliseconds */
export function duration(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 0.1) return `${Math.round(milliseconds)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.floor(seconds % 60);
  return minutes < 60
    ? `${minutes} min ${rest} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A cell. It dispatches `change` when its state changes, and `question` when code asks for input. */
export class Cell extends EventTarget {
  /**
   * @param {object} options
   * @param {string} options.language - The language of the kernel.
   * @param {import('./outputs.js').Displays} options.displays
   * @param {number} options.order - The place of the execution among all.
   * @param {(code: string) => void} options.onReuse - The person wants to edit the code again.
   */
  constructor({ language, displays, order, onReuse }) {
    super();
    this.#language = language;
    this.#heading = element('h2.spoken');
    this.#number = element('span.number', { 'aria-hidden': 'true' });
    this.#time = element('span.time', { 'aria-hidden': 'true' });
    this.#code = element('pre.code');
    this.#fold = button('Show all lines', () => this.#toggle(), '.fold');
    this.#fold.hidden = true;
    const reuse = button('Edit', () => onReuse(this.code), '.reuse');
    reuse.title = 'Put this code into the editor';
    reuse.setAttribute('aria-label', 'Edit this code again');
    this.#outputs = new Outputs(displays, order);
    this.node = element(
      'li.cell',
      {},
      this.#heading,
      element(
        'div.input',
        {},
        element('div.gutter', {}, this.#number, this.#time),
        element('div.source', {}, this.#code, this.#fold, reuse)
      ),
      this.#outputs.node
    );
    this.#show();
  }

  /** The code, as far as it is known. */
  code = '';
  /** @type {CellState} */
  state = 'waiting';
  /** @type {number | null} */
  count = null;
  #language;
  #heading;
  #number;
  #time;
  #code;
  #fold;
  #outputs;
  /** @type {HTMLFormElement | null} */
  #form = null;
  /** When the kernel began. @type {number | null} */
  #started = null;
  /** How long it took. @type {number | null} */
  #took = null;
  /** The last line of output, for people who listen. */
  heard = '';

  /** @param {string} code */
  setCode(code) {
    this.code = code;
    this.#code.replaceChildren(
      ...highlight(code, this.#language).map(({ text, kind }) =>
        kind ? element(`span.code-${kind}`, {}, text) : document.createTextNode(text)
      )
    );
    const long = code.split('\n').length > FOLDED;
    this.#fold.hidden = !long;
    this.#code.classList.toggle('folded', long);
  }

  #toggle() {
    const folded = this.#code.classList.toggle('folded');
    this.#fold.textContent = folded ? 'Show all lines' : 'Show fewer lines';
  }

  /** Take the times of an execution that this page did not start. @param {any} model */
  setTimes({ started, ended, state, execution_count: count }) {
    this.#started = started ? Date.parse(started) : null;
    this.#took = started && ended ? Date.parse(ended) - Date.parse(started) : null;
    this.count = count;
    if (state === 'running') this.#set('running');
    this.#show();
  }

  /**
   * Show an execution of kbridge.js until its end.
   *
   * @param {any} execution
   */
  async follow(execution) {
    try {
      for await (const output of execution) {
        await this.#take(output);
      }
      const result = await execution.result;
      this.count = result.executionCount ?? this.count;
      await this.#payload(result.payload);
      this.#finish(result.status);
    } catch (error) {
      const message = /** @type {Error} */ (error).message;
      this.#outputs.notice(`No more output: ${message}.`, 'warning');
      this.#finish('lost');
    }
  }

  /** Remove what was shown, to follow the execution again. */
  reset() {
    this.#outputs.clear();
  }

  /** @param {any} output */
  async #take(output) {
    if (output.type === 'execute_input') {
      this.count = output.executionCount;
      if (output.code !== this.code) this.setCode(output.code);
      this.#started ??= Date.now();
      this.#set('running');
    } else if (output.type === 'input_request') {
      this.#ask(output);
    } else {
      this.#hear(output);
      await this.#outputs.add(output);
    }
  }

  /** @param {any} output */
  #hear(output) {
    if (output.type === 'stream') {
      const line = output.text
        .slice(-400)
        .trimEnd()
        .split(/[\r\n]/)
        .at(-1);
      this.heard = withoutColours(line ?? '') || this.heard;
    } else if (output.type === 'error') {
      this.heard = `${output.ename}: ${output.evalue}`.slice(0, 300);
    } else if (output.data) {
      const text = output.data['text/plain'];
      this.heard = typeof text === 'string' ? text.slice(0, 300) : 'an output that is not text';
    }
  }

  /** @param {any} request */
  #ask({ prompt, password, reply }) {
    this.#form?.remove();
    const label = prompt || 'Input';
    const field = element('input', {
      type: password ? 'password' : 'text',
      autocomplete: 'off',
      spellcheck: false,
      autocapitalize: 'off'
    });
    const form = element(
      'form.ask',
      {},
      element('label', {}, element('span', {}, label), field),
      element('button.primary', {}, 'Send')
    );
    form.onsubmit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#form = null;
      const { value } = field;
      const shown = password ? '········' : value;
      try {
        reply(value);
        form.replaceWith(element('div.text.stdout.answered', {}, `${prompt}${shown}`));
      } catch {
        form.replaceWith(element('p.notice', {}, 'Another client has answered.'));
      }
      this.dispatchEvent(new CustomEvent('answered'));
    };
    this.#form = form;
    this.#outputs.append(form);
    this.dispatchEvent(new CustomEvent('question', { detail: { field, prompt: label } }));
  }

  /** @param {Record<string, any>[]} payload */
  async #payload(payload) {
    for (const each of payload) {
      if (each.source === 'page' && each.data) {
        await this.#outputs.page(each.data);
      } else if (each.source === 'set_next_input' && typeof each.text === 'string') {
        this.dispatchEvent(new CustomEvent('next', { detail: each.text }));
      }
    }
  }

  /** @param {CellState} state */
  #finish(state) {
    this.#form?.remove();
    this.#form = null;
    if (this.#started !== null) this.#took ??= Date.now() - this.#started;
    if (state === 'aborted') {
      this.#outputs.notice(
        'Skipped, because an earlier execution failed or the kernel was restarted.'
      );
    }
    this.#set(state);
  }

  /** @param {CellState} state */
  #set(state) {
    if (state !== this.state) {
      this.state = state;
      this.dispatchEvent(new CustomEvent('change'));
    }
    this.#show();
  }

  /** True if it has not ended. */
  get open() {
    return this.state === 'waiting' || this.state === 'running';
  }

  /** Show the time that has passed. @param {number} now */
  tick(now) {
    if (this.state === 'running' && this.#started !== null) {
      const passed = now - this.#started;
      this.#time.textContent =
        passed > 1000 ? duration(passed - (passed % 1000)).replace('.0 s', ' s') : '';
    }
  }

  #show() {
    this.node.dataset.state = this.state;
    const number = this.count === null ? ' ' : String(this.count);
    this.#number.textContent = `[${this.open ? '*' : number}]`;
    this.#heading.textContent = `Input ${this.count ?? ''}: ${SAID[this.state]}`;
    if (this.state === 'waiting') {
      this.#time.textContent = 'queued';
    } else if (this.state === 'running') {
      this.tick(Date.now());
    } else {
      this.#time.textContent = this.#took === null ? '' : duration(this.#took);
    }
  }
}
