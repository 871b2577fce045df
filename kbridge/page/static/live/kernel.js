// The card of one kernel.

import { Chart, Series } from './chart.js';
import { element, setAttribute, setItems, setText } from './dom.js';
import { ago, bytes, count, duration, percent } from './format.js';

const LAG = 64 * 1024; // bytes; less is on its way
const SHORT = 8; // characters of an id

const STATES = {
  waiting: 'queued',
  running: 'running',
  done: 'done',
  error: 'failed',
  aborted: 'aborted'
};

/** Return how long a kernel has been busy; null if that is not known. */
function busySince(kernel) {
  const running = (kernel.executions?.shown ?? []).filter(each => each.state === 'running');
  const starts = running.map(each => each.started).filter(time => time !== null);
  return starts.length ? Math.min(...starts) : null;
}

/** Return the text of the state, with the time since when. */
function stateText(kernel, now) {
  if (kernel.state === 'busy') {
    const since = busySince(kernel);
    return since === null ? 'busy' : `busy for ${duration(now - since)}`;
  }
  return kernel.state;
}

/** Return which replica of a cluster owns a kernel. */
function owner(replica, here) {
  if (replica === here) {
    return 'on this replica';
  }
  return replica ? `on ${replica}` : 'handed over to another replica';
}

/** Return what deserves attention: its kind, and a text. */
function remarks(kernel) {
  const found = [];
  if (kernel.reason) {
    found.push([kernel.state === 'dead' ? 'end' : 'queue', kernel.reason]);
  }
  if (kernel.ready === false && !['dead', 'starting', 'restarting'].includes(kernel.state)) {
    found.push(['wait', 'waits for an answer']);
  }
  if (kernel.lag_bytes >= LAG) {
    found.push(['lag', `catching up: ${bytes(kernel.lag_bytes)}`]);
  }
  if (kernel.held_bytes > 0) {
    found.push(['rate', `rate limit: ${bytes(kernel.held_bytes)} wait`]);
  } else if (kernel.flooding) {
    found.push(['rate', 'rate limit: output is joined']);
  }
  if (kernel.dropped_frames > 0) {
    found.push(['drop', `${count(kernel.dropped_frames)} messages dropped`]);
  }
  return found.map(([kind, text]) => ({ kind, text }));
}

function makeRemark() {
  const root = element('li', { class: 'pill' });
  return {
    root,
    update: ({ kind, text }) => {
      setAttribute(root, 'data-state', ['drop', 'end'].includes(kind) ? 'error' : 'warn');
      setText(root, text);
    }
  };
}

function makeClient() {
  const cells = ['name', 'lag', 'trip'].map(() => element('td'));
  const root = element('tr', {}, ...cells);
  return {
    root,
    update: client => {
      const name = client.session || 'no session';
      setText(cells[0], client.follows ? `${name} (follows)` : name);
      setAttribute(cells[0], 'title', `dialect: ${client.dialect}`);
      setText(cells[1], client.blocked ? `${bytes(client.lag_bytes)}, blocked` : bytes(client.lag_bytes));
      setAttribute(root, 'data-lags', client.lag_bytes >= LAG ? 'yes' : null);
      setText(cells[2], client.round_trip === null ? '–' : duration(client.round_trip));
    }
  };
}

function makeExecution(now) {
  const name = element('span', { class: 'name' });
  const state = element('span', { class: 'state' });
  const time = element('span', { class: 'time' });
  const output = element('span', { class: 'output muted' });
  const root = element('li', {}, name, state, time, output);
  return {
    root,
    update: execution => {
      setAttribute(root, 'data-state', execution.state);
      setText(name, execution.count === null ? '[ ]' : `[${execution.count}]`);
      setText(state, STATES[execution.state] ?? execution.state);
      const from = execution.started ?? execution.submitted;
      setText(time, duration((execution.ended ?? now()) - from));
      setText(output, execution.output_bytes ? bytes(execution.output_bytes) : 'no output');
    }
  };
}

/** A definition in a list: a term and its value. */
function fact(list, term) {
  const value = element('dd');
  list.append(element('div', {}, element('dt', { text: term }), value));
  return value;
}

export class KernelCard {
  /**
   * @param {{id: string}} kernel
   * @param {{names: import('./names.js').Names, act: (action: string, kernel: any) => void}} page
   */
  constructor(kernel, page) {
    this.page = page;
    this.kernel = kernel;
    this.now = 0;
    this.series = new Series();
    this.chart = new Chart('Output', value => `${bytes(value)}/s`, 1000);
    this.root = element('article', { class: 'panel kernel', 'data-kernel': kernel.id });
    this.#makeHead();
    this.bar = element('div', { class: 'progress', role: 'progressbar', 'aria-label': 'The kernel starts' });
    this.body = element('div', { class: 'columns' }, this.#makeUse(), this.#makeExecutions(), this.#makeClients());
    this.root.append(this.head, this.bar, this.body);
  }

  #makeHead() {
    this.logo = element('span', { class: 'logo', 'aria-hidden': 'true' });
    this.title = element('span');
    this.id = element('code', { class: 'muted', title: this.kernel.id, text: this.kernel.id.slice(0, SHORT) });
    const titleId = `kernel-${this.kernel.id}`;
    this.root.setAttribute('aria-labelledby', titleId);
    this.document = element('p', { class: 'document muted' });
    this.user = element('p', { class: 'user muted', hidden: '' });
    this.replica = element('p', { class: 'replica muted', hidden: '' });
    this.state = element('span', { class: 'pill' });
    this.remarks = element('ul', { class: 'remarks', 'aria-label': 'Remarks' });
    this.console = element('a', {
      class: 'button',
      href: `console?${new URLSearchParams({ kernel: this.kernel.id })}`,
      text: 'Console'
    });
    this.buttons = ['Interrupt', 'Restart', 'Shut down'].map(name => {
      const button = element('button', { type: 'button', 'data-action': name.toLowerCase(), text: name });
      button.addEventListener('click', () => this.page.act(name.toLowerCase(), this.kernel));
      return button;
    });
    for (const control of [this.console, ...this.buttons]) {
      control.setAttribute('aria-describedby', titleId);
    }
    this.head = element(
      'header',
      {},
      this.logo,
      element(
        'div',
        { class: 'who' },
        element('h3', { id: titleId }, this.title, ' ', this.id),
        this.document,
        this.user,
        this.replica
      ),
      element('div', { class: 'states' }, this.state, this.remarks),
      element('div', { class: 'buttons' }, this.console, ...this.buttons)
    );
  }

  #makeUse() {
    const list = element('dl', { class: 'facts' });
    this.facts = {
      cpu: fact(list, 'CPU'),
      memory: fact(list, 'Memory'),
      messages: fact(list, 'Messages'),
      journal: fact(list, 'Journal'),
      disk: fact(list, 'On disk')
    };
    return element('div', { class: 'use chart' }, ...this.chart.parts, list);
  }

  #makeExecutions() {
    this.executionsTitle = element('h4', { text: 'Executions' });
    this.executions = element('ol', { class: 'executions' });
    this.noExecutions = element('p', { class: 'muted', text: 'none yet' });
    return element('div', {}, this.executionsTitle, this.executions, this.noExecutions);
  }

  #makeClients() {
    this.clientsTitle = element('h4', { text: 'Clients' });
    this.clients = element('tbody');
    const head = ['Session', 'Lag', 'Round trip'].map(text => element('th', { scope: 'col', text }));
    this.clientTable = element(
      'table',
      { class: 'clients' },
      element('thead', {}, element('tr', {}, ...head)),
      this.clients
    );
    this.noClients = element('p', { class: 'muted', text: 'none connected' });
    return element('div', {}, this.clientsTitle, this.clientTable, this.noClients);
  }

  /**
   * Show a sample.
   *
   * @param {any} kernel
   * @param {number} now
   * @param {string} [here] - The URL of this replica, in a cluster.
   */
  show(kernel, now, here) {
    this.kernel = kernel;
    this.now = now;
    const starting = kernel.state === 'starting' || kernel.state === 'restarting';
    this.page.names.showLogo(this.logo, kernel.name);
    setText(this.title, this.page.names.title(kernel.name));
    const document = this.page.names.document(kernel.id);
    setText(this.document, document || (kernel.last_activity ? `last active ${ago(now - kernel.last_activity)}` : ''));
    this.user.hidden = kernel.user === undefined;
    setText(this.user, kernel.user === undefined ? '' : `started by ${kernel.user}`);
    this.replica.hidden = kernel.replica === undefined;
    setText(this.replica, owner(kernel.replica, here));
    setAttribute(this.state, 'data-state', kernel.state);
    setText(this.state, stateText(kernel, now));
    setItems(this.remarks, remarks(kernel), each => each.kind, makeRemark);
    this.remarks.hidden = !this.remarks.childElementCount;
    this.bar.hidden = !starting;
    this.body.hidden = kernel.clients === undefined;
    this.buttons[0].disabled = kernel.state === 'dead' || starting;
    if (kernel.clients !== undefined) {
      this.#showFigures(kernel, now);
    }
  }

  #showFigures(kernel, now) {
    this.series.add(now, kernel.bytes_per_second);
    this.chart.draw(this.series);
    setText(this.facts.cpu, typeof kernel.cpu === 'number' ? percent(kernel.cpu) : '–');
    setText(this.facts.memory, kernel.rss ? bytes(kernel.rss) : '–');
    setText(this.facts.journal, bytes(kernel.memory_bytes));
    setText(this.facts.disk, bytes(kernel.disk_bytes));
    setText(this.facts.messages, `${count(kernel.messages_per_second)}/s`);

    const { shown, running, waiting } = kernel.executions;
    const parts = [running && `${running} running`, waiting && `${waiting} queued`].filter(Boolean);
    setText(this.executionsTitle, parts.length ? `Executions: ${parts.join(', ')}` : 'Executions');
    setItems(this.executions, [...shown].reverse(), each => each.id, () => makeExecution(() => this.now));
    this.noExecutions.hidden = shown.length > 0;
    this.executions.hidden = !shown.length;

    const more = kernel.connections - kernel.clients.length;
    const hidden = more > 0 ? `, ${more} not shown` : '';
    setText(this.clientsTitle, kernel.connections ? `Clients: ${kernel.connections}${hidden}` : 'Clients');
    setItems(this.clients, kernel.clients, each => String(each.number), makeClient);
    this.clientTable.hidden = !kernel.clients.length;
    this.noClients.hidden = kernel.clients.length > 0;
    setText(this.noClients, kernel.parked ? `${kernel.parked} disconnected, may resume` : 'none connected');
  }
}
