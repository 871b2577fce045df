/** Messages of a kernel, for tests. */

let count = 0;

/** Return a message of the kernel in answer to a request; `parent` is its id. */
export function say(type, content = {}, { parent = '', channel = 'iopub', ...more } = {}) {
  return {
    channel,
    header: { msg_id: `k${++count}`, msg_type: type, session: 'kernel', username: 'someone' },
    parent_header: parent ? { msg_id: parent } : {},
    metadata: {},
    content,
    buffers: [],
    ...more
  };
}

export const status = (state, parent = '') => say('status', { execution_state: state }, { parent });
export const print = (text, parent) => say('stream', { name: 'stdout', text }, { parent });
export const reply = (type, content, parent) => say(type, content, { parent, channel: 'shell' });
export const done = (parent, content = {}) =>
  reply('execute_reply', { status: 'ok', execution_count: 1, ...content }, parent);
export const ask = (prompt, parent) =>
  say('input_request', { prompt, password: false }, { parent, channel: 'stdin' });
