/** What messages mean, and what is sent again: no network. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as kbridge from '../kbridge.js';
import { ask, done, print, reply, say, status } from './messages.js';

const { Backoff, errorOfClose, errorOfStatus, KernelDied, KernelSession, outputOf } = kbridge;

function running(...codes) {
  const session = new KernelSession('me');
  const ids = codes.map(code => {
    const message = session.build('shell', 'execute_request', { code });
    session.request(message);
    session.sending(message);
    return message.header.msg_id;
  });
  return [session, ...ids];
}

const feed = (session, ...messages) => messages.flatMap(message => session.receive(message));
const types = events => events.map(event => event.type);
const known = (...models) => new Map(models.map(model => [model.id, { first_seq: 1, ...model }]));

for (const [order, swap] of [
  ['reply first', false],
  ['idle first', true]
]) {
  test(`an execution ends with its reply and its idle status: ${order}`, () => {
    const [session, id] = running('1');
    const end = [done(id), status('idle', id)];
    const [last, first] = swap ? end : [...end].reverse();
    assert.deepEqual(
      types(feed(session, status('busy', id), print('a', id), first)).filter(t => t !== 'status'),
      ['output']
    );
    const [finished] = feed(session, last).filter(event => event.type === 'finished');
    assert.deepEqual(finished.result, {
      status: 'ok',
      executionCount: 1,
      userExpressions: {},
      payload: [],
      error: null
    });
    assert.deepEqual(feed(session, print('late', id)), []);
  });
}

test('messages belong to the execution that they name', () => {
  const [session, a, b] = running('1', '2');
  const events = feed(session, print('x', b), print('y', 'another'), print('z', a));
  assert.deepEqual(
    events.map(({ id, output }) => [id, output.text]),
    [
      [b, 'x'],
      [a, 'z']
    ]
  );
});

test('a message that arrives twice is ignored, and the last one on iopub is where it resumes', () => {
  const [session, id] = running('1');
  const message = print('x', id);
  assert.equal(feed(session, message, message).length, 1);
  assert.deepEqual(session.query(), { session_id: 'me', since: message.header.msg_id });
  const answer = done(id);
  feed(session, answer);
  assert.equal(session.query().since, message.header.msg_id);
  assert.deepEqual(feed(session, answer), []);
});

test('an error of the code is an output and a result', () => {
  const [session, id] = running('1/0');
  const error = { ename: 'ZeroDivisionError', evalue: 'division', traceback: ['a', 'b'] };
  const [output] = feed(session, say('error', error, { parent: id }));
  assert.deepEqual(output.output, { type: 'error', ...error });
  const events = feed(session, status('idle', id), done(id, { status: 'error', ...error }));
  assert.deepEqual(events.at(-1).result.error, { type: 'error', ...error });
});

test('an execution that was aborted has a reply only', () => {
  const [session, id] = running('1');
  const [event] = feed(session, done(id, { status: 'aborted' }));
  assert.deepEqual([event.type, event.result.status], ['finished', 'aborted']);
});

test('after a connection was lost, code is sent again only if the server does not know it', () => {
  const [session, a, b, c] = running('begun', 'known', 'lost');
  feed(session, status('busy', a));
  assert.ok(session.unconfirmed);
  const first = session.reconcile(known({ id: a }, { id: b, state: 'waiting' }), true);
  assert.deepEqual(
    first.messages.map(message => message.header.msg_id),
    [c]
  );
  assert.deepEqual(session.reconcile(known(), false).messages, []); // the connection is the same
  assert.deepEqual(session.reconcile(null, true).messages, []); // this server lists no executions
});

test('an execution that was aborted before it began ends', () => {
  const [session, id] = running('1');
  const models = known({ id, state: 'aborted', first_seq: null });
  const { events } = session.reconcile(models, true);
  assert.deepEqual([types(events), events[0].result.status], [['finished'], 'aborted']);
});

test('other requests are sent again', () => {
  const session = new KernelSession('me');
  const message = session.build('shell', 'complete_request', { code: 'a' });
  session.request(message);
  assert.deepEqual(session.reconcile(null, true).messages, []); // it was not sent yet
  session.sending(message);
  assert.equal(session.requests, 1);
  assert.deepEqual(session.reconcile(null, true).messages, [message]);
  const answer = reply('complete_reply', { status: 'ok', matches: [] }, message.header.msg_id);
  assert.deepEqual(feed(session, answer), [
    { type: 'replied', id: message.header.msg_id, content: answer.content }
  ]);
  assert.equal(session.requests, 0);
});

test('an answer is sent again until the execution goes on', () => {
  const [session, id] = running('input()');
  assert.equal(session.answer(id, 'x'), null);
  const question = ask('? ', id);
  assert.deepEqual(types(feed(session, question)), ['question']);
  const answer = session.answer(id, 'me');
  assert.deepEqual(answer.content, { status: 'ok', value: 'me' });
  assert.deepEqual(answer.parent_header, question.header);
  assert.equal(session.answer(id, 'again'), null);
  assert.deepEqual(session.reconcile(known({ id }), true).messages, [answer]);
  feed(session, print('me', id));
  assert.deepEqual(session.reconcile(known({ id }), true).messages, []);
});

for (const state of ['starting', 'restarting']) {
  test(`what had begun does not end after ${state}, what waits may`, () => {
    const [session, a, b] = running('1', '2');
    feed(session, status('busy', a));
    const events = feed(session, status(state));
    assert.deepEqual(types(events), ['status', 'failed', 'replaced']);
    assert.equal(events[1].id, a);
    assert.ok(events[1].error instanceof KernelDied);
    assert.deepEqual(types(feed(session, status('busy', b), done(b), status('idle', b))), [
      'status',
      'status',
      'finished'
    ]);
  });
}

test('a kernel that waits in a queue ends nothing and says why', () => {
  const [session, a] = running('1');
  const waits = say('status', { execution_state: 'starting', reason: 'job 1 waits' });
  assert.deepEqual(feed(session, waits), [
    { type: 'status', state: 'starting', reason: 'job 1 waits' }
  ]);
  const dead = say('status', { execution_state: 'dead', reason: 'job 1 ended' });
  const [, failed] = feed(session, dead);
  assert.equal(failed.id, a);
  assert.equal(failed.error.message, 'the kernel died: job 1 ended');
});

test('nothing ends after the kernel is dead', () => {
  const [session, a, b] = running('1', '2');
  const events = feed(session, status('dead'));
  assert.deepEqual(types(events), ['status', 'failed', 'failed']);
  assert.deepEqual([events[1].id, events[2].id], [a, b]);
});

test('a session that follows a request receives it from another client', () => {
  const session = new KernelSession('me', 'theirs');
  assert.deepEqual(session.query(), { session_id: 'me', parents: 'theirs' });
  const begin = say('execute_input', { code: 'x', execution_count: 2 }, { parent: 'theirs' });
  const events = feed(session, begin, ask('? ', 'theirs'), done('theirs'));
  assert.deepEqual(types(events), ['output', 'question']);
  assert.equal(events[0].output.code, 'x');
  assert.deepEqual(session.reconcile(known(), true).messages, []); // it is not this client's
  assert.deepEqual(types(feed(session, status('idle', 'theirs'))), ['status', 'finished']);
});

test('when the connection ends for good, everything that waits fails', () => {
  const [session, id] = running('1');
  const error = new KernelDied('gone');
  assert.deepEqual(session.end(error), [{ type: 'failed', id, error }]);
  assert.deepEqual(session.end(error), []);
});

const bundle = { data: { 'text/plain': 'x' }, metadata: {} };
const OUTPUTS = [
  ['stream', { name: 'stderr', text: 'a' }, { type: 'stream', name: 'stderr', text: 'a' }],
  ['display_data', { ...bundle, transient: { display_id: 'd' } }, { ...bundle, displayId: 'd' }],
  ['update_display_data', { ...bundle, transient: {} }, { ...bundle, displayId: null }],
  ['execute_result', { ...bundle, execution_count: 3 }, { ...bundle, executionCount: 3 }],
  ['clear_output', { wait: true }, { type: 'clear_output', wait: true }],
  ['error', {}, { ename: '', evalue: '', traceback: [] }],
  ['execute_input', {}, { code: '', executionCount: null }]
];
for (const [type, content, expected] of OUTPUTS) {
  test(`the output of ${type}`, () => {
    const output = outputOf(say(type, content));
    assert.equal(output.type, type);
    for (const [name, value] of Object.entries(expected)) {
      assert.deepEqual(output[name], value);
    }
  });
}

test('a notice of the server is a gap, the same text of a kernel is not', () => {
  const text = '[kbridge: 1,234 messages (5 bytes) of output were dropped because ...]\n';
  const message = say('stream', { name: 'stderr', text });
  assert.equal(outputOf(message).type, 'stream');
  message.header.username = 'kbridge';
  assert.deepEqual(outputOf(message), { type: 'gap', messages: 1234, text: text.slice(10, -2) });
  message.content.text = '[kbridge: output may be missing]\n';
  assert.equal(outputOf(message).messages, 0);
  assert.equal(outputOf(say('comm_info_reply')), null);
});

test('an output that is not JSON is a gap, a reply that is not JSON is an error', () => {
  const [session, id] = running('1');
  const unreadable = { unreadable: true, content: {} };
  const [{ output }] = feed(session, { ...print('', id), ...unreadable });
  const text = 'a message of type stream is not valid JSON';
  assert.deepEqual(output, { type: 'gap', messages: 1, text });
  const [, finished] = feed(session, status('idle', id), { ...done(id), ...unreadable });
  assert.deepEqual([finished.type, finished.result.status], ['finished', 'error']);
  assert.equal(finished.result.error.evalue, 'the reply of the kernel is not valid JSON');
  const info = session.build('shell', 'kernel_info_request', {});
  session.request(info);
  const [failed] = feed(session, {
    ...reply('kernel_info_reply', {}, info.header.msg_id),
    ...unreadable
  });
  assert.deepEqual([failed.type, failed.error.name], ['failed', 'KernelError']);
});

const CLOSES = [
  [1000, '', null],
  [1001, 'the server is shutting down', null],
  [1006, '', null],
  [1011, '', null],
  [1012, 'the server is restarting', null],
  [1012, 'the kernel was shut down', 'KernelDied'],
  [1012, 'the kernel is gone', null], // from one replica; another one may have it
  [1012, '', null],
  [1002, '', 'ClientError'],
  [1003, '', 'ClientError'],
  [1007, '', 'ClientError'],
  [1008, '', 'ClientError'],
  [1009, '', 'FrameTooBig'],
  [4403, '', 'Forbidden'],
  [4999, '', 'ClientError']
];
for (const [code, reason, name] of CLOSES) {
  test(`close code ${code} ${reason}`, () => {
    const error = errorOfClose(code, reason);
    assert.equal(error?.name ?? null, name);
    if (error) {
      assert.equal(error.closeCode, code);
      assert.ok(error.message);
    }
  });
}

const STATUSES = {
  400: 'InvalidRequest',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'NotFound',
  409: 'Conflict',
  413: 'FrameTooBig',
  418: 'ClientError',
  500: 'BridgeError',
  501: 'NotSupported',
  503: 'Busy'
};
for (const [code, name] of Object.entries(STATUSES)) {
  test(`HTTP status ${code}`, () => {
    const error = errorOfStatus(Number(code), 'why');
    assert.deepEqual([error.name, error.status, error.message], [name, Number(code), 'why']);
    assert.ok(error instanceof kbridge.KbridgeError);
  });
}

test('delays are doubled up to a limit, and at least half of them', () => {
  const least = new Backoff(100, 1000, () => 0);
  assert.deepEqual(
    Array.from({ length: 6 }, () => least.next()),
    [50, 100, 200, 400, 500, 500]
  );
  const most = new Backoff(100, 1000, () => 1);
  assert.deepEqual(
    Array.from({ length: 6 }, () => most.next()),
    [100, 200, 400, 800, 1000, 1000]
  );
  most.reset();
  assert.equal(most.next(), 100);
});
