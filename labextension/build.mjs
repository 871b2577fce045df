/** Bundle lib/ into kbridge/labextension/, as `jupyter-builder build` does, but without Python. */

import { execFileSync } from 'node:child_process';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';

const here = path => new URL(path, import.meta.url);
const read = path => JSON.parse(readFileSync(here(path), 'utf8'));

// core-meta lists the packages that JupyterLab shares, with the versions of a new JupyterLab. The
// bundle asks for the versions of package.json, so that an older JupyterLab does not warn.
const core = read('node_modules/@jupyterlab/core-meta/core.package.json');
for (const [name, range] of Object.entries(read('package.json').dependencies)) {
  for (const versions of [core.dependencies, core.resolutions]) {
    if (versions?.[name]) {
      versions[name] = range;
    }
  }
}
writeFileSync(here('lib/core.package.json'), JSON.stringify(core));
execFileSync(
  process.execPath,
  [
    'node_modules/@jupyter/builder/lib/build-labextension.js',
    '--core-package-file',
    'lib/core.package.json',
    '.'
  ],
  { cwd: here('.'), stdio: 'inherit' }
);
// JupyterLab's extension manager reads there that pip has installed the extension.
copyFileSync(here('install.json'), here('../kbridge/labextension/install.json'));
