/** The plugin of the extension: it restores output, and shows the state in the status bar. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { ExecutionsApi } from './api';
import { Restorer } from './restorer';
import { openSettings } from './settings';
import { StatusItem } from './status';

/** The plugin; its schema has the settings of the extension. */
const PLUGIN = '@kbridge/jupyterlab:plugin';

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Restores output that the page missed from the journal of kbridge.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ISettingRegistry, ITranslator, IStatusBar],
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    settings: ISettingRegistry | null,
    translator: ITranslator | null,
    bar: IStatusBar | null
  ): void => {
    const api = new ExecutionsApi(app.serviceManager.serverSettings);
    const trans = (translator ?? nullTranslator).load('kbridge');
    const restorer = new Restorer({ tracker, api, translator: translator ?? nullTranslator });
    const item = new StatusItem({
      restorer,
      probe: async kernel => (await api.list(kernel, { limit: '1' })) !== null,
      openSettings: () => void openSettings(app, settings, PLUGIN, trans),
      trans,
      locale: translator?.languageCode?.replace('_', '-') // JupyterLab 4.2.0 has none
    });
    const choose = () => {
      const panel = tracker.currentWidget;
      item.panel = panel && panel === app.shell.currentWidget ? panel : null;
    };
    tracker.currentChanged.connect(choose);
    app.shell.currentChanged?.connect(choose);
    choose();
    place(app, bar, item);
    void follow(settings, 'restoreOutput', value => {
      restorer.enabled = value;
    });
    void follow(settings, 'showStatus', value => {
      item.enabled = value;
    });
  }
};

/** Put the item into the page, if there is a place for it. */
function place(app: JupyterFrontEnd, bar: IStatusBar | null, item: StatusItem): void {
  if (bar) {
    bar.registerStatusItem(PLUGIN, {
      item,
      align: 'left',
      rank: 3, // to the right of the kernel's status
      isActive: () => item.active,
      activeStateChanged: item.activeChanged
    });
  } else if (app.name === 'Jupyter Notebook') {
    // Notebook 7 has no status bar; it shows the state of a notebook beside the menu.
    item.id = 'kbridge-status';
    const show = () => item.setHidden(!item.active);
    item.activeChanged.connect(show);
    show();
    app.shell.add(item, 'menu', { rank: 10_005 });
  } else {
    item.dispose(); // the user has disabled the status bar
  }
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

export default plugin;
