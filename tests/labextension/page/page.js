/**
 * A page for tests, in Node: reads histories of kernels from stdin, one JSON object per line, and
 * answers with the outputs of the cells of two pages:
 *
 * - one that never reloaded: JupyterLab's own kernel connection and output areas;
 * - one that did: labextension/src/feed.ts, into JupyterLab's own output models.
 *
 * The bundle that esbuild makes of this file loads `dom.js` first.
 */

import { OutputArea, OutputAreaModel } from '@jupyterlab/outputarea';
import { RenderMimeRegistry, standardRendererFactories } from '@jupyterlab/rendermime';
import { KernelConnection, ServerConnection } from '@jupyterlab/services';
import { createInterface } from 'node:readline';

import { Feeds } from '../../../labextension/src/feed';
import { decode, encode, PROTOCOL } from '../../../labextension/src/frames';

const rendermime = new RenderMimeRegistry({ initialFactories: standardRendererFactories });

/** A websocket whose other end is this file. */
class KernelSocket {
  constructor() {
    KernelSocket.last = this;
    this.protocol = PROTOCOL;
    this.readyState = 0;
    this.sent = [];
    setTimeout(() => {
      this.readyState = 1;
      this.onopen?.({});
    });
  }

  send(frame) {
    const message = decode(frame);
    if (message.header.msg_type === 'kernel_info_request') {
      this.receive(reply(message.header, 'kernel_info_reply', KERNEL_INFO));
      this.receive(idle(message.header));
    } else {
      this.sent.push(message);
    }
  }

  receive(message) {
    this.onmessage?.({ data: encode(message) });
  }

  close() {}
}

const KERNEL_INFO = {
  status: 'ok',
  protocol_version: '5.3',
  implementation: 'test',
  implementation_version: '1',
  language_info: { name: 'python', version: '3', mimetype: 'text/x-python', file_extension: '.py' },
  banner: '',
  help_links: []
};

let counter = 0;
const SESSION = 'kernel';

function header(msg_type) {
  return {
    msg_id: `page_${++counter}`,
    msg_type,
    session: SESSION,
    username: '',
    version: '5.3',
    date: '2026-01-01T00:00:00Z'
  };
}

function reply(parent_header, msg_type, content) {
  return { channel: 'shell', header: header(msg_type), parent_header, metadata: {}, content };
}

function idle(parent_header) {
  const content = { execution_state: 'idle' };
  return { ...reply(parent_header, 'status', content), channel: 'iopub' };
}

function settled() {
  return new Promise(resolve => setTimeout(resolve));
}

/** The page that never reloads. */
async function reference(cells, events) {
  const kernel = new KernelConnection({
    model: { id: 'kernel', name: 'test' },
    serverSettings: ServerConnection.makeSettings({ WebSocket: KernelSocket })
  });
  await kernel.info;
  const socket = KernelSocket.last;
  const areas = new Map(
    cells.map(cell => [cell, new OutputArea({ model: new OutputAreaModel(), rendermime })])
  );
  const requests = new Map();
  for (const event of events) {
    if (event.submit) {
      const { cell, id } = event.submit;
      const future = kernel.requestExecute({ code: event.submit.code }, false, { cellId: cell });
      future.done.catch(() => undefined); // replaced by a later one
      areas.get(cell).future = future;
      await settled();
      requests.set(id, socket.sent[socket.sent.length - 1].header);
    } else {
      const message = event.message;
      const parent_header = requests.get(message.parent_header.msg_id) ?? message.parent_header;
      // JupyterLab drops messages of another session: it takes them for an earlier process.
      const header = { ...message.header, session: SESSION };
      socket.receive({ ...message, header, parent_header });
    }
  }
  // The connection handles messages one after the other; the last one is known when it emits.
  const end = idle({ msg_id: 'end' });
  await new Promise(resolve => {
    kernel.iopubMessage.connect((_, message) => {
      if (message.header.msg_id === end.header.msg_id) {
        resolve();
      }
    });
    socket.receive(end);
  });
  const outputs = Object.fromEntries([...areas].map(([cell, area]) => [cell, area.model.toJSON()]));
  areas.forEach(area => area.dispose());
  kernel.dispose();
  return outputs;
}

/** The page that was reloaded. */
function restored(cells, steps) {
  const models = new Map(cells.map(cell => [cell, new OutputAreaModel()]));
  const replays = new Map();
  const counts = {};
  for (const [cell, outputs] of Object.entries(steps.file)) {
    models.get(cell).fromJSON(outputs);
  }
  const flush = () => {
    for (const { feeds, cellOf } of replays.values()) {
      feeds.all().forEach(feed => feed.flush(models.get(cellOf[feed.id])));
    }
  };
  for (const step of steps.steps) {
    if (step.attach) {
      replays.set(step.replay, { feeds: new Feeds(Object.keys(step.attach)), cellOf: step.attach });
      flush();
    } else if (step.release) {
      replays.forEach(({ feeds }) => feeds.drop(step.release));
    } else if (step.frames) {
      for (const frame of step.frames) {
        const bytes = Buffer.from(frame, 'base64');
        const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
        replays.get(step.replay).feeds.handle(decode(data));
      }
    } else {
      flush();
    }
  }
  flush();
  for (const { feeds, cellOf } of replays.values()) {
    for (const feed of feeds.all()) {
      counts[cellOf[feed.id]] = { count: feed.count, over: feed.over, code: feed.code ?? null };
    }
  }
  return {
    outputs: Object.fromEntries([...models].map(([cell, model]) => [cell, model.toJSON()])),
    counts
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { cells, events, reload } = JSON.parse(line);
  const answer = { reference: await reference(cells, events), restored: restored(cells, reload) };
  process.stdout.write(JSON.stringify(answer) + '\n');
}
process.exit(0);
