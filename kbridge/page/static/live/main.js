// The live view: one sample per second, and what may be done with kernels.

import { api, server } from '../server.js';
import { Chart, Series } from './chart.js';
import { chooseSpec, confirm, notify } from './dialogs.js';
import { element, setAttribute, setItems, setText } from './dom.js';
import { Feed } from './feed.js';
import { bytes, count, duration, percent } from './format.js';
import { KernelCard } from './kernel.js';
import { Names } from './names.js';

const names = new Names();
const messages = { series: new Series(), chart: new Chart('Messages', value => `${count(value)}/s`, 10) };
const output = { series: new Series(), chart: new Chart('Output', value => `${bytes(value)}/s`, 1000) };
document.getElementById('messages-chart').append(...messages.chart.parts);
document.getElementById('bytes-chart').append(...output.chart.parts);

const here = new URL('.', location.href);
if (here.pathname !== new URL(api, here).pathname) {
  // In Jupyter Server, which has pages of its own.
  document.querySelectorAll('[data-standalone]').forEach(each => each.remove());
} else if (!document.documentElement.dataset.logout) {
  document.getElementById('logout').remove();
}

// -- actions --------------------------------------------------------------------------------------

/** Do something; show the error if it fails. Return true if it did not. */
async function attempt(what, action) {
  try {
    await action();
    return true;
  } catch (error) {
    const [first, ...rest] = String(error.message ?? error).split('\n');
    notify('error', `${what}: ${first}`, rest.join('\n').trim());
    return false;
  }
}

async function start() {
  if (!(await attempt('The kernelspecs cannot be read', () => names.readSpecs()))) {
    return;
  }
  const name = await chooseSpec(names);
  if (name === null) {
    return;
  }
  const title = names.title(name);
  const done = notify('progress', `${title} is starting`);
  await attempt(`${title} did not start`, () => server.request('POST', 'api/kernels', { body: { name } }));
  done();
}

const ACTIONS = {
  interrupt: { what: 'The kernel was not interrupted', request: id => ['POST', `api/kernels/${id}/interrupt`] },
  restart: {
    what: 'The kernel was not restarted',
    request: id => ['POST', `api/kernels/${id}/restart`],
    ask: title => [
      `Restart ${title}?`,
      'Its variables are lost, and so is code that runs or waits. Output that was shown stays.',
      'Restart'
    ]
  },
  'shut down': {
    what: 'The kernel was not shut down',
    request: id => ['DELETE', `api/kernels/${id}`],
    ask: title => [
      `Shut down ${title}?`,
      'Its process ends, its variables and its output on this server are lost.',
      'Shut down'
    ]
  }
};

async function act(name, kernel) {
  const { what, request, ask } = ACTIONS[name];
  const title = names.document(kernel.id) || `${names.title(kernel.name)} ${kernel.id.slice(0, 8)}`;
  if (ask && !(await confirm(...ask(title)))) {
    return;
  }
  const [method, path] = request(encodeURIComponent(kernel.id));
  await attempt(what, () => server.request(method, path));
}

// -- what is shown --------------------------------------------------------------------------------

const facts = new Map();

function setFact(term, value) {
  let shown = facts.get(term);
  if (!shown) {
    shown = element('dd');
    facts.set(term, shown);
    document.getElementById('facts').append(element('div', {}, element('dt', { text: term }), shown));
  }
  setText(shown, value);
}

function sum(kernels, field) {
  return kernels.reduce((total, kernel) => total + (kernel[field] ?? 0), 0);
}

function showOverview(sample, kernels) {
  for (const [{ series, chart }, field] of [
    [messages, 'messages_per_second'],
    [output, 'bytes_per_second']
  ]) {
    series.add(sample.now, sum(kernels, field));
    chart.draw(series);
  }
  const { journals } = sample;
  setFact('Clients', count(sum(kernels, 'connections')));
  setFact('CPU of kernels', percent(sum(kernels, 'cpu')));
  setFact('Memory of kernels', bytes(sum(kernels, 'rss')));
  setFact('Journals in memory', bytes(sum(kernels, 'memory_bytes')));
  if (journals) { // users who are not administrators do not receive the figures of the server
    setFact('Journals on disk', journals.limit ? `${bytes(journals.bytes)} of ${bytes(journals.limit)}` : 'off');
    const cpu = typeof sample.cpu === 'number' ? `${percent(sample.cpu)}, ` : '';
    setFact('This server', `${cpu}${bytes(sample.rss ?? 0)}`);
  }
  if (sample.replica) {
    setFact('This replica', sample.replica);
  }
  setFact('Up for', duration(sample.now - sample.started));
  setFact('Version', sample.version);
}

const makeCard = kernel => {
  const card = new KernelCard(kernel, { names, act });
  return { root: card.root, update: ({ kernel, now, here }) => card.show(kernel, now, here) };
};

let known = '';

function show(sample) {
  const pooled = sample.kernels.filter(kernel => kernel.state === 'pooled').length;
  const kernels = sample.kernels.filter(kernel => kernel.state !== 'pooled');
  const ids = kernels.map(kernel => kernel.id).join();
  if (ids !== known) {
    known = ids;
    names.readDocuments();
  }
  showOverview(sample, kernels);
  const items = kernels.map(kernel => ({ id: kernel.id, kernel, now: sample.now, here: sample.replica }));
  setItems(document.getElementById('kernels'), items, item => item.id, item => makeCard(item.kernel));
  document.getElementById('empty').hidden = kernels.length > 0;
  const busy = kernels.filter(kernel => kernel.state === 'busy').length;
  const limit = sample.max_kernels ? ` of at most ${sample.max_kernels}` : '';
  const parts = [`${kernels.length}${limit}`, busy && `${busy} busy`, pooled && `${pooled} in the pool`];
  setText(document.getElementById('count'), parts.filter(Boolean).join(', '));
  document.title = busy ? `(${busy}) kbridge` : 'kbridge';
}

const connection = document.getElementById('connection');

/** Return true if the server would redirect this page to a login. */
async function needsLogin() {
  const answer = await fetch(location.href, { redirect: 'manual', headers: { Accept: 'text/html' } });
  return answer.type === 'opaqueredirect';
}

/** Show the state of the connection; learn why it does not come about. */
async function showConnection(state) {
  setAttribute(connection, 'data-state', state);
  setText(connection, state);
  setAttribute(document.body, 'data-stale', state === 'live' || state === 'connecting' ? null : 'yes');
  if (state === 'reconnecting') {
    try {
      await server.kernels();
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        setText(connection, error.message);
        if (await needsLogin().catch(() => false)) {
          location.reload();
        }
      }
    }
  }
}

document.getElementById('start').addEventListener('click', start);
names.readSpecs().catch(() => {}); // names and logos only
new Feed(new URL('api/live', here), { sample: show, state: showConnection });
