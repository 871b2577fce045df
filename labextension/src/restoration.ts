/** Restores some executions of one kernel into their cells, over one websocket. */

import type { TranslationBundle } from '@jupyterlab/translation';

import type { ExecutionsApi } from './api';
import { Backoff } from './backoff';
import type { RestoredCell } from './cell';
import { Entry } from './entry';
import type { Feed } from './feed';
import { Feeds } from './feed';
import type { Message } from './frames';
import type { Execution } from './plan';
import { isOver } from './plan';
import { Replay } from './replay';
import { Updates } from './updates';
import { isValid } from './valid';

/** Milliseconds for which messages are collected before the page is changed; at least. */
const TICK = 50;

/** The page may be changed for one part of the time in so many. */
const SHARE = 3;

/**
 * Milliseconds between two looks at the server, in case the end of an execution was lost; doubled
 * as long as the executions go on.
 */
const CHECK = 5_000;
const MAX_CHECK = 60_000;

/** Milliseconds until a look at the server after an event: often several come together. */
const SOON = 200;

/**
 * Milliseconds without a message that one look at the clock can add. While the page is busy, it
 * receives nothing, although messages have arrived.
 */
const STEP = 1_000;

/** How a restoration reaches the rest of the page. */
export interface RestorationOptions {
  readonly api: ExecutionsApi;
  readonly kernel: string;
  readonly trans: TranslationBundle;

  /** True if the notebook has just been opened. */
  readonly opened: boolean;

  /** Return a cell of the notebook. */
  readonly cell: (id: string) => RestoredCell;

  /** Called when `catchingUp`, `linesBehind` or `over` may have changed. */
  readonly onChange: () => void;
}

/** The restoration of some executions. */
export class Restoration {
  /** @param executions - At most 100, in the order in which they were submitted. */
  constructor(
    executions: readonly Execution[],
    private readonly options: RestorationOptions
  ) {
    const ids = executions.map(execution => execution.id);
    this._feeds = new Feeds(ids);
    for (const execution of executions) {
      const feed = this._feeds.get(execution.id) as Feed;
      const cell = options.cell(execution.cell_id as string);
      this._entries.set(execution.id, new Entry(execution, feed, cell, options.opened));
    }
    this._replay = new Replay(options.api, options.kernel, ids, {
      onMessage: message => this._onMessage(message),
      onEnd: () => {
        this.end();
        options.onChange();
      }
    });
    this._scheduleTick(TICK);
    this._scheduleCheck(this._backoff.next());
  }

  /** True if all executions are over, or left alone. */
  get over(): boolean {
    return this._over;
  }

  /** True if output of the past is on its way. */
  get catchingUp(): boolean {
    return !this._over && this._open().some(entry => entry.catchingUp);
  }

  /** The executions that are not restored to their end. */
  get unfinished(): string[] {
    return this._open().map(entry => entry.feed.id);
  }

  /** True if nothing can change any more. */
  get final(): boolean {
    return this._over && !this._feeds.all().some(feed => feed.hasDisplays);
  }

  /** Lines of output that the page does not have yet. */
  get linesBehind(): number {
    return this._open().reduce((lines, entry) => lines + entry.linesBehind, 0);
  }

  /** A new execution of a cell replaces the one that is restored here. */
  release(cell: string): void {
    this._of(cell).forEach(entry => this._drop(entry));
    this._settle();
  }

  /** A person has cleared the outputs of a cell. */
  clear(cell: string): void {
    for (const entry of this._of(cell)) {
      if (entry.past) {
        this._drop(entry);
      } else {
        entry.clear();
      }
    }
    this._settle();
  }

  /** Change displays for a message of the page's own connection. */
  update(message: Message): void {
    if (this._over) {
      this._applyUpdate(message);
    } else {
      this._updates.hold(message);
    }
  }

  /** Look at the server soon: executions may have ended without a message (a restart). */
  check(): void {
    this._backoff.reset();
    this._scheduleCheck(SOON);
  }

  /** The process of the kernel ends: what it runs does not go on. */
  stopRunning(): void {
    this._open().forEach(entry => entry.stop());
    this._settle();
  }

  /** The kernel is gone. */
  end(): void {
    this.stopRunning();
    this.dispose();
  }

  /** Stop. The cells stay as they are. */
  dispose(): void {
    window.clearTimeout(this._tickTimer);
    window.clearTimeout(this._checkTimer);
    this._replay.close();
    this._over = true;
    for (const { cell } of this._entries.values()) {
      cell.stopAsking();
    }
  }

  /** The entries that are not settled. */
  private _open(): Entry[] {
    return [...this._entries.values()].filter(entry => !entry.settled);
  }

  private _drop(entry: Entry): void {
    entry.release();
    this._feeds.drop(entry.feed.id);
  }

  private _of(cell: string): Entry[] {
    return [...this._entries.values()].filter(entry => entry.cell.id === cell);
  }

  private _onMessage(message: Message): void {
    this._quiet = 0;
    if (!isValid(message)) {
      console.warn('kbridge: a message of the kernel cannot be shown', message);
      return;
    }
    this._updates.received(message);
    const feed = this._feeds.handle(message);
    const entry = feed && this._entries.get(feed.id);
    if (message.header.msg_type === 'status' && !message.parent_header.msg_id) {
      this.check(); // restarted or dead: what was running does not go on
    }
    if (entry && !entry.settled) {
      if (message.header.msg_type === 'execute_input') {
        this._compare(entry);
      } else if (message.header.msg_type === 'input_request') {
        this._ask(entry, message);
      }
    }
    this._scheduleTick(TICK);
  }

  private _compare(entry: Entry): void {
    if (!entry.compare()) {
      void entry.cell.note(
        this.options.trans.__(
          'This cell was changed after it ran; its earlier output was not restored.'
        )
      );
    }
    if (entry.settled) {
      this._feeds.drop(entry.feed.id);
      this._settle();
    }
  }

  private _ask(entry: Entry, message: Message): void {
    entry.show(); // the question comes after the output so far
    void entry.cell.ask({
      header: message.header,
      prompt: String(message.content.prompt ?? ''),
      password: message.content.password === true,
      send: value => this._replay.reply(message.header, value),
      echo: text => {
        entry.feed.add({ output_type: 'stream', name: 'stdin', text });
        this._scheduleTick(0);
      }
    });
  }

  private _scheduleTick(delay: number): void {
    if (!this._tickTimer && !this._over) {
      this._tickTimer = window.setTimeout(() => this._tick(), Math.max(delay, this._pause));
    }
  }

  /** Change the page. */
  private _tick(): void {
    const begin = performance.now();
    this._quiet = this._replay.open ? this._quiet + Math.min(STEP, begin - this._ticked) : 0;
    this._ticked = begin;
    for (const entry of this._entries.values()) {
      try {
        entry.advance(begin, this._quiet);
      } catch (error) {
        console.error('kbridge: the output of a cell cannot be restored', error);
        this._drop(entry);
        entry.cell.showIdle();
      }
    }
    this._settle();
    // Until the next task, the browser also lays out what was changed.
    window.setTimeout(() => {
      this._tickTimer = 0;
      this._pause = Math.max(TICK, SHARE * (performance.now() - begin));
      if (this._open().some(entry => entry.waiting)) {
        this._scheduleTick(TICK);
      }
    });
    this.options.onChange();
  }

  /** End, if all is settled. */
  private _settle(): void {
    if (this._over || this._open().length > 0) {
      return;
    }
    this._over = true;
    window.clearTimeout(this._checkTimer);
    this._replay.close();
    for (const message of this._updates.release()) {
      this._applyUpdate(message);
    }
    this.options.onChange();
  }

  private _applyUpdate(message: Message): void {
    if (isValid(message)) {
      this._feeds.update(message);
      this._entries.forEach(entry => entry.refresh());
    }
  }

  private _scheduleCheck(delay: number): void {
    window.clearTimeout(this._checkTimer);
    if (!this._over) {
      this._checkTimer = window.setTimeout(() => void this._check(), delay);
    }
  }

  /** Ask the server which executions are over, for those that do not say so themselves. */
  private async _check(): Promise<void> {
    const { api, kernel } = this.options;
    try {
      const open = await api.list(kernel, { state: 'waiting,running' });
      const byId = new Map(open?.map(execution => [execution.id, execution]));
      for (const entry of open ? this._open() : []) {
        if (!isOver(entry.execution)) {
          const { id, state } = entry.execution;
          entry.execution = byId.get(id) ?? (await api.get(kernel, id)) ?? entry.execution;
          if (entry.execution.state !== state) {
            this._backoff.reset(); // the next one of a queue may end soon
          }
        }
      }
    } catch (error) {
      console.debug('kbridge: executions cannot be read', error);
    }
    this._scheduleTick(0);
    this._scheduleCheck(this._backoff.next());
  }

  private readonly _entries = new Map<string, Entry>();
  private readonly _feeds: Feeds;
  private readonly _replay: Replay;
  private readonly _updates = new Updates();
  private readonly _backoff = new Backoff(CHECK, MAX_CHECK);
  private _over = false;
  private _quiet = 0; // milliseconds without a message
  private _ticked = performance.now();
  private _tickTimer = 0;
  private _checkTimer = 0;
  private _pause = 0;
}
