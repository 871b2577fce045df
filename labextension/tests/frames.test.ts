import assert from 'node:assert/strict';
import { test } from 'node:test';

import { decode, encode } from '../src/frames';
import { message } from './helpers';

test('what is encoded is decoded', () => {
  const sent = message('stream', { name: 'stdout', text: 'ä\n€ 😀' });
  assert.deepEqual(decode(encode(sent)), { ...sent, buffers: [] });
});

test('a frame of the server with buffers', () => {
  // As kbridge.wire.v1.encode writes it: channel, four parts, two buffers.
  const parts = ['iopub', '{"msg_id":"1","msg_type":"comm_msg"}', 'null', '{}', '{}', 'ab', ''];
  const bytes = parts.map(part => new TextEncoder().encode(part));
  const count = parts.length + 1;
  const total = bytes.reduce((sum, part) => sum + part.length, 8 * (count + 1));
  const frame = new Uint8Array(total);
  const view = new DataView(frame.buffer);
  view.setBigUint64(0, BigInt(count), true);
  let at = 8 * (count + 1);
  bytes.forEach((part, i) => {
    view.setBigUint64(8 * (i + 1), BigInt(at), true);
    frame.set(part, at);
    at += part.length;
  });
  view.setBigUint64(8 * count, BigInt(at), true);
  const received = decode(frame.buffer);
  assert.equal(received.header.msg_type, 'comm_msg');
  assert.deepEqual(received.parent_header, {});
  assert.deepEqual(
    received.buffers?.map(buffer => buffer.byteLength),
    [2, 0]
  );
});

test('other bytes are refused', () => {
  const whole = encode(message('status', {}));
  for (let size = 0; size < whole.byteLength; size++) {
    assert.throws(() => decode(whole.slice(0, size)));
  }
  assert.throws(() => decode(new ArrayBuffer(64)));
});
