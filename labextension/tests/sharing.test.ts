/** Which of the pages that share a document restores it. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { NotebookPanel } from '@jupyterlab/notebook';
import { applyAwarenessUpdate, Awareness, encodeAwarenessUpdate } from 'y-protocols/awareness';
import { Doc } from 'yjs';

import { Sharing } from '../src/sharing';

Object.assign(globalThis, { window: globalThis });

/** More than a page waits for the answers of other pages, in milliseconds. */
const LONG = 10_000;

/** A shared document: passes on what each page says about itself, and keeps nothing of it. */
class Room {
  readonly members = new Set<Awareness>();
  private _waiting: (() => void)[] = [];

  /** Return the awareness of a page that joins. */
  join(client: number): Awareness {
    const doc = new Doc();
    doc.clientID = client;
    const awareness = new Awareness(doc);
    this.members.add(awareness);
    awareness.on('update', (changes: Record<string, number[]>, origin: unknown) => {
      if (origin === 'local') {
        const update = encodeAwarenessUpdate(awareness, Object.values(changes).flat());
        const others = [...this.members].filter(each => each !== awareness);
        this._waiting.push(() =>
          others.forEach(each => applyAwarenessUpdate(each, update, 'remote'))
        );
      }
    });
    awareness.setLocalState({ user: client });
    return awareness;
  }

  leave(awareness: Awareness): void {
    awareness.setLocalState(null);
    this.deliver();
    this.members.delete(awareness);
    awareness.destroy();
  }

  /** Deliver all messages, and those that answer them. */
  deliver(): void {
    for (let message = this._waiting.shift(); message; message = this._waiting.shift()) {
      message();
    }
  }

  close(): void {
    this.members.forEach(awareness => awareness.destroy());
  }
}

interface Page {
  readonly sharing: Sharing;

  /** The values of `first` at the calls of `onChange`. */
  readonly changes: boolean[];
}

async function open(awareness: Awareness | null): Promise<Page> {
  const panel = {
    context: { ready: Promise.resolve() },
    model: { collaborative: awareness !== null, sharedModel: { awareness } }
  } as unknown as NotebookPanel;
  const changes: boolean[] = [];
  const sharing: Sharing = new Sharing(panel, () => changes.push(sharing.first));
  assert.equal(sharing.settled, false);
  await panel.context.ready;
  return { sharing, changes };
}

test('a document that is not shared is settled at once', async () => {
  const { sharing, changes } = await open(null);
  assert.deepEqual([sharing.shared, sharing.settled, sharing.first], [false, true, true]);
  assert.deepEqual(changes, []);
});

test('a page hands over to one with a lower id that joins, and takes over again', async t => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const room = new Room();
  const { sharing, changes } = await open(room.join(5));
  assert.deepEqual([sharing.shared, sharing.settled], [true, false]);
  t.mock.timers.tick(LONG);
  assert.deepEqual([sharing.settled, changes], [true, [true]]);
  room.join(3); // without this extension
  const higher = await open(room.join(9));
  room.deliver();
  const second = room.join(2);
  await open(second);
  room.deliver();
  const fourth = room.join(4);
  await open(fourth);
  room.deliver();
  t.mock.timers.tick(LONG);
  room.leave(fourth);
  room.leave(second);
  assert.deepEqual(changes, [true, false, true]);
  assert.deepEqual(higher.changes, [false]);
  sharing.dispose();
  await open(room.join(1));
  room.deliver();
  assert.deepEqual(changes, [true, false, true]);
  room.close();
});

test('a page learns from the answers of the pages that are there', async t => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const room = new Room();
  const first = await open(room.join(1));
  room.deliver();
  t.mock.timers.tick(LONG);
  const second = await open(room.join(2));
  assert.equal(second.sharing.settled, false);
  room.deliver();
  t.mock.timers.tick(LONG);
  assert.deepEqual([first.changes, second.changes], [[true], [false]]);
  room.close();
});

test('of two pages that open at the same moment, one restores', async t => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const room = new Room();
  const pages = [await open(room.join(7)), await open(room.join(6))];
  assert.deepEqual(
    pages.map(({ sharing }) => sharing.settled),
    [false, false]
  );
  room.deliver();
  t.mock.timers.tick(LONG);
  assert.deepEqual(
    pages.map(({ changes }) => changes),
    [[false], [true]]
  );
  room.close();
});

test('a page that is closed before it has the answers changes nothing', async t => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const room = new Room();
  const { sharing, changes } = await open(room.join(1));
  sharing.dispose();
  t.mock.timers.tick(LONG);
  assert.deepEqual(changes, []);
  room.close();
});
