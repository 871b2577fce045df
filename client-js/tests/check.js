/**
 * Check format and types, also those of the console, with the tools of the JupyterLab extension;
 * `--write` repairs the format, and writes kbridge.d.ts.
 */

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const cwd = fileURLToPath(new URL('..', import.meta.url));
const tools = fileURLToPath(new URL('../../labextension/node_modules', import.meta.url));
const write = process.argv.includes('--write');

/** Run a program of the tools; end with its exit code if it fails. */
function run(program, ...options) {
  try {
    execFileSync(process.execPath, [join(tools, program), ...options], { cwd, stdio: 'inherit' });
  } catch (error) {
    process.exit(error.status ?? 1);
  }
}

const others = [
  '../kbridge/page/static/console',
  '../tests/page/console',
  '../tests/page/live'
].map(folder => `${folder}/**/*.{css,js}`);
run(
  'prettier/bin/prettier.cjs',
  ...['--config', '.prettierrc.json', write ? '--write' : '--check', '--log-level', 'warn'],
  ...['.', ...others]
);
const place = mkdtempSync(join(tmpdir(), 'kbridge-js-'));
try {
  run('typescript/bin/tsc', '-p', '.', '--outDir', place);
  const [made, kept] = [join(place, 'kbridge.d.ts'), join(cwd, 'kbridge.d.ts')];
  if (write) {
    copyFileSync(made, kept);
  } else if (readFileSync(made, 'utf8') !== readFileSync(kept, 'utf8')) {
    console.error('kbridge.d.ts is not that of kbridge.js: run `make format`');
    process.exitCode = 1;
  }
} finally {
  rmSync(place, { recursive: true });
}
run('typescript/bin/tsc', '-p', 'tests');
run('typescript/bin/tsc', '-p', '../tests/page/console');
