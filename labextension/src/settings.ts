/** A way to the settings of the extension, in JupyterLab and in Notebook 7. */

import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { ISettingRegistry } from '@jupyterlab/settingregistry';
import type { TranslationBundle } from '@jupyterlab/translation';
import { Dialog, showDialog, showErrorMessage } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

/** Opens the settings editor of JupyterLab. */
const EDITOR = 'settingeditor:open';

/**
 * Show the settings of a plugin: in JupyterLab's editor, else in a dialog.
 *
 * A page of Notebook 7 holds one document, so there the editor cannot be opened.
 */
export async function openSettings(
  app: JupyterFrontEnd,
  registry: ISettingRegistry | null,
  plugin: string,
  trans: TranslationBundle
): Promise<void> {
  if (app.name !== 'Jupyter Notebook' && app.commands.hasCommand(EDITOR)) {
    await app.commands.execute(EDITOR, { query: 'kbridge' });
  } else if (registry) {
    await edit(await registry.load(plugin), trans);
  }
}

/** Let the user change settings that are true or false. */
async function edit(settings: ISettingRegistry.ISettings, trans: TranslationBundle): Promise<void> {
  const body = new Switches(settings, trans);
  const { button } = await showDialog({
    title: trans.__('Settings of kbridge'),
    body,
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: trans.__('Save') })]
  });
  if (!button.accept) {
    return;
  }
  try {
    for (const [name, box] of body.boxes) {
      if (box.checked !== (settings.get(name).composite === true)) {
        await settings.set(name, box.checked);
      }
    }
  } catch (error) {
    await showErrorMessage(trans.__('The settings of kbridge are not saved'), error as Error);
  }
}

/** A checkbox for each boolean setting of a schema. */
class Switches extends Widget {
  constructor(settings: ISettingRegistry.ISettings, trans: TranslationBundle) {
    super();
    for (const [name, property] of Object.entries(settings.schema.properties ?? {})) {
      if (property.type !== 'boolean') {
        continue;
      }
      const box = document.createElement('input');
      box.type = 'checkbox';
      box.checked = settings.get(name).composite === true;
      const label = document.createElement('label');
      label.className = 'kb-Settings-switch';
      label.append(box, trans.__(property.title ?? name));
      label.title = trans.__(property.description ?? '');
      this.node.appendChild(label);
      this.boxes.set(name, box);
    }
  }

  readonly boxes = new Map<string, HTMLInputElement>();
}
