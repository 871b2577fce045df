/** The dialogs of the live page: who clicks twice is asked once. */

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { chooseSpec, confirm } from '../../../kbridge/page/static/live/dialogs.js';

/** A dialog as browsers have it, as far as it is used here. */
class Dialog extends EventTarget {
  open = false;
  returnValue = '';

  showModal() {
    this.open = true;
  }

  close(value) {
    this.open = false;
    this.returnValue = value;
    this.dispatchEvent(new Event('close'));
  }
}

const elements = {};
globalThis.document = { getElementById: id => (elements[id] ??= {}) };

beforeEach(() => {
  elements['start-dialog'] = new Dialog();
  elements['confirm-dialog'] = new Dialog();
  elements.specs = {
    replaceChildren: () => {},
    querySelector: () => ({ value: 'python3' })
  };
});

const names = { specs: {}, default: 'python3' };

test('a double click starts one kernel', async () => {
  const answers = [chooseSpec(names), chooseSpec(names)];
  elements['start-dialog'].close('start');
  assert.deepEqual(await Promise.all(answers), ['python3', null]);
  const later = chooseSpec(names);
  elements['start-dialog'].close('start');
  assert.equal(await later, 'python3');
});

test('a dialog that is cancelled starts none', async () => {
  const answer = chooseSpec(names);
  elements['start-dialog'].close('cancel');
  assert.equal(await answer, null);
});

test('a question is asked once at a time', async () => {
  const answers = [
    confirm('Shut down?', 'text', 'Shut down'),
    confirm('Restart?', 'text', 'Restart')
  ];
  assert.equal(elements['confirm-title'].textContent, 'Shut down?');
  elements['confirm-dialog'].close('confirm');
  assert.deepEqual(await Promise.all(answers), [true, false]);
});
