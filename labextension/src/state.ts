/**
 * What restoring does for a notebook, as the status bar shows it.
 *
 * `restorer.ts` writes it, `status.ts` reads it; neither imports the other.
 */

import type { NotebookPanel } from '@jupyterlab/notebook';
import type { ISignal } from '@lumino/signaling';

/**
 * `idle`: nothing is restored. `catching-up`: output that the page missed is on its way.
 * `restored`: it has all arrived (also while its executions go on, and if nothing was missing).
 */
export type Phase = 'idle' | 'catching-up' | 'restored';

/** The state of one notebook. Replaced, never changed. */
export interface RestoreState {
  readonly phase: Phase;

  /** Lines of output that the page has not received yet; at least 0. */
  readonly linesBehind: number;

  /** Number of cells whose output is or was restored. */
  readonly cells: number;
}

/** The state of a notebook of which nothing is restored. */
export const IDLE: RestoreState = { phase: 'idle', linesBehind: 0, cells: 0 };

/** Restores notebooks, and tells how far it is. */
export interface IRestorer {
  /** False: nothing is restored in notebooks that are opened from now on. */
  enabled: boolean;

  /** Return the state of a notebook; `IDLE` if the restorer does not know it. */
  state(panel: NotebookPanel): RestoreState;

  /** Emits a notebook when its state has changed. */
  readonly changed: ISignal<IRestorer, NotebookPanel>;
}
