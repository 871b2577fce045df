/** The status bar item: connection, catching up, restored. It is hidden without kbridge. */

import type { ISessionContext } from '@jupyterlab/apputils';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { ISignal } from '@lumino/signaling';
import { Poll } from '@lumino/polling';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import type { IRestorer, Phase, RestoreState } from './state';
import { IDLE } from './state';
import { wording } from './wording';

/** Milliseconds between two measurements of the round trip. */
const INTERVAL = 15_000;

/** Milliseconds for which "output restored" is shown. */
const RESTORED = 10_000;

/** Options of a status bar item. */
export interface StatusOptions {
  readonly restorer: IRestorer;

  /**
   * Ask the server something small about a kernel. Returns false if the kernel is not behind
   * kbridge; throws if the server cannot be reached.
   */
  readonly probe: (kernelId: string) => Promise<boolean>;

  /** Called when the item is clicked. */
  readonly openSettings: () => void;

  readonly trans: TranslationBundle;

  /** For numbers, for example `en-US`. */
  readonly locale?: string;
}

/** The item. The application says which notebook it stands for. */
export class StatusItem extends Widget {
  constructor(options: StatusOptions) {
    super();
    this._options = options;
    this.addClass('kb-Status');
    this.node.setAttribute('role', 'status');
    this._button = document.createElement('button');
    this._button.type = 'button';
    this._button.className = 'kb-Status-button';
    this._button.addEventListener('click', options.openSettings);
    this.node.appendChild(this._button);
    options.restorer.changed.connect(this._onRestorer, this);
    this._poll = new Poll({
      auto: false,
      factory: () => this._measure(),
      frequency: { interval: INTERVAL, backoff: false },
      name: '@kbridge/jupyterlab:round-trip',
      standby: 'when-hidden'
    });
    this._update();
  }

  /** True if there is something to show. */
  get active(): boolean {
    return this._enabled && this._served && this._panel !== null;
  }

  /** Emits when `active` has changed. */
  get activeChanged(): ISignal<this, void> {
    return this._activeChanged;
  }

  /** False: the item is hidden, and makes no requests. */
  get enabled(): boolean {
    return this._enabled;
  }
  set enabled(value: boolean) {
    this._enabled = value;
    this._restart();
  }

  /** The notebook that the item stands for; null: none. */
  get panel(): NotebookPanel | null {
    return this._panel;
  }
  set panel(panel: NotebookPanel | null) {
    if (panel === this._panel || this.isDisposed) {
      return;
    }
    this._listen(this._panel?.sessionContext, false);
    this._panel = panel;
    this._listen(panel?.sessionContext, true);
    this._phase = this._state().phase; // an earlier "restored" is not news
    this._restored = false;
    this._restart();
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this._poll.dispose();
    window.clearTimeout(this._timer);
    this._listen(this._panel?.sessionContext, false);
    Signal.clearData(this);
    super.dispose();
  }

  private _listen(context: ISessionContext | undefined, listen: boolean): void {
    if (!context || context.isDisposed) {
      return;
    }
    if (listen) {
      context.kernelChanged.connect(this._restart, this);
      context.connectionStatusChanged.connect(this._update, this);
    } else {
      context.kernelChanged.disconnect(this._restart, this);
      context.connectionStatusChanged.disconnect(this._update, this);
    }
  }

  /** Measure for another kernel. */
  private _restart(): void {
    if (this.isDisposed) {
      return;
    }
    const id = this._kernel()?.id;
    if (id !== this._kernelId) {
      this._kernelId = id;
      this._begun = false;
      this._served = false;
      this._foreign = false;
      this._reached = true;
      this._roundTrip = null;
    }
    this._update();
    const wanted = this._enabled && id !== undefined && !this._foreign;
    void (wanted ? this._poll.refresh() : this._poll.stop()).catch(() => undefined);
  }

  private async _measure(): Promise<void> {
    const id = this._kernelId;
    if (id === undefined || this._foreign) {
      return this._poll.stop();
    }
    const begin = performance.now();
    let served: boolean | null;
    try {
      served = await this._options.probe(id);
    } catch {
      served = null; // the server cannot be reached
    }
    if (this.isDisposed || id !== this._kernelId) {
      return;
    }
    this._reached = served !== null;
    if (served !== null) {
      this._roundTrip = performance.now() - begin;
      this._served = served;
      this._foreign = !served; // one request per kernel
    }
    this._update();
  }

  private _onRestorer(_: IRestorer, panel: NotebookPanel): void {
    if (panel === this._panel) {
      this._update();
    }
  }

  private _update(): void {
    if (this.isDisposed) {
      return;
    }
    const news = this._follow(this._state().phase);
    const state = this._state();
    const isConnected = this._kernel()?.connectionStatus === 'connected';
    this._begun ||= isConnected;
    // A page that has just been loaded is not yet connected.
    const connected = this._reached && (isConnected || !this._begun);
    const shown: RestoreState = state.phase === 'restored' && !this._restored ? IDLE : state;
    const { text, title } = wording(
      { connected, roundTrip: this._roundTrip, state: shown },
      this._options.trans,
      this._options.locale
    );
    // Screen readers announce changes of the phase and of the connection, not each number.
    const polite = news || connected !== this._connected;
    this._connected = connected;
    this.node.setAttribute('aria-live', polite ? 'polite' : 'off');
    if (this._button.textContent !== text) {
      this._button.textContent = text;
    }
    this._button.title = title;
    this.node.dataset.phase = state.phase; // stays when the text "restored" has gone
    if (this.active !== this._wasActive) {
      this._wasActive = this.active;
      this._activeChanged.emit();
    }
  }

  /** Return true if the phase has changed; show "restored" for some seconds. */
  private _follow(phase: Phase): boolean {
    if (phase === this._phase) {
      return false;
    }
    this._phase = phase;
    window.clearTimeout(this._timer);
    this._restored = phase === 'restored';
    if (this._restored) {
      this._timer = window.setTimeout(() => {
        this._restored = false;
        this._update();
      }, RESTORED);
    }
    return true;
  }

  private _state(): RestoreState {
    return this._panel ? this._options.restorer.state(this._panel) : IDLE;
  }

  private _kernel() {
    return this._panel?.sessionContext.session?.kernel;
  }

  private readonly _options: StatusOptions;
  private readonly _button: HTMLButtonElement;
  private readonly _poll: Poll;
  private readonly _activeChanged = new Signal<this, void>(this);
  private _panel: NotebookPanel | null = null;
  private _kernelId: string | undefined;
  private _enabled = true;
  private _begun = false; // the page was connected to the kernel once
  private _served = false; // the kernel is behind kbridge
  private _foreign = false; // the kernel is not behind kbridge
  private _reached = true;
  private _connected = true;
  private _roundTrip: number | null = null;
  private _phase: Phase = 'idle';
  private _restored = false;
  private _timer = 0;
  private _wasActive = false;
}
