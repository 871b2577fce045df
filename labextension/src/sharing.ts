/**
 * Which of the pages that share a document restores it.
 *
 * All pages see the changes of one, so two would show everything twice. Of the pages that have this
 * extension, the one with the lowest client id restores.
 *
 * A page that opens the document does not know the others yet: the server passes on what pages say
 * about themselves, and keeps nothing of it. So a page announces itself, each other page answers,
 * and the page waits for these answers before it restores.
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

/** Milliseconds for which a page waits for the answers of other pages. */
const ANSWERS = 2_000;

/** A document, as this page shares it with others. */
export class Sharing implements IDisposable {
  /**
   * @param onChange - Called when `settled` or, after that, `first` has changed. Not for a document
   *   that is not shared.
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

  /** True if the document is loaded, and the other pages have had the time to answer. */
  get settled(): boolean {
    return this._settled;
  }

  /** True if this page restores; not certain before `settled`. */
  get first(): boolean {
    if (this._awareness === null) {
      return true;
    }
    return this._others().every(client => client > (this._awareness as Awareness).clientID);
  }

  dispose(): void {
    if (!this._disposed) {
      this._disposed = true;
      window.clearTimeout(this._timer);
      this._awareness?.off('change', this._onAwareness);
    }
  }

  private _begin(): void {
    if (this._disposed) {
      return;
    }
    const { model } = this.panel;
    const shared = model?.sharedModel as unknown as { awareness?: Awareness } | undefined;
    if (!model?.collaborative || !shared?.awareness) {
      this._settled = true;
      return;
    }
    this._awareness = shared.awareness;
    this._known = new Set(this._others());
    this._announce();
    this._awareness.on('change', this._onAwareness);
    this._timer = window.setTimeout(() => this._settle(), ANSWERS);
  }

  /** The other pages that have this extension. */
  private _others(): number[] {
    const { clientID } = this._awareness as Awareness;
    return [...(this._awareness as Awareness).getStates()]
      .filter(([client, state]) => client !== clientID && state[FIELD])
      .map(([client]) => client);
  }

  /** Tell all pages that this one is there. */
  private _announce(): void {
    this._awareness?.setLocalStateField(FIELD, true); // sent also if it is the same as before
  }

  private _settle(): void {
    this._settled = true;
    this._was = this.first;
    this.onChange();
  }

  private readonly _onAwareness = (): void => {
    const others = this._others();
    const joined = others.some(client => !this._known.has(client));
    this._known = new Set(others);
    if (joined) {
      this._announce();
    }
    const is = this.first;
    if (this._settled && is !== this._was) {
      this._was = is;
      this.onChange();
    }
  };

  private _awareness: Awareness | null = null;
  private _known: ReadonlySet<number> = new Set();
  private _settled = false;
  private _was = true;
  private _timer = 0;
  private _disposed = false;
}
