/** What one flush changes; that the result is JupyterLab's is the test in tests/labextension. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Feed, Feeds, isUpdate } from '../src/feed';
import { display, input, message, Model, reply, status, stream, update } from './helpers';

/** Return the texts after each flush, and the number of changes. */
function feedAll(batches: ReturnType<typeof message>[][]): { texts: unknown[]; changes: number } {
  const feed = new Feed('r1');
  const model = new Model();
  for (const batch of batches) {
    batch.forEach(each => {
      feed.update(each);
      feed.handle(each);
    });
    feed.flush(model);
  }
  return { texts: model.texts, changes: model.changes };
}

test('adjacent text of one name is one change', () => {
  const { texts, changes } = feedAll([[stream('a'), stream('b'), stream('c', 'stderr')]]);
  assert.deepEqual(texts, ['ab', 'c']);
  assert.equal(changes, 3); // clear, add, add
});

test('text for the last output of an earlier flush is added once', () => {
  const { texts, changes } = feedAll([[stream('a')], [stream('b'), stream('c'), display('d')]]);
  assert.deepEqual(texts, ['a', 'bc', 'd']); // JupyterLab's model joins 'a' and 'bc'
  assert.equal(changes, 4);
});

test('what is cleared before the flush is never shown', () => {
  const { texts, changes } = feedAll([
    [stream('a'.repeat(10)), display('b'), message('clear_output', { wait: false }), stream('c')]
  ]);
  assert.deepEqual(texts, ['c']);
  assert.equal(changes, 2);
});

test('clear_output with wait clears at the next output only', () => {
  const wait = message('clear_output', { wait: true });
  assert.deepEqual(feedAll([[stream('a')], [wait]]).texts, ['a']);
  assert.deepEqual(feedAll([[stream('a')], [wait], [stream('b')]]).texts, ['b']);
});

test('an update changes all outputs with its id, flushed or not', () => {
  const batches = [[display('a', 'x')], [display('b', 'x'), update('c', 'x'), update('d', 'y')]];
  assert.deepEqual(feedAll(batches).texts, ['c', 'c']);
});

test('an update after a clear changes nothing', () => {
  const clear = message('clear_output', {});
  assert.deepEqual(feedAll([[display('a', 'x'), clear, stream('b'), update('c', 'x')]]).texts, [
    'b'
  ]);
});

test('an output that another page removed is not set', () => {
  const feed = new Feed('r1');
  const model = new Model();
  feed.handle(display('a', 'x'));
  feed.flush(model);
  model.clear();
  feed.update(update('b', 'x'));
  feed.flush(model);
  assert.deepEqual(model.texts, []);
});

test('nothing pending changes nothing', () => {
  const { changes } = feedAll([[stream('a')], [], [status('idle')]]);
  assert.equal(changes, 2);
});

test('play leaves the changes for the flush', () => {
  const feed = new Feed('r1');
  feed.handle(stream('a'));
  const rehearsal = new Model();
  feed.play(rehearsal);
  const model = new Model();
  feed.flush(model);
  assert.deepEqual([rehearsal.texts, model.texts], [['a'], ['a']]);
  assert.equal(feed.pending, false);
});

test('an execution is over after the reply and idle, in any order', () => {
  for (const [first, second] of [
    [status('idle'), reply({ status: 'ok', execution_count: 3 })],
    [reply({ status: 'ok', execution_count: 3 }), status('idle')]
  ]) {
    const feed = new Feed('r1');
    [status('busy'), input('x'), first].forEach(each => feed.handle(each));
    assert.equal(feed.over, false);
    feed.handle(second);
    assert.equal(feed.over, true);
    assert.equal(feed.count, 3);
    assert.equal(feed.code, 'x');
  }
});

test('output before execute_input means that the beginning is gone', () => {
  const feed = new Feed('r1');
  feed.handle(stream('a'));
  assert.equal(feed.headless, true);
});

test('all messages may come twice, from the beginning', () => {
  const feed = new Feed('r1');
  const model = new Model();
  const all = [status('busy'), input('x'), stream('a\n'), display('b', 'd')];
  all.forEach(each => feed.handle(each));
  feed.flush(model);
  [...all, stream('c\n')].forEach(each => feed.handle(each));
  feed.flush(model);
  assert.deepEqual(model.texts, ['a\n', 'b', 'c\n']);
  assert.equal(feed.lines, 2);
});

test('lines are counted in text of any name, also in cleared text', () => {
  const feed = new Feed('r1');
  [stream('a\nb\n'), message('clear_output', {}), stream('c\n', 'stderr'), stream('d')].forEach(
    each => feed.handle(each)
  );
  assert.equal(feed.lines, 3);
});

test('the pager of a reply is an output', () => {
  const page = { source: 'page', data: { 'text/plain': 'help' } };
  assert.deepEqual(feedAll([[reply({ status: 'ok', payload: [page] })]]).texts, ['help']);
  assert.deepEqual(feedAll([[reply({ status: 'ok', payload: [{ source: 'other' }] })]]).texts, []);
  assert.deepEqual(feedAll([[reply({ status: 'error', payload: [page] })]]).texts, []);
});

test("JupyterLab's times are noted", () => {
  const feed = new Feed('r1');
  const [busy, code, idle] = [status('busy'), input('x'), status('idle')];
  const answer = { ...reply({ status: 'ok' }), metadata: { started: 'then' } };
  [busy, code, answer, idle].forEach(each => feed.handle(each));
  assert.deepEqual(feed.timing, {
    'iopub.status.busy': busy.header.date,
    'iopub.execute_input': code.header.date,
    'iopub.status.idle': idle.header.date,
    'shell.execute_reply': answer.header.date,
    'shell.execute_reply.started': 'then'
  });
});

test('feeds pass messages by parent, and updates to all', () => {
  const feeds = new Feeds(['r1', 'r2']);
  const models = new Map(feeds.all().map(feed => [feed.id, new Model()]));
  const messages = [
    display('a', 'x', 'r1'),
    stream('b', 'stdout', 'r2'),
    stream('c', 'stdout', 'unknown'),
    display('d', 'x', 'r2'), // an id that is shown again changes the earlier output
    update('e', 'x', 'unknown')
  ];
  const found = messages.map(each => feeds.handle(each)?.id);
  assert.deepEqual(found, ['r1', 'r2', undefined, 'r2', undefined]);
  feeds.all().forEach(feed => feed.flush(models.get(feed.id) as Model));
  assert.deepEqual(models.get('r1')?.texts, ['e']);
  assert.deepEqual(models.get('r2')?.texts, ['b', 'e']);
});

test('an execution that was replaced gets nothing more', () => {
  const feeds = new Feeds(['r1']);
  const feed = feeds.get('r1');
  feeds.drop('r1');
  assert.equal(feeds.handle(stream('a')), undefined);
  assert.deepEqual(feeds.all(), []);
  const model = new Model();
  feed?.flush(model);
  assert.deepEqual(model.texts, []);
});

test('only messages with a display id are updates', () => {
  assert.equal(isUpdate(update('a', 'x')), true);
  assert.equal(isUpdate(display('a', 'x')), true);
  assert.equal(isUpdate(display('a')), false);
  assert.equal(isUpdate(stream('a')), false);
  assert.equal(isUpdate(message('update_display_data', { transient: null })), false);
});

test('output that an Output widget takes is not in the cell', () => {
  const set = (msg_id: string, comm_id = 'w1') =>
    message('comm_msg', { comm_id, data: { method: 'update', state: { msg_id } } });
  const other = message('comm_msg', { comm_id: 'w1', data: { method: 'update', state: { x: 1 } } });
  const custom = message('comm_msg', { comm_id: 'w1', data: { method: 'custom', content: {} } });
  const close = message('comm_close', { comm_id: 'w1', data: {} });
  const taken = [stream('no'), display('no', 'x'), message('clear_output', {})];
  const batch = [
    stream('a'),
    set('r1'),
    ...taken,
    other,
    custom,
    stream('no'),
    set(''),
    stream('b')
  ];
  assert.deepEqual(feedAll([batch]).texts, ['ab']);
  assert.deepEqual(feedAll([[set('r2'), stream('a')]]).texts, ['a']);
  assert.deepEqual(feedAll([[set('r1'), set('r1', 'w2'), set(''), stream('no')]]).texts, []);
  assert.deepEqual(feedAll([[set('r1'), close, stream('a')]]).texts, ['a']);
});
