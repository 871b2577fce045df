// @ts-check
// The executions of a kernel, those of other clients included, as a list of cells.

import { Cell } from './cell.js';
import { button, element } from './dom.js';
import { Displays } from './outputs.js';

/** Executions that are shown when the page opens; earlier ones on demand. */
const RECENT = 40;
/** Executions that have ended and are read at the same time, each over a websocket. */
const AT_ONCE = 4;
/** Executions of other clients that are followed live at the same time. */
const LIVE = 8;
/** Cells on the page; older ones are removed, and shown again on demand. */
const MOST = 200;
/** Executions of other clients that wait for being looked up; older ones are shown after a reload. */
const WAITING = 1000;
/** The newest executions, among which a live one is looked up. */
const NEWEST = 100;

/**
 * The cells. Events: `question`, `next` and `state`, whose `detail` has the cell as `cell`.
 *
 * An execution of this page is read from its own websocket, any other one is followed if the server
 * knows it. A kernel may name others, or any number of them, so nothing here grows with their number.
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
        this.#arrived.add(id);
        if (this.#arrived.size > WAITING) {
          this.#arrived.delete(/** @type {string} */ (this.#arrived.values().next().value));
        }
        void this.#lookUp();
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
  /** Executions of other clients that the server has not confirmed. @type {Set<string>} */
  #arrived = new Set();
  #lookingUp = false;
  /** Cells that are followed when there is a place. @type {{id: string, cell: Cell}[]} */
  #queue = [];
  #followed = 0;
  #most = MOST;
  /** How many executions are known to be before the first cell. */
  #earlier = 0;
  /** @type {HTMLElement | null} */
  #offered = null;

  /** Run code in a new cell. @param {string} code */
  run(code) {
    const execution = this.#kernel.execute(code, { allowInput: true });
    const cell = this.#show(this.#add(execution.id, this.#next++));
    cell.setCode(code);
    void cell.follow(execution);
    this.#trim();
    return cell;
  }

  /** Show the executions that have arrived, if the server knows them. */
  async #lookUp() {
    if (this.#lookingUp) {
      return;
    }
    this.#lookingUp = true;
    while (this.#arrived.size) {
      const ids = [...this.#arrived];
      const known = await this.#known(Math.max(NEWEST, 2 * ids.length));
      for (const id of ids) {
        this.#arrived.delete(id);
        if ((!known || known.has(id)) && !this.#cells.has(id)) {
          const cell = this.#show(this.#add(id, this.#next++));
          this.#queue.push({ id, cell });
        }
      }
      this.#followNext();
      this.#trim();
    }
    this.#lookingUp = false;
  }

  /** Return the ids of the newest executions; null if the server does not say. @param {number} limit */
  async #known(limit) {
    try {
      const models = await this.#kernel.executions({ limit });
      return new Set(models.map((/** @type {any} */ { id }) => id));
    } catch {
      return null;
    }
  }

  #followNext() {
    while (this.#queue.length && this.#followed < LIVE) {
      const { id, cell } = /** @type {{id: string, cell: Cell}} */ (this.#queue.shift());
      this.#followed++;
      void cell.follow(this.#kernel.follow(id)).then(() => {
        this.#followed--;
        this.#followNext();
      });
    }
  }

  /** Remove the oldest cells that have ended, and the marks before them. */
  #trim() {
    for (const [id, cell] of this.#cells) {
      const { node } = cell;
      if (this.#cells.size <= this.#most) {
        break;
      }
      if (cell.open || node.contains(document.activeElement)) {
        continue;
      }
      while (node.previousElementSibling?.matches('.mark')) node.previousElementSibling.remove();
      node.remove();
      this.#cells.delete(id);
      this.#offer(this.#earlier + 1);
    }
  }

  /** Show the executions that the server knows. */
  async restore() {
    const models = await this.#kernel.executions();
    const known = models.filter((/** @type {any} */ { id }) => !this.#cells.has(id));
    await this.#load(known);
  }

  /** Show the last of some executions before the first cell. @param {any[]} known */
  async #load(known) {
    const models = known.slice(-RECENT);
    this.#first -= models.length;
    const after = this.#cells;
    this.#cells = new Map();
    const cells = models.map((model, i) => {
      const cell = this.#add(model.id, this.#first + i);
      cell.setTimes(model);
      return { id: model.id, cell };
    });
    after.forEach((cell, id) => this.#cells.set(id, cell)); // the oldest is first
    this.#list.prepend(...cells.map(({ cell }) => cell.node));
    this.#offer(known.length - models.length);
    // Those that run come first, the oldest of them first, as the kernel runs them. Of the others,
    // the newest are in view.
    const ended = cells.filter(({ cell }) => !cell.open).reverse();
    this.#queue.push(...cells.filter(({ cell }) => cell.open));
    this.#followNext();
    const followAll = async () => {
      for (let each = ended.shift(); each; each = ended.shift()) {
        await each.cell.follow(this.#kernel.follow(each.id));
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, followAll));
  }

  /** Offer the executions before the first cell. @param {number} count */
  #offer(count) {
    this.#earlier = count;
    this.#offered?.remove();
    this.#offered = null;
    if (!count) {
      return;
    }
    const shown = Math.min(RECENT, count);
    const show = button(`Show ${shown} earlier execution${shown === 1 ? '' : 's'}`, () =>
      this.#showEarlier()
    );
    const item = element('li.earlier', {}, show);
    this.#offered = item;
    this.#list.prepend(item);
  }

  async #showEarlier() {
    /** @type {any[]} */
    let models;
    try {
      models = await this.#kernel.executions();
    } catch {
      return; // the button stays
    }
    this.#most += RECENT;
    const first = models.findIndex(({ id }) => this.#cells.has(id));
    await this.#load(models.slice(0, Math.max(0, first)));
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
