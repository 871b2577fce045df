/**
 * Messages of one execution -> changes of the outputs of its cell.
 *
 * A feed does what JupyterLab's output area does with the messages of a future, with two
 * differences: it works without a widget, so also for cells that are not rendered, and it collects
 * changes until `flush`, so that a long output costs few changes of the model. The result is the
 * same, because
 *
 * - adjacent stream text of one name is one output in JupyterLab too, however it is cut;
 * - a cleared output is not seen by anybody before the flush;
 * - a set output replaces the former one.
 *
 * No JupyterLab, no I/O, no clock.
 */

import type { Message } from './frames';
import { withoutOverwritten } from './overwrite';

/** An output of a cell, in nbformat. */
export type Output = Record<string, unknown>;

/** The part of JupyterLab's IOutputAreaModel that a feed needs. */
export interface Outputs {
  readonly length: number;
  add(output: Output): number;
  set(index: number, output: Output): void;
  clear(wait?: boolean): void;
}

/** Takes changes and forgets them. */
export const NOWHERE: Outputs = {
  length: 0,
  add: () => 0,
  set: () => undefined,
  clear: () => undefined
};

/** Stream text that grows; joined only when it is needed. */
interface Stream {
  name: string;
  pieces: string[];
}

/** An output that is not in the model yet. */
type Pending = { output: Output } | { stream: Stream };

function toOutput(pending: Pending, fresh = true): Output {
  if ('output' in pending) {
    return pending.output;
  }
  const { name, pieces } = pending.stream;
  const text = withoutOverwritten(pieces.join(''), fresh);
  return { output_type: 'stream', name, text };
}

/** Types of messages that change earlier outputs with the same display id. */
const UPDATES = new Set(['display_data', 'update_display_data', 'execute_result']);

/** States of a kernel, without a parent, after which the process before does not go on. */
const ENDS = new Set(['starting', 'restarting', 'autorestarting', 'dead']);

/** Types of messages that an Output widget shows instead of the cell. */
const CAPTURED = new Set([
  'stream',
  'display_data',
  'execute_result',
  'error',
  'clear_output',
  'update_display_data'
]);

/** Return the display id of a message, or '' if it has none. */
export function displayId(message: Message): string {
  const transient = message.content.transient as Record<string, unknown> | null | undefined;
  const id = transient?.display_id;
  return typeof id === 'string' ? id : '';
}

/** Return true if a message may change outputs that are there already. */
export function isUpdate(message: Message): boolean {
  return UPDATES.has(message.header.msg_type) && displayId(message) !== '';
}

/** Return true if a message says that a process of the kernel has ended or begun. */
function isOfProcess({ header, parent_header, content }: Message): boolean {
  return (
    header.msg_type === 'status' &&
    !parent_header.msg_id &&
    ENDS.has(String(content.execution_state))
  );
}

/** Return the number of ends of lines in a text. */
function countLines(text: string): number {
  let lines = 0;
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) {
    lines++;
  }
  return lines;
}

/** The outputs of one execution, and what is known of it. */
export class Feed {
  /** The code that runs, from `execute_input`; undefined before. */
  code: string | undefined;

  /** The execution count of the reply: JupyterLab shows it at the end, and none after a restart. */
  count: number | null = null;

  /** True if output came before `execute_input`: the journal has no longer the beginning. */
  headless = false;

  /** Ends of lines in all stream text so far, also in text that was cleared. */
  lines = 0;

  /** True if the process of the kernel ended before the execution did. */
  cut = false;

  /** The times that JupyterLab records in a cell's metadata. */
  readonly timing: Record<string, string> = {};

  /** @param id - The msg_id of the execute_request. */
  constructor(readonly id: string) {}

  /** True if the kernel has begun with it. */
  get begun(): boolean {
    return this._begun;
  }

  /** True if the kernel has sent everything: the reply, and `idle`. */
  get over(): boolean {
    return this._replied && this._idle;
  }

  /** True if the kernel has replied. Some kernels then send no `idle`. */
  get replied(): boolean {
    return this._replied;
  }

  /** Characters of stream text, and the number of other outputs, so far; also cleared ones. */
  get amount(): { readonly text: number; readonly others: number } {
    return { text: this._text, others: this._others };
  }

  /** True if messages of other executions may change its outputs. */
  get hasDisplays(): boolean {
    return this._displays.size > 0;
  }

  /** True if nothing of it is in a model: the first flush replaces what is there. */
  get fresh(): boolean {
    return this._fresh;
  }

  /** True if there are changes for `flush`. */
  get pending(): boolean {
    return this._cleared || this._sets.size > 0 || this._head !== null || this._adds.length > 0;
  }

  /** Take a message that has this execution as its parent. */
  handle(message: Message): void {
    const { msg_type } = message.header;
    const content = message.content;
    if (this._captures.size > 0 && CAPTURED.has(msg_type)) {
      return; // an Output widget shows it instead of the cell
    }
    switch (msg_type) {
      case 'status':
        this._onStatus(message);
        break;
      case 'execute_input':
        if (this.code !== undefined) {
          this._restart();
        }
        this._begun = true;
        this.code = typeof content.code === 'string' ? content.code : undefined;
        this._time('iopub.execute_input', message);
        break;
      case 'stream':
      case 'display_data':
      case 'execute_result':
      case 'error':
        this.headless ||= this.code === undefined;
        this.add({ ...content, output_type: msg_type });
        break;
      case 'clear_output':
        if (content.wait) {
          this._clearNext = true;
          this._lastName = '';
        } else {
          this.clear();
        }
        break;
      case 'execute_reply':
        this._onReply(message);
        break;
      case 'comm_msg':
        this._onComm(content);
        break;
      case 'comm_close':
        this._captures.delete(String(content.comm_id));
        break;
    }
    if (msg_type === 'display_data' && displayId(message)) {
      const id = displayId(message);
      this._displays.set(id, [...(this._displays.get(id) ?? []), this._length - 1]);
    }
  }

  /** Note that the process of the kernel has ended, or another one has begun. */
  processEnded(): void {
    this.cut = this._begun && !this.over;
  }

  /** Show the content of a message in all outputs that have its display id. */
  update(message: Message): void {
    for (const index of this._displays.get(displayId(message)) ?? []) {
      const output = { ...message.content, output_type: 'display_data' };
      if (index < this._base) {
        this._sets.set(index, output);
      } else {
        this._adds[index - this._base] = { output };
      }
    }
  }

  /** Append an output. */
  add(output: Output): void {
    if (this._clearNext) {
      this.clear();
    }
    if (output.output_type === 'stream') {
      this._addText(output);
    } else {
      this._lastName = '';
      this._others++;
      this._adds.push({ output });
      this._length++;
    }
  }

  /** Remove all outputs. */
  clear(): void {
    this._cleared = true;
    this._clearNext = false;
    this._sets.clear();
    this._head = null;
    this._adds = [];
    this._displays.clear();
    this._lastName = '';
    this._length = this._base = 0;
  }

  /** Make all changes in a model that do not exist there yet; keep them as well. */
  play(target: Outputs): void {
    if (this._cleared) {
      target.clear();
    }
    for (const [index, output] of this._sets) {
      if (index < target.length) {
        target.set(index, output);
      }
    }
    if (this._head) {
      target.add(toOutput({ stream: this._head }, false));
    }
    for (const pending of this._adds) {
      target.add(toOutput(pending));
    }
  }

  /** Make all changes in a model that do not exist there yet. It is always the same model. */
  flush(target: Outputs): void {
    this.play(target);
    this._fresh = this._cleared = false;
    this._sets.clear();
    this._head = null;
    this._adds = [];
    this._base = this._length;
  }

  /**
   * Begin again: the server did not know the last message that this page received, so it sends all
   * messages once more.
   */
  private _restart(): void {
    this.clear();
    this.lines = this._text = this._others = 0;
    this._replied = this._idle = this.cut = false;
  }

  private _addText(output: Output): void {
    const text = Array.isArray(output.text) ? output.text.join('') : String(output.text ?? '');
    const name = String(output.name ?? 'stdout');
    this.lines += countLines(text);
    this._text += name === 'stdin' ? 0 : text.length;
    if (name !== this._lastName || this._length === 0) {
      this._lastName = name;
      this._adds.push({ stream: { name, pieces: [text] } });
      this._length++;
      return;
    }
    const last = this._adds[this._adds.length - 1];
    if (last !== undefined && 'stream' in last) {
      last.stream.pieces.push(text);
    } else {
      this._head ??= { name, pieces: [] };
      this._head.pieces.push(text);
    }
  }

  /** Note if an Output widget of ipywidgets takes the output of this execution, or stops. */
  private _onComm(content: Record<string, unknown>): void {
    const comm = String(content.comm_id);
    const data = content.data as { state?: Record<string, unknown> | null } | null | undefined;
    const taken = data?.state?.msg_id;
    if (taken === this.id) {
      this._captures.add(comm);
    } else if (taken !== undefined) {
      this._captures.delete(comm);
    }
  }

  private _onStatus(message: Message): void {
    const state = message.content.execution_state;
    if (state === 'busy') {
      this._begun = true;
    } else if (state === 'idle') {
      this._idle = true;
    }
    this._time(`iopub.status.${String(state)}`, message);
  }

  private _onReply(message: Message): void {
    this._begun = this._replied = true;
    if (typeof message.content.execution_count === 'number') {
      this.count = message.content.execution_count;
    }
    if (typeof message.metadata.started === 'string') {
      this.timing['shell.execute_reply.started'] = message.metadata.started;
    }
    this._time('shell.execute_reply', message);
    if (message.content.status !== 'ok' || !Array.isArray(message.content.payload)) {
      return;
    }
    // The pager of a `?` in the code, which JupyterLab shows as output.
    const payload = message.content.payload as Record<string, unknown>[];
    const page = payload.find(item => item?.source === 'page');
    if (page) {
      this.add({ output_type: 'display_data', data: page.data, metadata: {} });
    }
  }

  private _time(label: string, message: Message): void {
    if (message.header.date) {
      this.timing[label] = message.header.date;
    }
  }

  private _fresh = true;
  private _begun = false;
  private _replied = false;
  private _idle = false;
  private _text = 0;
  private _others = 0;

  // The outputs as they are after the next flush: `_base` of them are in the model, with the changes
  // `_cleared` (first), `_sets` and `_head` (text for the last one); `_adds` follow.
  private _cleared = true; // a cell's former outputs go with the first flush
  private _sets = new Map<number, Output>();
  private _head: Stream | null = null;
  private _adds: Pending[] = [];
  private _base = 0;
  private _length = 0;
  private _lastName = '';
  private _clearNext = false;
  private readonly _captures = new Set<string>(); // the comms of Output widgets
  private _displays = new Map<string, number[]>();
}

/** The feeds of the executions that one websocket restores. */
export class Feeds {
  /** @param ids - The msg_ids of the execute_requests. */
  constructor(ids: Iterable<string>) {
    for (const id of ids) {
      this._feeds.set(id, new Feed(id));
    }
  }

  /** Return the feed of an execution. */
  get(id: string): Feed | undefined {
    return this._feeds.get(id);
  }

  /** All feeds. */
  all(): Feed[] {
    return [...this._feeds.values()];
  }

  /** Stop feeding an execution: another one has replaced it. */
  drop(id: string): void {
    this._feeds.delete(id);
  }

  /**
   * Take a message of any parent.
   *
   * A display whose id was shown before changes the earlier outputs as well, as in JupyterLab.
   *
   * @returns The feed whose parent it has, if any.
   */
  handle(message: Message): Feed | undefined {
    this.update(message);
    if (isOfProcess(message)) {
      this._feeds.forEach(each => each.processEnded());
    }
    const feed = this._feeds.get(message.parent_header.msg_id ?? '');
    feed?.handle(message);
    return feed;
  }

  /** Change the outputs that have the display id of a message. */
  update(message: Message): void {
    if (isUpdate(message)) {
      for (const feed of this._feeds.values()) {
        feed.update(message);
      }
    }
  }

  private _feeds = new Map<string, Feed>();
}
