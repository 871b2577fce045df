// @ts-check
// The start of the console: choose a kernel that runs, or start one.

import { element } from './dom.js';

/**
 * Show the choice.
 *
 * @param {HTMLElement} place
 * @param {any} server - A server of kbridge.js.
 * @param {(start: () => Promise<any>) => void} onChosen - Receives what yields the kernel.
 */
export async function showPicker(place, server, onChosen) {
  const [specs, kernels] = await Promise.all([
    server.kernelspecs(),
    server.kernels().catch(() => []) // the server may not list them
  ]);
  const named = Object.entries(specs.kernelspecs);
  named.sort(
    ([a], [b]) => Number(b === specs.default) - Number(a === specs.default) || (a < b ? -1 : 1)
  );
  const title = (/** @type {string} */ name) => specs.kernelspecs[name]?.spec?.display_name ?? name;
  const cards = named.map(([name, spec]) =>
    card(title(name), name, logo(spec, title(name)), () => onChosen(() => server.startKernel(name)))
  );
  const running = kernels.map((/** @type {any} */ kernel) => {
    const state = String(kernel.execution_state);
    const says = `${state} · ${kernel.id.slice(0, 8)}`;
    const spec = specs.kernelspecs[kernel.name];
    return card(title(kernel.name), says, logo(spec, title(kernel.name)), () =>
      onChosen(async () => server.kernel(kernel.id))
    );
  });
  place.replaceChildren(
    element('h1', {}, 'Console'),
    element('h2', {}, 'Start a kernel'),
    named.length
      ? element('ul.cards', {}, ...cards)
      : element('p.muted', {}, 'This server has no kernelspecs. Install one, such as ipykernel.'),
    running.length ? element('h2', {}, 'Or use one that runs') : '',
    running.length ? element('ul.cards', {}, ...running) : ''
  );
}

/** @type {(title: string, text: string, image: HTMLElement, onClick: () => void) => HTMLElement} */
function card(title, text, image, onClick) {
  const content = element(
    'span.words',
    {},
    element('strong', {}, title),
    element('span', {}, text)
  );
  return element(
    'li',
    {},
    element('button.card', { type: 'button', onclick: onClick }, image, content)
  );
}

/** @type {(spec: any, title: string) => HTMLElement} */
function logo(spec, title) {
  const { resources = {} } = spec ?? {};
  const src = resources['logo-svg'] ?? resources['logo-64x64'] ?? resources['logo-32x32'];
  const letter = element('span.letter', { 'aria-hidden': 'true' }, title.slice(0, 1).toUpperCase());
  if (!src) {
    return letter;
  }
  const image = element('img.logo', { src, alt: '' });
  image.onerror = () => image.replaceWith(letter);
  return image;
}
