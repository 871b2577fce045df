/**
 * Updates of displays that arrive on two connections.
 *
 * While a replay runs, the page's own connection also brings updates of displays, newer ones than
 * the replay is at. They wait until the replay ends; then those are applied that the replay has not
 * brought. No JupyterLab.
 */

import { isUpdate } from './feed';
import type { Message } from './frames';

/** Updates that are kept at most; of one display only the newest counts, so older ones may go. */
const LIMIT = 10_000;

/** The updates of the page's own connection, and which of them the replay has brought. */
export class Updates {
  /** Take an update of the page's own connection. */
  hold(message: Message): void {
    if (this._received.delete(message.header.msg_id)) {
      this._held = []; // the replay is ahead: it has brought all before this one too
      return;
    }
    this._held.push(message);
    if (this._held.length > LIMIT) {
      this._held.shift();
    }
  }

  /** Note a message that the replay has brought. */
  received(message: Message): void {
    if (!isUpdate(message)) {
      return;
    }
    const { msg_id } = message.header;
    const index = this._held.findIndex(held => held.header.msg_id === msg_id);
    if (index >= 0) {
      this._held.splice(0, index + 1);
    } else {
      this._received.add(msg_id);
      if (this._received.size > LIMIT) {
        this._received.delete(this._received.values().next().value as string);
      }
    }
  }

  /** Return the updates that the replay has not brought, in order. */
  release(): Message[] {
    this._received.clear();
    return this._held.splice(0);
  }

  private _held: Message[] = [];
  private readonly _received = new Set<string>();
}
