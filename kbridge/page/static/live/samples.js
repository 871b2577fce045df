// Completes samples: the server sends all kernels once, and then what has changed.

export class Samples {
  constructor() {
    /** @type {Map<string, any>} */
    this.kernels = new Map();
  }

  /**
   * Return a sample with all kernels and all their fields.
   *
   * @param {any} sample as in docs/page.md
   */
  complete(sample) {
    if (!sample.changes) {
      this.kernels = new Map();
    }
    for (const kernel of sample.kernels) {
      this.kernels.set(kernel.id, { ...this.kernels.get(kernel.id), ...kernel });
    }
    if (sample.ids) {
      this.kernels = new Map(sample.ids.map(id => [id, this.kernels.get(id)]));
    }
    return { ...sample, kernels: [...this.kernels.values()] };
  }
}
