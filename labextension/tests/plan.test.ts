import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Execution, Situation } from '../src/plan';
import { isOver, neverRan, plan, sameCode } from '../src/plan';

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
    ...more
  };
}

function situation(more: Partial<Situation> = {}): Situation {
  return {
    cells: new Set(['a', 'b']),
    session: 'mine',
    known: new Set(),
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
