/** The text of the status bar item, without a page: `status.ts` shows it. */

import type { TranslationBundle } from '@jupyterlab/translation';

import type { RestoreState } from './state';

/** What the item knows about the notebook that it stands for. */
export interface Situation {
  /** True if the websocket to the kernel is open, and the server has answered the last request. */
  readonly connected: boolean;

  /** Time of a request to the server, in milliseconds; null before the first answer. */
  readonly roundTrip: number | null;

  readonly state: RestoreState;
}

/** What the item shows. */
export interface Wording {
  readonly text: string;

  /** A longer text, for the tooltip. */
  readonly title: string;
}

/**
 * Return the text and the tooltip of the item.
 *
 * A lost connection comes first, because nothing else is up to date then.
 */
export function wording(situation: Situation, trans: TranslationBundle, locale?: string): Wording {
  const { connected, roundTrip, state } = situation;
  if (!connected) {
    return {
      text: trans.__('kbridge: disconnected'),
      title: trans.__('No connection to the kernel. Its output is kept, and shown afterwards.')
    };
  }
  if (state.phase === 'catching-up') {
    return { text: behind(state.linesBehind, trans, locale), title: cells(state.cells, trans) };
  }
  if (state.phase === 'restored' && state.cells > 0) {
    return { text: trans.__('kbridge: output restored'), title: cells(state.cells, trans) };
  }
  if (roundTrip === null) {
    return { text: trans.__('kbridge'), title: trans.__('Settings of kbridge') };
  }
  return {
    text: trans.__('kbridge %1 ms', number(roundTrip, locale)),
    title: trans.__('Time of a request to the server. A click opens the settings of kbridge.')
  };
}

function behind(lines: number, trans: TranslationBundle, locale?: string): string {
  if (lines <= 0) {
    return trans.__('kbridge: catching up');
  }
  // %1 would be the number without separators.
  return trans._n(
    'kbridge: catching up, %2 line behind',
    'kbridge: catching up, %2 lines behind',
    lines,
    number(lines, locale)
  );
}

function cells(count: number, trans: TranslationBundle): string {
  return trans._n(
    'This page missed output of %1 cell. A click opens the settings of kbridge.',
    'This page missed output of %1 cells. A click opens the settings of kbridge.',
    count
  );
}

function number(value: number, locale?: string): string {
  const digits = { maximumFractionDigits: 0 };
  try {
    return value.toLocaleString(locale, digits);
  } catch {
    return value.toLocaleString(undefined, digits); // the locale is not one that the browser knows
  }
}
