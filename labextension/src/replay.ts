/**
 * A websocket that brings the messages of some executions, from their beginning, and then live.
 *
 * When it breaks, it connects again and names the last message on iopub that it received, so that
 * each of these arrives exactly once; replies that arrive again are ignored. Another replica of a
 * cluster would not know the id of a reply. JupyterLab's own connection is not touched: it shows what this page
 * runs itself.
 */

import { UUID } from '@lumino/coreutils';

import type { ExecutionsApi } from './api';
import { Backoff } from './backoff';
import type { Header, Message } from './frames';
import { decode, encode, PROTOCOL } from './frames';

/** Milliseconds before the first attempt to connect again; doubled for each further one. */
const FIRST_DELAY = 500;
const MAX_DELAY = 30_000;

/** Attempts that fail in a row although the server answers over HTTP, before a replay gives up. */
const MAX_REFUSED = 8;

/** Close code: the kernel was shut down, or goes on, perhaps at another server. */
const SERVICE_RESTART = 1012;

/** The reasons, with that close code, that say that the kernel has ended for good. */
const KERNEL_ENDED = ['the kernel was shut down'];

/** The receiver of a replay's messages. */
export interface ReplayListener {
  onMessage(message: Message): void;

  /** Called once if nothing more comes, because the kernel or kbridge is gone. Not after `close`. */
  onEnd(): void;
}

/** The websocket. */
export class Replay {
  /**
   * @param parents - The msg_ids of the executions; at most 100.
   */
  constructor(
    private readonly api: ExecutionsApi,
    private readonly kernel: string,
    private readonly parents: readonly string[],
    private readonly listener: ReplayListener
  ) {
    this._connect();
  }

  /** True if the websocket is open. */
  get open(): boolean {
    return this._socket?.readyState === WebSocket.OPEN;
  }

  /** Answer an input request; kept until the websocket is open. */
  reply(request: Header, value: string): void {
    const frame = encode({
      channel: 'stdin',
      header: {
        msg_id: UUID.uuid4(),
        msg_type: 'input_reply',
        session: this._session,
        username: '',
        version: '5.3',
        date: new Date().toISOString()
      },
      parent_header: request,
      metadata: {},
      content: { status: 'ok', value }
    });
    if (this._socket && this.open) {
      this._socket.send(frame);
    } else {
      this._unsent.push(frame);
    }
  }

  /** Close the websocket. May be called more than once. */
  close(): void {
    this._closed = true;
    window.clearTimeout(this._timer);
    const socket = this._socket;
    this._socket = null;
    socket?.close(1000);
  }

  private _connect(): void {
    const query: Record<string, string> = {
      session_id: this._session,
      parents: this.parents.join(',')
    };
    if (this._last !== '') {
      query.since = this._last;
    }
    const url = this.api.channels(this.kernel, query);
    const socket = new this.api.settings.WebSocket(url, [PROTOCOL]);
    let opened = false;
    socket.binaryType = 'arraybuffer';
    this._socket = socket;
    socket.onopen = () => {
      if (socket !== this._socket) {
        return;
      }
      if (socket.protocol !== PROTOCOL) {
        this._end(); // not kbridge: it always speaks this dialect if it is asked for
        return;
      }
      opened = true;
      this._unsent.splice(0).forEach(frame => socket.send(frame));
    };
    socket.onmessage = event => {
      if (socket === this._socket) {
        this._receive(event.data as ArrayBuffer);
      }
    };
    socket.onclose = event => {
      if (socket === this._socket) {
        this._socket = null;
        const restarts = event.code === SERVICE_RESTART;
        if (opened && !restarts) {
          this._reset();
        }
        this._onClose(restarts && KERNEL_ENDED.includes(event.reason));
      }
    };
  }

  private _receive(frame: ArrayBuffer): void {
    let message: Message;
    try {
      message = decode(frame);
    } catch (error) {
      console.error('kbridge: a message of the kernel cannot be read', error);
      return;
    }
    this._reset();
    const id = message.header.msg_id;
    if (message.channel === 'iopub') {
      this._last = id;
    } else if (this._others.has(id)) {
      return;
    } else {
      this._others.add(id); // one per execution, and one per question
    }
    this.listener.onMessage(message);
  }

  /** A websocket that is closed with 1012 before its first message counts as refused. */
  private _reset(): void {
    this._refused = 0;
    this._backoff.reset();
  }

  private _onClose(shutDown: boolean): void {
    if (shutDown || ++this._refused > MAX_REFUSED) {
      this._end();
      return;
    }
    this._timer = window.setTimeout(() => void this._again(), this._backoff.next());
  }

  /** Connect again if the server can be reached: a websocket does not say why it was refused. */
  private async _again(): Promise<void> {
    try {
      if ((await this.api.list(this.kernel, { limit: '1' })) === null && !this._closed) {
        this._onClose(false); // perhaps a server that has just started does not know the kernel yet
        return;
      }
    } catch {
      // The server cannot be reached: that is no refusal, however long it takes.
      this._refused--;
      if (!this._closed) {
        this._onClose(false);
      }
      return;
    }
    if (!this._closed) {
      this._connect();
    }
  }

  private _end(): void {
    if (!this._closed) {
      this.close();
      this.listener.onEnd();
    }
  }

  private readonly _session = UUID.uuid4();
  private readonly _unsent: ArrayBuffer[] = [];
  private readonly _backoff = new Backoff(FIRST_DELAY, MAX_DELAY);
  private _socket: WebSocket | null = null;
  private readonly _others = new Set<string>();
  private _closed = false;
  private _last = '';
  private _refused = 0;
  private _timer = 0;
}
