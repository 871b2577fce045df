/**
 * One execution that is restored into its cell: it decides when the cell shows what.
 *
 * A cell never shows less than its file had: JupyterLab may save the notebook at any time. So
 *
 * - the output of an execution that is over is shown all at once, and not at all if a part of it is
 *   missing and the file has more;
 * - the output that the file has of a running execution stays until at least as much has arrived.
 *   Output of an earlier run goes at once, as when JupyterLab runs a cell.
 *
 * No JupyterLab, no clock.
 */

import type { RestoredCell } from './cell';
import type { Feed } from './feed';
import { NOWHERE } from './feed';
import type { Execution } from './plan';
import { isOver, neverRan, sameCode } from './plan';
import { amountOf } from './same';

/** Milliseconds without a message after which a running execution counts as caught up. */
const QUIET = 200;

/** Milliseconds after which output is shown although more of the past is on its way. */
const PATIENCE = 1_000;

/**
 * Milliseconds without a message after which an execution is complete although its end has not
 * arrived: the server says that it is over, and its reply is there or never comes.
 */
const GRACE = 5_000;

/**
 * The same, without a reply that should come: the server delays text that exceeds its rate limit,
 * also that of the past.
 */
const SILENT = 60_000;

/** One execution and its cell. */
export class Entry {
  /**
   * @param execution - As the server describes it when the restoration begins.
   * @param _opened - True if the notebook has just been opened.
   */
  constructor(
    private _execution: Execution,
    readonly feed: Feed,
    readonly cell: RestoredCell,
    private readonly _opened: boolean
  ) {
    const waits = _execution.state === 'waiting';
    this._past = isOver(_execution);
    this.execution = _execution;
    this._caughtUp = waits;
    // JupyterLab takes the execution count away when it runs a cell: without one, the outputs may be
    // an earlier part of these.
    const kept = this._past || (!waits && cell.count === null);
    this._kept = amountOf(kept ? cell.outputs : []);
    if (!this._past) {
      cell.showRunning();
    }
  }

  /** The execution, as the server has described it last. */
  get execution(): Execution {
    return this._execution;
  }
  set execution(execution: Execution) {
    this._execution = execution;
    // If this page saved what another page shows as well, that one could not save it any longer
    // without a question to the person.
    this.cell.keepsClean = execution.connected && !(this._past && this._opened);
  }

  /** True if it was over before it was restored. */
  get past(): boolean {
    return this._past;
  }

  /** True if nothing more is done for it. */
  get settled(): boolean {
    return this._settled;
  }

  /** True if output of the past is on its way. */
  get catchingUp(): boolean {
    return !this._settled && (this._past || !this._caughtUp);
  }

  /** True if time alone may change something. */
  get waiting(): boolean {
    return (
      !this._settled &&
      (this.catchingUp || (this.feed.begun && this.feed.pending) || isOver(this._execution))
    );
  }

  /** Lines of output that have not arrived yet. */
  get linesBehind(): number {
    return this.catchingUp ? Math.max(0, this._execution.lines - this.feed.lines) : 0;
  }

  /**
   * Note that the code is known. Leaves the cell alone if its source is not the code that runs.
   *
   * @returns False if it is not.
   */
  compare(): boolean {
    const { source } = this.cell;
    const { code } = this.feed;
    if (source === null) {
      this._leave();
    } else if (code !== undefined && !sameCode(code, source)) {
      this._leave();
      return false;
    }
    return true;
  }

  /** Show what has arrived, if it is time.
   *
   * @param now - In milliseconds.
   * @param quiet - Milliseconds for which the websocket has been open without a message.
   */
  advance(now: number, quiet: number): void {
    if (this._settled) {
      this.refresh();
      return;
    }
    const { feed } = this;
    this._caughtUp ||= feed.begun && (feed.lines >= this._execution.lines || quiet > QUIET);
    if (this._isComplete(quiet)) {
      this.finish();
    } else if (
      !this._past &&
      (this._caughtUp || now - this._shown > PATIENCE) &&
      (!feed.fresh || quiet > GRACE || this._hasAsMuch())
    ) {
      this.show();
      this._shown = now;
    }
  }

  /** Show what has arrived. */
  show(): void {
    if (this.feed.code !== undefined || this._isOnlyPart()) {
      this.cell.apply(this.feed);
      this._owns = true;
    }
  }

  /** Show changes that are not new output, after the end: a display was updated. */
  refresh(): void {
    if (this._owns) {
      this.cell.apply(this.feed);
    }
  }

  /** Show the end of the execution. */
  finish(): void {
    this._settled = true;
    const { cell, feed, _execution: execution } = this;
    if (this._past && !this._isUsable()) {
      return;
    }
    if (feed.fresh && this._past && cell.shows(feed)) {
      feed.flush(NOWHERE); // it is all there
    } else if (
      this._past ||
      !feed.fresh ||
      (feed.headless ? !cell.hasOutputs : this._hasAsMuch())
    ) {
      cell.apply(feed);
    } else {
      feed.flush(NOWHERE); // the kernel ended before all had arrived that the file has
    }
    this._owns = true;
    const ended = execution.state === 'done' || execution.state === 'error';
    cell.showOver(feed.count ?? (ended ? execution.execution_count : null));
    cell.record(feed.timing);
  }

  /** The process of the kernel has ended: what was running does not go on. */
  stop(): void {
    if (!this._settled && !this._past) {
      this.finish();
    }
  }

  /** Leave the cell to a new execution. */
  release(): void {
    this._settled = true;
    this._owns = false;
    this.cell.stopAsking();
    this.cell.removeNote();
  }

  /** A person has cleared the outputs of the cell. */
  clear(): void {
    this.feed.clear();
    this.feed.flush(NOWHERE); // the cell has cleared itself
    this._kept = amountOf([]);
  }

  private _leave(): void {
    this._settled = true;
    this._owns = false;
    if (!this._past) {
      this.cell.showIdle();
    }
  }

  /** Return true if nothing more is expected of the execution. */
  private _isComplete(quiet: number): boolean {
    const { feed, _execution: execution } = this;
    if (feed.over || !isOver(execution)) {
      return feed.over;
    }
    if (execution.messages === 0) {
      return true; // the journal has nothing of it
    }
    // Of an execution that a restart has ended, neither a reply nor `idle` comes.
    const aborted = execution.state === 'aborted';
    return (aborted && feed.cut) || quiet > (aborted || feed.replied ? GRACE : SILENT);
  }

  /** Return true if the output of an execution of the past can replace that of the file. */
  private _isUsable(): boolean {
    const { cell, feed, _execution: execution } = this;
    if (feed.code === undefined) {
      return neverRan(execution) || this._isOnlyPart();
    }
    const whole = feed.over || feed.replied || feed.cut;
    return !(feed.headless && cell.hasOutputs) && (whole || this._hasAsMuch());
  }

  /** Return true if the journal has no longer the beginning, and the cell has nothing else. */
  private _isOnlyPart(): boolean {
    return this.feed.headless && (!this.feed.fresh || !this.cell.hasOutputs);
  }

  /** Return true if as much has arrived as the file has. */
  private _hasAsMuch(): boolean {
    const { text, others } = this.feed.amount;
    return text >= this._kept.text && others >= this._kept.others;
  }

  /** True if it was over before it was restored. */
  private readonly _past: boolean;

  /** The amount of output in the file that may be of this execution. */
  private _kept: { readonly text: number; readonly others: number };

  private _caughtUp: boolean;
  private _settled = false;
  private _owns = false; // the cell shows the outputs of the feed
  private _shown = 0;
}
