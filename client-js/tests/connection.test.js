/** Websockets that break, and programs that read slowly; no network. */

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { encode, KernelDied, NetworkError } from '../kbridge.js';
import { all, FakeServer, settle } from './fakes.js';
import { ask, done, print, reply, say, status } from './messages.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout'] }));
afterEach(() => mock.timers.reset());

/** Let the delay before the next attempt pass. */
async function pass(milliseconds = 30_000) {
  mock.timers.tick(milliseconds);
  await settle();
}

const end = id => [done(id), status('idle', id)];
const text = outputs => outputs.map(output => output.text).join('');

test('requests wait for the websocket, and go in order', async () => {
  const fake = new FakeServer();
  const first = fake.kernel.execute('1', { cellId: 'c', storeHistory: false });
  fake.kernel.execute('2');
  const { socket } = fake;
  assert.equal(socket.url.pathname, '/base/api/kernels/k/channels');
  assert.equal(socket.url.protocol, 'ws:');
  assert.deepEqual(socket.query, { session_id: fake.kernel.session, token: 't' });
  assert.deepEqual(socket.sent, []);
  await socket.open();
  fake.kernel.execute('3');
  assert.deepEqual(socket.codes, ['1', '2', '3']);
  const [{ channel, header, metadata, content }] = socket.sent;
  assert.deepEqual([channel, header.msg_id, metadata], ['shell', first.id, { cellId: 'c' }]);
  assert.deepEqual([content.store_history, content.allow_stdin], [false, false]);
  assert.equal(fake.sockets.length, 1);
  assert.deepEqual(fake.requests, []);
});

test('outputs come in order, and the result at the end', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('code');
  const { id } = execution;
  await fake.socket.open();
  const outputs = all(execution);
  await fake.socket.say(status('busy', id), print('a', id), print('b', id));
  assert.equal(fake.kernel.status, 'busy');
  await fake.socket.say(...end(id));
  assert.equal(text(await outputs), 'ab');
  assert.equal((await execution.result).status, 'ok');
  assert.deepEqual(await all(execution), []); // each output once
});

test('a message that is not JSON is a gap, and the session goes on', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('code');
  const { id } = execution;
  await fake.socket.open();
  const frame = encode(say('display_data', { data: { x: 100 } }, { parent: id }));
  const bytes = Buffer.from(frame);
  bytes.write('NaN', bytes.indexOf('100'));
  await fake.socket.write(frame);
  await fake.socket.say(print('b', id), ...end(id));
  const [gap, output] = await all(execution);
  assert.deepEqual([gap.type, gap.messages, output.text], ['gap', 1, 'b']);
  assert.deepEqual(fake.states, ['connecting', 'open']);
});

test('an execution whose idle status the kernel has dropped ends with a gap', async () => {
  const fake = new FakeServer();
  const [lost, late] = ['1', '2'].map(code => fake.kernel.execute(code));
  await fake.socket.open();
  const outputs = all(lost);
  await fake.socket.say(status('busy', lost.id), print('a', lost.id), done(lost.id));
  await fake.socket.say(status('busy', late.id), done(late.id));
  await pass(5000);
  const [ofLost, ofLate] = fake.socket.sent.slice(2);
  assert.deepEqual([ofLost.channel, ofLost.header.msg_type], ['shell', 'kernel_info_request']);
  await fake.socket.say(status('idle', late.id));
  for (const { header } of [ofLost, ofLate]) {
    await fake.socket.say(reply('kernel_info_reply', { status: 'ok' }, header.msg_id));
  }
  const [output, gap, ...others] = await outputs;
  assert.deepEqual([output.text, gap.type, gap.messages, others], ['a', 'gap', 0, []]);
  assert.equal((await lost.result).status, 'ok');
  assert.equal((await late.result).status, 'ok');
  assert.deepEqual(await all(late), []); // it was late, and nothing is missing
  const { id } = fake.kernel.execute('3');
  await fake.socket.say(...end(id));
  await pass(5000);
  assert.equal(fake.socket.codes.at(-1), '3'); // its status came at once
});

test('a probe waits for the connection, and does not outlive the process of the kernel', async () => {
  const fake = new FakeServer();
  const { id, result } = fake.kernel.execute('1');
  await fake.socket.open();
  await fake.socket.say(status('busy', id), done(id));
  await fake.socket.cut();
  await pass(5000);
  await fake.socket.open();
  assert.deepEqual(fake.socket.sent, []);
  await pass(5000);
  assert.deepEqual(fake.socket.codes, ['kernel_info_request']);
  await fake.socket.say(status('restarting'));
  await assert.rejects(result, KernelDied);
  await fake.socket.cut();
  await pass();
  await fake.socket.open();
  assert.deepEqual(fake.socket.sent, []);
});

test('after a cut it names the last message, and sends again what the server does not know', async () => {
  const fake = new FakeServer();
  const [begun, known, lost] = ['begun', 'known', 'lost'].map(code => fake.kernel.execute(code));
  await fake.socket.open();
  const outputs = all(begun);
  const last = print('a', begun.id);
  await fake.socket.say(status('busy', begun.id), last);
  await fake.socket.cut();
  const late = fake.kernel.execute('late');
  fake.known = { [begun.id]: {}, [known.id]: { state: 'waiting' } };
  await pass();
  assert.equal(fake.sockets.length, 2);
  assert.equal(fake.socket.query.since, last.header.msg_id);
  await fake.socket.open();
  assert.deepEqual(fake.socket.codes, ['lost', 'late']);
  assert.deepEqual(
    fake.socket.sent.map(({ header }) => header.msg_id),
    [lost.id, late.id]
  );
  await fake.socket.say(last, print('b', begun.id), ...end(begun.id));
  assert.equal(text(await outputs), 'ab');
  assert.deepEqual(fake.states, ['connecting', 'open', 'waiting', 'connecting', 'open']);
});

test('a restart of the server is followed at once, a crash with growing delays', async () => {
  const fake = new FakeServer();
  const delays = [];
  fake.kernel.addEventListener('connection', ({ detail }) => delays.push(detail.delay));
  fake.kernel.connect();
  await fake.socket.open();
  await fake.socket.cut(1012, 'the server is restarting');
  assert.ok(delays.at(-1) <= 100);
  await pass(100);
  await fake.socket.open();
  fake.status = 0; // no server
  await fake.socket.cut();
  for (let attempt = 0; attempt < 9; attempt++) {
    await pass();
    if (attempt === 0) {
      await fake.socket.cut(); // the first websocket after the crash
    }
  }
  const [first, ...others] = delays.filter(delay => delay !== undefined).slice(1);
  assert.ok(first >= 125 && first <= 250);
  assert.ok(others.slice(0, 5).every((delay, i) => delay > [first, ...others][i]));
  assert.ok(Math.max(...others) <= 30_000);
  const sockets = fake.sockets.length;
  fake.status = 200;
  await pass();
  assert.equal(fake.sockets.length, sockets + 1);
});

for (const [name, status, error] of [
  ['a kernel that does not exist', 404, 'NotFound'],
  ['a wrong token', 403, 'Forbidden']
]) {
  test(`HTTP says why a websocket is refused: ${name}`, async () => {
    const fake = new FakeServer();
    const execution = fake.kernel.execute('1');
    fake.status = status;
    await fake.socket.cut();
    await pass();
    await assert.rejects(execution.result, { name: error, status });
    await assert.rejects(all(execution), { name: error });
    assert.equal(fake.states.at(-1), 'closed');
  });
}

test('a kernel that was there may be missing for a moment, and not for long', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('1');
  await fake.socket.open();
  fake.status = 404;
  await fake.socket.cut();
  await pass();
  for (let attempt = 0; attempt < 5; attempt++) {
    await fake.socket.cut();
    await pass();
    assert.notEqual(fake.states.at(-1), 'closed');
  }
  await pass();
  await assert.rejects(execution.result, { name: 'NotFound' });
});

test('the end of the kernel ends everything', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('1');
  const info = assert.rejects(fake.kernel.kernelInfo(), KernelDied);
  await fake.socket.open();
  await fake.socket.cut(1012, 'the kernel was shut down');
  await assert.rejects(execution.result, KernelDied);
  await info;
  await pass();
  assert.equal(fake.sockets.length, 1);
  fake.kernel.execute('2'); // begins anew, so that HTTP can tell that the kernel is gone
  assert.equal(fake.sockets.length, 2);
});

test('a server of another protocol is refused', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('1');
  await fake.socket.open('');
  await assert.rejects(execution.result, NetworkError);
});

test('input is answered by a callback, and the answer is sent again after a cut', async () => {
  const fake = new FakeServer();
  const questions = [];
  const onInput = question => {
    questions.push(question);
    return 'me';
  };
  const execution = fake.kernel.execute('input()', { onInput });
  await fake.socket.open();
  assert.equal(fake.socket.sent[0].content.allow_stdin, true);
  const question = ask('name? ', execution.id);
  await fake.socket.say(question);
  assert.deepEqual(questions, [{ prompt: 'name? ', password: false }]);
  const [, answer] = fake.socket.sent;
  assert.deepEqual([answer.channel, answer.content.value], ['stdin', 'me']);
  assert.deepEqual(answer.parent_header, question.header);
  fake.known = { [execution.id]: {} };
  await fake.socket.cut();
  await pass();
  await fake.socket.open();
  assert.deepEqual(fake.socket.sent, [answer]);
});

test('input is an output if the program says so', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('input()', { allowInput: true });
  await fake.socket.open();
  await fake.socket.say(ask('? ', execution.id));
  const { value } = await execution[Symbol.asyncIterator]().next();
  assert.deepEqual([value.type, value.prompt], ['input_request', '? ']);
  value.reply('yes');
  assert.equal(fake.socket.sent.at(-1).content.value, 'yes');
  assert.throws(() => value.reply('no'), { name: 'InvalidRequest' });
});

test('a callback for input that fails ends the execution with its error', async () => {
  const fake = new FakeServer();
  const onInput = () => Promise.reject(new RangeError('no answer'));
  const execution = fake.kernel.execute('input()', { onInput });
  await fake.socket.open();
  await fake.socket.say(ask('? ', execution.id));
  await assert.rejects(execution.result, RangeError);
  assert.deepEqual(fake.requests, ['POST /base/api/kernels/k/interrupt']); // it waits no longer
});

test('a callback for input that fails after the end of the execution interrupts nothing', async () => {
  const fake = new FakeServer();
  let fail;
  const onInput = () => new Promise((_, reject) => (fail = reject));
  const execution = fake.kernel.execute('input()', { onInput });
  await fake.socket.open();
  await fake.socket.say(ask('? ', execution.id), ...end(execution.id));
  fail(new RangeError('no answer'));
  await settle();
  assert.equal((await execution.result).status, 'ok');
  assert.deepEqual(fake.requests, []);
});

test('a followed execution has its own websocket, and answers over it', async () => {
  const fake = new FakeServer();
  fake.known = { theirs: { state: 'running', first_seq: 5 } };
  const execution = fake.kernel.follow('theirs', { onInput: () => 'me' });
  const outputs = all(execution);
  const { socket } = fake;
  assert.equal(socket.query.parents, 'theirs');
  await socket.open();
  await socket.say(print('a', 'theirs'), ask('? ', 'theirs'));
  assert.equal(socket.sent[0].content.value, 'me');
  await socket.cut();
  await pass();
  assert.equal(fake.socket.query.parents, 'theirs');
  assert.ok(fake.socket.query.since);
  await fake.socket.open();
  await fake.socket.say(print('b', 'theirs'), ...end('theirs'));
  assert.equal(text(await outputs), 'ab');
  assert.equal(fake.socket.left, 1000); // it was for this execution only
});

test('an execution that the server does not know cannot be followed', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.follow('nobody');
  await fake.socket.open();
  await assert.rejects(execution.result, { name: 'NotFound' });
});

test('an execution that never began is followed to its end', async () => {
  const fake = new FakeServer();
  fake.known = { theirs: { state: 'aborted', first_seq: null } };
  const execution = fake.kernel.follow('theirs');
  await fake.socket.open();
  assert.equal((await execution.result).status, 'aborted');
});

test('after a restart of the kernel, the server says which requests were aborted', async () => {
  const fake = new FakeServer();
  const [begun, aborted, waits] = ['1', '2', '3'].map(code => fake.kernel.execute(code));
  await fake.socket.open();
  await fake.socket.say(status('busy', begun.id));
  const aborts = { state: 'aborted', first_seq: null };
  fake.known = { [begun.id]: {}, [aborted.id]: aborts, [waits.id]: { state: 'waiting' } };
  await fake.socket.say(status('restarting'));
  await assert.rejects(begun.result, KernelDied);
  assert.equal((await aborted.result).status, 'aborted');
  await fake.socket.say(status('busy', waits.id), ...end(waits.id));
  assert.equal((await waits.result).status, 'ok');
});

const MB = 'x'.repeat(1_000_000);

test('a loop that lags closes the websocket, and goes on with the next message', async () => {
  const fake = new FakeServer();
  const lags = [];
  fake.kernel.addEventListener('lag', ({ detail }) => lags.push(detail.paused));
  const execution = fake.kernel.execute('flood');
  const { id } = execution;
  await fake.socket.open();
  const loop = execution[Symbol.asyncIterator]();
  let sent = 0;
  const first = fake.socket;
  while (!first.left && sent < 100) {
    await first.say(print(MB, id));
    sent++;
  }
  assert.equal(sent, 34); // more than 32 MiB
  assert.deepEqual([first.left, fake.states.at(-1), lags], [1000, 'paused', [true]]);
  await pass();
  assert.equal(fake.sockets.length, 1); // it waits for the loop, not for a time
  for (let taken = 0; fake.sockets.length === 1; taken++) {
    assert.ok(taken < 20, 'half of them taken');
    await loop.next();
  }
  assert.deepEqual(lags, [true, false]);
  fake.known = { [id]: {} };
  await fake.socket.open();
  await fake.socket.say(print('the rest', id), ...end(id));
  const rest = [];
  for (let next = await loop.next(); !next.done; next = await loop.next()) {
    rest.push(next.value.text);
  }
  assert.equal(rest.at(-1), 'the rest');
});

test('a request opens the websocket of a program that lags, until it is answered', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('flood');
  await fake.socket.open();
  execution[Symbol.asyncIterator]();
  await fake.socket.say(...Array.from({ length: 40 }, () => print(MB, execution.id)));
  assert.equal(fake.states.at(-1), 'paused');
  const info = fake.kernel.kernelInfo();
  assert.equal(fake.sockets.length, 2);
  await fake.socket.open();
  const [request] = fake.socket.sent;
  await fake.socket.say(print(MB, execution.id));
  assert.equal(fake.states.at(-1), 'open');
  await fake.socket.say(reply('kernel_info_reply', { status: 'ok' }, request.header.msg_id));
  assert.deepEqual(await info, { status: 'ok' });
  await fake.socket.say(print(MB, execution.id));
  assert.equal(fake.states.at(-1), 'paused');
});

test('outputs that nothing reads are bounded, and the loop says what is missing', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('flood');
  const { id } = execution;
  await fake.socket.open();
  await fake.socket.say(...Array.from({ length: 40 }, () => print(MB, id)), ...end(id));
  assert.equal((await execution.result).status, 'ok');
  const [gap, ...others] = await all(execution);
  assert.deepEqual([gap.type, gap.messages], ['gap', 7]);
  assert.equal(others.length, 33);
});

test('a loop that is left takes no memory, and does not stop the execution', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('flood');
  const { id } = execution;
  await fake.socket.open();
  await fake.socket.say(print('a', id), print('b', id));
  for await (const output of execution) {
    assert.equal(output.text, 'a');
    break;
  }
  await fake.socket.say(...Array.from({ length: 40 }, () => print(MB, id)));
  assert.equal(fake.states.at(-1), 'open');
  await fake.socket.say(...end(id));
  assert.equal((await execution.result).status, 'ok');
});

test('requests return the content of their reply, or throw its error', async () => {
  const fake = new FakeServer();
  const answers = {
    complete_request: () => fake.kernel.complete('pri'),
    inspect_request: () => fake.kernel.inspect('print', 2, 1),
    is_complete_request: () => fake.kernel.isComplete('1'),
    history_request: () => fake.kernel.history({ n: 3 }),
    kernel_info_request: () => fake.kernel.kernelInfo()
  };
  fake.kernel.connect();
  await fake.socket.open();
  for (const [type, request] of Object.entries(answers)) {
    const answer = request();
    const { header } = fake.socket.sent.at(-1);
    assert.equal(header.msg_type, type);
    await fake.socket.say(reply('x_reply', { status: 'ok', type }, header.msg_id));
    assert.deepEqual(await answer, { status: 'ok', type });
  }
  assert.deepEqual(fake.socket.sent[0].content, { code: 'pri', cursor_pos: 3 });
  const { content } = fake.socket.sent[3];
  assert.deepEqual([content.n, content.hist_access_type], [3, 'tail']);
  const failing = assert.rejects(fake.kernel.request('x_request', {}, { channel: 'control' }), {
    name: 'KernelError',
    message: 'E: v'
  });
  const { channel, header } = fake.socket.sent.at(-1);
  assert.equal(channel, 'control');
  const error = { status: 'error', ename: 'E', evalue: 'v' };
  await fake.socket.say(reply('x_reply', error, header.msg_id));
  await failing;
});

test('comms carry data and buffers both ways', async () => {
  const fake = new FakeServer();
  const comm = fake.kernel.openComm('target', { a: 1 }, { buffers: [new Uint8Array([1, 2])] });
  await fake.socket.open();
  const [opened] = fake.socket.sent;
  assert.deepEqual(opened.content, { comm_id: comm.id, target_name: 'target', data: { a: 1 } });
  assert.equal(opened.buffers[0].getUint8(1), 2);
  const got = [];
  comm.addEventListener('message', ({ detail }) => got.push(detail));
  const buffers = [new Uint8Array([7])];
  await fake.socket.say(
    say('comm_msg', { comm_id: comm.id, data: { b: 2 } }, { buffers }),
    say('comm_msg', { comm_id: 'of another client', data: {} })
  );
  assert.deepEqual([got.length, got[0].data, got[0].buffers[0].getUint8(0)], [1, { b: 2 }, 7]);
  let closed = 0;
  comm.addEventListener('close', () => closed++);
  await fake.socket.say(say('comm_close', { comm_id: comm.id, data: {} }));
  assert.equal(closed, 1);

  const offered = [];
  fake.kernel.registerTarget('page', (its, { data }) => offered.push([its, data]));
  await fake.socket.say(
    say('comm_open', { comm_id: 'x', target_name: 'page', data: { c: 3 } }),
    say('comm_open', { comm_id: 'y', target_name: 'unknown', data: {} })
  );
  const [[its, data]] = offered;
  assert.deepEqual([offered.length, its.id, data], [1, 'x', { c: 3 }]);
  its.send({ d: 4 });
  its.close();
  assert.deepEqual(fake.socket.codes.slice(-2), ['comm_msg', 'comm_close']);
});

test('when the network is back, waiting ends, and open websockets are replaced', async () => {
  const events = new EventTarget();
  globalThis.addEventListener = events.addEventListener.bind(events);
  const document = Object.assign(new EventTarget(), { visibilityState: 'hidden' });
  globalThis.document = document;
  try {
    const fake = new FakeServer();
    const { id } = fake.kernel.execute('1');
    await fake.socket.open();
    const last = status('busy', id);
    await fake.socket.say(last);
    await fake.socket.cut();
    document.dispatchEvent(new Event('visibilitychange'));
    await settle();
    assert.equal(fake.sockets.length, 1);
    document.visibilityState = 'visible';
    document.dispatchEvent(new Event('visibilitychange'));
    await settle();
    assert.equal(fake.sockets.length, 2);
    await fake.socket.open();
    const old = fake.socket;
    events.dispatchEvent(new Event('online'));
    await settle();
    assert.deepEqual([fake.sockets.length, old.left], [3, 1000]);
    assert.equal(fake.socket.query.since, last.header.msg_id);
    old.onmessage({ data: 'late' }); // ignored, because the new websocket brings it
    fake.server.close();
    events.dispatchEvent(new Event('online'));
    assert.equal(fake.sockets.length, 3);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.document;
  }
});

test('a program that closes the kernel ends what waits; the kernel goes on', async () => {
  const fake = new FakeServer();
  const execution = fake.kernel.execute('1');
  await fake.socket.open();
  fake.kernel.close();
  await assert.rejects(execution.result, { name: 'Closed' });
  assert.deepEqual(fake.requests, []);
  assert.equal(fake.states.at(-1), 'closed');
});

test('messages that wait for a connection are bounded', async () => {
  const fake = new FakeServer();
  const code = 'x'.repeat(2 ** 20);
  const executions = Array.from({ length: 64 }, () => fake.kernel.execute(code));
  await assert.rejects(executions.at(-1).result, { name: 'Busy' });
  await fake.socket.open();
  assert.equal(fake.socket.sent.length, 63);
});

test('the methods of kernels and servers are requests of the REST API', async () => {
  const fake = new FakeServer();
  const { server, kernel } = fake;
  await server.startKernel('python3');
  await server.kernels();
  await server.kernelspecs();
  await kernel.model();
  await kernel.interrupt();
  await kernel.restart();
  await kernel.executions({ state: ['running', 'waiting'], cellId: 'c', limit: 1 });
  await kernel.shutdown();
  assert.deepEqual(fake.requests, [
    'POST /base/api/kernels',
    'GET /base/api/kernels',
    'GET /base/api/kernelspecs',
    'GET /base/api/kernels/k',
    'POST /base/api/kernels/k/interrupt',
    'POST /base/api/kernels/k/restart',
    'GET /base/api/kernels/k/executions',
    'DELETE /base/api/kernels/k'
  ]);
  fake.status = 0;
  await assert.rejects(server.kernels(), NetworkError);
  assert.equal(server.kernel('k'), kernel);
});
