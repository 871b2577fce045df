// The dialogs, and the notices at the top of the page.

import { element } from './dom.js';

/** Show a dialog; return the value of the button that closed it. @param {HTMLDialogElement} dialog */
function ask(dialog) {
  dialog.returnValue = 'cancel';
  dialog.showModal();
  return new Promise(done =>
    dialog.addEventListener('close', () => done(dialog.returnValue), { once: true })
  );
}

/** Ask whether to do something; return true if so, false also if the dialog is open already. */
export async function confirm(title, text, button) {
  const dialog = document.getElementById('confirm-dialog');
  if (dialog.open) {
    return false;
  }
  document.getElementById('confirm-title').textContent = title;
  document.getElementById('confirm-text').textContent = text;
  document.getElementById('confirm-button').textContent = button;
  return (await ask(dialog)) === 'confirm';
}

/**
 * Let the user choose a kernelspec; return its name, or null, also if the dialog is open already:
 * the second click of a double click must not start a second kernel.
 *
 * @param {import('./names.js').Names} names
 */
export async function chooseSpec(names) {
  const dialog = document.getElementById('start-dialog');
  if (dialog.open) {
    return null;
  }
  const list = document.getElementById('specs');
  const sorted = Object.keys(names.specs).sort((a, b) => names.title(a).localeCompare(names.title(b)));
  const chosen = sorted.includes(names.default) ? names.default : sorted[0];
  list.replaceChildren(
    ...sorted.map(name => {
      const input = element('input', { type: 'radio', name: 'spec', value: name });
      input.checked = name === chosen;
      input.autofocus = name === chosen;
      const logo = element('span', { class: 'logo', 'aria-hidden': 'true' });
      names.showLogo(logo, name);
      const title = element('span', { text: names.title(name) });
      return element('label', {}, input, logo, title, element('code', { class: 'muted', text: name }));
    })
  );
  const answer = await ask(dialog);
  const input = list.querySelector('input:checked');
  return answer === 'start' && input ? input.value : null;
}

/**
 * Show a notice; return a function that removes it.
 *
 * @param {'progress' | 'error'} kind
 * @param {string} text
 * @param {string} [details] - More text, such as the end of a kernel's log.
 */
export function notify(kind, text, details = '') {
  const notice = element('div', { class: 'notice', 'data-kind': kind }, element('p', { text }));
  if (details) {
    notice.append(element('pre', { text: details, tabindex: '0', 'aria-label': 'Details' }));
  }
  const remove = () => notice.remove();
  if (kind === 'error') {
    const button = element('button', { type: 'button', text: 'Dismiss' });
    button.addEventListener('click', remove);
    notice.append(button);
  } else {
    notice.append(element('div', { class: 'progress', role: 'progressbar', 'aria-label': text }));
  }
  document.getElementById('notices').append(notice);
  return remove;
}
