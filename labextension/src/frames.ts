/**
 * Websocket frames of the dialect v1.kernel.websocket.jupyter.org <-> kernel messages.
 *
 * JupyterLab has the same code, but does not export it. No I/O here.
 */

/** The subprotocol that a websocket must ask for. */
export const PROTOCOL = 'v1.kernel.websocket.jupyter.org';

/** The header of a message, as far as restoring needs it. */
export interface Header {
  msg_id: string;
  msg_type: string;
  session?: string;
  username?: string;
  version?: string;
  date?: string;
}

/** A kernel message. Its content depends on the type; what a kernel sends is not trusted here. */
export interface Message {
  channel: string;
  header: Header;
  parent_header: Partial<Header>;
  metadata: Record<string, unknown>;
  content: Record<string, unknown>;
  buffers?: DataView[];
}

const PARTS = 5; // channel, header, parent_header, metadata, content

/**
 * Return the message of a frame.
 *
 * @throws Error if the frame is not one of this dialect.
 */
export function decode(frame: ArrayBuffer): Message {
  const view = new DataView(frame);
  const count = Number(view.getBigUint64(0, true));
  if (count < PARTS + 1 || 8 * (count + 1) > frame.byteLength) {
    throw new Error(`Invalid number of offsets in a frame: ${count}`);
  }
  const offsets: number[] = [];
  for (let i = 1; i <= count; i++) {
    offsets.push(Number(view.getBigUint64(8 * i, true)));
  }
  const decoder = new TextDecoder('utf-8');
  const text = (part: number): string =>
    decoder.decode(new Uint8Array(frame, offsets[part], offsets[part + 1] - offsets[part]));
  const json = (part: number): unknown => JSON.parse(text(part));
  const buffers: DataView[] = [];
  for (let i = PARTS; i < count - 1; i++) {
    buffers.push(new DataView(frame, offsets[i], offsets[i + 1] - offsets[i]));
  }
  return {
    channel: text(0),
    header: json(1) as Header,
    parent_header: (json(2) ?? {}) as Partial<Header>,
    metadata: (json(3) ?? {}) as Record<string, unknown>,
    content: (json(4) ?? {}) as Record<string, unknown>,
    buffers
  };
}

/** Return the frame of a message without buffers. */
export function encode(message: Omit<Message, 'buffers'>): ArrayBuffer {
  const encoder = new TextEncoder();
  const parts = [
    encoder.encode(message.channel),
    ...[message.header, message.parent_header, message.metadata, message.content].map(part =>
      encoder.encode(JSON.stringify(part))
    )
  ];
  const count = parts.length + 1;
  let offset = 8 * (count + 1);
  const size = parts.reduce((sum, part) => sum + part.byteLength, offset);
  const frame = new ArrayBuffer(size);
  const view = new DataView(frame);
  const bytes = new Uint8Array(frame);
  view.setBigUint64(0, BigInt(count), true);
  parts.forEach((part, i) => {
    view.setBigUint64(8 * (i + 1), BigInt(offset), true);
    bytes.set(part, offset);
    offset += part.byteLength;
  });
  view.setBigUint64(8 * count, BigInt(offset), true);
  return frame;
}
