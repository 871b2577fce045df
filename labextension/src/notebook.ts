/** Restores one notebook: looks for executions whose output this page does not have. */

import type { ICodeCellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel, KernelMessage } from '@jupyterlab/services';
import type { ITranslator } from '@jupyterlab/translation';
import type { IDisposable } from '@lumino/disposable';

import type { ExecutionsApi } from './api';
import { Backoff } from './backoff';
import { RestoredCell } from './cell';
import { isUpdate } from './feed';
import type { Message } from './frames';
import type { Execution } from './plan';
import { isOver, plan } from './plan';
import { Restoration } from './restoration';
import { Sharing } from './sharing';
import type { RestoreState } from './state';
import { IDLE } from './state';

/** Executions in one websocket; the server accepts no more. */
const MOST = 100;

/** Milliseconds between an event and the look at the server: often several come together. */
const DELAY = 50;

/** Milliseconds until the next look after one that failed: at first, and at most. */
const RETRY = 1_000;
const MAX_RETRY = 10_000;

/** Milliseconds until the next look at executions that another page may leave behind. */
const AGAIN = 10_000;

/** What a notebook's restorer needs. */
export interface NotebookOptions {
  readonly panel: NotebookPanel;
  readonly api: ExecutionsApi;
  readonly translator: ITranslator;

  /** Called when `state` has changed. */
  readonly onChange: () => void;
}

/** The restorer of one notebook. */
export class NotebookRestorer implements IDisposable {
  constructor(private readonly options: NotebookOptions) {
    const { panel } = options;
    this._sharing = new Sharing(panel, () => this._onSharing());
    const { sessionContext } = panel;
    sessionContext.kernelChanged.connect(this._onKernel, this);
    sessionContext.statusChanged.connect(this._onStatus, this);
    sessionContext.connectionStatusChanged.connect(this._onConnection, this);
    sessionContext.iopubMessage.connect(this._onIOPub, this);
    document.addEventListener('visibilitychange', this._wake);
    window.addEventListener('online', this._wake);
    window.addEventListener('pagehide', this._onPageHide);
    void this._begin().catch(() => undefined); // JupyterLab shows that it cannot read the notebook
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  /** The state, as the status bar shows it. */
  get state(): RestoreState {
    return this._state;
  }

  dispose(): void {
    if (this._disposed) {
      return;
    }
    this._disposed = true;
    const { sessionContext } = this.options.panel;
    if (!sessionContext.isDisposed) {
      sessionContext.kernelChanged.disconnect(this._onKernel, this);
      sessionContext.statusChanged.disconnect(this._onStatus, this);
      sessionContext.connectionStatusChanged.disconnect(this._onConnection, this);
      sessionContext.iopubMessage.disconnect(this._onIOPub, this);
    }
    document.removeEventListener('visibilitychange', this._wake);
    window.removeEventListener('online', this._wake);
    window.removeEventListener('pagehide', this._onPageHide);
    this._watch(null);
    window.clearTimeout(this._timer);
    this._sharing.dispose();
    this._restorations.splice(0).forEach(restoration => restoration.dispose());
  }

  /** Look soon which executions are to be restored. */
  look(delay = DELAY): void {
    if (!this._disposed) {
      window.clearTimeout(this._timer);
      this._timer = window.setTimeout(() => void this._look(), delay);
    }
  }

  /** A cell is executed in this page: JupyterLab shows its output. */
  onScheduled(cell: string): void {
    this._scheduled.add(cell);
    this._restorations.forEach(restoration => restoration.release(cell));
    this._cells.get(cell)?.removeNote();
    this._change();
  }

  /** A cell that this page ran has ended, so that the server has the request if there was one. */
  onExecuted(cell: string): void {
    this._executed.add(cell);
  }

  /** A person has cleared the outputs of a cell: they do not come back after a reload. */
  onCleared(cell: string): void {
    this._restorations.forEach(restoration => restoration.clear(cell));
    this._cells.get(cell)?.removeNote();
    this._scheduled.add(cell); // as if this page ran it, for a look that is under way
    this._executed.add(cell);
    this._cleared.add(cell);
    if (this._cleared.size === 1) {
      window.setTimeout(() => void this._forget(), DELAY); // "clear all" comes cell by cell
    }
  }

  private async _begin(): Promise<void> {
    const { context, sessionContext } = this.options.panel;
    await context.ready;
    this._loaded = context.contentsModel?.last_modified ?? null;
    await sessionContext.ready;
    this._watch(this._kernel);
    this.look();
  }

  private get _kernel(): Kernel.IKernelConnection | null {
    const { panel } = this.options;
    return panel.isDisposed ? null : (panel.sessionContext.session?.kernel ?? null);
  }

  private async _look(): Promise<void> {
    const { panel, api } = this.options;
    const kernel = this._kernel;
    if (!kernel || !panel.model || kernel.id === this._foreign) {
      return;
    }
    this._watch(kernel);
    if (!this._sharing.settled) {
      return; // `_onSharing` looks
    }
    const look = ++this._looks;
    this._executed.forEach(cell => this._scheduled.delete(cell));
    this._executed.clear();
    const executions = await api.list(kernel.id).catch(error => {
      console.debug('kbridge: executions cannot be read', error);
      return undefined;
    });
    const superseded = look !== this._looks || kernel !== this._kernel;
    if (this._disposed || superseded) {
      return;
    }
    if (executions === undefined) {
      this.look(this._backoff.next());
      return;
    }
    this._backoff.reset();
    if (!this._serves(kernel, executions)) {
      return;
    }
    for (const { id, session_id, cell_id } of executions) {
      if (session_id === kernel.clientId && !this._known.has(id)) {
        this._known.add(id);
        this._scheduled.delete(cell_id ?? '');
      }
    }
    const situation = {
      cells: this._codeCells(),
      // A gateway has its own clock.
      saved: api.gateway ? null : this._loaded,
      session: kernel.clientId,
      known: this._known,
      scheduled: this._scheduled,
      shared: this._sharing.shared,
      feeds: this._sharing.first
    };
    const chosen = plan(executions, situation);
    for (let i = 0; i < chosen.length; i += MOST) {
      this._restore(kernel.id, chosen.slice(i, i + MOST));
    }
    const left = situation.shared && plan(executions, { ...situation, shared: false });
    if (left && left.some(execution => !isOver(execution))) {
      this.look(AGAIN); // another page feeds them, as long as it is there
    }
    this._looked = true;
    this._change();
  }

  private _restore(kernel: string, executions: Parameters<typeof plan>[0]): void {
    this._prune();
    for (const execution of executions) {
      this._known.add(execution.id);
      this._cells.get(execution.cell_id as string)?.removeNote();
      // The newest execution of a cell ends the restoration of the one before.
      this._restorations.forEach(restoration => restoration.release(execution.cell_id as string));
    }
    this._restorations.push(
      new Restoration(executions, {
        api: this.options.api,
        kernel,
        trans: this.options.translator.load('kbridge'),
        opened: !this._looked,
        cell: id => this._cell(id),
        onChange: () => this._change()
      })
    );
  }

  /** Drop the restorations that can change nothing any more. */
  private _prune(): void {
    const kept = this._restorations.filter(restoration => !restoration.final);
    this._restorations.splice(0, this._restorations.length, ...kept);
  }

  /** Drop the restorations; what they have not finished may be restored again. */
  private _takeAll(): Restoration[] {
    for (const restoration of this._restorations) {
      restoration.unfinished.forEach(id => this._known.delete(id));
    }
    return this._restorations.splice(0);
  }

  /** It is known which page restores the document: another one, or this one from now on. */
  private _onSharing(): void {
    if (!this._sharing.first) {
      this._takeAll().forEach(restoration => restoration.dispose());
      this._change();
    }
    this.look();
  }

  /** Note the executions that the server has; false if kbridge does not serve this kernel. */
  private _serves(
    kernel: Kernel.IKernelConnection,
    executions: Execution[] | null
  ): executions is Execution[] {
    if (executions !== null) {
      this._served = kernel.id;
      executions.forEach(execution => this._note(execution.cell_id, execution.id));
    } else if (kernel.id !== this._served) {
      this._foreign = kernel.id; // ask no more
    }
    return executions !== null;
  }

  /** Tell the server which cells were cleared. */
  private async _forget(): Promise<void> {
    const kernel = this._kernel;
    try {
      if (kernel && kernel.id !== this._foreign) {
        this._serves(kernel, await this.options.api.list(kernel.id));
      }
    } catch (error) {
      console.debug('kbridge: executions cannot be read', error); // some are known without it
    }
    try {
      await this._forgetNoted();
    } catch (error) {
      console.warn('kbridge: the outputs that were cleared may come back', error);
    }
  }

  /** Tell the server so, of the executions that this page knows. Sends at once. */
  private async _forgetNoted(): Promise<void> {
    const ids = [...this._cleared].flatMap(cell => [...(this._noted.get(cell) ?? [])]);
    this._cleared.forEach(cell => this._noted.delete(cell));
    this._cleared.clear();
    const kernel = this._kernel;
    if (kernel && kernel.id !== this._foreign) {
      await Promise.all(ids.map(id => this.options.api.forget(kernel.id, id)));
    }
  }

  /** The page is left: timers and answers do not come any more. */
  private readonly _onPageHide = (): void => {
    void this._forgetNoted().catch(() => undefined);
  };

  /** Note an execution of a cell. */
  private _note(cell: string | null, id: string): void {
    if (cell !== null) {
      this._noted.set(cell, (this._noted.get(cell) ?? new Set()).add(id));
    }
  }

  /** Note the executions that this page sends to a kernel. */
  private _watch(kernel: Kernel.IKernelConnection | null): void {
    if (kernel !== this._watched) {
      if (this._watched && !this._watched.isDisposed) {
        this._watched.anyMessage.disconnect(this._onAny, this);
      }
      this._watched = kernel;
      kernel?.anyMessage.connect(this._onAny, this);
    }
  }

  private _onAny(_: unknown, { msg, direction }: Kernel.IAnyMessageArgs): void {
    if (direction === 'send' && msg.header.msg_type === 'execute_request') {
      const cell = (msg.metadata as Record<string, unknown>).cellId;
      this._note(typeof cell === 'string' ? cell : null, msg.header.msg_id);
    }
  }

  private _codeCells(): Map<string, number | null> {
    const counts = new Map<string, number | null>();
    for (const model of this.options.panel.model?.cells ?? []) {
      if (model.type === 'code') {
        counts.set(model.id, (model as ICodeCellModel).executionCount);
      }
    }
    return counts;
  }

  private _cell(id: string): RestoredCell {
    let cell = this._cells.get(id);
    if (!cell) {
      cell = new RestoredCell(this.options.panel, id, this.options.translator);
      this._cells.set(id, cell);
    }
    return cell;
  }

  private _onKernel(): void {
    this._takeAll().forEach(restoration => restoration.end());
    this._scheduled.clear();
    this._noted.clear();
    this._watch(this._kernel);
    this._looked = false;
    this._change();
    this.look();
  }

  private _onStatus(_: unknown, status: Kernel.Status): void {
    if (status === 'restarting' || status === 'autorestarting' || status === 'dead') {
      // As JupyterLab does with what it runs itself: it does not wait for the last messages.
      this._restorations.forEach(restoration => restoration.stopRunning());
    } else if (status === 'starting') {
      this._restorations.forEach(restoration => restoration.check());
    }
  }

  private _onConnection(_: unknown, status: Kernel.ConnectionStatus): void {
    if (status === 'connected') {
      this.look();
    }
  }

  /** Connect again after JupyterLab has given up, when the person is back. */
  private readonly _wake = (): void => {
    const kernel = this._kernel;
    if (
      document.visibilityState === 'visible' &&
      kernel?.id === this._served &&
      kernel.connectionStatus === 'disconnected'
    ) {
      void kernel.reconnect().catch(() => undefined); // it shows the failure itself
    }
  };

  private _onIOPub(_: unknown, message: KernelMessage.IMessage): void {
    const parent = message.parent_header as Partial<KernelMessage.IHeader>;
    if (message.header.msg_type === 'execute_input') {
      if (parent.session !== this._kernel?.clientId && !this._known.has(parent.msg_id ?? '')) {
        this.look(); // another page has run a cell
      }
    } else if (isUpdate(message as unknown as Message)) {
      this._restorations.forEach(restoration => restoration.update(message as unknown as Message));
    }
  }

  private _change(): void {
    const open = this._restorations.filter(restoration => restoration.catchingUp);
    const state: RestoreState = !this._looked
      ? IDLE
      : {
          phase: open.length > 0 ? 'catching-up' : 'restored',
          linesBehind: open.reduce((sum, restoration) => sum + restoration.linesBehind, 0),
          cells: this._cells.size
        };
    const { phase, linesBehind, cells } = this._state;
    if (phase !== state.phase || linesBehind !== state.linesBehind || cells !== state.cells) {
      this._state = state;
      this.options.onChange();
    }
  }

  private readonly _sharing: Sharing;
  private readonly _cells = new Map<string, RestoredCell>();
  private readonly _known = new Set<string>();
  private readonly _scheduled = new Set<string>(); // cells that this page runs
  private readonly _executed = new Set<string>(); // of these, since the last look
  private readonly _cleared = new Set<string>();
  private readonly _noted = new Map<string, Set<string>>(); // executions by cell
  private _watched: Kernel.IKernelConnection | null = null;
  private readonly _restorations: Restoration[] = [];
  private _state: RestoreState = IDLE;
  private _loaded: string | null = null; // when the file was written that this page has read
  private _looked = false;
  private _looks = 0;
  private readonly _backoff = new Backoff(RETRY, MAX_RETRY); // while the server does not answer
  private _foreign = '';
  private _served = '';
  private _timer = 0;
  private _disposed = false;
}
