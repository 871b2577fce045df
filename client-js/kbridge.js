/**
 * The client of kbridge for browser pages and for Node: one ES module, without dependencies.
 *
 *     import { connect } from 'http://localhost:8888/kbridge.js';
 *     const server = connect({ url: 'http://localhost:8888', token });
 *     const kernel = await server.startKernel('python3');
 *     for await (const output of kernel.execute('print(6 * 7)')) console.log(output);
 *
 * Order: errors; frames; outputs; `KernelSession`, which decides without I/O; `Channel`, a websocket
 * that reconnects; and the objects that programs use. `kbridge.d.ts` is made from the comments.
 */

// -- errors --

/** Base class of all errors of this module. */
export class KbridgeError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, closeCode?: number, cause?: unknown}} [more]
   */
  constructor(message, more = {}) {
    super(message, { cause: more.cause });
    this.name = new.target.name;
    /** The HTTP status of the reply, if there was one. */
    this.status = more.status;
    /** The code with which the websocket was closed, if it was. */
    this.closeCode = more.closeCode;
  }
}

/** The server refuses what this client sent. */
export class ClientError extends KbridgeError {}
/** 400: a parameter is not valid; or an execution is used in a way that is not possible. */
export class InvalidRequest extends ClientError {}
/** 401: the token is wrong. */
export class Unauthorized extends ClientError {}
/** 403: there is no valid token, the origin of the page is not allowed, or a limit is reached. */
export class Forbidden extends ClientError {}
/** 404: the kernel, the kernelspec or the execution does not exist. */
export class NotFound extends ClientError {}
/** 409: the state of the object does not permit this. */
export class Conflict extends ClientError {}
/** 413 or close code 1009: a message is larger than the server allows. */
export class FrameTooBig extends ClientError {}
/** A websocket frame is not a message of the dialect v1.kernel.websocket.jupyter.org. */
export class MalformedFrame extends KbridgeError {}
/** The kernel answered a request with an error. */
export class KernelError extends KbridgeError {}
/** The kernel was shut down, died or was restarted, and will not complete the request. */
export class KernelDied extends KernelError {}
/** 501: this kernel cannot do it. */
export class NotSupported extends KernelError {}
/** The server cannot be reached, or does not speak this protocol. */
export class NetworkError extends KbridgeError {}
/** The server failed; its log says why. */
export class BridgeError extends KbridgeError {}
/** 503: temporarily impossible; try again later. */
export class Busy extends BridgeError {}
/** The object was closed by this program. */
export class Closed extends KbridgeError {}

/** @type {Record<number, typeof KbridgeError>} */
const STATUS_ERRORS = {
  400: InvalidRequest,
  401: Unauthorized,
  403: Forbidden,
  404: NotFound,
  409: Conflict,
  413: FrameTooBig,
  501: NotSupported,
  503: Busy
};

/**
 * Return the error that an HTTP status stands for.
 *
 * @param {number} status
 * @param {string} message
 * @returns {KbridgeError}
 */
export function errorOfStatus(status, message) {
  const type = STATUS_ERRORS[status] ?? (status < 500 ? ClientError : BridgeError);
  return new type(message, { status });
}

/** The reason, with close code 1012, after which a client connects again at once. */
const SERVER_RESTARTS = 'the server is restarting';

/** The reasons, with close code 1012, that say that the kernel has ended for good. */
const KERNEL_ENDED = ['the kernel was shut down'];

/**
 * Return what the end of a websocket means.
 *
 * @param {number} code - The close code; 1006 if the connection broke.
 * @param {string} reason - The reason in the close frame.
 * @returns {KbridgeError | null} Null to connect again; otherwise the error that ends everything.
 */
export function errorOfClose(code, reason) {
  const more = { closeCode: code };
  if (code === 1012 && KERNEL_ENDED.includes(reason)) {
    return new KernelDied(reason, more);
  }
  if (code === 1009) {
    return new FrameTooBig(reason || 'a message is larger than the server allows', more);
  }
  if ([1002, 1003, 1007, 1008].includes(code) || (code >= 4000 && code <= 4999)) {
    const text = reason || `the server closed the websocket with code ${code}`;
    return code === 4401 || code === 4403 ? new Forbidden(text, more) : new ClientError(text, more);
  }
  return null;
}

// -- frames --

/** The subprotocol of the websocket. */
export const PROTOCOL = 'v1.kernel.websocket.jupyter.org';

/**
 * @typedef {object} Header
 * @property {string} msg_id
 * @property {string} msg_type
 * @property {string} [session]
 * @property {string} [username]
 * @property {string} [version]
 * @property {string} [date]
 */

/**
 * @typedef {object} Message A message between a client and a kernel.
 * @property {'shell' | 'iopub' | 'stdin' | 'control'} channel
 * @property {Header} header
 * @property {Partial<Header>} parent_header
 * @property {Record<string, any>} metadata
 * @property {Record<string, any>} content
 * @property {DataView[]} buffers Views of the frame, which is not copied.
 * @property {boolean} [unreadable] True if the kernel sent a part that is not JSON; it is empty here.
 */

const PARTS = 5; // channel, header, parent_header, metadata, content
const WORD = 8;

/**
 * Return the frame of a message.
 *
 * @param {Omit<Message, 'buffers'> & {buffers?: readonly (ArrayBuffer | ArrayBufferView)[]}} message
 * @returns {ArrayBuffer}
 */
export function encode(message) {
  const utf8 = new TextEncoder();
  const json = [message.header, message.parent_header, message.metadata, message.content];
  const parts = [message.channel, ...json.map(part => JSON.stringify(part))].map(text =>
    utf8.encode(text)
  );
  for (const buffer of message.buffers ?? []) {
    parts.push(
      ArrayBuffer.isView(buffer)
        ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
        : new Uint8Array(buffer)
    );
  }
  let offset = WORD * (parts.length + 2);
  const frame = new ArrayBuffer(parts.reduce((size, part) => size + part.length, offset));
  const table = new DataView(frame);
  const bytes = new Uint8Array(frame);
  table.setBigUint64(0, BigInt(parts.length + 1), true);
  parts.forEach((part, i) => {
    table.setBigUint64(WORD * (i + 1), BigInt(offset), true);
    bytes.set(part, offset);
    offset += part.length;
  });
  table.setBigUint64(WORD * (parts.length + 1), BigInt(offset), true);
  return frame;
}

/**
 * Return the message of a frame. Bytes that are not UTF-8, which Python's kernels send for some names
 * of files, are replaced by U+FFFD.
 *
 * @param {ArrayBuffer} frame
 * @returns {Message}
 * @throws {MalformedFrame} If the frame is not a message of this dialect.
 */
export function decode(frame) {
  if (!(frame instanceof ArrayBuffer)) {
    throw new MalformedFrame('the frame is not binary');
  }
  const offsets = readOffsets(frame);
  const utf8 = new TextDecoder();
  const [channel, ...texts] = [0, 1, 2, 3, 4].map(i =>
    utf8.decode(new Uint8Array(frame, offsets[i], offsets[i + 1] - offsets[i]))
  );
  let unreadable = false;
  const [header, parent, metadata, content] = texts.map(text => {
    try {
      return JSON.parse(text);
    } catch {
      unreadable = true; // NaN, for example
    }
  });
  if (!isObject(header) || typeof header.msg_type !== 'string') {
    throw new MalformedFrame('the message has no type');
  }
  const buffers = [];
  for (let i = PARTS; i + 1 < offsets.length; i++) {
    buffers.push(new DataView(frame, offsets[i], offsets[i + 1] - offsets[i]));
  }
  return {
    channel: /** @type {Message['channel']} */ (channel),
    header: /** @type {any} */ (header),
    parent_header: objectOf(parent),
    metadata: objectOf(metadata),
    content: objectOf(content),
    buffers,
    ...(unreadable ? { unreadable } : {})
  };
}

/**
 * @param {ArrayBuffer} frame
 * @returns {number[]} The start of the first part, and the end of each part.
 */
function readOffsets(frame) {
  const size = frame.byteLength;
  const table = new DataView(frame);
  const count = size < WORD ? 0 : Number(table.getBigUint64(0, true));
  if (count < PARTS + 1 || WORD * (count + 1) > size) {
    throw new MalformedFrame(`a frame of ${size} bytes cannot have ${count} offsets`);
  }
  const offsets = [];
  let before = WORD * (count + 1);
  for (let i = 1; i <= count; i++) {
    const offset = Number(table.getBigUint64(WORD * i, true));
    if (offset < before || offset > size) {
      throw new MalformedFrame(`offset ${i} of a frame is out of its range`);
    }
    offsets.push((before = offset));
  }
  if (before !== size) {
    throw new MalformedFrame(`the parts of the frame end at ${before}, its bytes at ${size}`);
  }
  return offsets;
}

/** @type {(value: unknown) => value is Record<string, any>} */
function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** @type {(value: unknown) => Record<string, any>} */
function objectOf(value) {
  return isObject(value) ? value : {};
}

// -- outputs --

/**
 * @typedef {object} StreamOutput Text that the code wrote.
 * @property {'stream'} type
 * @property {string} name `stdout` or `stderr`.
 * @property {string} text
 */
/**
 * @typedef {object} DisplayOutput Something to show; an update replaces all displays of its id.
 * @property {'display_data' | 'update_display_data'} type
 * @property {Record<string, any>} data One representation for each MIME type.
 * @property {Record<string, any>} metadata
 * @property {string | null} displayId
 * @property {DataView[]} buffers
 */
/**
 * @typedef {object} ResultOutput The value of the last expression of the code.
 * @property {'execute_result'} type
 * @property {number | null} executionCount
 * @property {Record<string, any>} data
 * @property {Record<string, any>} metadata
 * @property {string | null} displayId
 * @property {DataView[]} buffers
 */
/**
 * @typedef {object} ErrorOutput An exception that the code did not catch.
 * @property {'error'} type
 * @property {string} ename
 * @property {string} evalue
 * @property {string[]} traceback Lines with ANSI colours.
 */
/**
 * @typedef {object} ClearOutput Earlier output is to be removed.
 * @property {'clear_output'} type
 * @property {boolean} wait True to remove it only when new output arrives.
 */
/**
 * @typedef {object} CodeOutput The kernel begins to run this code.
 * @property {'execute_input'} type
 * @property {string} code
 * @property {number | null} executionCount
 */
/**
 * @typedef {object} InputRequest The code waits for a line of input.
 * @property {'input_request'} type
 * @property {string} prompt
 * @property {boolean} password True if the answer must not be shown.
 * @property {(value: string) => void} reply Answers it. The first answer of any client counts.
 */
/**
 * @typedef {object} Gap Output is missing here; the text says why.
 * @property {'gap'} type
 * @property {number} messages The number of missing messages; 0 if it is not known.
 * @property {string} text
 */
/**
 * @typedef {StreamOutput | DisplayOutput | ResultOutput | ErrorOutput | ClearOutput | CodeOutput |
 *   InputRequest | Gap} Output
 */
/**
 * @typedef {object} Result The end of an execution.
 * @property {'ok' | 'error' | 'aborted'} status `aborted` if an earlier error made the kernel skip it.
 * @property {number | null} executionCount
 * @property {Record<string, any>} userExpressions
 * @property {Record<string, any>[]} payload
 * @property {ErrorOutput | null} error The exception, if the status is `error`.
 */

/** @type {(value: unknown) => number | null} */
const countOf = value => (typeof value === 'number' ? value : null);
/** @type {(value: unknown, other?: string) => string} */
const textOf = (value, other = '') => (typeof value === 'string' ? value : other);

/** @type {(content: Record<string, any>) => ErrorOutput} */
function errorOutput(content) {
  return {
    type: 'error',
    ename: textOf(content.ename),
    evalue: textOf(content.evalue),
    traceback: Array.isArray(content.traceback) ? content.traceback.map(String) : []
  };
}

/**
 * Return the output in an iopub message; null if it is of another type.
 *
 * @param {Message} message
 * @returns {Exclude<Output, InputRequest> | null}
 */
export function outputOf({ header, content, buffers, unreadable }) {
  const bundle = () => ({
    data: objectOf(content.data),
    metadata: objectOf(content.metadata),
    displayId: textOf(objectOf(content.transient).display_id) || null,
    buffers
  });
  const type = header.msg_type;
  if (unreadable && type !== 'status') {
    return { type: 'gap', messages: 1, text: `a message of type ${type} is not valid JSON` };
  }
  switch (type) {
    case 'stream': {
      const text = textOf(content.text);
      // The server reports missing output as a line on stderr, in its own name.
      const notice = header.username === 'kbridge' && /^\[kbridge: ([^\n]*)\]\n?$/.exec(text);
      if (!notice) {
        return { type, name: textOf(content.name, 'stdout'), text };
      }
      const number = /^([\d,]+) messages? /.exec(notice[1]);
      const messages = number ? Number(number[1].replaceAll(',', '')) : 0;
      return { type: 'gap', messages, text: notice[1] };
    }
    case 'display_data':
    case 'update_display_data':
      return { type, ...bundle() };
    case 'execute_result':
      return { type, executionCount: countOf(content.execution_count), ...bundle() };
    case 'error':
      return errorOutput(content);
    case 'clear_output':
      return { type, wait: Boolean(content.wait) };
    case 'execute_input':
      return {
        type,
        code: textOf(content.code),
        executionCount: countOf(content.execution_count)
      };
    default:
      return null;
  }
}

/**
 * @param {Record<string, any>} content - The content of an `execute_reply`.
 * @returns {Result}
 */
function resultOf(content) {
  const status = content.status === 'ok' || content.status === 'error' ? content.status : 'aborted';
  return {
    status,
    executionCount: countOf(content.execution_count),
    userExpressions: objectOf(content.user_expressions),
    payload: Array.isArray(content.payload) ? content.payload.filter(isObject) : [],
    error: status === 'error' ? errorOutput(content) : null
  };
}

// -- one session, without I/O --

/**
 * @typedef {object} Waiting A request without its complete answer.
 * @property {Message | null} message Null if another client sent it.
 * @property {boolean} code True for a request to execute code.
 * @property {boolean} sent
 * @property {boolean} begun True once a message of the kernel has named it.
 * @property {boolean} idle
 * @property {Result | null} result
 * @property {string} probes The execution that ends with the reply to this request, or empty.
 * @property {Header | null} question The last input request without an answer.
 * @property {Message | null} answer Until the execution goes on.
 */

/**
 * @typedef {{type: 'output', id: string, output: Output}
 *   | {type: 'question', id: string, prompt: string, password: boolean}
 *   | {type: 'replied', id: string, content: Record<string, any>}
 *   | {type: 'finished', id: string, result: Result}
 *   | {type: 'failed', id: string, error: KbridgeError}
 *   | {type: 'status', state: string, reason: string}
 *   | {type: 'replaced'}
 *   | {type: 'comm', message: Message}} SessionEvent
 */

const RECENT = 1000; // ids of messages, because the server may repeat input requests
const UNREADABLE = 'the reply of the kernel is not valid JSON';
const REPLACED = ['starting', 'restarting', 'dead'];

/**
 * The requests, the executions and the place of one session on one kernel, without I/O.
 *
 * - A request is kept until a message names it as its parent: it may be lost with a connection.
 * - A request to execute code is sent again only if the server does not know it. Other requests may
 *   be sent again, because they have no effects.
 * - An execution is complete when its reply and its idle status have arrived, in either order; an
 *   aborted one when its reply has.
 * - The place to resume at is the last message on iopub that `receive` was given: all replicas of a
 *   cluster know it. A message that arrives twice, as replies after it do, is ignored.
 */
export class KernelSession {
  /**
   * @param {string} id - A new random id.
   * @param {string} [follows] - A request of any client; then only its messages are received.
   */
  constructor(id, follows = '') {
    /** The id of the session. */
    this.id = id;
    /** The id of the request that the session follows; empty if there is none. */
    this.follows = follows;
    /** The id of the last message on iopub that was received. */
    this.last = '';
    if (follows) {
      this.#wait(follows, null, true);
    }
  }

  /** @type {Map<string, Waiting>} */
  #waiting = new Map();
  /** @type {Set<string>} */
  #recent = new Set();
  #count = 0;

  /** Return the parameters of the websocket's URL. */
  query() {
    const all = { session_id: this.id, parents: this.follows, since: this.last };
    return Object.fromEntries(Object.entries(all).filter(([, value]) => value));
  }

  /** The number of requests that are not complete, other than executions. */
  get requests() {
    return [...this.#waiting.values()].filter(each => !each.code && !each.probes).length;
  }

  /** True if some execution may have been lost with a connection. */
  get unconfirmed() {
    return [...this.#waiting.values()].some(each => each.code && each.sent && !each.begun);
  }

  /**
   * Return a new message of this session.
   *
   * @param {Message['channel']} channel
   * @param {string} type
   * @param {Record<string, any>} content
   * @param {{metadata?: Record<string, any>, parent?: Partial<Header>, buffers?: any[]}} [more]
   * @returns {Message}
   */
  build(channel, type, content, { metadata = {}, parent = {}, buffers = [] } = {}) {
    const header = {
      msg_id: `${this.id}_${++this.#count}`,
      msg_type: type,
      session: this.id,
      username: 'kbridge.js',
      version: '5.4',
      date: new Date().toISOString()
    };
    return { channel, header, parent_header: parent, metadata, content, buffers };
  }

  /**
   * Note a request whose answer will be an event.
   *
   * @param {Message} message
   */
  request(message) {
    const { msg_id, msg_type } = message.header;
    this.#wait(msg_id, message, msg_type === 'execute_request');
  }

  /** True if an execution has a reply and no idle status yet. @param {string} id */
  isLate(id) {
    return Boolean(this.#waiting.get(id)?.result);
  }

  /**
   * Return a request that ends a late execution: kernels answer in order, but may drop output.
   *
   * @param {string} id
   */
  probe(id) {
    const message = this.build('shell', 'kernel_info_request', {});
    this.#wait(message.header.msg_id, message, false, id);
    return message;
  }

  /** @type {(id: string, message: Message | null, code: boolean, probes?: string) => void} */
  #wait(id, message, code, probes = '') {
    const none = { sent: false, begun: false, idle: false, result: null };
    this.#waiting.set(id, { message, code, probes, question: null, answer: null, ...none });
  }

  /**
   * Return the answer to the question of an execution; null if it has none.
   *
   * @param {string} id
   * @param {string} value
   */
  answer(id, value) {
    const waiting = this.#waiting.get(id);
    if (!waiting?.question) {
      return null;
    }
    const content = { status: 'ok', value };
    const parent = waiting.question;
    waiting.question = null;
    return (waiting.answer = this.build('stdin', 'input_reply', content, { parent }));
  }

  /**
   * Note that a message is written to a connection.
   *
   * @param {Message} message
   */
  sending(message) {
    const waiting = this.#waiting.get(message.header.msg_id);
    if (waiting) {
      waiting.sent = true;
    }
  }

  /**
   * Take the next message of the server.
   *
   * @param {Message} message
   * @returns {SessionEvent[]} What it means.
   */
  receive(message) {
    const { msg_id: id, msg_type: type } = message.header;
    if (id) {
      if (this.#recent.has(id)) {
        return [];
      }
      if (message.channel === 'iopub') {
        this.last = id;
      }
      this.#recent.add(id);
      if (this.#recent.size > RECENT) {
        this.#recent.delete(/** @type {string} */ (this.#recent.values().next().value));
      }
    }
    const parent = textOf(message.parent_header.msg_id);
    /** @type {SessionEvent[]} */
    const events = [];
    if (message.channel === 'iopub') {
      if (type.startsWith('comm_')) {
        return [{ type: 'comm', message }];
      }
      if (type === 'status') {
        const state = textOf(message.content.execution_state);
        const reason = parent ? '' : textOf(message.content.reason);
        events.push({ type: 'status', state, reason });
        // A kernel that waits in a queue had no process that could have been replaced.
        if (!parent && REPLACED.includes(state) && !(reason && state === 'starting')) {
          return [...events, ...this.#replaced(state === 'dead', reason)];
        }
      }
    }
    const waiting = this.#waiting.get(parent);
    if (!waiting) {
      return events;
    }
    waiting.begun = true;
    waiting.message = null;
    return [
      ...events,
      ...(waiting.code
        ? this.#ofExecution(parent, waiting, message)
        : this.#reply(parent, waiting, message))
    ];
  }

  /** @type {(id: string, waiting: Waiting, message: Message) => SessionEvent[]} */
  #reply(id, { probes }, { channel, content, unreadable }) {
    if (channel === 'iopub') {
      return []; // busy and idle
    }
    this.#waiting.delete(id);
    return probes
      ? this.#endLate(probes)
      : unreadable
        ? [{ type: 'failed', id, error: new KernelError(UNREADABLE) }]
        : [{ type: 'replied', id, content }];
  }

  /** @type {(id: string) => SessionEvent[]} */
  #endLate(id) {
    const result = this.#waiting.get(id)?.result;
    this.#waiting.delete(id);
    const text = 'output may be missing: the kernel did not report the end';
    return result
      ? [
          { type: 'output', id, output: { type: 'gap', messages: 0, text } },
          { type: 'finished', id, result }
        ]
      : [];
  }

  /** @type {(id: string, waiting: Waiting, message: Message) => SessionEvent[]} */
  #ofExecution(id, waiting, message) {
    const { channel, header, content, unreadable } = message;
    if (header.msg_type === 'input_request') {
      waiting.question = header;
      waiting.answer = null;
      const { prompt, password } = content;
      return [{ type: 'question', id, prompt: textOf(prompt), password: Boolean(password) }];
    }
    if (header.msg_type === 'execute_reply') {
      const failed = { status: 'error', ename: 'KernelError', evalue: UNREADABLE };
      waiting.result = resultOf(unreadable ? failed : content);
    } else if (channel === 'iopub') {
      waiting.answer = null;
      const output = outputOf(message);
      if (output) {
        return [{ type: 'output', id, output }];
      }
      waiting.idle ||= header.msg_type === 'status' && content.execution_state === 'idle';
    }
    const { result, idle } = waiting;
    if (!result || !(idle || result.status === 'aborted')) {
      return [];
    }
    this.#waiting.delete(id);
    return [{ type: 'finished', id, result }];
  }

  /**
   * The process of the kernel has gone: what had begun in it does not end.
   *
   * @type {(dead: boolean, reason: string) => SessionEvent[]}
   */
  #replaced(dead, reason) {
    /** @type {SessionEvent[]} */
    const events = [];
    for (const [id, { code, begun, probes }] of [...this.#waiting]) {
      if (dead || (code && begun) || probes) {
        const what = dead ? 'the kernel died' : 'the kernel was restarted';
        const error = new KernelDied(reason ? `${what}: ${reason}` : what);
        this.#waiting.delete(id);
        events.push({ type: 'failed', id, error });
      }
    }
    return this.#waiting.size ? [...events, { type: 'replaced' }] : events;
  }

  /**
   * Compare the executions with those that the server knows.
   *
   * @param {Map<string, ExecutionModel> | null} known - Null if the server does not list executions.
   * @param {boolean} reconnected - True after a new connection.
   * @returns {{events: SessionEvent[], messages: Message[]}} The messages are to be sent again.
   */
  reconcile(known, reconnected) {
    /** @type {SessionEvent[]} */
    const events = [];
    const messages = [];
    for (const [id, waiting] of [...this.#waiting]) {
      const { code, sent, begun, message, answer } = waiting;
      const model = known?.get(id);
      if (code && !begun && model?.state === 'aborted' && model.first_seq === null) {
        this.#waiting.delete(id);
        events.push({ type: 'finished', id, result: resultOf({ status: 'aborted' }) });
      } else if (message && sent && (!code || (known && !model))) {
        messages.push(message);
      }
      if (answer) {
        messages.push(answer);
      }
    }
    return { events, messages: reconnected ? messages : [] };
  }

  /**
   * Give up: nothing more will be received.
   *
   * @param {KbridgeError} error
   * @returns {SessionEvent[]}
   */
  end(error) {
    const ids = [...this.#waiting.keys()];
    this.#waiting.clear();
    return ids.map(id => ({ type: 'failed', id, error }));
  }
}

/** Delays between attempts to connect: doubled up to a limit, with jitter. */
export class Backoff {
  /**
   * @param {number} [first] - Milliseconds.
   * @param {number} [most]
   * @param {() => number} [random] - A number from 0 to 1.
   */
  constructor(first = 250, most = 30_000, random = Math.random) {
    this.first = first;
    this.most = most;
    this.random = random;
    this.attempt = 0;
  }

  /** Return the next delay: half of the full one, and a random part of the other half. */
  next() {
    const full = Math.min(this.most, this.first * 2 ** Math.min(this.attempt++, 30));
    return (full / 2) * (1 + this.random());
  }

  /** Begin again with the first delay. */
  reset() {
    this.attempt = 0;
  }
}

// -- one session over a websocket that reconnects --

const QUEUE_BYTES = 64 * 2 ** 20; // messages that wait for a connection
const HIGH_BYTES = 32 * 2 ** 20; // outputs that the program has not taken
const IDLE_DELAY = 5000; // milliseconds from the reply of an execution to its idle status
const MISSING = 5; // answers in a row that the kernel does not exist, before a channel gives up

/**
 * @typedef {object} ChannelListener
 * @property {(event: SessionEvent, bytes: number) => void} onEvent
 * @property {(message: Message) => void} onMessage
 * @property {(state: ConnectionState, more: {delay?: number, error?: KbridgeError}) => void} onState
 * @property {(paused: boolean, bytes: number) => void} onLag
 */

/** @typedef {'connecting' | 'open' | 'waiting' | 'paused' | 'closed'} ConnectionState */

/** A session and its websocket. */
class Channel {
  /**
   * @param {Server} server
   * @param {string} kernelId
   * @param {KernelSession} session
   * @param {ChannelListener} listener
   */
  constructor(server, kernelId, session, listener) {
    this.server = server;
    this.kernelId = kernelId;
    this.session = session;
    this.listener = listener;
  }

  /** @type {ConnectionState | 'new'} */
  state = 'new';
  /** @type {WebSocket | null} */
  #socket = null;
  /** True when messages may be written: what was lost has been sent again. */
  #ready = false;
  /** True once a websocket has been open. */
  #opened = false;
  /** True if the last attempt did not open a websocket; HTTP tells why. */
  #refused = false;
  /** True once the server has said that it knows the execution to follow. */
  #verified = false;
  #missing = 0;
  #backoff = new Backoff();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {{message: Message, frame: ArrayBuffer}[]} */
  #queue = [];
  #queued = 0;
  #held = 0;
  /** Requests that were sent while the channel was paused. @type {Set<string>} */
  #urgent = new Set();

  /** Connect, unless that has been done. */
  open() {
    if (this.state === 'new') {
      this.#connect();
    }
  }

  /** @param {Message} message */
  send(message) {
    const frame = encode(message);
    if (this.#ready && this.#socket?.readyState === 1) {
      this.#write(message, frame);
      return;
    }
    if (this.#queued + frame.byteLength > QUEUE_BYTES) {
      throw new Busy(`more than ${QUEUE_BYTES} bytes wait for a connection to the server`);
    }
    this.#queue.push({ message, frame });
    this.#queued += frame.byteLength;
    if (this.state === 'paused') {
      this.#urgent.add(message.header.msg_id);
      this.#connect();
    }
    this.open();
  }

  /** Try again now, if the channel waits. */
  wake() {
    if (this.state === 'waiting') {
      clearTimeout(this.#timer);
      this.#again();
    }
  }

  /** Use a new websocket: after a change of the network, the present one may be dead. */
  renew() {
    this.wake();
    if (this.state === 'open') {
      this.#drop();
      this.#connect();
    }
  }

  /**
   * End; everything that waits fails.
   *
   * @param {KbridgeError} error
   */
  end(error) {
    if (this.state === 'closed') {
      return;
    }
    clearTimeout(this.#timer);
    this.#drop();
    this.#queue = [];
    this.#queued = 0;
    this.#set('closed', { error });
    this.#emit(this.session.end(error), 0);
  }

  /** Note bytes of outputs that the program has not taken yet. @param {number} bytes */
  hold(bytes) {
    this.#held += bytes;
    this.#pace();
  }

  /** Note that the program has taken outputs. @param {number} bytes */
  release(bytes) {
    this.#held -= bytes;
    if (this.state === 'paused' && this.#held < HIGH_BYTES / 2) {
      this.listener.onLag(false, this.#held);
      this.#connect();
    }
  }

  /**
   * Browsers cannot stop reading a websocket. Instead, close it while the program lags: the server
   * keeps the messages, and `since` names the last one.
   */
  #pace() {
    const lags = this.#held > HIGH_BYTES && this.#ready && this.#queue.length === 0;
    if (lags && this.session.requests === 0 && this.#urgent.size === 0) {
      this.#drop();
      this.#set('paused');
      this.listener.onLag(true, this.#held);
    }
  }

  #connect() {
    this.#set('connecting');
    if (this.state !== 'connecting') {
      return; // a listener has closed the channel
    }
    /** @type {WebSocket} */
    let socket;
    try {
      const { WebSocket } = this.server.environment;
      socket = new WebSocket(this.server.channelsUrl(this.kernelId, this.session.query()), [
        PROTOCOL
      ]);
    } catch (error) {
      this.end(new NetworkError(`cannot make a websocket: ${error}`, { cause: error }));
      return;
    }
    this.#socket = socket;
    this.#refused = true;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket === this.#socket && this.#onOpen(socket);
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#onClose(code, reason);
    // Node 20 reports a refused websocket as an error only, browsers also as a close.
    socket.onerror = () => socket === this.#socket && this.#refused && this.#onClose(1006, '');
  }

  /** Leave the websocket, if there is one. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#ready = false;
    socket?.close(1000);
  }

  /** @param {WebSocket} socket */
  async #onOpen(socket) {
    if (socket.protocol !== PROTOCOL) {
      this.end(new NetworkError(`the server does not speak ${PROTOCOL}`));
      return;
    }
    const again = this.#opened;
    this.#opened = true;
    this.#refused = false;
    this.#missing = 0;
    this.#set('open');
    const { session } = this;
    let known = null;
    try {
      if ((again && session.unconfirmed) || (session.follows && !this.#verified)) {
        known = await this.#known();
        this.#verified = true;
      }
    } catch (error) {
      if (socket === this.#socket && error instanceof NotFound) {
        this.end(error); // there is no such execution
      } else if (socket === this.#socket) {
        this.#drop();
        this.#fault(error);
      }
      return;
    }
    if (socket !== this.#socket) {
      return;
    }
    const { events, messages } = session.reconcile(known, again);
    const waiting = this.#queue.splice(0);
    this.#queued = 0;
    this.#ready = true;
    messages.forEach(message => this.#write(message, encode(message)));
    waiting.forEach(({ message, frame }) => this.#write(message, frame));
    this.#emit(events, 0);
  }

  /** Return the executions of this session that the server knows; null if it lists none. */
  async #known() {
    const { server, kernelId, session } = this;
    if (session.follows) {
      const model = await server.execution(kernelId, session.follows);
      return new Map([[model.id, model]]);
    }
    try {
      const models = await server.executions(kernelId, { sessionId: session.id });
      return new Map(models.map(model => [model.id, model]));
    } catch (error) {
      if (error instanceof NotFound || error instanceof ClientError) {
        return null; // a server without executions; or the kernel has gone, which the close tells
      }
      throw error;
    }
  }

  /** @type {(message: Message, frame: ArrayBuffer) => void} */
  #write(message, frame) {
    const socket = this.#socket;
    if (socket?.readyState !== 1) {
      this.#queue.push({ message, frame }); // it was closed just now
      this.#queued += frame.byteLength;
      return;
    }
    this.session.sending(message);
    socket.send(frame);
  }

  /** @param {unknown} data */
  #receive(data) {
    let message;
    try {
      message = decode(/** @type {ArrayBuffer} */ (data));
    } catch (error) {
      this.end(/** @type {KbridgeError} */ (error));
      return;
    }
    this.#backoff.reset();
    const events = this.session.receive(message);
    if (message.header.msg_type === 'execute_reply') {
      this.#expectIdle(textOf(message.parent_header.msg_id));
    }
    this.listener.onMessage(message);
    this.#emit(events, /** @type {ArrayBuffer} */ (data).byteLength);
  }

  /** Send a probe if an execution remains late. @param {string} id */
  #expectIdle(id) {
    if (this.session.isLate(id)) {
      const timer = setTimeout(() => {
        if (!this.#ready) {
          this.#expectIdle(id); // the server may keep its status
        } else if (this.session.isLate(id)) {
          this.send(this.session.probe(id));
        }
      }, IDLE_DELAY);
      /** @type {any} */ (timer).unref?.();
    }
  }

  /** @type {(events: SessionEvent[], bytes: number) => void} */
  #emit(events, bytes) {
    for (const event of events) {
      if ('id' in event && event.type !== 'output' && event.type !== 'question') {
        this.#urgent.delete(event.id);
      }
      if (event.type === 'replaced') {
        void this.#afterReplacement();
      } else {
        this.listener.onEvent(event, bytes);
      }
    }
  }

  /** The kernel has another process: find out which of the waiting executions were aborted. */
  async #afterReplacement() {
    const socket = this.#socket;
    const known = await this.#known().catch(() => null);
    if (known && socket === this.#socket) {
      this.#emit(this.session.reconcile(known, false).events, 0);
    }
  }

  /** @type {(code: number, reason: string) => void} */
  #onClose(code, reason) {
    this.#socket = null;
    this.#ready = false;
    const error = errorOfClose(code, reason);
    if (error) {
      this.end(error);
    } else if (code === 1012 && reason === SERVER_RESTARTS) {
      this.#wait(100 * Math.random()); // the server restarts, and its port stays open
    } else {
      this.#wait(this.#backoff.next());
    }
  }

  /** @type {(delay: number, error?: KbridgeError) => void} */
  #wait(delay, error) {
    this.#timer = setTimeout(() => this.#again(), delay);
    this.#set('waiting', { delay, error });
  }

  /** Connect again. After a refusal, ask over HTTP: a websocket does not say why it was refused. */
  async #again() {
    this.#set('connecting');
    if (this.#refused && this.state === 'connecting') {
      try {
        await this.server.model(this.kernelId);
      } catch (error) {
        if (this.state === 'connecting') {
          this.#fault(error);
        }
        return;
      }
    }
    if (this.state === 'connecting') {
      this.#connect();
    }
  }

  /** Wait after an error of HTTP, or end if it is final. @param {unknown} cause */
  #fault(cause) {
    const error =
      cause instanceof KbridgeError ? cause : new NetworkError(String(cause), { cause });
    const gone = error instanceof NotFound && (!this.#opened || ++this.#missing > MISSING);
    if (gone || (error instanceof ClientError && !(error instanceof NotFound))) {
      this.end(error);
    } else {
      this.#wait(this.#backoff.next(), error);
    }
  }

  /** @type {(state: ConnectionState, more?: {delay?: number, error?: KbridgeError}) => void} */
  #set(state, more = {}) {
    if (this.state !== 'closed' && (state !== this.state || more.error)) {
      this.state = state;
      this.listener.onState(state, more);
    }
  }
}

// -- executions --

/** @type {(id: string, channel: Channel, onEnd: () => void, onInput?: OnInput) => Execution} */
let newExecution;
/** Give an event to its execution. @type {(to: Execution, event: SessionEvent, bytes: number) => void} */
let take;
/** @type {(id: string, target: string, send: SendComm) => Comm} */
let newComm;

/**
 * The outputs of a request to execute code, in order and each once: `for await (const output of
 * execution)`. The loop ends with the execution, and throws if the kernel dies. An error of the code
 * is an output, not an exception of the loop.
 *
 * Outputs wait for the loop. Until it begins, at most 32 MiB are kept; the loop then begins with a
 * `gap`. While it runs, nothing is dropped: when it lags, the websocket is closed for a while.
 *
 * @implements {AsyncIterable<Output>}
 */
export class Execution {
  static {
    newExecution = (...args) => new Execution(...args);
    take = (execution, event, bytes) => execution.#take(event, bytes);
  }

  /**
   * @private
   * @param {string} id
   * @param {Channel} channel
   * @param {() => void} onEnd
   * @param {OnInput} [onInput]
   */
  constructor(id, channel, onEnd, onInput) {
    /** The `msg_id` of the request, by which another page can `follow` the execution. */
    this.id = id;
    /** @type {Promise<Result>} The end; rejected if the kernel dies or can no longer be reached. */
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.result.catch(() => undefined); // a program may use the loop alone
    this.#channel = channel;
    this.#onEnd = onEnd;
    this.#onInput = onInput;
  }

  #channel;
  #onEnd;
  #onInput;
  /** @type {(result: Result) => void} */
  #resolve = () => undefined;
  /** @type {(error: unknown) => void} */
  #reject = () => undefined;
  /** @type {{output: Output, bytes: number}[]} */
  #outputs = [];
  #first = 0; // the index of the first output that was not taken
  #bytes = 0;
  #dropped = 0;
  #reading = false;
  #left = false;
  #ended = false;
  /** @type {unknown} */
  #error = null;
  /** @type {(() => void)[]} */
  #readers = [];

  /** Answer the input request that is open. @param {string} value */
  reply(value) {
    const answer = this.#channel.session.answer(this.id, value);
    if (!answer) {
      throw new InvalidRequest('the execution does not ask for input');
    }
    this.#channel.send(answer);
  }

  /** @returns {AsyncIterableIterator<Output>} */
  [Symbol.asyncIterator]() {
    if (!this.#reading && !this.#left) {
      this.#reading = true;
      this.#channel.hold(this.#bytes);
    }
    /** @type {AsyncIterableIterator<Output>} */
    const iterator = {
      next: () => this.#next(),
      return: async () => {
        this.#leave();
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]: () => iterator
    };
    return iterator;
  }

  /** @returns {Promise<IteratorResult<Output, undefined>>} */
  async #next() {
    for (;;) {
      if (this.#dropped) {
        const messages = this.#dropped;
        this.#dropped = 0;
        const text = `${messages} outputs were dropped because no loop read them.`;
        return { done: false, value: { type: 'gap', messages, text } };
      }
      if (this.#first < this.#outputs.length) {
        const { output, bytes } = this.#shift();
        this.#channel.release(bytes);
        return { done: false, value: output };
      }
      if (this.#ended || this.#left) {
        if (this.#error && !this.#left) {
          this.#left = true; // thrown once
          throw this.#error;
        }
        return { done: true, value: undefined };
      }
      await new Promise(resolve => this.#readers.push(() => resolve(undefined)));
    }
  }

  #shift() {
    const taken = this.#outputs[this.#first];
    this.#first++;
    this.#bytes -= taken.bytes;
    if (this.#first > 1000 && 2 * this.#first > this.#outputs.length) {
      this.#outputs = this.#outputs.slice(this.#first);
      this.#first = 0;
    }
    return taken;
  }

  /** The loop was left: drop its outputs from now on. */
  #leave() {
    this.#left = true;
    const bytes = this.#bytes;
    this.#outputs = [];
    this.#first = this.#bytes = 0;
    if (this.#reading) {
      this.#channel.release(bytes);
    }
    this.#wakeReaders();
  }

  #wakeReaders() {
    this.#readers.splice(0).forEach(resume => resume());
  }

  /** @type {(event: SessionEvent, bytes: number) => void} */
  #take(event, bytes) {
    if (event.type === 'output') {
      this.#push(event.output, bytes);
    } else if (event.type === 'question') {
      const { prompt, password } = event;
      if (this.#onInput) {
        this.#ask(this.#onInput, { prompt, password });
      } else {
        const reply = (/** @type {string} */ value) => this.reply(value);
        this.#push({ type: 'input_request', prompt, password, reply }, bytes);
      }
    } else if (event.type === 'finished') {
      this.#end(() => this.#resolve(event.result), null);
    } else if (event.type === 'failed') {
      this.#end(() => this.#reject(event.error), event.error);
    }
  }

  /** @type {(onInput: OnInput, question: Question) => Promise<void>} */
  async #ask(onInput, question) {
    try {
      const value = await onInput(question);
      if (!this.#ended) {
        this.reply(value);
      }
    } catch (error) {
      // InvalidRequest: another client has answered.
      if (!(error instanceof InvalidRequest) && !this.#ended) {
        this.#end(() => this.#reject(error), error);
        const { server, kernelId } = this.#channel;
        server.request('POST', `${kernelPath(kernelId)}/interrupt`).catch(() => undefined);
      }
    }
  }

  /** @type {(output: Output, bytes: number) => void} */
  #push(output, bytes) {
    if (this.#left) {
      return;
    }
    this.#outputs.push({ output, bytes });
    this.#bytes += bytes;
    if (this.#reading) {
      this.#wakeReaders();
      this.#channel.hold(bytes);
      return;
    }
    while (this.#bytes > HIGH_BYTES && this.#first + 1 < this.#outputs.length) {
      this.#shift();
      this.#dropped++;
    }
  }

  /** @type {(settle: () => void, error: unknown) => void} */
  #end(settle, error) {
    if (!this.#ended) {
      this.#ended = true;
      this.#error = error;
      settle();
      this.#wakeReaders();
      this.#onEnd();
    }
  }
}

// -- comms --

/**
 * @typedef {object} CommMessage
 * @property {Record<string, any>} data
 * @property {Record<string, any>} metadata
 * @property {DataView[]} buffers
 */

/** @typedef {(type: string, content: object, options: CommOptions) => void} SendComm */

/** A connection to an object in the kernel. Events: `message` and `close`, with a `CommMessage`. */
export class Comm extends EventTarget {
  static {
    newComm = (...args) => new Comm(...args);
  }

  /**
   * @private
   * @param {string} id
   * @param {string} target
   * @param {SendComm} send
   */
  constructor(id, target, send) {
    super();
    this.id = id;
    this.target = target;
    this.#send = send;
  }

  #send;

  /**
   * Send a message. Comm messages have no reply: if the connection breaks, the last ones may be lost.
   *
   * @param {Record<string, any>} data
   * @param {CommOptions} [options]
   */
  send(data, options = {}) {
    this.#send('comm_msg', { comm_id: this.id, data }, options);
  }

  /**
   * @param {Record<string, any>} [data]
   * @param {CommOptions} [options]
   */
  close(data = {}, options = {}) {
    this.#send('comm_close', { comm_id: this.id, data }, options);
  }
}

/**
 * @typedef {object} CommOptions
 * @property {Record<string, any>} [metadata]
 * @property {readonly (ArrayBuffer | ArrayBufferView)[]} [buffers]
 */

// -- kernels --

/** @typedef {{prompt: string, password: boolean}} Question */
/** @typedef {(question: Question) => string | Promise<string>} OnInput */

/**
 * @typedef {object} ExecuteOptions
 * @property {OnInput} [onInput] Answers `input()`. Without it, code that asks gets an error. If it
 *   throws, the execution fails with its error, and the kernel is interrupted.
 * @property {boolean} [allowInput] True to receive input requests as outputs, to be answered with
 *   their method `reply`.
 * @property {string} [cellId] The cell of a document that the code is from.
 * @property {boolean} [silent]
 * @property {boolean} [storeHistory]
 * @property {boolean} [stopOnError]
 * @property {Record<string, string>} [userExpressions]
 * @property {Record<string, any>} [metadata]
 */

/**
 * @typedef {object} KernelModel docs/rest.md describes the fields.
 * @property {string} id
 * @property {string} name
 * @property {string} last_activity
 * @property {string} execution_state
 * @property {number} connections
 */

/**
 * @typedef {object} ExecutionModel docs/rest.md describes the fields.
 * @property {string} id
 * @property {string} session_id
 * @property {string | null} cell_id
 * @property {'waiting' | 'running' | 'done' | 'error' | 'aborted'} state
 * @property {number} code_bytes
 * @property {string} submitted
 * @property {string | null} started
 * @property {string | null} ended
 * @property {number | null} execution_count
 * @property {number | null} first_seq
 * @property {number | null} last_seq
 * @property {number} messages
 * @property {number} lines
 * @property {number} output_bytes
 * @property {boolean} displays
 * @property {boolean} connected
 */

/**
 * @typedef {object} ExecutionFilter
 * @property {string | string[]} [state]
 * @property {string} [sessionId]
 * @property {string} [cellId]
 * @property {number} [limit] Only so many: the newest.
 */

/**
 * A kernel, and this page's session on it. Its websocket opens with the first request and then
 * reconnects by itself.
 *
 * Events, all `CustomEvent`s:
 * - `status`: `detail.state` is `starting`, `idle`, `busy`, `restarting` or `dead`; `detail.reason` says
 *   why the kernel waits in the queue of a scheduler, or has ended, or is empty;
 * - `connection`: `detail.state` is a `ConnectionState`, with `delay` in milliseconds while it is
 *   `waiting`, and perhaps `error`; `follows` is the id of the execution, for a websocket of `follow`;
 * - `lag`: `detail.paused` is true while the program reads so slowly that the websocket is closed;
 * - `message`: `detail` is any `Message` that arrives.
 */
export class Kernel extends EventTarget {
  /**
   * @param {Server} server
   * @param {string} id
   */
  constructor(server, id) {
    super();
    this.server = server;
    this.id = id;
    /** The last status that the kernel has announced. */
    this.status = 'unknown';
    /** The id of this page's session; another one after the websocket has been closed for good. */
    this.session = '';
  }

  /** @type {Channel | null} */
  #main = null;
  /** @type {Set<Channel>} */
  #channels = new Set();
  /** @type {Map<string, {resolve: (content: any) => void, reject: (error: unknown) => void}>} */
  #replies = new Map();
  /** @type {Map<string, Comm>} */
  #comms = new Map();
  /** @type {Map<string, (comm: Comm, opened: CommMessage) => void>} */
  #targets = new Map();

  /** Open the websocket now, to receive events before the first request. */
  connect() {
    this.#channel().open();
  }

  /**
   * Execute code. The request is sent now, or when there is a connection.
   *
   * @param {string} code
   * @param {ExecuteOptions} [options]
   * @returns {Execution}
   */
  execute(code, options = {}) {
    const channel = this.#channel();
    const content = {
      code,
      silent: options.silent ?? false,
      store_history: options.storeHistory ?? !options.silent,
      user_expressions: options.userExpressions ?? {},
      allow_stdin: options.allowInput ?? options.onInput !== undefined,
      stop_on_error: options.stopOnError ?? true
    };
    const cell = options.cellId === undefined ? {} : { cellId: options.cellId };
    const metadata = { ...cell, ...options.metadata };
    const message = channel.session.build('shell', 'execute_request', content, { metadata });
    const { msg_id } = message.header;
    const done = () => this.#executions.delete(msg_id);
    const execution = newExecution(msg_id, channel, done, options.onInput);
    this.#executions.set(msg_id, execution);
    this.#request(channel, message);
    return execution;
  }

  /** @type {Map<string, Execution>} */
  #executions = new Map();

  /**
   * Return an execution that another page has begun, or this one before it was reloaded: all its
   * outputs from the beginning, and then live, over a websocket of its own.
   *
   * @param {string} id - The id of the execution; see `executions`.
   * @param {{onInput?: OnInput}} [options]
   * @returns {Execution}
   */
  follow(id, { onInput } = {}) {
    /** @type {Execution} */
    let execution;
    const channel = this.#open(new KernelSession(randomId(), id), (event, bytes) => {
      if ('id' in event && event.id === id) {
        take(execution, event, bytes);
      }
    });
    execution = newExecution(
      id,
      channel,
      () => channel.end(new Closed('the execution has ended')),
      onInput
    );
    channel.open();
    return execution;
  }

  /**
   * Send a request and return the content of its reply.
   *
   * @param {string} type - Such as `kernel_info_request`.
   * @param {Record<string, any>} [content]
   * @param {{channel?: 'shell' | 'control', metadata?: Record<string, any>}} [options]
   * @returns {Promise<Record<string, any>>}
   * @throws {KernelError} If the kernel answers with an error.
   */
  async request(type, content = {}, { channel = 'shell', metadata = {} } = {}) {
    if (type === 'execute_request') {
      throw new InvalidRequest('use execute() for code');
    }
    const main = this.#channel();
    const message = main.session.build(channel, type, content, { metadata });
    const reply = await new Promise((resolve, reject) => {
      this.#replies.set(message.header.msg_id, { resolve, reject });
      this.#request(main, message);
    });
    if (reply.status === 'error') {
      throw new KernelError(`${textOf(reply.ename)}: ${textOf(reply.evalue)}`);
    }
    return reply;
  }

  /** @type {(channel: Channel, message: Message) => void} */
  #request(channel, message) {
    channel.session.request(message);
    try {
      channel.send(message);
    } catch (error) {
      const failed = /** @type {KbridgeError} */ (error);
      this.#dispatch({ type: 'failed', id: message.header.msg_id, error: failed }, 0);
    }
  }

  /** Return the kernel's description of itself. */
  kernelInfo() {
    return this.request('kernel_info_request');
  }

  /**
   * @param {string} code
   * @param {number} [cursorPos] - In Unicode characters; without it, the end of the code.
   */
  complete(code, cursorPos = [...code].length) {
    return this.request('complete_request', { code, cursor_pos: cursorPos });
  }

  /**
   * @param {string} code
   * @param {number} [cursorPos]
   * @param {0 | 1} [detailLevel]
   */
  inspect(code, cursorPos = [...code].length, detailLevel = 0) {
    const content = { code, cursor_pos: cursorPos, detail_level: detailLevel };
    return this.request('inspect_request', content);
  }

  /** @param {string} code */
  isComplete(code) {
    return this.request('is_complete_request', { code });
  }

  /**
   * Return earlier inputs: by default the last 100.
   *
   * @param {Record<string, any>} [content] - The fields of a `history_request`.
   */
  history(content = {}) {
    const usual = { hist_access_type: 'tail', n: 100, raw: true, output: false };
    return this.request('history_request', { ...usual, ...content });
  }

  /**
   * Open a comm to a target that is registered in the kernel.
   *
   * @param {string} target
   * @param {Record<string, any>} [data]
   * @param {CommOptions} [options]
   * @returns {Comm}
   */
  openComm(target, data = {}, options = {}) {
    const comm = this.#comm(randomId(), target);
    this.#sendComm('comm_open', { comm_id: comm.id, target_name: target, data }, options);
    return comm;
  }

  /**
   * Accept comms that the kernel opens.
   *
   * @param {string} target
   * @param {(comm: Comm, opened: CommMessage) => void} opened
   */
  registerTarget(target, opened) {
    this.#targets.set(target, opened);
  }

  /** @type {(id: string, target: string) => Comm} */
  #comm(id, target) {
    const comm = newComm(id, target, (type, content, options) => {
      this.#sendComm(type, content, options);
      if (type === 'comm_close') {
        this.#comms.delete(id);
      }
    });
    this.#comms.set(id, comm);
    return comm;
  }

  /** @type {(type: string, content: object, options: CommOptions) => void} */
  #sendComm(type, content, { metadata = {}, buffers = [] }) {
    const channel = this.#channel();
    const more = { metadata, buffers: [...buffers] };
    channel.send(channel.session.build('shell', type, content, more));
  }

  /** @param {Message} message */
  #onComm({ header, content, metadata, buffers }) {
    const id = textOf(content.comm_id);
    const detail = { data: objectOf(content.data), metadata, buffers };
    const opened = this.#targets.get(textOf(content.target_name));
    const comm = this.#comms.get(id);
    if (header.msg_type === 'comm_open') {
      if (opened && !comm) {
        opened(this.#comm(id, textOf(content.target_name)), detail);
      }
    } else if (comm && header.msg_type === 'comm_close') {
      this.#comms.delete(id);
      comm.dispatchEvent(new CustomEvent('close', { detail }));
    } else {
      comm?.dispatchEvent(new CustomEvent('message', { detail }));
    }
  }

  /** Interrupt the code that runs. */
  async interrupt() {
    await this.server.request('POST', `${kernelPath(this.id)}/interrupt`);
  }

  /** Restart the kernel. Executions that this cuts off fail with `KernelDied`. */
  async restart() {
    await this.server.request('POST', `${kernelPath(this.id)}/restart`);
  }

  /** Shut the kernel down, and close its websockets. */
  async shutdown() {
    await this.server.request('DELETE', kernelPath(this.id));
    this.#end(new KernelDied('the kernel was shut down'));
  }

  /** Return what the server says of the kernel. @returns {Promise<KernelModel>} */
  model() {
    return this.server.model(this.id);
  }

  /**
   * Return the executions of all clients on this kernel, newest last.
   *
   * @param {ExecutionFilter} [filter]
   * @returns {Promise<ExecutionModel[]>}
   */
  executions(filter = {}) {
    return this.server.executions(this.id, filter);
  }

  /** Try to connect again now, if a websocket waits for that. */
  wake() {
    this.#channels.forEach(channel => channel.wake());
  }

  /** Replace the websockets, after a change of the network. */
  renew() {
    this.#channels.forEach(channel => channel.renew());
  }

  /** Close the websockets. The kernel, and what it runs, go on. */
  close() {
    this.#end(new Closed('the kernel was closed by this program'));
  }

  /** @param {KbridgeError} error */
  #end(error) {
    [...this.#channels].forEach(channel => channel.end(error));
  }

  /** @returns {Channel} */
  #channel() {
    if (!this.#main) {
      const session = new KernelSession(randomId());
      this.session = session.id;
      this.#main = this.#open(session, (event, bytes) => this.#dispatch(event, bytes));
    }
    return this.#main;
  }

  /** @type {(session: KernelSession, onEvent: ChannelListener['onEvent']) => Channel} */
  #open(session, onEvent) {
    const follows = session.follows || undefined;
    const channel = new Channel(this.server, this.id, session, {
      onEvent: (event, bytes) => {
        if (event.type === 'status') {
          this.status = event.state;
          this.#tell('status', { state: event.state, reason: event.reason });
        } else {
          onEvent(event, bytes);
        }
      },
      onMessage: message => this.#tell('message', message),
      onLag: (paused, bytes) => this.#tell('lag', { paused, bytes }),
      onState: (state, more) => {
        if (state === 'closed') {
          this.#forget(channel);
        }
        this.#tell('connection', { state, follows, ...more });
      }
    });
    this.#channels.add(channel);
    return channel;
  }

  /** @param {Channel} channel */
  #forget(channel) {
    this.#channels.delete(channel);
    if (channel === this.#main) {
      this.#main = null;
      const comms = [...this.#comms.values()];
      this.#comms.clear();
      const detail = { data: {}, metadata: {}, buffers: [] };
      comms.forEach(comm => comm.dispatchEvent(new CustomEvent('close', { detail })));
    }
  }

  /** @type {(event: SessionEvent, bytes: number) => void} */
  #dispatch(event, bytes) {
    if (event.type === 'comm') {
      this.#onComm(event.message);
    } else if ('id' in event) {
      const execution = this.#executions.get(event.id);
      if (execution) {
        take(execution, event, bytes);
      }
      const reply = this.#replies.get(event.id);
      if (reply && (event.type === 'replied' || event.type === 'failed')) {
        this.#replies.delete(event.id);
        event.type === 'replied' ? reply.resolve(event.content) : reply.reject(event.error);
      }
    }
  }

  /** @type {(type: string, detail: unknown) => void} */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

// -- the server --

/**
 * @typedef {object} ConnectOptions
 * @property {string | URL} [url] The address of the server. Without it, the server from which this
 *   module was loaded.
 * @property {string} [token] Without it, the one in `url`, or the login cookie.
 * @property {typeof WebSocket} [WebSocket] In place of the global one, for older versions of Node.
 * @property {typeof fetch} [fetch]
 */

/**
 * Return a server. Nothing is sent: the first request tells if the server can be reached.
 *
 * @param {ConnectOptions} [options]
 * @returns {Server}
 */
export function connect(options = {}) {
  return new Server(options);
}

/** A server; see `connect`. */
export class Server {
  /**
   * @param {ConnectOptions} options
   */
  constructor({ url, token, WebSocket, fetch } = {}) {
    const base = new URL(url ?? new URL('.', import.meta.url));
    if (!/^https?:$/.test(base.protocol)) {
      throw new InvalidRequest(`the address of the server begins with ${base.protocol}, not http:`);
    }
    this.#token = token ?? base.searchParams.get('token') ?? '';
    base.search = base.hash = '';
    base.pathname = base.pathname.replace(/\/*$/, '/');
    /** The address, which ends in a slash. */
    this.url = base.href;
    /** The constructors and functions of the environment. */
    this.environment = {
      WebSocket: WebSocket ?? globalThis.WebSocket,
      fetch: fetch ?? globalThis.fetch.bind(globalThis)
    };
    this.#listen();
  }

  #token;
  #stop = new AbortController();
  /** @type {Map<string, Kernel>} */
  #kernels = new Map();

  /** Connect again as soon as a browser says that the network is back, or the page is shown. */
  #listen() {
    const { signal } = this.#stop;
    const { document } = globalThis;
    globalThis.addEventListener?.('online', () => this.#each(kernel => kernel.renew()), { signal });
    document?.addEventListener(
      'visibilitychange',
      () => document.visibilityState === 'visible' && this.#each(kernel => kernel.wake()),
      { signal }
    );
  }

  /** @param {(kernel: Kernel) => void} action */
  #each(action) {
    [...this.#kernels.values()].forEach(action);
  }

  /**
   * Send a request to the REST API, and return the JSON of the reply; null if there is none.
   *
   * @param {string} method
   * @param {string} path - Below the address of the server, such as `api/kernels`.
   * @param {{body?: unknown, query?: Record<string, string>}} [options]
   * @returns {Promise<any>}
   * @throws {KbridgeError} The class names the HTTP status; `NetworkError` if there is no reply.
   */
  async request(method, path, { body, query = {} } = {}) {
    const url = new URL(path, this.url);
    url.search = String(new URLSearchParams(query));
    /** @type {Record<string, string>} */
    const headers = this.#token ? { Authorization: `token ${this.#token}` } : {};
    if (body !== undefined) {
      headers['Content-Type'] = 'application/json';
    }
    let reply, text;
    try {
      const { fetch } = this.environment;
      reply = await fetch(url, {
        method,
        headers,
        body: body === undefined ? null : JSON.stringify(body)
      });
      text = await reply.text();
    } catch (cause) {
      throw new NetworkError(`no reply from ${this.url}: ${cause}`, { cause });
    }
    let value = null;
    try {
      value = text ? JSON.parse(text) : null;
    } catch (cause) {
      if (reply.ok) {
        throw new NetworkError(`the reply to ${method} ${path} is not JSON`, { cause });
      }
    }
    if (!reply.ok) {
      const reason = textOf(value?.message) || textOf(value?.reason) || reply.statusText;
      throw errorOfStatus(reply.status, reason);
    }
    return value;
  }

  /**
   * Start a kernel.
   *
   * @param {string} [name] - The kernelspec; without it, the default one of the server.
   * @param {{env?: Record<string, string>, path?: string}} [options]
   * @returns {Promise<Kernel>}
   */
  async startKernel(name, options = {}) {
    const { id } = await this.request('POST', 'api/kernels', { body: { name, ...options } });
    return this.kernel(id);
  }

  /** Return a kernel that runs; the same object each time. @param {string} id */
  kernel(id) {
    let kernel = this.#kernels.get(id);
    if (!kernel) {
      kernel = new Kernel(this, id);
      this.#kernels.set(id, kernel);
    }
    return kernel;
  }

  /** Return the running kernels. @returns {Promise<KernelModel[]>} */
  kernels() {
    return this.request('GET', 'api/kernels');
  }

  /**
   * Return the kernelspecs, and the name of the default one.
   *
   * @returns {Promise<{default: string, kernelspecs: Record<string, any>}>}
   */
  kernelspecs() {
    return this.request('GET', 'api/kernelspecs');
  }

  /** Close the websockets of all kernels, which go on. */
  close() {
    this.#stop.abort();
    this.#each(kernel => kernel.close());
    this.#kernels.clear();
  }

  /** @param {string} id @returns {Promise<KernelModel>} */
  model(id) {
    return this.request('GET', kernelPath(id));
  }

  /**
   * @param {string} id
   * @param {ExecutionFilter} filter
   * @returns {Promise<ExecutionModel[]>}
   */
  executions(id, { state, sessionId, cellId, limit }) {
    /** @type {Record<string, string>} */
    const query = {};
    const all = { state: state && String(state), session_id: sessionId, cell_id: cellId, limit };
    for (const [name, value] of Object.entries(all)) {
      if (value !== undefined) {
        query[name] = String(value);
      }
    }
    return this.request('GET', `${kernelPath(id)}/executions`, { query });
  }

  /** @param {string} id @param {string} msgId @returns {Promise<ExecutionModel>} */
  execution(id, msgId) {
    return this.request('GET', `${kernelPath(id)}/executions/${encodeURIComponent(msgId)}`);
  }

  /** @param {string} id @param {Record<string, string>} query */
  channelsUrl(id, query) {
    const url = new URL(`${kernelPath(id)}/channels`, this.url.replace(/^http/, 'ws'));
    url.search = String(
      new URLSearchParams(this.#token ? { ...query, token: this.#token } : query)
    );
    return url.href;
  }
}

/** @param {string} id */
const kernelPath = id => `api/kernels/${encodeURIComponent(id)}`;

/** Return a new id. `crypto.randomUUID` exists on secure pages only. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
}
