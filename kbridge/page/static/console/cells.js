// @ts-check
// The executions of a kernel, those of other clients included, as a list of cells.

import { Cell } from './cell.js';
import { button, element } from './dom.js';
import { Displays } from './outputs.js';

/** Executions that are shown when the page opens; earlier ones on demand. */
const RECENT = 40;
/** Executions that are read at the same time, each over a websocket. */
const AT_ONCE = 4;

/**
 * The cells. Events: `question`, `next` and `state`, whose `detail` has the cell as `cell`.
 *
 * An execution of this page is read from its own websocket, any other one is followed.
 */
export class Cells extends EventTarget {
  /**
   * @param {HTMLElement} list
   * @param {any} kernel - A kernel of kbridge.js.
   * @param {(code: string) => void} onReuse
   */
  constructor(list, kernel, onReuse) {
    super();
    this.#list = list;
    this.#kernel = kernel;
    this.#onReuse = onReuse;
    kernel.addEventListener('message', (/** @type {CustomEvent} */ { detail }) => {
      const id = detail.parent_header.msg_id;
      if (detail.header.msg_type === 'execute_input' && id && !this.#cells.has(id)) {
        void this.#show(this.#add(id, this.#next++)).follow(kernel.follow(id));
      }
    });
    setInterval(() => this.#tick(), 1000);
  }

  language = '';
  #list;
  #kernel;
  #onReuse;
  #displays = new Displays();
  /** @type {Map<string, Cell>} */
  #cells = new Map();
  /** The place of the next cell; earlier ones that are loaded later have negative places. */
  #next = 0;
  #first = 0;

  /** Run code in a new cell. @param {string} code */
  run(code) {
    const execution = this.#kernel.execute(code, { allowInput: true });
    const cell = this.#show(this.#add(execution.id, this.#next++));
    cell.setCode(code);
    void cell.follow(execution);
    return cell;
  }

  /** Show the executions that the server knows. */
  async restore() {
    const models = await this.#kernel.executions();
    const known = models.filter((/** @type {any} */ { id }) => !this.#cells.has(id));
    await this.#load(known.slice(-RECENT), known.slice(0, -RECENT));
  }

  /** @type {(models: any[], earlier: any[]) => Promise<void>} */
  async #load(models, earlier) {
    this.#first -= models.length;
    const cells = models.map((model, i) => {
      const cell = this.#add(model.id, this.#first + i);
      cell.setTimes(model);
      return { id: model.id, cell };
    });
    this.#list.prepend(...cells.map(({ cell }) => cell.node));
    if (earlier.length) {
      this.#offer(earlier);
    }
    // Those that run come first, then the newest, which are in view.
    const order = cells.reverse().sort((a, b) => Number(b.cell.open) - Number(a.cell.open));
    const running = order.filter(({ cell }) => cell.open);
    const ended = order.filter(({ cell }) => !cell.open);
    const followAll = async () => {
      for (let each = ended.shift(); each; each = ended.shift()) {
        await each.cell.follow(this.#kernel.follow(each.id));
      }
    };
    running.forEach(({ id, cell }) => void cell.follow(this.#kernel.follow(id)));
    await Promise.all(Array.from({ length: AT_ONCE }, followAll));
  }

  /** @param {any[]} earlier */
  #offer(earlier) {
    const count = Math.min(RECENT, earlier.length);
    const show = button(`Show ${count} earlier execution${count === 1 ? '' : 's'}`, () => {
      item.remove();
      void this.#load(earlier.slice(-RECENT), earlier.slice(0, -RECENT));
    });
    const item = element('li.earlier', {}, show);
    this.#list.prepend(item);
  }

  /** @type {(id: string, order: number) => Cell} */
  #add(id, order) {
    const cell = new Cell({
      language: this.language,
      displays: this.#displays,
      order,
      onReuse: this.#onReuse
    });
    this.#cells.set(id, cell);
    cell.addEventListener('question', event => this.#tell('question', cell, event));
    cell.addEventListener('answered', event => this.#tell('answered', cell, event));
    cell.addEventListener('next', event => this.#tell('next', cell, event));
    cell.addEventListener('change', event => this.#tell('state', cell, event));
    return cell;
  }

  /** @param {Cell} cell */
  #show(cell) {
    this.#list.append(cell.node);
    return cell;
  }

  /** @type {(name: string, cell: Cell, event: Event) => void} */
  #tell(name, cell, event) {
    const { detail } = /** @type {CustomEvent} */ (event);
    this.dispatchEvent(new CustomEvent(name, { detail: { cell, detail } }));
  }

  /** Add a line between the cells. @param {string} text */
  mark(text) {
    this.#list.append(element('li.mark', {}, element('span', {}, text)));
  }

  get empty() {
    return !this.#cells.size;
  }

  #tick() {
    const now = Date.now();
    this.#cells.forEach(cell => cell.tick(now));
  }
}
