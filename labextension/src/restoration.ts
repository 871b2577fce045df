/** Restores some executions of one kernel into their cells, over one websocket. */

import type { TranslationBundle } from '@jupyterlab/translation';

import type { ExecutionsApi } from './api';
import type { RestoredCell } from './cell';
import type { Feed, Output } from './feed';
import { Feeds, NOWHERE } from './feed';
import type { Message } from './frames';
import type { Execution } from './plan';
import { isOver, neverRan, sameCode } from './plan';
import { Replay } from './replay';
import { Updates } from './updates';

/** Milliseconds for which messages are collected before the page is changed; at least. */
const TICK = 50;

/** The page may be changed for one part of the time in so many. */
const SHARE = 3;

/** Milliseconds without a message after which a running execution counts as caught up. */
const QUIET = 200;

/** Milliseconds after which output is shown although more of the past is on its way. */
const PATIENCE = 1_000;

/**
 * Milliseconds without a message after which nothing more is expected of what is over. The server
 * delays text that exceeds its rate limit, also that of the past.
 */
const SILENT = 60_000;

/** Milliseconds between two looks at the server, in case the end of an execution was lost. */
const CHECK = 5_000;

/** How a restoration reaches the rest of the page. */
export interface RestorationOptions {
  readonly api: ExecutionsApi;
  readonly kernel: string;
  readonly trans: TranslationBundle;

  /** Return a cell of the notebook. */
  readonly cell: (id: string) => RestoredCell;

  /** Called when `catchingUp`, `linesBehind` or `over` may have changed. */
  readonly onChange: () => void;
}

/** One execution and its cell. */
interface Entry {
  execution: Execution;
  readonly feed: Feed;
  readonly cell: RestoredCell;

  /** True if it was over before it was restored: then it is shown all at once, or not touched. */
  readonly past: boolean;

  /** The outputs that the cell had, if they were cleared before the code was known. */
  readonly before: Output[] | null;

  /** True once live: nothing is behind. */
  caughtUp: boolean;

  /** Time of the last change of the cell; 0 if it shows nothing of the execution. */
  shown: number;

  /** Nothing more is done for it. */
  settled: boolean;
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
      this._entries.set(execution.id, this._begin(execution));
    }
    this._heard = performance.now();
    this._replay = new Replay(options.api, options.kernel, ids, {
      onMessage: message => this._onMessage(message),
      onEnd: () => {
        this.end();
        options.onChange();
      }
    });
    this._scheduleTick(TICK);
    this._scheduleCheck(CHECK);
  }

  /** True if all executions are over, or left alone. */
  get over(): boolean {
    return this._over;
  }

  /** True if output of the past is on its way. */
  get catchingUp(): boolean {
    return this._open().some(entry => entry.past || !entry.caughtUp);
  }

  /** Lines of output that the page does not have yet. */
  get linesBehind(): number {
    let lines = 0;
    for (const { execution, feed, caughtUp } of this._open()) {
      lines += caughtUp ? 0 : Math.max(0, execution.lines - feed.lines);
    }
    return lines;
  }

  /** A new execution of a cell replaces the one that is restored here. */
  release(cell: string): void {
    for (const entry of this._entries.values()) {
      if (entry.cell.id === cell) {
        this._feeds.drop(entry.execution.id);
        entry.settled = true;
        entry.shown = 0;
        entry.cell.stopAsking();
        entry.cell.removeNote();
      }
    }
    this._settle();
  }

  /** A person has cleared the outputs of a cell. */
  clear(cell: string): void {
    for (const entry of this._entries.values()) {
      if (entry.cell.id === cell) {
        entry.feed.clear();
        entry.feed.flush(NOWHERE); // the cell has cleared itself
      }
    }
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
    this._scheduleCheck(QUIET);
  }

  /** The process of the kernel ends: what it runs does not go on. */
  stopRunning(): void {
    for (const entry of this._open()) {
      if (!entry.past) {
        this._finish(entry);
      }
    }
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

  private _begin(execution: Execution): Entry {
    const cell = this.options.cell(execution.cell_id as string);
    const waits = execution.state === 'waiting';
    const entry: Entry = {
      execution,
      feed: this._feeds.get(execution.id) as Feed,
      cell,
      past: isOver(execution),
      before: waits ? cell.outputs : null,
      caughtUp: waits,
      shown: 0,
      settled: false
    };
    if (waits) {
      cell.showSubmitted();
    } else if (!entry.past) {
      cell.showRunning();
    }
    return entry;
  }

  /** The entries that are not settled. */
  private _open(): Entry[] {
    return [...this._entries.values()].filter(entry => !entry.settled);
  }

  private _onMessage(message: Message): void {
    this._heard = performance.now();
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

  /** Leave a cell alone if its source is not the code that runs. */
  private _compare(entry: Entry): void {
    const source = entry.cell.source;
    if (source === null) {
      this._leave(entry);
    } else if (entry.feed.code !== undefined && !sameCode(entry.feed.code, source)) {
      this._leave(entry);
      void entry.cell.note(
        this.options.trans.__(
          'This cell was changed after it ran; its earlier output was not restored.'
        )
      );
    }
  }

  private _leave(entry: Entry): void {
    entry.settled = true;
    entry.shown = 0;
    this._feeds.drop(entry.execution.id);
    if (entry.before) {
      entry.cell.outputs = entry.before;
    }
    if (!entry.past) {
      entry.cell.showIdle();
    }
    this._settle();
  }

  private _ask(entry: Entry, message: Message): void {
    entry.cell.apply(entry.feed); // the question comes after the output so far
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
    for (const entry of this._entries.values()) {
      if (!entry.settled) {
        this._advance(entry, begin);
      } else if (entry.shown) {
        entry.cell.apply(entry.feed); // a display was updated after the end
      }
    }
    this._settle();
    // Until the next task, the browser also lays out what was changed.
    window.setTimeout(() => {
      this._tickTimer = 0;
      this._pause = Math.max(TICK, SHARE * (performance.now() - begin));
      if (this._open().some(entry => entry.past || !entry.caughtUp || entry.feed.pending)) {
        this._scheduleTick(TICK);
      }
    });
    this.options.onChange();
  }

  private _advance(entry: Entry, now: number): void {
    const { execution, feed } = entry;
    const quiet = now - this._heard;
    entry.caughtUp ||= feed.begun && (feed.lines >= execution.lines || quiet > QUIET);
    const lost = execution.state === 'aborted' && quiet > QUIET; // its end may never have come
    if (feed.over || (entry.past && (execution.messages === 0 || quiet > SILENT))) {
      this._finish(entry);
    } else if (entry.past ? lost : entry.caughtUp || now - entry.shown > PATIENCE) {
      this._show(entry);
    }
  }

  /** Show what has arrived. */
  private _show(entry: Entry): void {
    const { cell, feed, past } = entry;
    const known = feed.code !== undefined || feed.headless;
    if (known && !(past && feed.fresh && cell.shows(feed))) {
      cell.apply(feed);
      entry.shown = performance.now();
    }
  }

  /** Show the end of an execution. */
  private _finish(entry: Entry): void {
    entry.settled = true;
    const { cell, feed, execution } = entry;
    const ended = execution.state === 'done' || execution.state === 'error';
    const count = feed.count ?? (ended ? execution.execution_count : null);
    if (!entry.past) {
      cell.apply(feed);
    } else if (feed.code === undefined && !neverRan(execution)) {
      return; // the journal has nothing of it any longer
    } else if (feed.headless && cell.hasOutputs) {
      return; // the file may have more of it than the journal
    } else if (feed.fresh && cell.shows(feed)) {
      feed.flush(NOWHERE); // it is all there
    } else {
      cell.apply(feed);
    }
    entry.shown = performance.now();
    cell.showOver(count);
    cell.record(feed.timing);
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
    this._feeds.update(message);
    for (const { cell, feed, shown } of this._entries.values()) {
      if (shown) {
        cell.apply(feed);
      }
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
    try {
      const executions = await this.options.api.list(this.options.kernel);
      const byId = new Map(executions?.map(execution => [execution.id, execution]));
      for (const entry of this._open()) {
        entry.execution = byId.get(entry.execution.id) ?? entry.execution;
        const silent = performance.now() - this._heard > QUIET;
        if (!entry.past && silent && isOver(entry.execution)) {
          this._finish(entry);
        }
      }
    } catch (error) {
      console.debug('kbridge: executions cannot be read', error);
    }
    this._settle();
    this._scheduleCheck(CHECK);
  }

  private readonly _entries = new Map<string, Entry>();
  private readonly _feeds: Feeds;
  private readonly _replay: Replay;
  private readonly _updates = new Updates();
  private _over = false;
  private _heard: number;
  private _tickTimer = 0;
  private _checkTimer = 0;
  private _pause = 0;
}
