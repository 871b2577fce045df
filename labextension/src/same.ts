/** Compares the outputs of a cell with the outputs of an execution. No JupyterLab. */

import type { Output } from './feed';

/** Return outputs without the answers to `input()`, and with adjacent stream text joined. */
function withoutAnswers(outputs: readonly Output[]): Output[] {
  const result: Output[] = [];
  for (const output of outputs) {
    const last = result[result.length - 1];
    if (output.output_type !== 'stream') {
      result.push(output);
    } else if (output.name === 'stdin') {
      continue;
    } else if (last?.output_type === 'stream' && last.name === output.name) {
      result[result.length - 1] = { ...last, text: `${last.text}${output.text}` };
    } else {
      result.push(output);
    }
  }
  return result;
}

/**
 * Return true if a cell that shows `shown` needs no change to show `wanted`.
 *
 * JupyterLab puts the answers to `input()` into the output; the kernel does not send them, so the
 * journal does not have them. A cell that has them as well shows everything.
 */
export function sameOutputs(
  wanted: readonly Output[],
  shown: readonly Output[],
  equal: (a: unknown, b: unknown) => boolean
): boolean {
  return equal(wanted, shown) || equal(withoutAnswers(wanted), withoutAnswers(shown));
}

/** Return the characters of stream text in some outputs, and the number of other outputs. */
export function amountOf(outputs: readonly Output[]): { text: number; others: number } {
  let text = 0;
  let others = 0;
  for (const output of outputs) {
    if (output.output_type !== 'stream') {
      others++;
    } else if (output.name !== 'stdin') {
      const pieces = Array.isArray(output.text) ? output.text : [output.text];
      text += pieces.reduce((sum: number, piece) => sum + String(piece ?? '').length, 0);
    }
  }
  return { text, others };
}
