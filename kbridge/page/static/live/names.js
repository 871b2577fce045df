// Names and logos of kernelspecs, and the documents that use kernels.

import { server } from '../server.js';
import { element } from './dom.js';

export class Names {
  /** @type {Record<string, any>} */
  specs = {};
  default = '';
  /** @type {Map<string, string>} */
  documents = new Map();

  /** Read the kernelspecs. */
  async readSpecs() {
    const found = await server.kernelspecs();
    this.specs = found.kernelspecs;
    this.default = found.default;
  }

  /** Read which document uses which kernel; without an answer, none is shown. */
  async readDocuments() {
    try {
      const sessions = await server.request('GET', 'api/sessions');
      this.documents = new Map(
        sessions.map(session => [session.kernel?.id, session.path || session.name || ''])
      );
    } catch {
      this.documents = new Map();
    }
  }

  /** Return the name of a kernelspec for people. @param {string} name */
  title(name) {
    return this.specs[name]?.spec?.display_name || name;
  }

  /** Return the path of the document that uses a kernel; empty if none does. */
  document(id) {
    return this.documents.get(id) ?? '';
  }

  /** Return the address of a logo; empty if the kernelspec has none. */
  logo(name) {
    const resources = this.specs[name]?.resources ?? {};
    return resources['logo-svg'] ?? resources['logo-64x64'] ?? resources['logo-32x32'] ?? '';
  }

  /** Show the logo of a kernelspec, or else its first letter. @param {Element} place */
  showLogo(place, name) {
    const logo = this.logo(name);
    const shown = logo || this.title(name).slice(0, 1).toUpperCase();
    if (place.shownLogo === shown) {
      return;
    }
    place.shownLogo = shown;
    place.replaceChildren(logo ? element('img', { src: logo, alt: '' }) : shown);
  }
}
