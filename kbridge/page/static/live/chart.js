// A moving chart of one value. SVG, so that its colours follow the style sheet.

import { element, setAttribute, setText } from './dom.js';

const SVG = 'http://www.w3.org/2000/svg';
const SECONDS = 120;
const WIDTH = 240;
const HEIGHT = 56;

/** The last two minutes of a value. */
export class Series {
  /** @type {{time: number, value: number}[]} */
  points = [];

  /** Add a value. @param {number} time - Seconds. @param {number} value */
  add(time, value) {
    this.points.push({ time, value });
    while (this.points[0].time < time - SECONDS) {
      this.points.shift();
    }
  }

  get max() {
    return this.points.reduce((most, point) => Math.max(most, point.value), 0);
  }

  get last() {
    return this.points.at(-1)?.value ?? 0;
  }
}

/** Return a round number at or above `value`. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 5, 7.5, 10].find(step => step * power >= value * 0.999);
}

/** Return the path of a series: its line, and the area below it. */
function paths(points, top) {
  const now = points.at(-1).time;
  const place = ({ time, value }) => {
    const x = WIDTH - ((now - time) / SECONDS) * WIDTH;
    const y = HEIGHT - 1 - (value / top) * (HEIGHT - 6);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  };
  let line = `M${place(points[0])}`;
  for (let i = 1; i < points.length; i++) {
    // A time without samples is left open.
    line += (points[i].time - points[i - 1].time > 5 ? 'M' : 'L') + place(points[i]);
  }
  const first = WIDTH - ((now - points[0].time) / SECONDS) * WIDTH;
  const area = `${line.replaceAll('M', 'L').replace('L', 'M')}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z`;
  return { line, area };
}

export class Chart {
  /**
   * @param {string} title
   * @param {(value: number) => string} format
   * @param {number} least - The lowest top of the scale.
   */
  constructor(title, format, least) {
    this.title = title;
    this.format = format;
    this.least = least;
    this.svg = document.createElementNS(SVG, 'svg');
    this.svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute('preserveAspectRatio', 'none');
    this.svg.setAttribute('role', 'img');
    this.area = this.svg.appendChild(document.createElementNS(SVG, 'path'));
    this.area.setAttribute('class', 'area');
    this.line = this.svg.appendChild(document.createElementNS(SVG, 'path'));
    this.line.setAttribute('class', 'line');
    this.value = element('span', { class: 'value' });
    this.scale = element('span', { class: 'scale', 'aria-hidden': 'true' });
    this.parts = [
      element('p', { class: 'label' }, element('span', { text: title }), this.value),
      element('div', { class: 'plot' }, this.svg, this.scale)
    ];
  }

  /** Draw a series. @param {Series} series */
  draw(series) {
    const now = this.format(series.last);
    setText(this.value, now);
    setAttribute(this.svg, 'aria-label', `${this.title}, last two minutes: now ${now}, at most ${this.format(series.max)}`);
    if (!series.points.length) {
      return;
    }
    const top = ceiling(Math.max(series.max, this.least));
    setText(this.scale, this.format(top));
    const { line, area } = paths(series.points, top);
    this.line.setAttribute('d', line);
    this.area.setAttribute('d', area);
  }
}
