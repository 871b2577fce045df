import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Execution, Situation } from '../src/plan';
import { isOver, isSaved, neverRan, plan, sameCode } from '../src/plan';

function execution(id: string, cell: string | null, more: Partial<Execution> = {}): Execution {
  return {
    id,
    session_id: 'gone',
    cell_id: cell,
    state: 'done',
    execution_count: 1,
    messages: 5,
    lines: 0,
    output_bytes: 0,
    connected: false,
    ended: '2026-01-01T00:00:10.000Z',
    displays: false,
    ...more
  };
}

function situation(more: Partial<Situation> = {}): Situation {
  return {
    cells: new Map([
      ['a', null],
      ['b', 1]
    ]),
    saved: null,
    session: 'mine',
    known: new Set(),
    scheduled: new Set(),
    shared: false,
    feeds: true,
    ...more
  };
}

function ids(executions: Execution[], more: Partial<Situation> = {}): string[] {
  return plan(executions, situation(more)).map(chosen => chosen.id);
}

test('the newest execution of each cell of the notebook, in the order of the newest ones', () => {
  const executions = [
    execution('1', 'a'),
    execution('2', 'b'),
    execution('3', 'a'),
    execution('4', 'of another notebook'),
    execution('5', null)
  ];
  assert.deepEqual(ids(executions), ['2', '3']);
});

test('JupyterLab shows what the page runs itself, and nothing of what that replaced', () => {
  const executions = [execution('1', 'a'), execution('2', 'a', { session_id: 'mine' })];
  assert.deepEqual(ids(executions), []);
});

test('another page may replace what this one ran', () => {
  const executions = [execution('1', 'a', { session_id: 'mine' }), execution('2', 'a')];
  assert.deepEqual(ids(executions), ['2']);
});

test('an execution is restored once', () => {
  assert.deepEqual(ids([execution('1', 'a')], { known: new Set(['1']) }), []);
});

test('a shared document is restored by one page, and by none that ran it itself', () => {
  const executions = [execution('1', 'a'), execution('2', 'b', { connected: true })];
  assert.deepEqual(ids(executions, { shared: true }), ['1']);
  assert.deepEqual(ids(executions, { shared: true, feeds: false }), []);
  assert.deepEqual(ids(executions), ['1', '2']);
});

test('states', () => {
  const over = (['waiting', 'running', 'done', 'error', 'aborted'] as const).map(state =>
    isOver(execution('1', 'a', { state }))
  );
  assert.deepEqual(over, [false, false, true, true, true]);
  assert.equal(neverRan(execution('1', 'a', { state: 'aborted', execution_count: null })), true);
  assert.equal(neverRan(execution('1', 'a', { state: 'aborted' })), false);
  assert.equal(neverRan(execution('1', 'a', { execution_count: null })), false);
});

test('code is compared without white space at the end', () => {
  assert.equal(sameCode('a\n b', 'a\n b'), true);
  assert.equal(sameCode('a', 'a \n'), true);
  assert.equal(sameCode(' a', 'a'), false);
});

const SAVED = '2026-01-01T00:01:10Z';

test('what the file has whole is not sent again', () => {
  assert.equal(isSaved(execution('1', 'b'), 1, SAVED), true);
  assert.deepEqual(ids([execution('1', 'a'), execution('2', 'b')], { saved: SAVED }), ['1']);
});

test('output of another kernel in a newer file stays', () => {
  assert.equal(isSaved(execution('1', 'b'), 2, SAVED), true);
  assert.equal(isSaved(execution('1', 'b', { execution_count: null }), 2, SAVED), true);
});

test('a cell that this page runs is not restored before the server has the request', () => {
  assert.deepEqual(ids([execution('1', 'a')], { scheduled: new Set(['a']) }), []);
});

const unsaved: [string, Partial<Execution>, number | null, string | null][] = [
  ['it is not over', { state: 'running' }, 1, SAVED],
  ['the cell has no count', {}, null, SAVED],
  ['neither has a count', { execution_count: null }, null, SAVED],
  ['another count in an older file', {}, 2, '2026-01-01T00:00:09Z'],
  ['the file is older than the end', {}, 1, '2026-01-01T00:00:09Z'],
  ['the file is hardly newer', {}, 1, '2026-01-01T00:01:09Z'],
  ['the age of the file is not known', {}, 1, null],
  ['the end is not known', { ended: null }, 1, SAVED],
  ['a display may have changed', { displays: true }, 1, SAVED],
  ['an older server says nothing about displays', { displays: undefined }, 1, SAVED]
];

for (const [name, more, count, saved] of unsaved) {
  test(`it is sent: ${name}`, () => {
    assert.equal(isSaved(execution('1', 'b', more), count, saved), false);
  });
}
