/** Messages and output models for tests, without JupyterLab. */

import type { Output, Outputs } from '../src/feed';
import type { Message } from '../src/frames';

let counter = 0;

/** Return a message of a kernel. */
export function message(
  msg_type: string,
  content: Record<string, unknown>,
  parent = 'r1',
  channel = 'iopub'
): Message {
  return {
    channel,
    header: { msg_id: `m${++counter}`, msg_type, date: `at ${counter}` },
    parent_header: parent === '' ? {} : { msg_id: parent },
    metadata: {},
    content
  };
}

export function stream(text: string, name = 'stdout', parent = 'r1'): Message {
  return message('stream', { name, text }, parent);
}

export function display(text: string, id?: string, parent = 'r1'): Message {
  return message('display_data', shown(text, id), parent);
}

export function update(text: string, id: string, parent = 'r1'): Message {
  return message('update_display_data', shown(text, id), parent);
}

export function input(code: string, parent = 'r1'): Message {
  return message('execute_input', { code, execution_count: 7 }, parent);
}

export function status(execution_state: string, parent = 'r1'): Message {
  return message('status', { execution_state }, parent);
}

export function reply(content: Record<string, unknown>, parent = 'r1'): Message {
  return message('execute_reply', content, parent, 'shell');
}

function shown(text: string, id?: string): Record<string, unknown> {
  return { data: { 'text/plain': text }, metadata: {}, transient: id ? { display_id: id } : {} };
}

/** A model that counts its changes, and joins nothing. */
export class Model implements Outputs {
  readonly outputs: Output[] = [];
  changes = 0;

  get length(): number {
    return this.outputs.length;
  }

  add(output: Output): number {
    this.changes++;
    return this.outputs.push(output);
  }

  set(index: number, output: Output): void {
    this.changes++;
    this.outputs[index] = output;
  }

  clear(): void {
    this.changes++;
    this.outputs.length = 0;
  }

  /** The text of each output. */
  get texts(): unknown[] {
    return this.outputs.map(
      output => output.text ?? (output.data as Record<string, unknown> | undefined)?.['text/plain']
    );
  }
}
