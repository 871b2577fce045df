// Numbers and times as people read them.

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB'];

/** Return a number with two or three significant digits. @param {number} value */
function short(value) {
  return value >= 99.95 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

/** Return a number of bytes, such as `3.4 MB`. @param {number} count */
export function bytes(count) {
  let unit = 0;
  while (count >= 999.5 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit ? short(count) : Math.round(count)} ${UNITS[unit]}`;
}

/** Return a number, with `k` or `M` if it is large. @param {number} value */
export function count(value) {
  if (value >= 999500) {
    return `${short(value / 1e6)} M`;
  }
  return value >= 9999.5 ? `${short(value / 1000)} k` : short(Math.round(value * 10) / 10);
}

/** Return a time span, such as `12 s` or `3 min 20 s`. @param {number} seconds */
export function duration(seconds) {
  const whole = Math.floor(Math.max(0, seconds));
  if (seconds < 0.0995) {
    return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  }
  if (seconds < 10) {
    return `${seconds.toFixed(1)} s`;
  }
  if (whole < 60) {
    return `${whole} s`;
  }
  if (whole < 3600) {
    return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  }
  if (whole < 86400) {
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Return a time span in one unit, for times long ago. @param {number} seconds */
export function ago(seconds) {
  if (seconds < 5) {
    return 'just now';
  }
  const [size, name] =
    seconds < 60 ? [1, 's'] : seconds < 3600 ? [60, 'min'] : seconds < 86400 ? [3600, 'h'] : [86400, 'd'];
  return `${Math.floor(seconds / size)} ${name} ago`;
}

/** Return a share of a core in percent. @param {number} share */
export function percent(share) {
  const value = share * 100;
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} %`;
}
