/** Frames that kbridge's own encoder has written: tests/support/frames_for_js.py. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { decode, encode, MalformedFrame } from '../kbridge.js';

const cases = JSON.parse(readFileSync(new URL('frames.json', import.meta.url), 'utf8'));

/** Return the bytes in an ArrayBuffer of exactly their size. */
const bytes = hex => Uint8Array.from(Buffer.from(hex, 'hex')).buffer;
const hex = part =>
  part instanceof ArrayBuffer
    ? Buffer.from(part).toString('hex')
    : Buffer.from(part.buffer, part.byteOffset, part.byteLength).toString('hex');

for (const { name, frame, message } of cases.valid) {
  test(`decode a frame of the server: ${name}`, () => {
    const whole = bytes(frame);
    const decoded = decode(whole);
    assert.deepEqual({ ...decoded, buffers: decoded.buffers.map(hex) }, message);
    assert.ok(decoded.buffers.every(view => view.buffer === whole)); // no copies
  });

  test(`encode a message as the server does: ${name}`, () => {
    const encoded = encode({ ...message, buffers: message.buffers.map(bytes) });
    assert.equal(hex(encoded), frame);
  });

  test(`refuse each part of a frame: ${name}`, () => {
    const whole = bytes(frame);
    for (let size = 0; size < Math.min(whole.byteLength, 2000); size++) {
      assert.throws(() => decode(whole.slice(0, size)), MalformedFrame);
    }
    assert.throws(() => decode(bytes(frame + '00')), MalformedFrame);
  });
}

test('refuse what the server refuses', () => {
  assert.ok(cases.invalid.length > 50);
  for (const frame of cases.invalid) {
    assert.throws(() => decode(bytes(frame)), MalformedFrame);
  }
});

test('no byte of a frame, whatever its value, causes another error', () => {
  const { frame } = cases.valid[4];
  const size = frame.length / 2;
  let refused = 0;
  for (let at = 0; at < size; at++) {
    for (const value of [0, 0x22, 0x7f, 0xff]) {
      const changed = new Uint8Array(bytes(frame));
      changed[at] = value;
      try {
        const { header, content } = decode(changed.buffer);
        assert.equal(typeof header.msg_type, 'string');
        assert.equal(typeof content, 'object');
      } catch (error) {
        assert.ok(error instanceof MalformedFrame, String(error));
        refused++;
      }
    }
  }
  assert.ok(refused > 100);
});

test('parts that are not objects become empty ones, and text is refused', () => {
  const frame = encode({
    channel: 'iopub',
    header: { msg_id: 'a', msg_type: 'b' },
    parent_header: null,
    metadata: [],
    content: 7
  });
  const { parent_header, metadata, content } = decode(frame);
  assert.deepEqual([parent_header, metadata, content], [{}, {}, {}]);
  assert.throws(() => decode('{}'), MalformedFrame);
});

test('bytes that are not UTF-8 are replaced, and a part that is not JSON is empty', () => {
  const content = { text: 'caf#.txt' };
  const frame = encode({ ...cases.valid[0].message, buffers: [], content });
  const at = Buffer.from(frame).indexOf('#');
  new Uint8Array(frame)[at] = 0xe9; // as ipykernel sends os.fsdecode(b'caf\xe9.txt')
  assert.deepEqual(decode(frame).content, { text: 'caf\ufffd.txt' });
  assert.equal(decode(frame).unreadable, undefined);
  Buffer.from(frame).write('@', Buffer.from(frame).indexOf('{"text'));
  assert.deepEqual([decode(frame).content, decode(frame).unreadable], [{}, true]);
});

test('encode any view without the bytes around it', () => {
  const around = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]);
  const message = { ...cases.valid[0].message, buffers: [] };
  const views = [new DataView(around.buffer, 2, 3), around.subarray(6), new Uint16Array([258])];
  const { buffers } = decode(encode({ ...message, buffers: views }));
  assert.deepEqual(buffers.map(hex), ['030405', '0708', '0201']);
});
