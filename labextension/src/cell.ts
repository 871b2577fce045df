/**
 * One code cell of a notebook, as restoring changes it.
 *
 * A cell is found by its id each time: JupyterLab replaces the model of a cell that is moved, and
 * the widget of a cell that is not rendered may not exist yet.
 */

import type { CodeCell, ICodeCellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { IStdin } from '@jupyterlab/outputarea';
import type { Kernel, KernelMessage } from '@jupyterlab/services';
import type { ITranslator } from '@jupyterlab/translation';
import type { PanelLayout } from '@lumino/widgets';
import { OutputAreaModel } from '@jupyterlab/outputarea';
import { JSONExt } from '@lumino/coreutils';
import { Panel, Widget } from '@lumino/widgets';

import type { Feed, Output, Outputs } from './feed';
import type { Header } from './frames';
import { sameOutputs } from './same';

/** An input request that a person is asked. */
export interface Question {
  readonly header: Header;
  readonly prompt: string;
  readonly password: boolean;

  /** Called with what the person typed. */
  readonly send: (value: string) => void;

  /** Called with the text that stays in the cell. */
  readonly echo: (text: string) => void;
}

/** `executionState` is in JupyterLab 4.3 and newer. */
type WithState = ICodeCellModel & { executionState?: 'idle' | 'running' };

/** The cell. */
export class RestoredCell {
  constructor(
    private readonly panel: NotebookPanel,
    readonly id: string,
    private readonly translator: ITranslator
  ) {}

  /** True if changes do not mark the notebook as changed, because another page saves them. */
  keepsClean = false;

  /** The model; null if the cell is gone. */
  get model(): ICodeCellModel | null {
    const cells = this.panel.isDisposed ? null : this.panel.model?.cells;
    for (const model of cells ?? []) {
      if (model.id === this.id && model.type === 'code') {
        return model as ICodeCellModel;
      }
    }
    return null;
  }

  /** The text of the cell; null if the cell is gone. */
  get source(): string | null {
    return this.model?.sharedModel.getSource() ?? null;
  }

  /** The execution count; null without one. */
  get count(): number | null {
    return this.model?.executionCount ?? null;
  }

  /** True if the cell has outputs. */
  get hasOutputs(): boolean {
    return (this.model?.outputs.length ?? 0) > 0;
  }

  /** The outputs, in nbformat. */
  get outputs(): Output[] {
    return (this.model?.outputs.toJSON() ?? []) as unknown as Output[];
  }

  /** Show `[*]`. */
  showRunning(): void {
    this._running = true;
    this._showPrompt();
  }

  /** Take `[*]` away again, without a trace of the execution. */
  showIdle(): void {
    this._running = false;
    this._showPrompt();
    this.stopAsking();
  }

  /** Make the changes of a feed. The first time, they replace all that the cell had. */
  apply(feed: Feed): void {
    // The model is looked for in all cells, and most feeds have no changes.
    const model = feed.pending ? this.model : null;
    if (model) {
      this._change(() => {
        if (feed.fresh) {
          // As when JupyterLab submits a cell. The outputs that come from the kernel of this user
          // are trusted; the former ones go first, so that they are not.
          model.clearExecution();
          this._showPrompt();
        }
        feed.flush(model.outputs as unknown as Outputs);
      });
    }
  }

  /** Return true if the cell shows all outputs of a feed, and nothing else. */
  shows(feed: Feed): boolean {
    const model = this.model;
    if (!model) {
      return true;
    }
    const wanted = new OutputAreaModel({ trusted: model.trusted });
    feed.play(wanted as unknown as Outputs);
    const same = sameOutputs(wanted.toJSON() as unknown as Output[], this.outputs, (a, b) =>
      JSONExt.deepEqual(a as never, b as never)
    );
    wanted.dispose();
    return same;
  }

  /** Show that the execution is over. */
  showOver(count: number | null): void {
    const model = this.model;
    this._running = false;
    if (model && model.executionCount !== count) {
      this._change(() => (model.executionCount = count));
    }
    this._showPrompt();
    this.stopAsking();
  }

  /** Record times in the metadata of the cell, if the person wants that. */
  record(timing: Readonly<Record<string, string>>): void {
    const model = this.model;
    if (model && this.panel.content.notebookConfig.recordTiming) {
      const before = (model.getMetadata('execution') ?? {}) as Record<string, string>;
      if (Object.keys(timing).some(key => before[key] !== timing[key])) {
        this._change(() => model.setMetadata('execution', { ...before, ...timing }));
      }
    }
  }

  /** Ask a person, below the output of the cell. */
  async ask(question: Question): Promise<void> {
    this.stopAsking();
    const { widget: cell } = this;
    if (!cell) {
      return;
    }
    const asked = (this._asked = new Panel());
    await cell.ready; // a cell that is not rendered has no place for it yet
    if (asked.isDisposed || cell.isDisposed) {
      return;
    }
    const area = cell.outputArea;
    asked.addClass('jp-OutputArea-child');
    asked.addClass('jp-OutputArea-stdin-item');
    const prompt = area.contentFactory.createOutputPrompt();
    prompt.addClass('jp-OutputArea-prompt');
    asked.addWidget(prompt);
    const input = this._createInput(cell, question);
    input.addClass('jp-OutputArea-output');
    asked.addWidget(input);
    if (area.model.length >= area.maxNumberOutputs) {
      area.maxNumberOutputs = area.model.length;
    }
    this._setPendingInput(true);
    void input.value.then(value => {
      // `asked` is gone if somebody else answered first.
      if (asked === this._asked) {
        question.echo(value + '\n');
        this.stopAsking();
      }
    });
    (area.layout as PanelLayout).addWidget(asked);
  }

  /** Take an input box away: it is answered, or nobody waits for the answer. */
  stopAsking(): void {
    if (this._asked) {
      this._asked.dispose();
      this._asked = null;
      this._setPendingInput(false);
    }
  }

  /** Show a note beside the cell. It is not part of the file. */
  async note(text: string): Promise<void> {
    this.removeNote();
    const { widget: cell } = this;
    if (!cell) {
      return;
    }
    const note = (this._note = new Widget());
    note.addClass('kb-Note');
    note.node.textContent = text;
    await cell.ready;
    if (!note.isDisposed && !cell.isDisposed) {
      (cell.layout as PanelLayout).addWidget(note);
    }
  }

  removeNote(): void {
    this._note?.dispose();
    this._note = null;
  }

  private get widget(): CodeCell | null {
    const widgets = this.panel.isDisposed ? [] : this.panel.content.widgets;
    const widget = widgets.find(cell => cell.model.id === this.id && cell.model.type === 'code');
    return (widget as CodeCell | undefined) ?? null;
  }

  /** Change the notebook. */
  private _change(change: () => void): void {
    const { model } = this.panel;
    const clean = this.keepsClean && model?.dirty === false && !model.collaborative;
    change();
    if (clean) {
      model.dirty = false;
    }
  }

  private _showPrompt(): void {
    const model: WithState | null = this.model;
    const { widget } = this;
    if (!model) {
      return;
    }
    if ('executionState' in model) {
      const state = this._running ? 'running' : 'idle';
      if (model.executionState !== state) {
        model.executionState = state;
      }
      return;
    }
    const show = () => {
      if (widget && !widget.isDisposed) {
        widget.setPrompt(this._running ? '*' : `${widget.model.executionCount || ''}`);
      }
    };
    show();
    void widget?.ready.then(show); // rendering sets the prompt
  }

  private _createInput(cell: CodeCell, question: Question): IStdin {
    // The widget uses only this method of the future.
    const future = {
      sendInputReply: (content: KernelMessage.IInputReplyMsg['content']) => {
        if (content.status === 'ok') {
          question.send(content.value);
        }
      }
    } as unknown as Kernel.IShellFuture;
    return cell.outputArea.contentFactory.createStdin({
      parent_header: question.header as KernelMessage.IInputReplyMsg['parent_header'],
      prompt: question.prompt,
      password: question.password,
      future,
      translator: this.translator,
      inputHistoryScope: this.panel.content.notebookConfig.inputHistoryScope
    });
  }

  /** Let JupyterLab warn a person who runs a cell while the kernel waits for an answer. */
  private _setPendingInput(pending: boolean): void {
    const kernel = this.panel.sessionContext.session?.kernel;
    if (kernel && !kernel.isDisposed) {
      kernel.hasPendingInput = pending;
    }
  }

  private _running = false;
  private _asked: Panel | null = null;
  private _note: Widget | null = null;
}
