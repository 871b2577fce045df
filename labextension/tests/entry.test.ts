/** When a cell shows the output of an execution. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { RestoredCell } from '../src/cell';
import { Entry } from '../src/entry';
import type { Output } from '../src/feed';
import { Feeds } from '../src/feed';
import type { Message } from '../src/frames';
import type { Execution } from '../src/plan';
import { display, input, message, Model, reply, status, stream } from './helpers';

/** A cell with a model, and no widget. */
class Cell {
  readonly id = 'a';
  readonly model = new Model();
  source: string | null = 'x';
  running = false;
  keepsClean = false;

  constructor(
    texts: string[] = [],
    public count: number | null = null
  ) {
    texts.forEach(text => this.model.add({ output_type: 'stream', name: 'stdout', text }));
  }

  get outputs(): Output[] {
    return [...this.model.outputs];
  }

  get hasOutputs(): boolean {
    return this.model.length > 0;
  }

  apply(feed: Entry['feed']): void {
    if (feed.pending) {
      feed.flush(this.model);
    }
  }

  shows(feed: Entry['feed']): boolean {
    const wanted = new Model();
    feed.play(wanted);
    return JSON.stringify(wanted.texts) === JSON.stringify(this.model.texts);
  }

  showRunning(): void {
    this.running = true;
  }

  showIdle(): void {
    this.running = false;
  }

  showOver(count: number | null): void {
    this.running = false;
    this.count = count;
  }

  record(): void {}
  stopAsking(): void {}
  removeNote(): void {}
}

/** A restoration of one execution, without a websocket. */
class Stage {
  readonly feeds = new Feeds(['r1']);
  readonly entry: Entry;
  now = 100_000;

  constructor(
    readonly cell: Cell,
    execution: Partial<Execution>,
    opened = true
  ) {
    const feed = this.feeds.get('r1');
    assert.ok(feed);
    this.entry = new Entry(
      described(execution),
      feed,
      cell as unknown as RestoredCell, // the parts that an entry uses
      opened
    );
  }

  receive(...messages: Message[]): unknown[] {
    for (const each of messages) {
      this.feeds.handle(each);
      if (each.header.msg_type === 'execute_input') {
        this.entry.compare();
      }
    }
    return this.pass(0);
  }

  /** Let time pass without a message; return what the cell shows. */
  pass(quiet: number): unknown[] {
    this.now += 2_000;
    this.entry.advance(this.now, quiet);
    return this.cell.model.texts;
  }
}

function described(execution: Partial<Execution>): Execution {
  return {
    id: 'r1',
    session_id: 's',
    cell_id: 'a',
    state: 'running',
    execution_count: 7,
    messages: 9,
    lines: 1_000,
    output_bytes: 1,
    ended: null,
    connected: false,
    ...execution
  };
}

const BEGIN = [status('busy'), input('x')];
const END = [reply({ status: 'ok', execution_count: 7 }), status('idle')];

test('output of an execution that is over is shown when it is whole', () => {
  const stage = new Stage(new Cell(['of the file'], 7), { state: 'done' });
  assert.deepEqual(stage.receive(...BEGIN, stream('a\n')), ['of the file']);
  assert.deepEqual(stage.pass(4_000), ['of the file']);
  assert.equal(stage.entry.linesBehind, 999);
  assert.equal(stage.entry.catchingUp, true);
  assert.deepEqual(stage.receive(stream('b\n'), ...END), ['a\nb\n']);
  assert.deepEqual(
    [stage.entry.settled, stage.entry.catchingUp, stage.cell.count],
    [true, false, 7]
  );
});

test('a cell that shows everything is not changed', () => {
  const stage = new Stage(new Cell(['a\n'], 7), { state: 'done' });
  const { changes } = stage.cell.model;
  stage.receive(...BEGIN, stream('a\n'), ...END);
  assert.equal(stage.cell.model.changes, changes);
});

test('an execution without idle is over some time after its reply', () => {
  const stage = new Stage(new Cell(), { state: 'error' });
  assert.deepEqual(stage.receive(...BEGIN, stream('a'), END[0]), []);
  assert.deepEqual(stage.pass(6_000), ['a']);
  assert.equal(stage.entry.settled, true);
});

test('a part of the output does not replace more in the file', () => {
  const more = new Stage(new Cell(['much more'], 7), { state: 'done' });
  more.receive(...BEGIN, stream('a'));
  assert.deepEqual(more.pass(70_000), ['much more']);
  const less = new Stage(new Cell(['b']), { state: 'done' });
  less.receive(...BEGIN, stream('as long'));
  assert.deepEqual(less.pass(70_000), ['as long']);
  assert.deepEqual([more.entry.settled, less.entry.settled], [true, true]);
});

test('an execution that a restart ended is over when the next process begins', () => {
  const stage = new Stage(new Cell(), { state: 'aborted' });
  const texts = stage.receive(status('starting', ''), ...BEGIN, stream('a'));
  assert.deepEqual([texts, stage.entry.settled], [[], false]);
  assert.deepEqual(stage.receive(status('starting', '')), ['a']);
  assert.equal(stage.entry.settled, true);
  assert.equal(stage.cell.count, null);
});

test('an execution that a restart ended is over after a silence', () => {
  const stage = new Stage(new Cell(), { state: 'aborted' });
  stage.receive(...BEGIN, stream('a'));
  assert.deepEqual(stage.pass(6_000), ['a']);
});

test('an execution that never ran removes the former output', () => {
  const never: Partial<Execution> = { state: 'aborted', execution_count: null, messages: 0 };
  const stage = new Stage(new Cell(['earlier'], 3), never);
  assert.deepEqual(stage.pass(0), []);
  assert.equal(stage.cell.count, null);
});

test('an execution of which the journal has nothing leaves the cell alone', () => {
  const stage = new Stage(new Cell(['of the file'], 7), { state: 'done', messages: 0 });
  assert.deepEqual(stage.pass(0), ['of the file']);
  assert.equal(stage.entry.settled, true);
});

test('a running execution replaces an earlier part of its output by as much or more', () => {
  const stage = new Stage(new Cell(['0123456789']), {});
  assert.equal(stage.cell.running, true);
  assert.deepEqual(stage.receive(...BEGIN, stream('01234')), ['0123456789']);
  assert.deepEqual(stage.receive(stream('56789abc')), ['0123456789abc']);
});

test('displays count in what the file has', () => {
  const cell = new Cell();
  cell.model.add({ output_type: 'display_data', data: { 'text/plain': 'plot' } });
  const stage = new Stage(cell, { lines: 0 });
  assert.deepEqual(stage.receive(...BEGIN, stream('text')), ['plot']);
  assert.deepEqual(stage.receive(display('plot')), ['text', 'plot']);
});

test('a running execution that cleared its output replaces more after a silence', () => {
  const stage = new Stage(new Cell(['0123456789']), {});
  stage.receive(...BEGIN, stream('01'), message('clear_output', {}), stream('2'));
  assert.deepEqual(stage.pass(1_000), ['0123456789']);
  assert.deepEqual(stage.pass(6_000), ['2']);
});

test('a running execution replaces output of an earlier run at once', () => {
  const stage = new Stage(new Cell(['0123456789'], 6), {});
  assert.deepEqual(stage.receive(...BEGIN, stream('a')), ['a']);
});

test('a kernel that ends in the middle does not take output from the cell', () => {
  const stage = new Stage(new Cell(['0123456789']), {});
  stage.receive(...BEGIN, stream('01'));
  stage.entry.stop();
  assert.deepEqual([stage.cell.model.texts, stage.cell.running], [['0123456789'], false]);
  const past = new Stage(new Cell(['0123456789'], 7), { state: 'done' });
  past.receive(...BEGIN, stream('01'));
  past.entry.stop();
  assert.deepEqual(past.cell.model.texts, ['0123456789']);
});

test('a restored cell that a person cleared shows what comes afterwards', () => {
  const stage = new Stage(new Cell(['0123456789']), {});
  stage.receive(...BEGIN, stream('0123456789ab'));
  stage.cell.model.clear();
  stage.entry.clear();
  assert.deepEqual(stage.receive(stream('c')), ['c']);
});

test('a cell that waits loses its former output when its code begins', () => {
  const stage = new Stage(new Cell(['earlier'], 3), { state: 'waiting', messages: 0, lines: 0 });
  assert.deepEqual([stage.pass(0), stage.cell.running], [['earlier'], true]);
  assert.deepEqual(stage.receive(...BEGIN), []);
});

test('a cell that waited is left alone if it was changed since', () => {
  const stage = new Stage(new Cell(['earlier'], 3), { state: 'waiting', messages: 0, lines: 0 });
  stage.cell.source = 'y';
  stage.receive(...BEGIN, stream('a'));
  assert.deepEqual([stage.cell.model.texts, stage.cell.running], [['earlier'], false]);
});

test('an execution that the server has ended is over without its last messages', () => {
  const stage = new Stage(new Cell(), {});
  stage.receive(...BEGIN, stream('a'));
  stage.pass(70_000);
  assert.equal(stage.entry.settled, false);
  stage.entry.execution = described({ state: 'done' });
  stage.pass(6_000); // its reply may be on its way
  assert.equal(stage.entry.settled, false);
  stage.pass(70_000);
  assert.deepEqual([stage.entry.settled, stage.cell.count], [true, 7]);
});

test('nothing of a replaced execution is shown', () => {
  const stage = new Stage(new Cell(), {});
  stage.receive(...BEGIN, stream('a'));
  stage.entry.release();
  stage.cell.model.clear();
  assert.deepEqual(stage.receive(stream('b')), []);
});

test('a notebook that another page saves stays clean', () => {
  const clean = (execution: Partial<Execution>, opened: boolean) =>
    new Stage(new Cell(), execution, opened).cell.keepsClean;
  assert.equal(clean({ connected: true }, true), true);
  assert.equal(clean({ connected: true, state: 'done' }, false), true); // it was short
  assert.equal(clean({ connected: true, state: 'done' }, true), false); // perhaps it has just gone
  assert.equal(clean({ connected: false }, false), false);
  const stage = new Stage(new Cell(), { connected: true });
  stage.entry.execution = described({ connected: false });
  assert.equal(stage.cell.keepsClean, false);
});

test('a part without its beginning does not replace what the file has', () => {
  for (const state of ['running', 'done'] as const) {
    const stage = new Stage(new Cell(['of the file']), { state });
    assert.deepEqual(stage.receive(stream('the end of a long output')), ['of the file']);
    assert.deepEqual(stage.receive(...END), ['of the file']);
    assert.equal(stage.entry.settled, true);
    const empty = new Stage(new Cell(), { state });
    empty.receive(stream('the end'));
    assert.deepEqual(empty.receive(...END), ['the end']);
  }
});

test('a cell that waits needs no attention', () => {
  const stage = new Stage(new Cell(), { state: 'waiting', messages: 0, lines: 0 });
  stage.pass(0);
  assert.equal(stage.entry.waiting, false);
  const running = new Stage(new Cell(), {});
  assert.equal(running.entry.waiting, true);
});
