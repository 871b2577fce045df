/** A server without a network: websockets that tests open, close and write to, and HTTP replies. */

import assert from 'node:assert/strict';

import { connect, decode, encode, PROTOCOL } from '../kbridge.js';

/** Let everything run that waits for nothing. */
export const settle = () => new Promise(resolve => setImmediate(resolve));

/** One websocket, as the module sees it; the other half of its methods are the server's. */
class FakeSocket {
  constructor(url, [protocol]) {
    assert.equal(protocol, PROTOCOL);
    this.url = new URL(url);
    this.query = Object.fromEntries(this.url.searchParams);
    this.readyState = 0;
    this.protocol = '';
    this.sent = [];
  }

  send(frame) {
    assert.equal(this.readyState, 1);
    this.sent.push(decode(frame));
  }

  close(code) {
    this.readyState = 2;
    this.left = code;
  }

  async open(protocol = PROTOCOL) {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen();
    await settle();
  }

  async say(...messages) {
    await this.write(...messages.map(encode));
  }

  async write(...frames) {
    frames.forEach(data => this.onmessage({ data }));
    await settle();
  }

  async cut(code = 1006, reason = '') {
    this.readyState = 3;
    this.onclose({ code, reason });
    await settle();
  }

  /** The ids of the requests that were sent, or their codes. */
  get codes() {
    return this.sent.map(({ header, content }) => content.code ?? header.msg_type);
  }
}

/** A server with one kernel, `k`. */
export class FakeServer {
  sockets = [];
  requests = [];
  /** Executions that the server knows, by id. */
  known = {};
  /** The status of replies about the kernel; 0 if the server cannot be reached. */
  status = 200;

  constructor(options = {}) {
    const { sockets } = this;
    const WebSocket = class extends FakeSocket {
      constructor(...args) {
        super(...args);
        sockets.push(this);
      }
    };
    const fetch = async (url, request) => this.#reply(url, request);
    this.server = connect({ url: 'http://host/base', token: 't', WebSocket, fetch, ...options });
    this.kernel = this.server.kernel('k');
    this.states = [];
    this.kernel.addEventListener('connection', ({ detail }) => this.states.push(detail.state));
  }

  /** The newest websocket. */
  get socket() {
    return this.sockets.at(-1);
  }

  #reply(url, { method, headers }) {
    this.requests.push(`${method} ${url.pathname}`);
    assert.equal(headers.Authorization, 'token t');
    if (this.status === 0) {
      throw new TypeError('fetch failed');
    }
    const id = /executions\/(.+)$/.exec(url.pathname)?.[1];
    const all = Object.entries(this.known).map(([key, more]) => ({ id: key, ...more }));
    let value = { id: 'k' };
    let { status } = this;
    if (id) {
      value = all.find(each => each.id === id);
      status = value ? status : 404;
    } else if (url.pathname.endsWith('executions')) {
      value = all;
    }
    const ok = status < 400;
    const text = JSON.stringify(ok ? value : { reason: 'reason', message: 'why' });
    return { ok, status, statusText: '', text: async () => text };
  }
}

/** Return the outputs of an execution, when it has ended. */
export async function all(execution) {
  const outputs = [];
  for await (const output of execution) {
    outputs.push(output);
  }
  return outputs;
}
