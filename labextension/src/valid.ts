/** Output that JupyterLab cannot show; it drops such messages of the page's own connection too. */

import type { Message } from './frames';

/** The fields that the content of a message must have. */
const FIELDS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  stream: { name: 'string', text: 'string' },
  display_data: { data: 'object', metadata: 'object' },
  update_display_data: { data: 'object', metadata: 'object' },
  execute_result: { execution_count: 'number', data: 'object', metadata: 'object' },
  error: { ename: 'string', evalue: 'string', traceback: 'object' },
  clear_output: { wait: 'boolean' }
};

/** Return true if the content of an output has all fields that it must have. */
export function isValid({ header, content }: Message): boolean {
  const fields = Object.entries(FIELDS[header.msg_type] ?? {});
  return fields.every(([name, type]) => content[name] !== null && typeof content[name] === type);
}
