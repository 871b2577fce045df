/** Messages that a cell cannot show are dropped. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isValid } from '../src/valid';
import { display, input, message, reply, status, stream, update } from './helpers';

test('messages with all fields are valid', () => {
  const error = message('error', { ename: 'E', evalue: '', traceback: [] });
  const clear = message('clear_output', { wait: false });
  const others = [input('x'), status('idle'), reply({}), message('comm_msg', {})];
  for (const each of [stream('a'), display('a'), update('a', 'x'), error, clear, ...others]) {
    assert.equal(isValid(each), true, each.header.msg_type);
  }
});

test('messages without a field, or of another type, are not', () => {
  for (const each of [
    message('error', { ename: 'E', evalue: '' }),
    message('error', { ename: 'E', evalue: '', traceback: null }),
    message('stream', { name: 'stdout' }),
    message('stream', { name: 'stdout', text: 1 }),
    message('display_data', { metadata: {} }),
    message('update_display_data', { data: 'x', metadata: {} }),
    message('execute_result', { data: {}, metadata: {} }),
    message('clear_output', {})
  ]) {
    assert.equal(isValid(each), false, each.header.msg_type);
  }
});
