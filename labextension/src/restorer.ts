/** Restores the notebooks of an application. */

import type { INotebookTracker, Notebook, NotebookPanel } from '@jupyterlab/notebook';
import type { ITranslator } from '@jupyterlab/translation';
import type { ISignal } from '@lumino/signaling';
import { NotebookActions } from '@jupyterlab/notebook';
import { Signal } from '@lumino/signaling';

import type { ExecutionsApi } from './api';
import { NotebookRestorer } from './notebook';
import type { IRestorer, RestoreState } from './state';
import { IDLE } from './state';

/** What the restorer needs of the application. */
export interface RestorerOptions {
  readonly tracker: INotebookTracker;
  readonly api: ExecutionsApi;
  readonly translator: ITranslator;
}

/** The restorer. */
export class Restorer implements IRestorer {
  constructor(private readonly options: RestorerOptions) {
    options.tracker.widgetAdded.connect((_, panel) => this._add(panel));
    options.tracker.forEach(panel => this._add(panel));
    NotebookActions.executionScheduled.connect((_, { notebook, cell }) =>
      this._find(notebook)?.onScheduled(cell.model.id)
    );
    NotebookActions.executed.connect((_, { notebook, cell }) =>
      this._find(notebook)?.onExecuted(cell.model.id)
    );
    NotebookActions.outputCleared.connect((_, { notebook, cell }) =>
      this._find(notebook)?.onCleared(cell.model.id)
    );
  }

  /** False until the settings are known, so that a person who wants nothing restored gets nothing. */
  get enabled(): boolean {
    return this._enabled;
  }
  set enabled(enabled: boolean) {
    this._enabled = enabled;
    if (enabled) {
      this.options.tracker.forEach(panel => this._add(panel));
    }
  }

  /** Emits a notebook when its state has changed. */
  get changed(): ISignal<IRestorer, NotebookPanel> {
    return this._changed;
  }

  state(panel: NotebookPanel): RestoreState {
    return this._restorers.get(panel.context)?.state ?? IDLE;
  }

  private _add(panel: NotebookPanel): void {
    if (panel.isDisposed || !this._enabled) {
      return;
    }
    const { context } = panel;
    // Two views of one notebook have one model: it is restored once.
    if (!this._restorers.has(context)) {
      const restorer = new NotebookRestorer({
        panel,
        api: this.options.api,
        translator: this.options.translator,
        onChange: () => this._emit(context)
      });
      this._restorers.set(context, restorer);
      panel.disposed.connect(() => {
        restorer.dispose();
        this._restorers.delete(context);
        const other = this._panels().find(candidate => candidate.context === context);
        if (other) {
          this._add(other);
        }
      });
    }
    this._emit(context);
  }

  private _emit(context: NotebookPanel['context']): void {
    this._panels()
      .filter(panel => panel.context === context)
      .forEach(panel => this._changed.emit(panel));
  }

  private _find(notebook: Notebook): NotebookRestorer | undefined {
    const panel = this._panels().find(candidate => candidate.content === notebook);
    return panel && this._restorers.get(panel.context);
  }

  private _panels(): NotebookPanel[] {
    return this.options.tracker.filter(panel => !panel.isDisposed);
  }

  private readonly _changed = new Signal<IRestorer, NotebookPanel>(this);
  private readonly _restorers = new Map<NotebookPanel['context'], NotebookRestorer>();
  private _enabled = false;
}
