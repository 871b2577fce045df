/** Which of the pages that share a document restores it. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { NotebookPanel } from '@jupyterlab/notebook';

import { Sharing } from '../src/sharing';

/** The awareness of a document, as one page sees it. */
class Awareness {
  readonly states = new Map<number, Record<string, unknown>>();
  private _listener = (): void => undefined;

  constructor(readonly clientID: number) {}

  getStates(): Map<number, Record<string, unknown>> {
    return this.states;
  }

  setLocalStateField(field: string, value: unknown): void {
    this.states.set(this.clientID, { [field]: value });
  }

  on(_: string, listener: () => void): void {
    this._listener = listener;
  }

  off(): void {
    this._listener = () => undefined;
  }

  /** Another page joins, with this extension or without, or leaves. */
  change(client: number, state: Record<string, unknown> | null): void {
    if (state) {
      this.states.set(client, state);
    } else {
      this.states.delete(client);
    }
    this._listener();
  }
}

async function share(awareness: Awareness): Promise<{ sharing: Sharing; changes: boolean[] }> {
  const panel = {
    context: { ready: Promise.resolve() },
    model: { collaborative: true, sharedModel: { awareness } }
  } as unknown as NotebookPanel;
  const changes: boolean[] = [];
  const sharing: Sharing = new Sharing(panel, () => changes.push(sharing.first));
  await panel.context.ready;
  return { sharing, changes };
}

test('a page hands over to one with a lower id that joins, and takes over again', async () => {
  const awareness = new Awareness(5);
  const { sharing, changes } = await share(awareness);
  assert.deepEqual([sharing.shared, sharing.first], [true, true]);
  awareness.change(3, {}); // without this extension
  awareness.change(9, { kbridge: true });
  assert.deepEqual(changes, []);
  awareness.change(2, { kbridge: true });
  awareness.change(4, { kbridge: true });
  awareness.change(4, null);
  awareness.change(2, null);
  assert.deepEqual(changes, [false, true]);
  sharing.dispose();
  awareness.change(1, { kbridge: true });
  assert.deepEqual(changes, [false, true]);
});
