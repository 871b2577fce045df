// @ts-check
// The console: one kernel, its executions and an editor.

import { server } from '../server.js';
import { Announcer } from './announcer.js';
import { Cells } from './cells.js';
import { button, element } from './dom.js';
import { Editor } from './editor.js';
import { readHistory, writeHistory } from './history.js';
import { showPicker } from './picker.js';

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const announcer = new Announcer($('announcer'));
const say = (/** @type {string} */ text) => announcer.say(text);

/** Storage that does not fail, for browsers that refuse it. */
const memory = new Map();
const storage = /** @type {any} */ ({
  get length() {
    return memory.size;
  },
  key: (/** @type {number} */ i) => [...memory.keys()][i] ?? null,
  getItem: (/** @type {string} */ name) => memory.get(name) ?? null,
  setItem: (/** @type {string} */ name, /** @type {string} */ text) => memory.set(name, text),
  removeItem: (/** @type {string} */ name) => memory.delete(name)
});

/** Call something with the storage of the browser. @template T @param {(place: any) => T} use */
function stored(use) {
  try {
    return use(localStorage);
  } catch {
    return use(storage);
  }
}

// -- state of the page ----------------------------------------------------------------------------

/** Show the state of the kernel, and what can be done. @param {string} state */
function showStatus(state) {
  const status = $('status');
  status.dataset.state = state;
  status.textContent = state;
  document.documentElement.dataset.kernel = state;
  $('interrupt').disabled = !['busy', 'starting', 'unknown'].includes(state);
  $('restart').disabled = state === 'gone';
  document.title = `${state === 'busy' ? '● ' : ''}${$('kernel-name').textContent || 'Console'} - kbridge`;
}

/** Show a message above the editor; none without a text. @type {(text: string, action?: HTMLElement) => void} */
function banner(text, action) {
  $('banner').replaceChildren(
    ...(text ? [element('span', {}, text), ...(action ? [action] : [])] : [])
  );
  $('banner').hidden = !text;
}

/** Run an action of a button, and show why it failed. @param {() => Promise<unknown>} action */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    banner(
      `${/** @type {Error} */ (error).message}`,
      button('Dismiss', () => banner(''))
    );
  }
}

/** Ask before an action that loses something. @type {(dialog: HTMLDialogElement) => Promise<boolean>} */
function confirmed(dialog) {
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise(resolve =>
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true })
  );
}

/** Keep the newest output in view, unless the person has scrolled up. */
function keepAtEnd() {
  const root = document.documentElement;
  let atEnd = true;
  let height = 0;
  const measure = () => {
    const same = root.scrollHeight === height;
    height = root.scrollHeight;
    if (same) atEnd = root.scrollHeight - innerHeight - scrollY < 60;
  };
  addEventListener('scroll', measure, { passive: true });
  new ResizeObserver(() => {
    height = root.scrollHeight;
    if (atEnd) scrollTo({ top: height });
  }).observe($('console'));
  return () => {
    atEnd = true;
    scrollTo({ top: root.scrollHeight });
  };
}

// -- the console of one kernel --------------------------------------------------------------------

/** @param {any} kernel */
async function openConsole(kernel) {
  $('picker').hidden = true;
  $('console').hidden = false;
  $('controls').hidden = false;
  const toEnd = keepAtEnd();
  const history = stored(place => readHistory(place, kernel.id));
  const editor = new Editor({
    area: $('editor'),
    colours: $('colours'),
    list: $('completions'),
    complete: (code, place) => kernel.complete(code, place),
    history
  });
  const cells = new Cells($('cells'), kernel, code => editor.set(code));
  watch(kernel, cells);
  listen(cells, editor);
  editor.addEventListener('say', event => say(/** @type {CustomEvent} */ (event).detail));
  editor.addEventListener('change', () => ($('run').disabled = !editor.value.trim()));
  editor.addEventListener('run', event => {
    const { detail } = /** @type {CustomEvent} */ (event);
    stored(place => writeHistory(place, kernel.id, history, Date.now()));
    cells.run(detail);
    $('empty').hidden = true;
    toEnd();
  });
  $('run').onclick = () => {
    editor.run();
    editor.focus();
  };
  $('interrupt').onclick = () => attempt(() => kernel.interrupt());
  $('restart').onclick = () => attempt(() => restart(kernel, cells));
  $('run').disabled = true;
  editor.focus();
  await describe(kernel, cells, editor);
}

/** Find out what the kernel is, and show what it has done. @type {(kernel: any, cells: Cells, editor: Editor) => Promise<void>} */
async function describe(kernel, cells, editor) {
  const [model, { kernelspecs }] = await Promise.all([kernel.model(), server.kernelspecs()]);
  const spec = kernelspecs[model.name]?.spec;
  $('kernel-name').textContent = spec?.display_name ?? model.name;
  $('kernel-name').title = `Kernel ${kernel.id}`;
  cells.language = editor.language = spec?.language ?? '';
  editor.redraw();
  if (kernel.status === 'unknown') showStatus(model.execution_state);
  // The websocket first: it brings every execution that begins after the list was made.
  const connected = new Promise(resolve =>
    kernel.addEventListener('connection', (/** @type {CustomEvent} */ { detail }) => {
      if (detail.state === 'open' || detail.state === 'closed') resolve(null);
    })
  );
  kernel.connect();
  await connected;
  await cells.restore();
  $('empty').hidden = !cells.empty;
  document.documentElement.dataset.restored = 'yes';
}

/** @type {(kernel: any, cells: Cells) => Promise<void>} */
async function restart(kernel, cells) {
  if (await confirmed($('confirm-restart'))) {
    banner('');
    say('The kernel restarts');
    await kernel.restart();
    cells.mark('The kernel was restarted');
    say('The kernel was restarted');
  }
}

/** Show the state of the kernel and of the connection. @type {(kernel: any, cells: Cells) => void} */
function watch(kernel, cells) {
  let lost = false;
  kernel.addEventListener('status', (/** @type {CustomEvent} */ { detail }) => {
    showStatus(detail.state);
    if (detail.state === 'dead') {
      banner(
        detail.reason ? `The kernel has died: ${detail.reason}` : 'The kernel has died.',
        button('Restart', () => void attempt(() => kernel.restart()))
      );
      cells.mark('The kernel died');
    } else if (detail.state === 'starting' && detail.reason) {
      banner(detail.reason);
    } else if (['idle', 'busy'].includes(detail.state) && !lost) {
      banner('');
    }
  });
  kernel.addEventListener('connection', (/** @type {CustomEvent} */ { detail }) => {
    if (detail.follows) {
      return;
    }
    if (detail.state === 'waiting' && detail.delay > 400) {
      lost = true;
      const seconds = Math.round(detail.delay / 1000);
      const when = seconds > 1 ? `in ${seconds} s` : 'now';
      banner(
        `The connection is lost. Trying again ${when}.`,
        button('Try now', () => kernel.wake())
      );
    } else if (detail.state === 'open' && lost) {
      lost = false;
      banner('');
    } else if (detail.state === 'closed') {
      showStatus('gone');
      const choose = element('a', { href: 'console' }, 'Choose another kernel');
      banner(detail.error?.message ? `${detail.error.message}.` : 'The kernel is gone.', choose);
    }
  });
}

/** Tell what happens, and move the focus to a question. @type {(cells: Cells, editor: Editor) => void} */
function listen(cells, editor) {
  cells.addEventListener('question', event => {
    const { field, prompt } = /** @type {CustomEvent} */ (event).detail.detail;
    say(`The code asks for input: ${prompt}`);
    const active = document.activeElement;
    if (!editor.value && (active === $('editor') || active === document.body)) {
      field.focus();
    }
    field.scrollIntoView({ block: 'nearest' });
  });
  cells.addEventListener('answered', () => editor.focus());
  cells.addEventListener('next', event => {
    if (!editor.value) editor.set(/** @type {CustomEvent} */ (event).detail.detail);
  });
  cells.addEventListener('state', event => {
    const { cell } = /** @type {CustomEvent} */ (event).detail;
    if (cell.open || document.documentElement.dataset.restored !== 'yes') {
      return;
    }
    const what = { ok: 'finished', error: 'failed', aborted: 'was skipped', lost: 'ended' };
    const state = what[/** @type {keyof typeof what} */ (cell.state)];
    say(`Input ${cell.count ?? ''} ${state}${cell.heard ? `: ${cell.heard}` : ''}`);
  });
}

// -- the start ------------------------------------------------------------------------------------

/** @param {string} text */
function fail(text) {
  $('picker').hidden = false;
  $('console').hidden = true;
  $('controls').hidden = true;
  $('picker').replaceChildren(
    element('h1', {}, 'Console'),
    element('p.notice.warning', {}, text),
    element('p', {}, element('a', { href: 'console' }, 'Choose a kernel'))
  );
}

async function choose() {
  await showPicker($('picker'), server, async start => {
    $('picker')
      .querySelectorAll('button')
      .forEach((/** @type {any} */ each) => (each.disabled = true));
    say('The kernel starts');
    $('starting').hidden = false;
    try {
      const kernel = await start();
      window.history.pushState(null, '', `?kernel=${encodeURIComponent(kernel.id)}`);
      await openConsole(kernel);
    } catch (error) {
      fail(/** @type {Error} */ (error).message);
    } finally {
      $('starting').hidden = true;
    }
  });
}

async function begin() {
  const id = new URLSearchParams(location.search).get('kernel');
  addEventListener('popstate', () => location.reload());
  try {
    await (id ? openConsole(server.kernel(id)) : choose());
  } catch (error) {
    fail(/** @type {Error} */ (error).message);
  }
}

void begin();
