// @ts-check
// Builds elements.

/**
 * Return a new element.
 *
 * @param {string} name - The name, and classes after dots, such as `p.note.wide`.
 * @param {Record<string, any>} [properties] - Properties; names with a dash are attributes.
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function element(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split('.');
  const made = document.createElement(tag);
  made.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes('-') || key === 'role') {
      made.setAttribute(key, value);
    } else {
      /** @type {any} */ (made)[key] = value;
    }
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

/** Return a button. @type {(text: string, onClick: () => void, classes?: string) => HTMLButtonElement} */
export function button(text, onClick, classes = '') {
  return element(`button${classes}`, { type: 'button', onclick: onClick }, text);
}

/** A number for people. @param {number} value */
export const counted = value => value.toLocaleString('en');
