// Makes and changes elements. Text from kernels and users is always set as text, never as HTML.

/**
 * Return a new element.
 *
 * @param {string} tag
 * @param {Record<string, string>} [attributes] - `class` and the others; `text` is its text.
 * @param {...Node} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'text') {
      made.textContent = value;
    } else {
      made.setAttribute(name, value);
    }
  }
  made.append(...children);
  return made;
}

/** Set the text of an element, if it differs. @param {Element} target @param {string} text */
export function setText(target, text) {
  if (target.textContent !== text) {
    target.textContent = text;
  }
}

/** Set or remove an attribute. @param {Element} target */
export function setAttribute(target, name, value) {
  if (value === null) {
    target.removeAttribute(name);
  } else if (target.getAttribute(name) !== value) {
    target.setAttribute(name, value);
  }
}

/**
 * Show one child per item, keeping the children of items that stay, in the order of the items.
 *
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => {root: Element, update: (item: T) => void}} make
 */
export function setItems(parent, items, keyOf, make) {
  const shown = parent.shownItems ?? (parent.shownItems = new Map());
  const keys = new Set(items.map(keyOf));
  for (const [key, view] of shown) {
    if (!keys.has(key)) {
      view.root.remove();
      shown.delete(key);
    }
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let view = shown.get(key);
    if (!view) {
      view = make(item);
      shown.set(key, view);
    }
    if (view.root === next) {
      next = next.nextElementSibling;
    } else {
      parent.insertBefore(view.root, next);
    }
    view.update(item);
  }
}
