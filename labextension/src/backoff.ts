/** Delays that grow while nothing happens. */

/** Delays between attempts: each is twice the one before, up to a limit. */
export class Backoff {
  /**
   * @param first - The first delay, in milliseconds.
   * @param most - The longest delay.
   */
  constructor(
    private readonly first: number,
    private readonly most: number
  ) {
    this._delay = first;
  }

  /** Return the next delay. */
  next(): number {
    const delay = this._delay;
    this._delay = Math.min(2 * delay, this.most);
    return delay;
  }

  /** Begin again with the first delay. */
  reset(): void {
    this._delay = this.first;
  }

  private _delay: number;
}
