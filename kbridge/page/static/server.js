// The server of the page: the client of kbridge, with the address and the rules of this server.

import { connect } from '../kbridge.js';

/** The path below which the REST API is, which ends in a slash. */
export const api = document.documentElement.dataset.api;

/** Return the value of a cookie; empty if there is none. */
function cookie(name) {
  const found = document.cookie.split('; ').find(each => each.startsWith(`${name}=`));
  return found ? found.slice(name.length + 1) : '';
}

/** Jupyter Server demands that the value of its cookie is repeated in a header. */
function fetchHere(url, options = {}) {
  const xsrf = cookie('_xsrf');
  const headers = xsrf ? { ...options.headers, 'X-XSRFToken': xsrf } : options.headers;
  return fetch(url, { ...options, headers });
}

/** The client; the login cookie authenticates it. */
export const server = connect({ url: new URL(api, location.origin), fetch: fetchHere });

// The token was exchanged for a cookie. It must not stay in the history of the browser.
const address = new URL(location.href);
if (address.searchParams.has('token')) {
  address.searchParams.delete('token');
  history.replaceState(history.state, '', address);
}
