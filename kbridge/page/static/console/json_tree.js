// @ts-check
// Shows JSON as a tree whose branches are built when they are opened.

import { counted, element } from './dom.js';

/** Members of a branch that are shown. */
const MOST = 500;
/** Branches that are smaller than this are open. */
const SMALL = 12;

/**
 * @param {unknown} value
 * @returns {HTMLElement}
 */
export function jsonTree(value) {
  return element('div.json', {}, branch(null, value, true));
}

/** @type {(key: string | null, value: unknown, open: boolean) => HTMLElement} */
function branch(key, value, open) {
  const name = key === null ? null : element('span.json-key', {}, `${key}: `);
  if (typeof value !== 'object' || value === null) {
    const kind = value === null ? 'null' : typeof value;
    const text = JSON.stringify(value) ?? String(value);
    return element('div.json-leaf', {}, name, element(`span.json-${kind}`, {}, text));
  }
  const entries = Object.entries(value);
  const [left, right] = Array.isArray(value) ? ['[', ']'] : ['{', '}'];
  if (!entries.length) {
    return element('div.json-leaf', {}, name, left + right);
  }
  const what = Array.isArray(value) ? 'item' : 'member';
  const count = `${counted(entries.length)} ${what}${entries.length === 1 ? '' : 's'}`;
  const summary = element(
    'summary',
    {},
    name,
    `${left} `,
    element('span.muted', {}, count),
    ` ${right}`
  );
  const made = element('details', {}, summary);
  const fill = () => {
    made.append(
      ...entries
        .slice(0, MOST)
        .map(([key, each]) => branch(key, each, Object.keys(Object(each)).length < SMALL && open))
    );
    if (entries.length > MOST) {
      made.append(element('p.notice', {}, `${counted(entries.length - MOST)} more are not shown.`));
    }
  };
  if (open && entries.length <= MOST) {
    made.open = true;
    fill();
  } else {
    made.addEventListener('toggle', fill, { once: true });
  }
  return made;
}
