/**
 * Which of the pages that share a document restores it.
 *
 * All pages see the changes of one, so two would show everything twice. Of the pages that have this
 * extension, the one with the lowest client id restores.
 */

import type { NotebookPanel } from '@jupyterlab/notebook';
import type { IDisposable } from '@lumino/disposable';

/** The part of Yjs's awareness that is needed. */
interface Awareness {
  readonly clientID: number;
  getStates(): Map<number, Record<string, unknown>>;
  setLocalStateField(field: string, value: unknown): void;
  on(event: 'change', listener: () => void): void;
  off(event: 'change', listener: () => void): void;
}

/** The field by which pages with this extension know each other. */
const FIELD = 'kbridge';

/** A document, as this page shares it with others. */
export class Sharing implements IDisposable {
  /**
   * @param onChange - Called when `first` has changed.
   */
  constructor(
    private readonly panel: NotebookPanel,
    private readonly onChange: () => void
  ) {
    void panel.context.ready.then(() => this._begin()).catch(() => undefined);
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  /** True if other pages see the changes of this one. */
  get shared(): boolean {
    return this._awareness !== null;
  }

  /** True if this page restores. */
  get first(): boolean {
    if (this._awareness === null) {
      return true;
    }
    for (const [client, state] of this._awareness.getStates()) {
      if (client < this._awareness.clientID && state[FIELD]) {
        return false;
      }
    }
    return true;
  }

  dispose(): void {
    if (!this._disposed) {
      this._disposed = true;
      this._awareness?.off('change', this._onAwareness);
    }
  }

  private _begin(): void {
    if (this._disposed || !this.panel.model?.collaborative) {
      return;
    }
    const shared = this.panel.model.sharedModel as unknown as { awareness?: Awareness };
    if (shared.awareness) {
      this._awareness = shared.awareness;
      this._awareness.setLocalStateField(FIELD, true);
      this._awareness.on('change', this._onAwareness);
      this._was = this.first;
    }
  }

  private readonly _onAwareness = (): void => {
    const is = this.first;
    if (is !== this._was) {
      this._was = is;
      this.onChange();
    }
  };

  private _awareness: Awareness | null = null;
  private _was = true;
  private _disposed = false;
}
