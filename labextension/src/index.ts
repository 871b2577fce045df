/** The plugins of the extension: one restores output, one shows the state in the status bar. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { URLExt } from '@jupyterlab/coreutils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ServerConnection } from '@jupyterlab/services';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { Token } from '@lumino/coreutils';

import { Restorer } from './restorer';
import type { IRestorer } from './state';
import { StatusItem } from './status';

/** The plugin whose schema has the settings of the extension. */
const PLUGIN = '@kbridge/jupyterlab:plugin';

const Restoring = new Token<IRestorer>(
  '@kbridge/jupyterlab:IRestorer',
  'Restores the output of running kernels, and tells how far it is.'
);

const restorer: JupyterFrontEndPlugin<IRestorer> = {
  id: PLUGIN,
  description: 'Restores output that the page missed from the journal of kbridge.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ISettingRegistry, ITranslator],
  provides: Restoring,
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    settings: ISettingRegistry | null,
    translator: ITranslator | null
  ): IRestorer => {
    const restorer = new Restorer({
      tracker,
      serverSettings: app.serviceManager.serverSettings,
      translator: translator ?? nullTranslator
    });
    void follow(settings, 'restoreOutput', value => {
      restorer.enabled = value;
    });
    return restorer;
  }
};

const status: JupyterFrontEndPlugin<void> = {
  id: '@kbridge/jupyterlab:status',
  description: 'Shows the connection to the kernel, and the progress of restoring.',
  autoStart: true,
  requires: [INotebookTracker, Restoring],
  optional: [IStatusBar, ISettingRegistry, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    restorer: IRestorer,
    bar: IStatusBar | null,
    settings: ISettingRegistry | null,
    translator: ITranslator | null
  ): void => {
    const item = new StatusItem({
      restorer,
      probe: kernelId => probe(app.serviceManager.serverSettings, kernelId),
      openSettings: () => openSettings(app),
      trans: (translator ?? nullTranslator).load('kbridge'),
      locale: translator?.languageCode.replace('_', '-')
    });
    if (!place(app, bar, item)) {
      item.dispose();
      return;
    }
    const choose = () => {
      const panel = tracker.currentWidget;
      item.panel = panel && panel === app.shell.currentWidget ? panel : null;
    };
    tracker.currentChanged.connect(choose);
    app.shell.currentChanged?.connect(choose);
    choose();
    void follow(settings, 'showStatus', value => {
      item.enabled = value;
    });
  }
};

/** Put the item into the page; return false if there is no place for it. */
function place(app: JupyterFrontEnd, bar: IStatusBar | null, item: StatusItem): boolean {
  if (bar) {
    bar.registerStatusItem(status.id, {
      item,
      align: 'left',
      rank: 3, // to the right of the kernel's status
      isActive: () => item.active,
      activeStateChanged: item.activeChanged
    });
    return true;
  }
  if (app.name !== 'Jupyter Notebook') {
    return false; // the user has disabled the status bar
  }
  // Notebook 7 has no status bar; it shows the kernel's status beside the menu.
  item.id = 'kbridge-status';
  const show = () => item.setHidden(!item.active);
  item.activeChanged.connect(show);
  show();
  app.shell.add(item, 'menu', { rank: 10_005 });
  return true;
}

/** Call back with a setting now and when it changes; it is true without a registry. */
async function follow(
  registry: ISettingRegistry | null,
  name: string,
  apply: (value: boolean) => void
): Promise<void> {
  if (!registry) {
    apply(true);
    return;
  }
  try {
    const settings = await registry.load(PLUGIN);
    const read = () => apply(settings.get(name).composite !== false);
    settings.changed.connect(read);
    read();
  } catch (error) {
    console.error('kbridge: its settings could not be loaded; the defaults are used', error);
    apply(true);
  }
}

function openSettings(app: JupyterFrontEnd): void {
  if (app.commands.hasCommand('settingeditor:open')) {
    void app.commands.execute('settingeditor:open', { query: 'kbridge' });
  }
}

/** Return true if the kernel is behind kbridge. */
async function probe(settings: ServerConnection.ISettings, kernelId: string): Promise<boolean> {
  const path = URLExt.join('api/kernels', encodeURIComponent(kernelId), 'executions');
  const url = `${URLExt.join(settings.baseUrl, path)}?limit=1`;
  const response = await ServerConnection.makeRequest(url, {}, settings);
  return response.ok;
}

export default [restorer, status];
