/** kbridge's executions, over REST. */

import { PageConfig, URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import type { Execution } from './plan';

/** The path of the REST API of a kernel's executions. */
function url(settings: ServerConnection.ISettings, kernel: string, id?: string): string {
  const base = URLExt.join(
    settings.baseUrl,
    'api/kernels',
    encodeURIComponent(kernel),
    'executions'
  );
  return id === undefined ? base : URLExt.join(base, encodeURIComponent(id));
}

/** The executions of kernels, as the server knows them. */
export class ExecutionsApi {
  constructor(readonly settings: ServerConnection.ISettings) {}

  /**
   * Return the executions of a kernel, newest last; null if kbridge is not behind this kernel, or
   * if the kernel does not exist. In that case nothing is requested for this kernel again.
   *
   * @throws Error if the server cannot be reached or answers with another error.
   */
  async list(kernel: string, query: Record<string, string> = {}): Promise<Execution[] | null> {
    const first = this._served.get(kernel);
    if (first === undefined) {
      const answer = this._list(kernel, query);
      const served = answer.then(
        executions => executions !== null,
        () => this._served.delete(kernel) // no answer: the next caller finds out
      );
      this._served.set(kernel, served);
      return answer;
    }
    return (await first) ? this._list(kernel, query) : null;
  }

  /** Return an execution; null if the server does not know it any more. */
  async get(kernel: string, id: string): Promise<Execution | null> {
    const response = await ServerConnection.makeRequest(
      url(this.settings, kernel, id),
      { method: 'GET' },
      this.settings
    );
    if (response.status === 404) {
      return null;
    }
    if (!response.ok) {
      throw new ServerConnection.ResponseError(response);
    }
    return (await response.json()) as Execution;
  }

  private async _list(kernel: string, query: Record<string, string>): Promise<Execution[] | null> {
    const response = await ServerConnection.makeRequest(
      url(this.settings, kernel) + URLExt.objectToQueryString(query),
      { method: 'GET' },
      this.settings
    );
    if (response.status === 404 || response.status === 405) {
      return null;
    }
    if (!response.ok) {
      throw new ServerConnection.ResponseError(response);
    }
    const executions: unknown = await response.json();
    return Array.isArray(executions) ? (executions as Execution[]) : null;
  }

  /**
   * Forget the output of an execution so far, so that nobody restores it.
   *
   * One that has not begun has none (409). The request is sent also if the page is left.
   */
  async forget(kernel: string, id: string): Promise<void> {
    const response = await ServerConnection.makeRequest(
      url(this.settings, kernel, id),
      { method: 'DELETE', keepalive: true },
      this.settings
    );
    if (!response.ok && response.status !== 404 && response.status !== 409) {
      throw new ServerConnection.ResponseError(response);
    }
  }

  /** True if the kernels run behind a gateway: Jupyter Server then has another path for websockets. */
  get gateway(): boolean {
    return PageConfig.getOption('kbridgeChannels') !== '';
  }

  /** Return the URL of a websocket of a kernel. */
  channels(kernel: string, query: Record<string, string>): string {
    const path = PageConfig.getOption('kbridgeChannels') || 'api/kernels'; // it keeps the query
    const parameters = { ...query };
    if (this.settings.appendToken && this.settings.token !== '') {
      parameters.token = this.settings.token;
    }
    return (
      URLExt.join(this.settings.wsUrl, path, encodeURIComponent(kernel), 'channels') +
      URLExt.objectToQueryString(parameters)
    );
  }

  /** For each kernel, whether kbridge is behind it, as the first answer has said. */
  private readonly _served = new Map<string, Promise<boolean>>();
}
