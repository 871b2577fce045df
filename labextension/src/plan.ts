/**
 * Decides which executions are restored into which cells. No JupyterLab, no I/O.
 */

/** An execution, as kbridge's REST API describes it. */
export interface Execution {
  id: string;
  session_id: string;
  cell_id: string | null;
  state: 'waiting' | 'running' | 'done' | 'error' | 'aborted';
  execution_count: number | null;
  messages: number;
  lines: number;
  output_bytes: number;

  /** When it ended, in ISO 8601. */
  ended: string | null;

  /** True if it showed a display with an id, which later executions may have changed. */
  displays?: boolean;

  /** True if a websocket of the session that sent the request is attached. */
  connected: boolean;
}

/** The facts of a notebook in a page on which a plan depends. */
export interface Situation {
  /** The code cells: id and execution count. */
  cells: ReadonlyMap<string, number | null>;

  /**
   * When the file was written that the page has loaded, in ISO 8601; null if that is not known, or if
   * its clock is not that of the kernel's server.
   */
  saved: string | null;

  /** The session of this page's own kernel connection: JupyterLab shows its output itself. */
  session: string;

  /** Executions that this page restores or has restored, or must not restore. */
  known: ReadonlySet<string>;

  /** Cells that this page runs, although the server may not have the request yet. */
  scheduled: ReadonlySet<string>;

  /** True if the document is shared, so that other pages see the changes of this one. */
  shared: boolean;

  /** True if this page is the one that restores a shared document. */
  feeds: boolean;
}

/** Return true if an execution has ended, well or not. */
export function isOver(execution: Execution): boolean {
  return execution.state !== 'waiting' && execution.state !== 'running';
}

/** Return true if an execution ended before the kernel began with its code. */
export function neverRan(execution: Execution): boolean {
  return execution.state === 'aborted' && execution.execution_count === null;
}

/**
 * Milliseconds by which the clocks of the server and of its file system may differ. A file that was
 * written sooner after the end is compared with the output.
 */
const SAVED_AFTER = 60_000;

/**
 * Return true if the file has all output of an execution, or newer output, so that none needs to be
 * sent.
 *
 * JupyterLab writes the execution count into a cell when it has the whole output, and takes it out
 * when the cell is run again. The count alone is not enough: after a restart, the kernel counts from
 * 1 again. With another count, another program has run the cell since, on another kernel. Displays
 * with an id may have changed after the end.
 */
export function isSaved(execution: Execution, count: number | null, saved: string | null): boolean {
  return (
    isOver(execution) &&
    count !== null &&
    (execution.execution_count !== count || execution.displays === false) &&
    execution.ended !== null &&
    saved !== null &&
    Date.parse(saved) - Date.parse(execution.ended) >= SAVED_AFTER
  );
}

/**
 * Return the executions to restore, in the order in which they were submitted.
 *
 * The newest execution of a cell decides: an older one has been replaced, so nothing of it is
 * shown.
 *
 * @param executions - All executions of the kernel, newest last.
 */
export function plan(executions: readonly Execution[], situation: Situation): Execution[] {
  const newest = new Map<string, Execution>();
  for (const execution of executions) {
    if (execution.cell_id !== null && situation.cells.has(execution.cell_id)) {
      newest.delete(execution.cell_id); // so that the map is in the order of the newest ones
      newest.set(execution.cell_id, execution);
    }
  }
  return [...newest.values()].filter(
    execution =>
      execution.session_id !== situation.session &&
      !situation.scheduled.has(execution.cell_id as string) &&
      !situation.known.has(execution.id) &&
      !isSaved(
        execution,
        situation.cells.get(execution.cell_id as string) ?? null,
        situation.saved
      ) &&
      (!situation.shared || (situation.feeds && !execution.connected))
  );
}

/**
 * Return true if the code that ran is the source of a cell.
 *
 * White space at the end does not count: some kernels echo the code without it.
 */
export function sameCode(executed: string, source: string): boolean {
  return executed === source || executed.trimEnd() === source.trimEnd();
}
