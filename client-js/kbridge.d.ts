/**
 * Return the error that an HTTP status stands for.
 *
 * @param {number} status
 * @param {string} message
 * @returns {KbridgeError}
 */
export function errorOfStatus(status: number, message: string): KbridgeError;
/**
 * Return what the end of a websocket means.
 *
 * @param {number} code - The close code; 1006 if the connection broke.
 * @param {string} reason - The reason in the close frame.
 * @returns {KbridgeError | null} Null to connect again; otherwise the error that ends everything.
 */
export function errorOfClose(code: number, reason: string): KbridgeError | null;
/**
 * Return the frame of a message.
 *
 * @param {Omit<Message, 'buffers'> & {buffers?: readonly (ArrayBuffer | ArrayBufferView)[]}} message
 * @returns {ArrayBuffer}
 */
export function encode(message: Omit<Message, "buffers"> & {
    buffers?: readonly (ArrayBuffer | ArrayBufferView)[];
}): ArrayBuffer;
/**
 * Return the message of a frame. Bytes that are not UTF-8, which Python's kernels send for some names
 * of files, are replaced by U+FFFD.
 *
 * @param {ArrayBuffer} frame
 * @returns {Message}
 * @throws {MalformedFrame} If the frame is not a message of this dialect.
 */
export function decode(frame: ArrayBuffer): Message;
/**
 * Return the output in an iopub message; null if it is of another type.
 *
 * @param {Message} message
 * @returns {Exclude<Output, InputRequest> | null}
 */
export function outputOf({ header, content, buffers, unreadable }: Message): Exclude<Output, InputRequest> | null;
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
export function connect(options?: ConnectOptions | undefined): Server;
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
/** Base class of all errors of this module. */
export class KbridgeError extends Error {
    /**
     * @param {string} message
     * @param {{status?: number, closeCode?: number, cause?: unknown}} [more]
     */
    constructor(message: string, more?: {
        status?: number;
        closeCode?: number;
        cause?: unknown;
    } | undefined);
    /** The HTTP status of the reply, if there was one. */
    status: number | undefined;
    /** The code with which the websocket was closed, if it was. */
    closeCode: number | undefined;
}
/** The server refuses what this client sent. */
export class ClientError extends KbridgeError {
}
/** 400: a parameter is not valid; or an execution is used in a way that is not possible. */
export class InvalidRequest extends ClientError {
}
/** 401: the token is wrong. */
export class Unauthorized extends ClientError {
}
/** 403: there is no valid token, the origin of the page is not allowed, or a limit is reached. */
export class Forbidden extends ClientError {
}
/** 404: the kernel, the kernelspec or the execution does not exist. */
export class NotFound extends ClientError {
}
/** 409: the state of the object does not permit this. */
export class Conflict extends ClientError {
}
/** 413 or close code 1009: a message is larger than the server allows. */
export class FrameTooBig extends ClientError {
}
/** A websocket frame is not a message of the dialect v1.kernel.websocket.jupyter.org. */
export class MalformedFrame extends KbridgeError {
}
/** The kernel answered a request with an error. */
export class KernelError extends KbridgeError {
}
/** The kernel was shut down, died or was restarted, and will not complete the request. */
export class KernelDied extends KernelError {
}
/** 501: this kernel cannot do it. */
export class NotSupported extends KernelError {
}
/** The server cannot be reached, or does not speak this protocol. */
export class NetworkError extends KbridgeError {
}
/** The server failed; its log says why. */
export class BridgeError extends KbridgeError {
}
/** 503: temporarily impossible; try again later. */
export class Busy extends BridgeError {
}
/** The object was closed by this program. */
export class Closed extends KbridgeError {
}
/** The subprotocol of the websocket. */
export const PROTOCOL: "v1.kernel.websocket.jupyter.org";
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
    constructor(id: string, follows?: string | undefined);
    /** The id of the session. */
    id: string;
    /** The id of the request that the session follows; empty if there is none. */
    follows: string;
    /** The id of the last message on iopub that was received. */
    last: string;
    /** Return the parameters of the websocket's URL. */
    query(): {
        [k: string]: string;
    };
    /** The number of requests that are not complete, other than executions. */
    get requests(): number;
    /** True if some execution may have been lost with a connection. */
    get unconfirmed(): boolean;
    /**
     * Return a new message of this session.
     *
     * @param {Message['channel']} channel
     * @param {string} type
     * @param {Record<string, any>} content
     * @param {{metadata?: Record<string, any>, parent?: Partial<Header>, buffers?: any[]}} [more]
     * @returns {Message}
     */
    build(channel: Message["channel"], type: string, content: Record<string, any>, { metadata, parent, buffers }?: {
        metadata?: Record<string, any>;
        parent?: Partial<Header>;
        buffers?: any[];
    } | undefined): Message;
    /**
     * Note a request whose answer will be an event.
     *
     * @param {Message} message
     */
    request(message: Message): void;
    /** True if an execution has a reply and no idle status yet. @param {string} id */
    isLate(id: string): boolean;
    /**
     * Return a request that ends a late execution: kernels answer in order, but may drop output.
     *
     * @param {string} id
     */
    probe(id: string): Message;
    /**
     * Return the answer to the question of an execution; null if it has none.
     *
     * @param {string} id
     * @param {string} value
     */
    answer(id: string, value: string): Message | null;
    /**
     * Note that a message is written to a connection.
     *
     * @param {Message} message
     */
    sending(message: Message): void;
    /**
     * Take the next message of the server.
     *
     * @param {Message} message
     * @returns {SessionEvent[]} What it means.
     */
    receive(message: Message): SessionEvent[];
    /**
     * Compare the executions with those that the server knows.
     *
     * @param {Map<string, ExecutionModel> | null} known - Null if the server does not list executions.
     * @param {boolean} reconnected - True after a new connection.
     * @returns {{events: SessionEvent[], messages: Message[]}} The messages are to be sent again.
     */
    reconcile(known: Map<string, ExecutionModel> | null, reconnected: boolean): {
        events: SessionEvent[];
        messages: Message[];
    };
    /**
     * Give up: nothing more will be received.
     *
     * @param {KbridgeError} error
     * @returns {SessionEvent[]}
     */
    end(error: KbridgeError): SessionEvent[];
    #private;
}
/** Delays between attempts to connect: doubled up to a limit, with jitter. */
export class Backoff {
    /**
     * @param {number} [first] - Milliseconds.
     * @param {number} [most]
     * @param {() => number} [random] - A number from 0 to 1.
     */
    constructor(first?: number | undefined, most?: number | undefined, random?: (() => number) | undefined);
    first: number;
    most: number;
    random: () => number;
    attempt: number;
    /** Return the next delay: half of the full one, and a random part of the other half. */
    next(): number;
    /** Begin again with the first delay. */
    reset(): void;
}
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
export class Execution implements AsyncIterable<Output> {
    /**
     * @private
     * @param {string} id
     * @param {Channel} channel
     * @param {() => void} onEnd
     * @param {OnInput} [onInput]
     */
    private constructor();
    /** The `msg_id` of the request, by which another page can `follow` the execution. */
    id: string;
    /** @type {Promise<Result>} The end; rejected if the kernel dies or can no longer be reached. */
    result: Promise<Result>;
    /** Answer the input request that is open. @param {string} value */
    reply(value: string): void;
    /** @returns {AsyncIterableIterator<Output>} */
    [Symbol.asyncIterator](): AsyncIterableIterator<Output>;
    #private;
}
/**
 * @typedef {object} CommMessage
 * @property {Record<string, any>} data
 * @property {Record<string, any>} metadata
 * @property {DataView[]} buffers
 */
/** @typedef {(type: string, content: object, options: CommOptions) => void} SendComm */
/** A connection to an object in the kernel. Events: `message` and `close`, with a `CommMessage`. */
export class Comm extends EventTarget {
    /**
     * @private
     * @param {string} id
     * @param {string} target
     * @param {SendComm} send
     */
    private constructor();
    id: string;
    target: string;
    /**
     * Send a message. Comm messages have no reply: if the connection breaks, the last ones may be lost.
     *
     * @param {Record<string, any>} data
     * @param {CommOptions} [options]
     */
    send(data: Record<string, any>, options?: CommOptions | undefined): void;
    /**
     * @param {Record<string, any>} [data]
     * @param {CommOptions} [options]
     */
    close(data?: Record<string, any> | undefined, options?: CommOptions | undefined): void;
    #private;
}
/**
 * @typedef {object} CommOptions
 * @property {Record<string, any>} [metadata]
 * @property {readonly (ArrayBuffer | ArrayBufferView)[]} [buffers]
 */
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
    constructor(server: Server, id: string);
    server: Server;
    id: string;
    /** The last status that the kernel has announced. */
    status: string;
    /** The id of this page's session; another one after the websocket has been closed for good. */
    session: string;
    /** Open the websocket now, to receive events before the first request. */
    connect(): void;
    /**
     * Execute code. The request is sent now, or when there is a connection.
     *
     * @param {string} code
     * @param {ExecuteOptions} [options]
     * @returns {Execution}
     */
    execute(code: string, options?: ExecuteOptions | undefined): Execution;
    /**
     * Return an execution that another page has begun, or this one before it was reloaded: all its
     * outputs from the beginning, and then live, over a websocket of its own.
     *
     * @param {string} id - The id of the execution; see `executions`.
     * @param {{onInput?: OnInput}} [options]
     * @returns {Execution}
     */
    follow(id: string, { onInput }?: {
        onInput?: OnInput;
    } | undefined): Execution;
    /**
     * Send a request and return the content of its reply.
     *
     * @param {string} type - Such as `kernel_info_request`.
     * @param {Record<string, any>} [content]
     * @param {{channel?: 'shell' | 'control', metadata?: Record<string, any>}} [options]
     * @returns {Promise<Record<string, any>>}
     * @throws {KernelError} If the kernel answers with an error.
     */
    request(type: string, content?: Record<string, any> | undefined, { channel, metadata }?: {
        channel?: "shell" | "control";
        metadata?: Record<string, any>;
    } | undefined): Promise<Record<string, any>>;
    /** Return the kernel's description of itself. */
    kernelInfo(): Promise<Record<string, any>>;
    /**
     * @param {string} code
     * @param {number} [cursorPos] - In Unicode characters; without it, the end of the code.
     */
    complete(code: string, cursorPos?: number | undefined): Promise<Record<string, any>>;
    /**
     * @param {string} code
     * @param {number} [cursorPos]
     * @param {0 | 1} [detailLevel]
     */
    inspect(code: string, cursorPos?: number | undefined, detailLevel?: 0 | 1 | undefined): Promise<Record<string, any>>;
    /** @param {string} code */
    isComplete(code: string): Promise<Record<string, any>>;
    /**
     * Return earlier inputs: by default the last 100.
     *
     * @param {Record<string, any>} [content] - The fields of a `history_request`.
     */
    history(content?: Record<string, any> | undefined): Promise<Record<string, any>>;
    /**
     * Open a comm to a target that is registered in the kernel.
     *
     * @param {string} target
     * @param {Record<string, any>} [data]
     * @param {CommOptions} [options]
     * @returns {Comm}
     */
    openComm(target: string, data?: Record<string, any> | undefined, options?: CommOptions | undefined): Comm;
    /**
     * Accept comms that the kernel opens.
     *
     * @param {string} target
     * @param {(comm: Comm, opened: CommMessage) => void} opened
     */
    registerTarget(target: string, opened: (comm: Comm, opened: CommMessage) => void): void;
    /** Interrupt the code that runs. */
    interrupt(): Promise<void>;
    /** Restart the kernel. Executions that this cuts off fail with `KernelDied`. */
    restart(): Promise<void>;
    /** Shut the kernel down, and close its websockets. */
    shutdown(): Promise<void>;
    /** Return what the server says of the kernel. @returns {Promise<KernelModel>} */
    model(): Promise<KernelModel>;
    /**
     * Return the executions of all clients on this kernel, newest last.
     *
     * @param {ExecutionFilter} [filter]
     * @returns {Promise<ExecutionModel[]>}
     */
    executions(filter?: ExecutionFilter | undefined): Promise<ExecutionModel[]>;
    /** Try to connect again now, if a websocket waits for that. */
    wake(): void;
    /** Replace the websockets, after a change of the network. */
    renew(): void;
    /** Close the websockets. The kernel, and what it runs, go on. */
    close(): void;
    #private;
}
/** A server; see `connect`. */
export class Server {
    /**
     * @param {ConnectOptions} options
     */
    constructor({ url, token, WebSocket, fetch }?: ConnectOptions);
    /** The address, which ends in a slash. */
    url: string;
    /** The constructors and functions of the environment. */
    environment: {
        WebSocket: {
            new (url: string | URL, protocols?: string | string[]): WebSocket;
            prototype: WebSocket;
            readonly CONNECTING: 0;
            readonly OPEN: 1;
            readonly CLOSING: 2;
            readonly CLOSED: 3;
        };
        fetch: typeof fetch;
    };
    /**
     * Send a request to the REST API, and return the JSON of the reply; null if there is none.
     *
     * @param {string} method
     * @param {string} path - Below the address of the server, such as `api/kernels`.
     * @param {{body?: unknown, query?: Record<string, string>}} [options]
     * @returns {Promise<any>}
     * @throws {KbridgeError} The class names the HTTP status; `NetworkError` if there is no reply.
     */
    request(method: string, path: string, { body, query }?: {
        body?: unknown;
        query?: Record<string, string>;
    } | undefined): Promise<any>;
    /**
     * Start a kernel.
     *
     * @param {string} [name] - The kernelspec; without it, the default one of the server.
     * @param {{env?: Record<string, string>, path?: string}} [options]
     * @returns {Promise<Kernel>}
     */
    startKernel(name?: string | undefined, options?: {
        env?: Record<string, string>;
        path?: string;
    } | undefined): Promise<Kernel>;
    /** Return a kernel that runs; the same object each time. @param {string} id */
    kernel(id: string): Kernel;
    /** Return the running kernels. @returns {Promise<KernelModel[]>} */
    kernels(): Promise<KernelModel[]>;
    /**
     * Return the kernelspecs, and the name of the default one.
     *
     * @returns {Promise<{default: string, kernelspecs: Record<string, any>}>}
     */
    kernelspecs(): Promise<{
        default: string;
        kernelspecs: Record<string, any>;
    }>;
    /** Close the websockets of all kernels, which go on. */
    close(): void;
    /** @param {string} id @returns {Promise<KernelModel>} */
    model(id: string): Promise<KernelModel>;
    /**
     * @param {string} id
     * @param {ExecutionFilter} filter
     * @returns {Promise<ExecutionModel[]>}
     */
    executions(id: string, { state, sessionId, cellId, limit }: ExecutionFilter): Promise<ExecutionModel[]>;
    /** @param {string} id @param {string} msgId @returns {Promise<ExecutionModel>} */
    execution(id: string, msgId: string): Promise<ExecutionModel>;
    /** @param {string} id @param {Record<string, string>} query */
    channelsUrl(id: string, query: Record<string, string>): string;
    #private;
}
export type ConnectOptions = {
    /**
     * The address of the server. Without it, the server from which this
     * module was loaded.
     */
    url?: string | URL | undefined;
    /**
     * Without it, the one in `url`, or the login cookie.
     */
    token?: string | undefined;
    /**
     * In place of the global one, for older versions of Node.
     */
    WebSocket?: {
        new (url: string | URL, protocols?: string | string[]): WebSocket;
        prototype: WebSocket;
        readonly CONNECTING: 0;
        readonly OPEN: 1;
        readonly CLOSING: 2;
        readonly CLOSED: 3;
    } | undefined;
    fetch?: typeof fetch | undefined;
};
export type Header = {
    msg_id: string;
    msg_type: string;
    session?: string | undefined;
    username?: string | undefined;
    version?: string | undefined;
    date?: string | undefined;
};
/**
 * A message between a client and a kernel.
 */
export type Message = {
    channel: "shell" | "iopub" | "stdin" | "control";
    header: Header;
    parent_header: Partial<Header>;
    metadata: Record<string, any>;
    content: Record<string, any>;
    /**
     * Views of the frame, which is not copied.
     */
    buffers: DataView[];
    /**
     * True if the kernel sent a part that is not JSON; it is empty here.
     */
    unreadable?: boolean | undefined;
};
/**
 * Text that the code wrote.
 */
export type StreamOutput = {
    type: "stream";
    /**
     * `stdout` or `stderr`.
     */
    name: string;
    text: string;
};
/**
 * Something to show; an update replaces all displays of its id.
 */
export type DisplayOutput = {
    type: "display_data" | "update_display_data";
    /**
     * One representation for each MIME type.
     */
    data: Record<string, any>;
    metadata: Record<string, any>;
    displayId: string | null;
    buffers: DataView[];
};
/**
 * The value of the last expression of the code.
 */
export type ResultOutput = {
    type: "execute_result";
    executionCount: number | null;
    data: Record<string, any>;
    metadata: Record<string, any>;
    displayId: string | null;
    buffers: DataView[];
};
/**
 * An exception that the code did not catch.
 */
export type ErrorOutput = {
    type: "error";
    ename: string;
    evalue: string;
    /**
     * Lines with ANSI colours.
     */
    traceback: string[];
};
/**
 * Earlier output is to be removed.
 */
export type ClearOutput = {
    type: "clear_output";
    /**
     * True to remove it only when new output arrives.
     */
    wait: boolean;
};
/**
 * The kernel begins to run this code.
 */
export type CodeOutput = {
    type: "execute_input";
    code: string;
    executionCount: number | null;
};
/**
 * The code waits for a line of input.
 */
export type InputRequest = {
    type: "input_request";
    prompt: string;
    /**
     * True if the answer must not be shown.
     */
    password: boolean;
    /**
     * Answers it. The first answer of any client counts.
     */
    reply: (value: string) => void;
};
/**
 * Output is missing here; the text says why.
 */
export type Gap = {
    type: "gap";
    /**
     * The number of missing messages; 0 if it is not known.
     */
    messages: number;
    text: string;
};
export type Output = StreamOutput | DisplayOutput | ResultOutput | ErrorOutput | ClearOutput | CodeOutput | InputRequest | Gap;
/**
 * The end of an execution.
 */
export type Result = {
    /**
     * `aborted` if an earlier error made the kernel skip it.
     */
    status: "ok" | "error" | "aborted";
    executionCount: number | null;
    userExpressions: Record<string, any>;
    payload: Record<string, any>[];
    /**
     * The exception, if the status is `error`.
     */
    error: ErrorOutput | null;
};
/**
 * A request without its complete answer.
 */
export type Waiting = {
    /**
     * Null if another client sent it.
     */
    message: Message | null;
    /**
     * True for a request to execute code.
     */
    code: boolean;
    sent: boolean;
    /**
     * True once a message of the kernel has named it.
     */
    begun: boolean;
    idle: boolean;
    result: Result | null;
    /**
     * The execution that ends with the reply to this request, or empty.
     */
    probes: string;
    /**
     * The last input request without an answer.
     */
    question: Header | null;
    /**
     * Until the execution goes on.
     */
    answer: Message | null;
};
export type SessionEvent = {
    type: "output";
    id: string;
    output: Output;
} | {
    type: "question";
    id: string;
    prompt: string;
    password: boolean;
} | {
    type: "replied";
    id: string;
    content: Record<string, any>;
} | {
    type: "finished";
    id: string;
    result: Result;
} | {
    type: "failed";
    id: string;
    error: KbridgeError;
} | {
    type: "status";
    state: string;
    reason: string;
} | {
    type: "replaced";
} | {
    type: "comm";
    message: Message;
};
export type ChannelListener = {
    onEvent: (event: SessionEvent, bytes: number) => void;
    onMessage: (message: Message) => void;
    onState: (state: ConnectionState, more: {
        delay?: number;
        error?: KbridgeError;
    }) => void;
    onLag: (paused: boolean, bytes: number) => void;
};
export type ConnectionState = "connecting" | "open" | "waiting" | "paused" | "closed";
export type CommMessage = {
    data: Record<string, any>;
    metadata: Record<string, any>;
    buffers: DataView[];
};
export type SendComm = (type: string, content: object, options: CommOptions) => void;
export type CommOptions = {
    metadata?: Record<string, any> | undefined;
    buffers?: readonly (ArrayBuffer | ArrayBufferView)[] | undefined;
};
export type Question = {
    prompt: string;
    password: boolean;
};
export type OnInput = (question: Question) => string | Promise<string>;
export type ExecuteOptions = {
    /**
     * Answers `input()`. Without it, code that asks gets an error. If it
     * throws, the execution fails with its error, and the kernel is interrupted.
     */
    onInput?: OnInput | undefined;
    /**
     * True to receive input requests as outputs, to be answered with
     * their method `reply`.
     */
    allowInput?: boolean | undefined;
    /**
     * The cell of a document that the code is from.
     */
    cellId?: string | undefined;
    silent?: boolean | undefined;
    storeHistory?: boolean | undefined;
    stopOnError?: boolean | undefined;
    userExpressions?: Record<string, string> | undefined;
    metadata?: Record<string, any> | undefined;
};
/**
 * docs/rest.md describes the fields.
 */
export type KernelModel = {
    id: string;
    name: string;
    last_activity: string;
    execution_state: string;
    connections: number;
};
/**
 * docs/rest.md describes the fields.
 */
export type ExecutionModel = {
    id: string;
    session_id: string;
    cell_id: string | null;
    state: "waiting" | "running" | "done" | "error" | "aborted";
    code_bytes: number;
    submitted: string;
    started: string | null;
    ended: string | null;
    execution_count: number | null;
    first_seq: number | null;
    last_seq: number | null;
    messages: number;
    lines: number;
    output_bytes: number;
    displays: boolean;
    connected: boolean;
};
export type ExecutionFilter = {
    state?: string | string[] | undefined;
    sessionId?: string | undefined;
    cellId?: string | undefined;
    /**
     * Only so many: the newest.
     */
    limit?: number | undefined;
};
