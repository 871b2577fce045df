/** The parts of a browser that JupyterLab's modules need when they are loaded. */

import { JSDOM } from 'jsdom';

const { window } = new JSDOM('<!doctype html><body></body>', {
  url: 'http://localhost/',
  pretendToBeVisual: true
});
const wanted = [
  'document', 'Element', 'HTMLElement', 'HTMLIFrameElement', 'Node', 'Event', 'KeyboardEvent',
  'MouseEvent', 'DragEvent', 'MutationObserver', 'DOMParser', 'Range', 'CustomEvent', 'Text',
  'requestAnimationFrame', 'cancelAnimationFrame', 'getComputedStyle', 'localStorage', 'location', 'navigator'
];
globalThis.window = window;
globalThis.self = globalThis;
for (const name of wanted) {
  if (!(name in globalThis)) {
    globalThis[name] = window[name];
  }
}
globalThis.DragEvent ??= class DragEvent {};
globalThis.IntersectionObserver ??= class { observe() {} disconnect() {} unobserve() {} };
globalThis.ResizeObserver ??= class { observe() {} disconnect() {} unobserve() {} };
globalThis.WebSocket ??= class {};
